# host: sandbox
"""What a server keeps is in its state directory, for nobody else, and can be taken elsewhere.
The state is in `/var/lib/opencode/instance-state/<name>`; a session leaves the worktree as it was, but for opencode's own note of the project's number
in `.git`. Another instance can neither read it nor see that it is there. An archive made under a server at work, as docs/nixos.md has it, and put in the
place of lost state, brings back every session that there was when it was begun."""

STATE = "/var/lib/opencode/instance-state"
DATA = f"{STATE}/a/.local/share/opencode"

def files(directory):
    return set(machine.succeed(f"find {directory} -printf '%P %y %s %i %T@\\n'").splitlines())


def sessions(name):
    url = f"http://{address(name)}/session?limit=100000"
    return {session["id"] for session in json.loads(machine.succeed(f"curl -sf -m 20 '{url}'"))}


def made():
    """The sessions of which the writer has been told that they are made."""
    return set(re.findall(r'^{"id":"(\w+)".*}$', machine.succeed("cat /run/made"), re.MULTILINE))


prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown")
machine.succeed("runuser -u opencode-a -- sh -c 'cd /srv/a; echo hello > readme; mkdir src; touch src/main'")
commit = "git -c user.name=x -c user.email=x@x commit -q --allow-empty -m x"
machine.succeed(f"runuser -u opencode-b -- sh -c 'cd /srv/b; git init -q; {commit}; echo hello > readme'")
before = {name: files(f"/srv/{name}") for name in "ab"}
start("a", "b")

with subtest("the state is where it should be, for its user alone"):
    says("a", "echo at=$HOME", f"at={STATE}/a\n")
    says("a", f"stat -c %a:%U {STATE}/a", "700:opencode-a")
    assert machine.succeed(f"find {STATE}/a -name opencode.db").strip() == f"{STATE}/a/.local/share/opencode/opencode.db"

with subtest("a session leaves nothing in the directory"):
    kept = post("a", "/session", {"title": "to be kept"})["id"]
    can("a", "cat readme")
    assert files("/srv/a") == before["a"], files("/srv/a") ^ before["a"]
    # The comparison sees what the agent does there.
    can("a", "touch src/main2 && rm src/main2 && touch src/other")
    assert files("/srv/a") != before["a"]

with subtest("nor in a Git worktree, but for the project's number"):
    project = post("b", "/session", {})["projectID"]
    can("b", "cat readme")
    # The directory .git itself has a new time then.
    changed = {line.split()[0] for line in files("/srv/b") ^ before["b"]}
    assert changed == {".git", ".git/opencode"}, changed
    machine.succeed(f"grep -qx {project} /srv/b/.git/opencode")

with subtest("another instance neither reads nor changes it, nor sees that it is there"):
    machine.succeed(f"echo secret > {STATE}/b/secret; chown opencode-b {STATE}/b/secret")
    can("b", f"grep -q secret {STATE}/b/secret && touch {STATE}/b/written")
    cannot("a", f"cat {STATE}/b/secret || touch {STATE}/b/written-by-a || touch {STATE}/new")
    assert machine.succeed(f"ls {STATE}").split() == ["a", "b"]
    assert agent("a", f"ls -A {STATE}").split() == ["a"]
    # Without the unit's mounts, the modes keep it out.
    machine.fail(f"runuser -u opencode-a -- cat {STATE}/b/secret")
    machine.succeed(f"runuser -u opencode-b -- cat {STATE}/b/secret")

with subtest("an archive made under a server at work has every session from before it"):
    # Beside the database, so that the archive takes its time.
    machine.succeed(f"head -c 100M /dev/urandom > {DATA}/ballast")
    request = f"curl -sf -m 20 -H 'content-type: application/json' -d '{{}}' http://{address('a')}/session"
    machine.succeed(f"systemd-run -q --unit writer bash -c {shlex.quote(f'while {request} >> /run/made; do echo >> /run/made; done')}")
    machine.wait_until_succeeds("[ $(wc -l < /run/made) -ge 30 ]")
    before = {kept} | made()
    machine.succeed("systemctl start opencode-a-backup")
    meanwhile = len({kept} | made()) - len(before)
    assert meanwhile > 10, f"{meanwhile} sessions were made during the archive"
    machine.succeed("systemctl stop writer")
    later = post("a", "/session", {"title": "after the archive"})["id"]
    assert before | {later} <= sessions("a")

    machine.succeed(
        f"systemctl stop opencode-a; rm -rf {STATE}/a; systemd-tmpfiles --create --prefix={STATE}",
        f"setpriv --reuid=opencode-a --regid=opencode-a --clear-groups tar -C {STATE}/a -xzf - < /var/lib/opencode/backup/a.tar.gz",
        f"[ -s {DATA}/ballast ]; ls -A {DATA} | grep -x opencode.db",
    )
    start("a")
    found = sessions("a")
    assert before <= found and later not in found, (before - found, later)
    output = json.loads(machine.succeed(f"curl -sf -m 20 http://{address('a')}/session/{kept}"))
    assert output["title"] == "to be kept", output
    can("a", f"touch {STATE}/a/written")
