//! Connections that are kept over a change, and used after it.

use anyhow::{Context as _, Result};

use super::units::Units;
use crate::machine::{Machine, wait};

/// Keeps connections, and uses each when it is told to: file with what came of it, then names or addresses, of which IPv4 ones are taken.
const KEEPER: &str = r"import os, socket, sys, time
out = sys.argv[1]
kept = {to: socket.create_connection((socket.gethostbyname(to), 80)) for to in sys.argv[2:]}
open(out + '.connected', 'w').close()
while not os.path.exists(out + '.go'):
    time.sleep(0.05)
with open(out + '.part', 'w') as said:
    for to, s in kept.items():
        try:
            s.sendall(b'GET /kept HTTP/1.1\n')
            print(to, s.makefile().read().split('\n')[-1], file=said)
        except OSError as e:
            print(to, type(e).__name__, file=said)
os.rename(out + '.part', out)
";

/// Puts the script on the machine.
pub(super) fn prepare(machine: &Machine) -> Result<()> {
    machine.write("/run/names/held.py", KEEPER)
}

/// Keeps a connection of a unit to port 80 of each place.
pub(super) fn keep(units: &Units<'_>, unit: &str, out: &str, places: &[&str]) -> Result<()> {
    let places = places.join(" ");
    units.can(
        unit,
        &format!("rm -f {out}*; (python3 /run/names/held.py {out} {places} > {out}.log 2>&1 &)"),
    )?;
    wait("the connections", || units.can(unit, &format!("test -e {out}.connected")).ok())
        .with_context(|| units.run(unit, &format!("cat {out}.log")).unwrap_or_default())
        .map(drop)
}

/// Uses them, and says what came of each.
pub(super) fn kept_says(units: &Units<'_>, unit: &str, out: &str) -> Result<String> {
    units.can(unit, &format!("touch {out}.go"))?;
    wait("the keeper", || units.can(unit, &format!("cat {out}")).ok())
}
