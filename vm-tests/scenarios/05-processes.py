# host: sandbox
"""An agent sees its own processes and asks nothing of the kernel that an ordinary program does not.
Other processes are invisible to it. Kernel tunables, modules, cgroup files, the clock, namespaces, packet and raw sockets, keyrings and tracing are
refused, and so is what its confinement is made of: the bpf system call, the pins, the daemon's socket. A hook of the setup is refused the same.
A setuid program gives nothing. Memory that can be written and executed is allowed, for the server's own JIT compiler."""

# Each tries one thing, and tells the error that the kernel gives. Run outside the unit, as root, each is allowed.
PROBE = r"""
import ctypes, errno, mmap, os, socket, struct

libc = ctypes.CDLL(None, use_errno=True)
# Numbers of the system calls that libc has no function for.
INIT_MODULE, ADD_KEY, KEYCTL, BPF = {"x86_64": (175, 248, 250, 321), "aarch64": (105, 217, 219, 280)}[os.uname().machine]
CGROUP = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().split("::")[1].strip()


def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def change(path):
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, path)
    os.close(os.open(path, os.O_WRONLY))


def clock():
    timex = (ctypes.c_long * 64)()
    call("adjtimex", timex)
    timex[0] = 2  # ADJ_FREQUENCY, to what it is
    call("adjtimex", timex)


def told(number, *arguments):
    # Whoever may ask is told this, for there is no such thing.
    try:
        call(*arguments)
    except OSError as error:
        if error.errno != number:
            raise


def bpf():
    # BPF_OBJ_GET, which the kernel asks no privilege for.
    path = ctypes.c_char_p(b"/nowhere")
    attributes = struct.pack("QII", ctypes.cast(path, ctypes.c_void_p).value, 0, 0)
    told(errno.ENOENT, "syscall", BPF, 7, attributes, len(attributes))


PROBES = {
    "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "a raw socket for IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "a kernel tunable": lambda: change("/proc/sys/kernel/core_pattern"),
    "a cgroup's processes": lambda: change(CGROUP + "/cgroup.procs"),
    "a cgroup's limit": lambda: change(CGROUP + "/cgroup.max.depth"),
    "the clock": clock,
    "a module": lambda: told(errno.ENOEXEC, "syscall", INIT_MODULE, b"none", 4, b""),
    "the bpf system call": bpf,
    "the pins": lambda: os.listdir("/sys/fs/bpf/opencode-egress"),
    "the daemon's socket": lambda: socket.socket(socket.AF_UNIX).connect("/run/opencode-egress/control.sock"),
    "a key": lambda: call("syscall", ADD_KEY, b"user", b"probe", b"x", 1, -2),
    "a keyring": lambda: call("syscall", KEYCTL, 1, None),
    "tracing": lambda: call("ptrace", 0, 0, 0, 0),
    "the host name": lambda: call("sethostname", socket.gethostname().encode(), len(socket.gethostname())),
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
}
for name, flag in {
    "cgroup": 0x02000000, "ipc": 0x08000000, "mount": 0x00020000, "network": 0x40000000, "pid": 0x20000000,
    "time": 0x80, "user": 0x10000000, "uts": 0x04000000,
}.items():
    PROBES["a namespace: " + name] = lambda flag=flag: call("unshare", flag)

for name, probe in PROBES.items():
    child = os.fork()
    if child == 0:
        try:
            probe()
            print(name, "allowed", sep="=", flush=True)
        except OSError as error:
            print(name, errno.errorcode[error.errno], sep="=", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def answers(text):
    return dict(line.split("=") for line in text.splitlines())


prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown")
machine.succeed(f"printf %s {shlex.quote(PROBE)} > /srv/a/probe.py")
start("a", "b")

with subtest("what the kernel refuses, and would not refuse outside"):
    outside = answers(machine.succeed("python3 /srv/a/probe.py"))
    # A kernel without modules has no such call. What the unit may call is asked first, so the answer inside tells one from the other.
    assert outside.pop("a module") in {"allowed", "ENOSYS"}
    assert set(outside.values()) == {"allowed"}, outside
    # What a lack of privilege would refuse as well ends with another error here: the unit's setting comes first.
    first = dict.fromkeys(["a packet socket", "a netlink socket"], "EAFNOSUPPORT")
    first |= dict.fromkeys(["a kernel tunable", "a cgroup's processes", "a cgroup's limit"], "EROFS")
    first |= dict.fromkeys(["the pins", "the daemon's socket"], "EACCES")
    first |= {"executable memory": "allowed"}
    # The setup ran the probe in its `preInitScript`.
    for place, said in ("the server", agent("a", "python3 /srv/a/probe.py")), ("the setup", machine.succeed("cat /srv/a/from-setup")):
        inside = answers(said)
        assert inside.keys() == outside.keys() | {"a module"}, f"{place}: {said}"
        for name, answer in inside.items():
            assert answer == first.get(name, "EPERM"), f"{place}, {name}: {answer}"
    cannot("a", "ls /sys/fs/bpf/opencode-egress")
    machine.succeed("ls /sys/fs/bpf/opencode-egress")

with subtest("executable memory is refused where a unit asks for that"):
    hardened = "systemd-run --wait --pipe -q -p MemoryDenyWriteExecute=yes"
    refused = answers(machine.succeed(f"{hardened} $(command -v python3) /srv/a/probe.py"))["executable memory"]
    # By a filter of calls; newer systemd has the kernel refuse it (PR_SET_MDWE).
    assert refused in {"EPERM", "EACCES"}, refused

with subtest("other processes are not there"):
    for process in ("1", machine.succeed("systemctl show -P MainPID opencode-b").strip()):
        machine.succeed(f"runuser -u opencode-a -- ls -d /proc/{process}")
        cannot("a", f"ls -d /proc/{process}")
    own = machine.succeed("systemctl show -P MainPID opencode-a").strip()
    can("a", f"ls -d /proc/{own}")
    owners = set(agent("a", "stat -c %U /proc/[0-9]*").split())
    assert owners == {"opencode-a"}, owners

with subtest("a setuid program gives nothing"):
    machine.succeed("install -m 4755 $(readlink -f $(command -v id)) /srv/a/id")
    assert machine.succeed("runuser -u opencode-a -- /srv/a/id -u").strip() == "0"
    says("a", "/srv/a/id -u", machine.succeed("id -u opencode-a"))

with subtest("and it can make none"):
    machine.succeed("install -o opencode-a $(readlink -f $(command -v id)) /srv/a/own")
    machine.succeed("runuser -u opencode-a -- chmod u+s /srv/a/own && chmod u-s /srv/a/own")
    cannot("a", "chmod u+s /srv/a/own")
    can("a", "chmod u+x /srv/a/own")
