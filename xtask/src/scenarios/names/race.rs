//! Names that nobody asked for before, while daemon and resolver are killed and the policy changes.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    super::{Scenario, Tell},
    units::Units,
};
use crate::machine::Machine;

/// The race, in short.
pub(in crate::scenarios) const RACE: &[Scenario] =
    &[Scenario { title: "names: none is refused by a race, whoever is killed meanwhile", run: race }];

const COUNT: usize = 2000;

/// Fresh names with fresh addresses, where nobody listens: whoever is not refused is answered that.
const RESOLVE: &str = r"import collections, socket, sys, time
count = int(sys.argv[1])
seen = collections.Counter()
for number in range(count):
    # The second host has all of these addresses. An instance knows 8192 at most.
    name = f'v6-20010db80000000100000000{number % 4000:08x}.n{number}.wild.example.net'
    deadline = time.monotonic() + 30
    while True:
        try:
            address = socket.getaddrinfo(name, 80, socket.AF_INET6, socket.SOCK_STREAM)[0][4]
            break
        except socket.gaierror:
            # The daemon or the resolver was killed.
            seen['asked again'] += 1
            assert time.monotonic() < deadline, name
            time.sleep(0.02)
    s = socket.socket(socket.AF_INET6)
    s.settimeout(10)
    try:
        s.connect(address)
        seen['connected'] += 1
    except OSError as e:
        seen[type(e).__name__] += 1
    s.close()
print(dict(seen))
print('end', flush=True)
";

fn race(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    race_of_names(machine, COUNT).map(drop)
}

/// Resolves so many names and connects to each, while daemon and resolver are killed and the policy changes. Returns what was seen.
pub(crate) fn race_of_names(machine: &mut Machine, count: usize) -> Result<String> {
    let units = Units::start(machine)?;
    units.machine.write("/run/names/race.py", RESOLVE)?;
    units.machine.host(&["ip", "route", "add", "local", "2001:db8:0:1::/64", "dev", "lo"])?;
    units.machine.succeed(&["ip", "route", "replace", "2001:db8:0:1::/64", "via", "2001:db8::10"])?;
    units.machine.witnessed()?;
    units.can("n", &format!("(python3 /run/names/race.py {count} > race 2>&1 &)"))?;
    let ended = || units.can("n", "grep -q -e end -e Error race && cat race").ok();
    let mut rounds = 0;
    let seen = loop {
        if let Some(seen) = ended() {
            break seen;
        }
        match rounds % 4 {
            0 => units.signal("opencode-egress", "KILL")?,
            1 => units.signal("opencode-egress-resolver", "KILL")?,
            _ => {
                units.whole()?;
                units.apply(|instances| {
                    let other = format!("n{rounds}.example.org");
                    instances["n"]["allow"]
                        .as_array_mut()
                        .into_iter()
                        .for_each(|allow| allow.push(json!(other)));
                })?;
            }
        }
        rounds += 1;
    };
    ensure!(rounds > 4, "it was over before anything happened");
    ensure!(seen.contains(&format!("'ConnectionRefusedError': {count}")), "after {rounds} rounds: {seen}");
    let arrived = units.machine.witnessed()?.iter().filter(|line| line.contains("> 2001:db8:0:1:")).count();
    ensure!(arrived >= count, "only {arrived} packets arrived");
    Ok(seen)
}
