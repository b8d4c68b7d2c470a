# host: limits
"""One agent takes no more of the host than its instance is given.
Pseudo-terminals, shared memory, open files, sockets and with them the host's ephemeral ports, processes and, where the state has a file system of its own as docs/nixos.md has it, disk: it gets as many as `resources` says and
then an error, while the host and the other instance have theirs. A process that takes more memory than there is is killed, and the server goes on."""

# Takes as many as there are of one thing, and tells how many, the error, and what the rest of the program then sees of it.
TAKE = r"""
import errno, os, resource, sys, time

def terminal():
    return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)

def file():
    return os.open("/dev/null", os.O_RDONLY)

def process():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return child

what = sys.argv[1]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
taken = []
try:
    while len(taken) < 5000:
        taken.append(globals()[what]())
    print(len(taken), "allowed", flush=True)
except OSError as error:
    print(len(taken), errno.errorcode[error.errno], flush=True)
if len(sys.argv) > 2:
    # It may have no file left to open.
    os.mkdir(sys.argv[2])
    time.sleep(60)
if what == "process":
    for child in taken:
        os.kill(child, 9)
"""


# Takes every ephemeral port there is for one kind of socket, in processes enough for it, and keeps them. Tells how many, and the errors.
PORTS = r"""
import errno, os, resource, socket, sys, time

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
told, tell = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        taken = []
        try:
            while True:
                taken.append(socket.socket(socket.AF_INET, getattr(socket, sys.argv[1])))
                taken[-1].bind(("0.0.0.0", 0))
        except OSError as error:
            os.write(tell, f"{len(taken)} {errno.errorcode[error.errno]}\n".encode())
        time.sleep(60)
        os._exit(0)
lines = b""
while lines.count(b"\n") < 20:
    lines += os.read(told, 4096)
counts, errors = zip(*(line.split() for line in lines.decode().splitlines()))
with open("ports.part", "w") as file:
    print(sum(map(int, counts)), *sorted(set(errors)), file=file)
os.rename("ports.part", "ports")
time.sleep(60)
"""


def take(what, name="a"):
    count, error = agent(name, f"python3 take.py {what}").split()
    return int(count), error


prepare("a", "b")
for name in "ab":
    machine.succeed(f"printf %s {shlex.quote(TAKE)} > /srv/{name}/take.py")
    machine.succeed(f"printf %s {shlex.quote(PORTS)} > /srv/{name}/ports.py")
# The state of `b` on a file system of its own.
machine.succeed(
    "mount -t tmpfs -o size=96M,mode=0700,uid=$(id -u opencode-b),gid=$(id -g opencode-b) state /var/lib/opencode/instance-state/b",
)
start("a", "b")

with subtest("pseudo-terminals"):
    assert take("terminal") == (8, "ENOSPC"), take("terminal")
    # While it has them all.
    can("a", "setsid -f python3 take.py terminal held > /dev/null 2>&1; until [ -e held ]; do sleep 0.05; done")
    assert take("terminal") == (0, "ENOSPC"), take("terminal")
    assert take("terminal", "b") == (8, "ENOSPC"), take("terminal", "b")
    machine.succeed("script -qec true /dev/null < /dev/null")
    can("b", "script -qec true /dev/null < /dev/null")
    machine.succeed("pkill -u opencode-a -f take.py")

with subtest("shared memory"):
    says("a", "head -c 32M /dev/zero > /dev/shm/full; stat -c %s /dev/shm/full", "16777216\n")
    can("b", "head -c 8M /dev/zero > /dev/shm/some && rm /dev/shm/some")
    can("a", "rm /dev/shm/full")

with subtest("open files"):
    count, error = take("file")
    assert error == "EMFILE" and 2000 < count < 2048, (count, error)
    assert "files open" not in machine.succeed("opencode-egress status")
    can("a", "setsid -f python3 take.py file full > /dev/null 2>&1; until [ -e full ]; do sleep 0.05; done")
    # While it has them all. Before Linux 6.2 nobody says how many a process of another user's has.
    files = status()["a"]["limits"]["files"]
    if files is None:
        not_shown("open files: this kernel does not say how many a process has")
    else:
        assert (files["open"], files["limit"]) == (2048, 2048), files
        said = machine.succeed("opencode-egress status")
        assert f"! a: its process {files['pid']} has 2048 of 2048 files open (LimitNOFILE=)" in said, said
        assert "\nopencode_egress_open_files{opencode_instance=\"a\"} 2048\n" in machine.succeed("opencode-egress metrics")
        assert status()["b"]["limits"]["files"]["open"] < 2048, status()["b"]
    machine.succeed("pkill -u opencode-a -f take.py")

def binds(kind):
    """A command that has the kernel choose a port."""
    return f"""python3 -c 'import socket; socket.socket(socket.AF_INET, socket.{kind}).bind(("0.0.0.0", 0))'"""


for kind in ["SOCK_DGRAM", "SOCK_STREAM"]:
    with subtest(f"ephemeral ports, by {kind}"):
        can("a", f"rm -f ports; setsid -f python3 ports.py {kind} > /dev/null 2>&1; until [ -e ports ]; do sleep 0.05; done")
        # While it has them.
        machine.succeed(binds(kind), tcp(ALLOWED))
        can("b", binds(kind))
        cannot("a", binds(kind))
        count, *errors = machine.succeed("cat /srv/a/ports").split()
        assert errors == ["EPERM"] and 32 < int(count) <= 64, (count, errors)
        assert status()["a"]["sockets"] == {"open": 64, "limit": 64, "denied_lately": True}, status()["a"]["sockets"]
        said = machine.succeed("opencode-egress status")
        assert "! a: it has 64 of 64 sockets, and was lately denied more" in said, said
        # What others ask of it takes no port.
        healthy("a")
        machine.succeed("pkill -u opencode-a -f ports.py")
        while status()["a"]["sockets"]["open"] == 64:
            time.sleep(0.05)
        can("a", binds(kind))
machine.succeed("journalctl -t opencode-a-blocked --no-pager -o cat | grep 'hook=sock_create reason=too-many-sockets .*comm=python3'")
assert not status()["b"]["sockets"]["denied_lately"], status()["b"]

controllers = machine.succeed("cat /sys/fs/cgroup/cgroup.controllers").split()
with subtest("processes"):
    if "pids" not in controllers:
        not_shown("processes: this kernel's pids controller is not in the unified hierarchy here")
        assert machine.succeed("systemctl show -P TasksMax opencode-a").strip() == "150"
    else:
        count, error = take("process")
        assert error == "EAGAIN" and count < 150, (count, error)
        can("b", "true")
        reached = status()["a"]["limits"]["reached"]["tasks"]
        assert reached["count"] >= 1 and reached["lately"], reached
        assert "! a: processes or threads more than TasksMax= were refused to it" in machine.succeed("opencode-egress status")
        assert status()["b"]["limits"]["reached"]["tasks"] == {"count": 0, "lately": False}, status()["b"]

with subtest("memory"):
    if "memory" not in controllers:
        not_shown("memory: this kernel's memory controller is not in the unified hierarchy here")
        assert machine.succeed("systemctl show -P MemoryMax opencode-a").strip() == str(1 << 30)
    else:
        before = main_pid("opencode-a")
        cannot("a", "python3 -c 'x = bytearray(4 << 30)'")
        assert main_pid("opencode-a") == before
        reached = status()["a"]["limits"]["reached"]
        assert all(reached[limit]["count"] >= 1 and reached[limit]["lately"] for limit in ["memory-max", "oom-kill"]), reached
        assert "! a: processes of it were killed for want of memory" in machine.succeed("opencode-egress status")

with subtest("the host's disk, by the state"):
    free = int(machine.succeed("df --output=avail -B1 / | tail -1"))
    # All at once or nothing: the server writes there as well, and must not find it full.
    cannot("b", """python3 -c 'import os; os.posix_fallocate(os.open(os.environ["HOME"] + "/full", os.O_CREAT | os.O_WRONLY), 0, 200 << 20)'""")
    assert abs(int(machine.succeed("df --output=avail -B1 / | tail -1")) - free) < 64 << 20
    can("b", "touch ~/some")

with subtest("the servers go on"):
    healthy("a")
    healthy("b")
