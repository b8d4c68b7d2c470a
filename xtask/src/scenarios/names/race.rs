//! Names that nobody asked for before, while daemon and resolver are killed and the policy changes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    super::{Scenario, Tell},
    units::Units,
};
use crate::machine::Machine;

/// The race, in short.
pub(in crate::scenarios) const RACE: &[Scenario] =
    &[Scenario { title: "names: none is refused by a race, whoever is killed meanwhile", run: race }];

/// How many names at least.
const COUNT: usize = 2000;

/// How often somebody is killed, or the policy changed, at least.
const ROUNDS: usize = 8;

/// How many clients ask at the same time. Each has names of its own.
const CLIENTS: usize = 4;

/// Fresh names with fresh addresses, where nobody listens: whoever is not refused is answered that. Some are another's name, some are good for no time at
/// all, and some have 200 addresses, which come by TCP. Now and then a name that is not listed, and an address that none has, which must be refused. It ends
/// after so many names, but not before it is told to.
const RESOLVE: &str = r"import collections, itertools, json, multiprocessing, os, socket, sys, time
def connect(address):
    s = socket.socket(socket.AF_INET6)
    s.settimeout(10)
    try:
        s.connect(address)
        return 'connected'
    except OSError as e:
        return type(e).__name__
    finally:
        s.close()
def client(first, clients, count):
    seen = collections.Counter()
    for number in itertools.count(first, clients):
        if number >= count and os.path.exists('/run/names/enough'):
            return seen
        seen['names'] += 1
        # The second host has all of these addresses. An instance knows 8192 at most.
        kind = 'many' if number % 401 == 0 else 'alias' if number % 7 == 0 else 'zero' if number % 5 == 0 else ''
        name = f'v6{kind}-20010db80000000100000000{number % 4000:08x}.n{number}.wild.example.net'
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
        seen[connect(address)] += 1
        if number % 17 == 0:
            seen['names off the list'] += 1
            seen['off the list: ' + connect(('2001:db8:0:1::ffff', 80))] += 1
            try:
                socket.getaddrinfo(f'n{number}.off.example.net', 80)
                seen['off the list: resolved'] += 1
            except socket.gaierror:
                pass
count, clients = int(sys.argv[1]), int(sys.argv[2])
with multiprocessing.Pool(clients) as pool:
    seen = sum(pool.starmap(client, [(first, clients, count) for first in range(clients)]), collections.Counter())
print(json.dumps(seen), flush=True)
";

fn race(machine: &mut Machine, _tell: Tell<'_>) -> Result<()> {
    race_of_names(machine, COUNT).map(drop)
}

/// Resolves so many names and connects to each, while daemon and resolver are killed and the policy changes, and as many more as that takes.
/// Returns what was seen.
pub(crate) fn race_of_names(machine: &mut Machine, count: usize) -> Result<String> {
    let units = Units::start(machine)?;
    units.machine.write("/run/names/race.py", RESOLVE)?;
    units.machine.succeed(&["rm", "-f", "/run/names/enough"])?;
    units.machine.host(&["ip", "route", "add", "local", "2001:db8:0:1::/64", "dev", "lo"])?;
    units.machine.succeed(&["ip", "route", "replace", "2001:db8:0:1::/64", "via", "2001:db8::10"])?;
    units.machine.witnessed()?;
    units.can("n", &format!("(python3 /run/names/race.py {count} {CLIENTS} > race 2>&1 &)"))?;
    let ended = || units.can("n", "grep -q -e } -e Error race && cat race").ok();
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
        if rounds == ROUNDS {
            units.machine.write("/run/names/enough", "")?;
        }
    };
    let seen = seen.lines().next().unwrap_or_default();
    let counted: BTreeMap<String, usize> =
        serde_json::from_str(seen).with_context(|| format!("after {rounds} rounds: {seen}"))?;
    let times = |what: &str| counted.get(what).copied().unwrap_or_default();
    ensure!(times("names") >= count, "too few names after {rounds} rounds: {seen}");
    for (all, expected) in
        [("names", "ConnectionRefusedError"), ("names off the list", "off the list: PermissionError")]
    {
        ensure!(
            times(all) == times(expected),
            "not every one of {all} had {expected} after {rounds} rounds: {seen}"
        );
    }
    ensure!(
        times("off the list: resolved") == 0,
        "a name off the list was resolved, after {rounds} rounds: {seen}"
    );
    let arrived = units.machine.witnessed()?;
    let leaked: Vec<_> = arrived
        .iter()
        .filter(|line| line.contains("> 2001:db8:0:1::ffff.") || line.contains(".off.example.net"))
        .collect();
    ensure!(leaked.is_empty(), "these packets arrived and should not: {leaked:#?}");
    let reached = arrived.iter().filter(|line| line.contains("> 2001:db8:0:1:")).count();
    ensure!(reached >= count, "only {reached} packets arrived");
    Ok(format!("{seen}, in {rounds} rounds"))
}
