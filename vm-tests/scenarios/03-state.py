# host: sandbox
"""What a server keeps is in its state directory, for nobody else, and can be taken elsewhere.
The state is in `/var/lib/opencode/instance-state/<name>`; a session leaves the worktree as it was, but for opencode's own note of the project's number
in `.git`. Another instance can neither read it nor see that it is there. An archive made under a running, idle server, put in the place of
lost state, brings the sessions back."""

STATE = "/var/lib/opencode/instance-state"


def files(directory):
    return set(machine.succeed(f"find {directory} -printf '%P %y %s %i %T@\\n'").splitlines())


def sessions(name):
    return {session["id"] for session in json.loads(machine.succeed(f"curl -sf -m 20 http://{address(name)}/session"))}


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

with subtest("an archive made under a running server has its sessions"):
    machine.succeed(f"tar -C {STATE} -czf /var/tmp/a.tar.gz --exclude=a/.cache a")
    later = post("a", "/session", {"title": "after the archive"})["id"]
    assert {kept, later} <= sessions("a")

    machine.succeed("systemctl stop opencode-a", f"rm -rf {STATE}/a", f"tar -C {STATE} -xzf /var/tmp/a.tar.gz")
    start("a")
    found = sessions("a")
    assert kept in found and later not in found, (kept, later, found)
    output = json.loads(machine.succeed(f"curl -sf -m 20 http://{address('a')}/session/{kept}"))
    assert output["title"] == "to be kept", output
    can("a", f"touch {STATE}/a/written")
