# host: sockets
"""Of the host's Unix sockets a server sees those that are listed, and no others.
PostgreSQL is out of reach by default, and answers a query of the agent that its socket is listed for; the socket beside it does not. A
directory that is listed brings the sockets in it along."""

POSTGRESQL = "/run/postgresql/.s.PGSQL.5432"
NEIGHBOUR = "/run/postgresql/.s.PGSQL.5433"
QUEUES = ["/run/queue/in", "/run/queue/out"]

QUERY = "psql -X -h /run/postgresql -U postgres -Atc \"select 'answer of ' || current_user || 6 * 7\" 2>&1"
ANSWER = "answer of postgres42"


def serve_database():
    """PostgreSQL, on its socket alone, for whoever reaches that."""
    machine.succeed(
        "getent passwd postgres || useradd --system postgres",
        "install -d -o postgres /run/postgresql /var/lib/database",
        "runuser -u postgres -- initdb -D /var/lib/database -A trust -N",
        "systemd-run -q --unit database -p User=postgres $(command -v postgres) -D /var/lib/database -k /run/postgresql -h ''",
    )
    machine.wait_until_succeeds(QUERY)
    machine.fail("ss -ltnpH | grep postgres")


def listen(path):
    """A service of the host that answers each connection with the path."""
    serve = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind(\"PATH\"); s.listen(); "
        "[(c.sendall(b\"answer of PATH\"), c.close()) for c, _ in iter(s.accept, None)]"
    )
    machine.succeed(f"mkdir -p -m 755 $(dirname {path})")
    machine.succeed(f"systemd-run -q -p UMask=0000 python3 -c '{serve.replace('PATH', path)}'")
    machine.wait_until_succeeds(f"[ -S {path} ]")


def ask(path):
    """The command that prints what answers there."""
    return f"python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"{path}\"); print(s.recv(99).decode())'"


serve_database()
for path in [NEIGHBOUR, *QUEUES]:
    listen(path)
prepare("given", "without")
start("given", "without")

with subtest("on the host each socket answers everybody"):
    assert ANSWER in machine.succeed(f"setpriv --reuid opencode-without --clear-groups {QUERY}")
    for path in [NEIGHBOUR, *QUEUES]:
        said = machine.succeed(f"setpriv --reuid opencode-without --clear-groups {ask(path)}")
        assert f"answer of {path}" in said, said

with subtest("a database whose socket is listed answers the agent"):
    says("given", QUERY, ANSWER)

with subtest("so does each in a directory that is listed"):
    for path in QUEUES:
        says("given", ask(path), f"answer of {path}")

with subtest("the neighbour of one that is listed is not there"):
    says("given", f"{ask(NEIGHBOUR)} 2>&1", "No such file or directory")
    says("given", "ls -A /run/postgresql", ".s.PGSQL.5432")
    cannot("given", f"ls {NEIGHBOUR}")

with subtest("a server for which none is listed reaches none"):
    says("without", QUERY, "No such file or directory")
    for path in [NEIGHBOUR, *QUEUES]:
        says("without", f"{ask(path)} 2>&1", "No such file or directory")

with subtest("what is listed cannot be replaced, and brings no other beside it"):
    cannot("given", f"rm {POSTGRESQL}")
    cannot("given", f"python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{NEIGHBOUR}\")'")
    can("given", "cd /srv/given && python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"own\")'")
