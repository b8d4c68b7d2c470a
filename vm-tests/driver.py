"""Runs a scenario's script as the NixOS test driver does, on a machine in namespaces of this one.

    driver.py XTASK FILES DAEMON SCRIPT SECONDS [ROOT]

It exits with 0 when the script comes to its end, with 77 when it says that it cannot run here, and otherwise with 1; so also when it takes longer
than SECONDS.

The machine's root is a copy of ROOT, or of this machine's.

Of the test driver's machine it has the calls that the scripts use, with their names, arguments and meaning:
https://nixos.org/manual/nixos/stable/#ssec-machine-objects. `machine` has what FILES puts on it; `witness` is the second
host, at the other end of its cable. What both environments need and the driver has not is in prelude.py.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

# Joins the namespaces, and a cgroup that is outside of every unit.
ENTER = (
    "nsenter -t {init} -m -p -n -u -i -C -- sh -c "
    "'mkdir -p /sys/fs/cgroup/tester; echo $$ > /sys/fs/cgroup/tester/cgroup.procs; exec \"$@\"' sh"
)


# How long a command may take that says nothing else, and how long a machine may to go; in seconds.
PATIENCE = 120


class Failure(Exception):
    """A command did something else than the script says."""


class Node:
    """Where commands run."""

    prefix = ""

    def execute(self, command, check_return=True, check_output=True, timeout=None):
        shell = f"{self.prefix} timeout {timeout or PATIENCE} bash -c 'set -euo pipefail; eval \"$1\"' bash \"$0\""
        done = subprocess.run(
            ["sh", "-c", shell, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        )
        return done.returncode, done.stdout

    def succeed(self, *commands, timeout=None):
        output = ""
        for command in commands:
            status, said = self.execute(command, timeout=timeout)
            if status != 0:
                raise Failure(f"`{command}` failed ({status}): {said}")
            output += said
        return output

    def fail(self, *commands, timeout=None):
        output = ""
        for command in commands:
            status, said = self.execute(command, timeout=timeout)
            if status == 0:
                raise Failure(f"`{command}` succeeded: {said}")
            output += said
        return output

    def wait_until_succeeds(self, command, timeout=60):
        return self._wait(command, timeout, lambda status: status == 0)

    def wait_until_fails(self, command, timeout=60):
        return self._wait(command, timeout, lambda status: status != 0)

    def _wait(self, command, timeout, good):
        end = time.monotonic() + timeout
        while True:
            status, said = self.execute(command, timeout=timeout)
            if good(status):
                return said
            if time.monotonic() > end:
                raise Failure(f"`{command}` ends with {status} for {timeout} s: {said}")
            time.sleep(0.05)

    def wait_for_unit(self, unit, user=None, timeout=60):
        state = f"systemctl show -P ActiveState {unit}"
        end = time.monotonic() + timeout
        while (found := self.succeed(state).strip()) != "active":
            if found == "failed" or time.monotonic() > end:
                raise Failure(f"{unit} is {found}: " + self.execute(f"journalctl --namespace=* -u {unit} -n 20 --no-pager")[1])
            time.sleep(0.05)

    def wait_for_open_port(self, port, addr="localhost", timeout=60):
        self.wait_until_succeeds(f"timeout 1 bash -c 'echo > /dev/tcp/{addr}/{port}' 2>&1", timeout)

    def systemctl(self, words, user=None):
        return self.execute(f"systemctl {words}")

    def require_unit_state(self, unit, require_state="active"):
        state = self.succeed(f"systemctl show -P ActiveState {unit}").strip()
        if state != require_state:
            raise Failure(f"{unit} is {state}, not {require_state}")


class Machine(Node):
    """The machine. It is booted by the first command, or by `start`."""

    def __init__(self, xtask, files, daemon, *root):
        self.command = [xtask, "machine", files, daemon, *root]
        self.files = Path(files)
        self.process = None

    def start(self):
        if self.process:
            return
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.process = None
            raise Failure("the machine did not boot")
        names = json.loads(answer)
        self.prefix = ENTER.format(**names)
        self.root = Path(f"/proc/{names['init']}/root")
        witness.prefix = f"ip netns exec {names['witness']}"

    def shutdown(self):
        if not self.process:
            return
        process, self.process = self.process, None
        process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # Its processes go with it; its cgroup and the second host's namespace stay.
            process.kill()
            raise Failure(f"the machine is not gone after {PATIENCE} s: {' '.join(self.command)}") from None

    def execute(self, *args, **named):
        self.start()
        return super().execute(*args, **named)

    def arrived(self):
        """What has arrived at the second host since the last call, a line a packet."""
        self.start()
        self.process.stdin.write("arrived\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def switch_to(self, host, whole=True):
        """Makes it another host, and all of it if `whole`, as `switch-to-configuration switch` does on NixOS: what runs and changed is restarted, the daemon and
        nftables are reloaded, what is new is started, what is gone is stopped."""
        files = self.files.with_name(host)
        old, new = contents(self.files), contents(files)
        changed = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
        units = {path.name for path in changed if path.suffix == ".service"}
        running = self.succeed("systemctl list-units --plain --no-legend --state=active 'opencode-*' | cut -d ' ' -f 1").split()
        if stopped := units.intersection(running):
            self.succeed(f"systemctl stop {' '.join(sorted(stopped))}")
        for path in old.keys() - new.keys():
            (self.root / path).unlink()
        shutil.copytree(files, self.root, dirs_exist_ok=True)
        self.files = files
        self.succeed("systemd-sysusers", "systemd-tmpfiles --create /etc/tmpfiles.d/opencode.conf", "systemctl daemon-reload")
        if any(path.name == "nftables-rules" for path in changed):
            (self.succeed if whole else self.fail)("systemctl reload-or-restart nftables")
        if any(path.name == "policy.json" and path in old and path in new for path in changed):
            self.succeed("systemctl reload opencode-egress")
        self.succeed("systemctl start multi-user.target")


def contents(directory):
    """Path below the directory -> what is in it, for each file."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Witness(Node):
    """The second host. It is there when the machine is."""

    def execute(self, *args, **named):
        machine.start()
        return super().execute(*args, **named)


def too_long(*_):
    raise Failure(f"it takes longer than {seconds} s")


class Skipped(Exception):
    """The scenario cannot be run here."""


def skip(why):
    """Ends the scenario: it cannot be run here. That is not to have passed."""
    raise Skipped(why)


@contextmanager
def subtest(name):
    try:
        yield
    except Skipped:
        raise
    except Exception as error:
        raise Failure(f"{name}: {error}") from error


if __name__ == "__main__":
    xtask, files, daemon, script, seconds, *root = sys.argv[1:]
    witness = Witness()
    machine = Machine(xtask, files, daemon, *root)
    names = {"machine": machine, "witness": witness, "subtest": subtest, "skip": skip}
    names["PROVIDER"] = Path(__file__).with_name("provider.py").read_text()
    names |= {"arrived": machine.arrived, "switch_to": machine.switch_to}
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(int(seconds))
    try:
        for path in (__file__.replace("driver.py", "prelude.py"), script):
            with open(path) as source:
                exec(compile(source.read(), path, "exec"), names)
    except Skipped as why:
        print(f"SKIPPED: {why}")
        sys.exit(77)
    except Exception as error:
        signal.alarm(0)
        here = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == script]
        if machine.process:
            print(machine.execute("journalctl --namespace=* --no-pager -n 40 -o short-precise")[1], file=sys.stderr)
        at = here[-1] if here else "?"
        print(f"{script}:{at}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.alarm(0)
        machine.shutdown()
