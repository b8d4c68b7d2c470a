# host: sandbox
"""A backup takes a hostile home, runs nothing of it, and writes nowhere but to root's archive.
The home has settings that run commands, links in the place of directories and of the database, names made of line breaks and options, pipes, files that are nearly
endless or may not be read, and no database. Each time there is an archive, of root's alone, that has what can be read; brought back as docs/nixos.md has it, it gives the state again. An
archive that could not be made whole leaves the one before. While it is made there is no network, and the agent's user can neither read nor change the archive."""

STATE = "/var/lib/opencode/instance-state/a"
DATA = f"{STATE}/.local/share/opencode"
BACKUP = "/var/lib/opencode/backup"
ARCHIVE = f"{BACKUP}/a.tar.gz"
# Outside of the unit's mounts these would be the host's.
MARKS = "/srv/a/ran /tmp/ran /var/tmp/ran /run/ran"


def own(command):
    """As the instance's user, in its home."""
    return machine.succeed(f"cd {STATE} && setpriv --reuid opencode-a --regid opencode-a --clear-groups bash -c {shlex.quote(command)}")


def backed_up():
    """Makes an archive. Returns the names in it, without those that hold line breaks."""
    machine.succeed("systemctl start opencode-a-backup")
    assert machine.succeed(f"stat -c '%U %a' {BACKUP}").strip() == "root 700"
    assert machine.succeed(f"ls -A {BACKUP}").split() == ["a.tar.gz"]
    assert machine.succeed(f"stat -c %U {ARCHIVE}").strip() == "root"
    return machine.succeed(f"tar -tzf {ARCHIVE}").splitlines()


def restored():
    """What docs/nixos.md has."""
    machine.succeed(
        f"systemctl stop opencode-a; rm -rf {STATE}; systemd-tmpfiles --create --prefix=/var/lib/opencode",
        f"setpriv --reuid=opencode-a --regid=opencode-a --clear-groups tar -C {STATE} -xzf - < {ARCHIVE}",
    )


prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown", "echo root > /srv/victim; chmod 644 /srv/victim")
start("a", "b")
kept = post("a", "/session", {"title": "to be kept"})["id"]

with subtest("settings that run commands are not read"):
    own(f"echo '.shell touch {MARKS}' > .sqliterc; mkdir -p .config/sqlite3; cp .sqliterc .config/sqlite3/sqliterc")
    own(f"for file in .bashrc .bash_profile .profile .tarrc; do echo 'touch {MARKS}' > $file; done")
    # They would run.
    own(f"sqlite3 {DATA}/opencode.db 'select 1' < /dev/null; ls /srv/a/ran /tmp/ran")
    machine.succeed(f"rm -f {MARKS}")
    names = backed_up()
    machine.fail(*(f"ls {mark}" for mark in MARKS.split()))
    assert names.count("./.local/share/opencode/opencode.db") == 1 and not [name for name in names if "whole.db" in name or name.startswith("./.cache")], names

with subtest("odd names and files of every kind are taken, or left out and told"):
    own("mkdir odd; cd odd; touch -- '--checkpoint-action=exec=sh' $'two\\nlines' whole.db; mkfifo pipe; truncate -s 100G endless; ln -s whole.db link; ln -s /etc/passwd outside")
    own("echo secret > odd/mine; ln odd/mine odd/hard; touch odd/closed; chmod 0 odd/closed; mkdir odd/shut; chmod 0 odd/shut")
    own("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"odd/socket\")'")
    names = backed_up()
    for name in ["pipe", "endless", "link", "outside", "hard", "whole.db", "--checkpoint-action=exec=sh", "two\\nlines"]:
        assert f"./odd/{name}" in names, (name, names)
    assert int(machine.succeed(f"stat -c %s {ARCHIVE}")) < 100 << 20
    assert "odd/closed" in printed("a", "-u opencode-a-backup")

with subtest("brought back, it is what it was"):
    restored()
    start("a")
    assert json.loads(machine.succeed(f"curl -sf -m 20 http://{address('a')}/session/{kept}"))["title"] == "to be kept"
    assert own("readlink odd/link odd/outside; cat odd/hard; find . ! -user opencode-a").split() == ["whole.db", "/etc/passwd", "secret"]

with subtest("a link in the place of the database, or of the directory around it, leads nowhere that the agent could not go itself"):
    machine.succeed("systemctl stop opencode-a")
    own(f"mv {DATA} {DATA}.old; ln -s /srv {DATA}")
    assert "./.local/share/opencode" in backed_up()
    own(f"rm {DATA}; mkdir {DATA}; ln -s /srv/victim {DATA}/opencode.db")
    assert "./.local/share/opencode/opencode.db" in backed_up()
    assert machine.succeed(f"tar -tvzf {ARCHIVE} | grep -- '-> /srv/victim'")
    assert machine.succeed("cat /srv/victim").strip() == "root"

with subtest("what is no database is taken as it is"):
    own(f"rm {DATA}/opencode.db; echo nonsense > {DATA}/opencode.db")
    assert "./.local/share/opencode/opencode.db" in backed_up()
    assert "cannot be read as a database" in printed("a", "-u opencode-a-backup")
    assert machine.succeed(f"tar -xOzf {ARCHIVE} ./.local/share/opencode/opencode.db").strip() == "nonsense"
    own(f"rm {DATA}/opencode.db; mkfifo {DATA}/opencode.db")
    assert "./.local/share/opencode/opencode.db" in backed_up()
    own(f"rm -r {DATA}; mv {DATA}.old {DATA}")

with subtest("one that is not made whole leaves the one before"):
    before = machine.succeed(f"sha256sum {ARCHIVE}")
    override("opencode-a-backup", "[Service]\nLimitFSIZE=512\n")
    machine.fail("systemctl start opencode-a-backup")
    assert machine.succeed(f"sha256sum {ARCHIVE}") == before
    override("opencode-a-backup", "")
    machine.succeed("systemctl reset-failed opencode-a-backup")
    backed_up()
    assert machine.succeed(f"sha256sum {ARCHIVE}") != before

with subtest("while it is made there is no network, and the archive is out of its user's reach"):
    override("opencode-a-backup", '[Service]\nExecStart=\nExecStart=' + machine.succeed("command -v sleep").strip() + ' 600\n')
    machine.succeed("systemctl start --no-block opencode-a-backup")
    machine.wait_until_succeeds("[ $(cat /proc/$(systemctl show -P MainPID opencode-a-backup)/comm) = sleep ]")
    inside = "nsenter -t $(systemctl show -P MainPID opencode-a-backup) -m -n -- "
    user = "setpriv --reuid opencode-a --regid opencode-a --clear-groups "
    machine.fail(f"{inside} ip -o link show up | grep -v 'lo:'", f"{inside} {user} ls {BACKUP}", f"{inside} ls /srv/a", f"{inside} ls /srv/exchange")
    machine.succeed(f"{inside} ls {BACKUP}/a.tar.gz", f"{inside} {user} ls {STATE}")
    machine.succeed("systemctl stop opencode-a-backup")
    override("opencode-a-backup", "")

with subtest("the agent neither starts one nor sees the archive"):
    start("a")
    cannot("a", f"ls {BACKUP}", f"cat {ARCHIVE}")
