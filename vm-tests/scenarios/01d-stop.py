# host: two
"""A server stops when it is told to, and starts again, whatever its agent has done to that.
Processes that ignore SIGTERM end with the server, at once, and the stop is no failure; a server that is kept from ending is gone after the time that there is for that. What
the agent puts in the place of directories that the server needs is set aside, told of, and the server starts."""

STATE = "/var/lib/opencode/instance-state/a"
STUBBORN = "setsid -f bash -c \"trap '' TERM HUP INT; while :; do sleep 1; done\" > /dev/null 2>&1"


def stop():
    """Stops it. Returns how long that took, in seconds."""
    begin = time.monotonic()
    machine.succeed("systemctl stop opencode-a")
    took = time.monotonic() - begin
    machine.fail(traces("a")["processes"], traces("a")["cgroup"])
    return took


def again():
    machine.execute("systemctl reset-failed opencode-a")
    start("a")


prepare("a", "b")
# It is started more often than anybody would start it.
for unit in ["opencode-a", "opencode-a-setup", "opencode-a-paths"]:
    machine.succeed(
        f"mkdir -p /run/systemd/system/{unit}.service.d",
        f"printf '[Unit]\\nStartLimitIntervalSec=0\\n' > /run/systemd/system/{unit}.service.d/often.conf",
    )
machine.succeed("systemctl daemon-reload")
start("a", "b")

with subtest("processes that ignore SIGTERM end with the server"):
    can("a", STUBBORN, STUBBORN)
    assert int(machine.succeed("pgrep -u opencode-a -c bash")) >= 2
    took = stop()
    assert took < 10, took
    assert machine.succeed("systemctl show -P Result opencode-a").strip() == "success"
    machine.require_unit_state("opencode-a", "inactive")

with subtest("a server that is kept from ending is ended"):
    again()
    held = f"setsid -f bash -c \"trap '' TERM HUP; while :; do kill -STOP {main_pid('opencode-a')}; done\" > /dev/null 2>&1"
    # The shell tool does not come back: the server is stopped.
    said = json.dumps({"agent": "build", "command": held})
    session = post("a", "/session", {})["id"]
    machine.execute(f"curl -s -m 2 -H 'content-type: application/json' -d {shlex.quote(said)} http://{address('a')}/session/{session}/shell")
    machine.wait_until_succeeds(f"grep -q '^State:.*T' /proc/{main_pid('opencode-a')}/status")
    took = stop()
    assert took < 40, took
    healthy("b")

for what, path, change in [
    ("a file in the place of the cache", ".cache", "rm -rf .cache; echo mine > .cache"),
    ("a file in the place of the configuration", ".config", "mv .config .config-before; echo mine > .config"),
    ("a link that leads nowhere", ".local/state", "rm -rf .local/state; ln -s /nowhere .local/state"),
    ("a link to a directory of root's", ".cache", "rm -rf .cache*; ln -s /usr .cache"),
    ("a file further down", ".local/share/opencode", "mv .local/share/opencode .local/share/before; echo mine > .local/share/opencode"),
]:
    with subtest(f"{what} is set aside"):
        again()
        can("a", f"cd ~; {change}")
        stop()
        again()
        machine.succeed(f"[ -d {STATE}/{path} ]", f"ls -d {STATE}/{path}.set-aside || [ -L {STATE}/{path}.set-aside ]")
        assert f"{STATE}/{path} is no directory to write to, and is set aside" in printed("a", "-u opencode-a-setup")
        can("a", "true")

with subtest("directories that are closed are opened"):
    for closed in ["~/.cache", "~/.local", "~"]:
        can("a", f"chmod 0 {closed}")
        stop()
        again()
        can("a", f"touch {closed}/written")
