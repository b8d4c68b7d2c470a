"""What prelude.py wants of its environment, for the NixOS test driver. It is read before that."""

import re

asked = 0
read = 0


def skip(why):
    """A scenario that cannot run has not passed."""
    raise Exception(f"SKIPPED: {why}")


def arrived():
    """What has arrived at the second host since the last call, a line a packet."""
    global asked, read
    asked += 1
    marker = 40000 + asked
    # From the machine itself, outside every unit that is confined.
    machine.succeed(f"echo x > /dev/udp/192.0.2.10/{marker}")
    end = f"> 192.0.2.10.{marker}: UDP"
    witness.wait_until_succeeds(f"grep -qF '{end}' /run/arrived")
    lines = witness.succeed("cat /run/arrived").splitlines()
    # One that lost packets says nothing about what did not arrive. It tells each time that it is asked.
    witness.succeed("systemctl kill -s USR1 witness")
    witness.wait_until_succeeds(f"[ $(grep -c 'dropped by kernel' /run/witness) -ge {asked} ]")
    lost = re.findall(r"(\d+) packets? dropped by kernel", witness.succeed("cat /run/witness"))
    assert len(lost) == asked and set(lost) == {"0"}, f"the witness lost packets: {lost}"
    [at] = [number for number, line in enumerate(lines) if end in line]
    since, read = lines[read:at], at + 1
    return since


def switch_to(host, whole=True):
    """Makes the machine another host, and all of it if `whole`. The one that it booted as has the others as specialisations."""
    system = "/run/booted-system"
    if machine.execute(f"test -e {system}/specialisation/{host}")[0] == 0:
        system += f"/specialisation/{host}"
    (machine.succeed if whole else machine.fail)(f"{system}/bin/switch-to-configuration test")


# It watches before the machine has a network.
witness.wait_for_unit("upstream.service")
witness.wait_until_succeeds("grep 'listening on' /run/witness")
machine.wait_for_unit("multi-user.target")
