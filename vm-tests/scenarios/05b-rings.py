# host: sandbox
"""An agent makes no sockets by a way that a filter of calls cannot look into.
`RestrictAddressFamilies=` reads the arguments of socket(), and io_uring makes sockets by entries in a ring: neither the server nor its set-up has io_uring. Nor
have they the older asynchronous I/O, of which the whole host has a limited number. The server and its shell work without."""

# Each tries one thing, and tells the error that the kernel gives.
PROBE = r"""
import ctypes, errno, mmap, os, socket, struct

libc = ctypes.CDLL(None, use_errno=True)
IO_SETUP = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
IO_URING_SETUP, IO_URING_ENTER = 425, 426
OP_SOCKET, GETEVENTS = 45, 1


def call(*arguments):
    result = libc.syscall(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "syscall")
    return result


def ring_socket(family, kind):
    # io_uring(7): one entry in the submission ring, and its result in the completion ring.
    parameters = bytearray(120)
    ring = call(IO_URING_SETUP, 1, (ctypes.c_char * 120).from_buffer(parameters))
    sq = struct.unpack_from("10I", parameters, 40)
    cq = struct.unpack_from("10I", parameters, 80)
    rings = mmap.mmap(ring, 4096, offset=0)
    completions = mmap.mmap(ring, 4096, offset=0x8000000)
    entries = mmap.mmap(ring, 4096, offset=0x10000000)
    entries[:64] = struct.pack("BBHiQQII", OP_SOCKET, 0, 0, family, kind, 0, 0, 0) + bytes(32)
    struct.pack_into("I", rings, sq[6], 0)  # the array's first element is entry 0
    struct.pack_into("I", rings, sq[1], 1)  # the tail
    call(IO_URING_ENTER, ring, 1, 1, GETEVENTS, None, 0)
    result = struct.unpack_from("QiI", completions, cq[5])[1]
    if result < 0:
        raise OSError(-result, "IORING_OP_SOCKET")
    made = socket.socket(fileno=result)
    assert made.family == family, made
    made.close()


PROBES = {
    "a ring": lambda: call(IO_URING_SETUP, 1, (ctypes.c_char * 120)()),
    "a netlink socket by a ring": lambda: ring_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "an IP socket by a ring": lambda: ring_socket(socket.AF_INET, socket.SOCK_STREAM),
    "asynchronous I/O": lambda: call(IO_SETUP, 1, ctypes.byref(ctypes.c_ulong())),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "an IP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
}
for name, probe in PROBES.items():
    try:
        probe()
        print(name, "allowed", sep="=", flush=True)
    except OSError as error:
        print(name, errno.errorcode[error.errno], sep="=", flush=True)
"""


def answers(text):
    return dict(line.split("=") for line in text.splitlines())


prepare("a", "b")
machine.succeed("install -d /srv/reference/shown /srv/exchange/shown")
machine.succeed(f"printf %s {shlex.quote(PROBE)} > /srv/a/probe.py")
start("a", "b")

outside = answers(machine.succeed("python3 /srv/a/probe.py"))
if outside["a ring"] != "allowed":
    skip(f"this kernel has no io_uring for anybody: {outside['a ring']}")

with subtest("on the host a ring makes sockets of every family"):
    assert outside["a netlink socket by a ring"] == outside["asynchronous I/O"] == "allowed", outside

with subtest("in the server, and in its set-up, there is none, and no other asynchronous I/O"):
    for place, said in ("the server", agent("a", "python3 /srv/a/probe.py")), ("the set-up", machine.succeed("cat /srv/a/from-setup")):
        inside = answers(said)
        assert inside.pop("an IP socket") == "allowed", f"{place}: {inside}"
        assert inside.pop("a netlink socket") == "EAFNOSUPPORT", f"{place}: {inside}"
        assert set(inside.values()) == {"EPERM"}, f"{place}: {inside}"

with subtest("the server answers, and its shell works"):
    healthy("a")
    says("a", "echo shell works", "shell works")
