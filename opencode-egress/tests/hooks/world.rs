//! Two hosts on one wire: the unit's network namespace and the witness', a confined cgroup, and a policy.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use opencode_egress::{
    cgroup::{Cgroup, Hierarchy},
    compile::compile,
    events::{Record, drain},
    loader::{Lifetime, Loaded, load},
    maps::{Counters, InstanceIndex},
    policy::{LogLimits, Policy},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    probe::{Outcome, Probe, Steps},
    witness::{Arrived, Witness},
};

/// The name of the wire's end, in both namespaces.
pub(crate) const INTERFACE: &str = "wire";

pub(crate) const UNIT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const UNIT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Addresses of the witness; [`base_policy`] allows the first of each family.
pub(crate) const ALLOWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const ALLOWED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub(crate) const DENIED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3);
/// Where the witness takes TCP connections and UDP datagrams, at all its addresses.
pub(crate) const PORT: u16 = 443;

/// An allowed and a denied destination, for each way to write an address.
pub(crate) const PAIRS: [(IpAddr, IpAddr); 4] = [
    (IpAddr::V4(ALLOWED), IpAddr::V4(DENIED)),
    (IpAddr::V4(ALLOWED), IpAddr::V4(FAR)),
    (IpAddr::V6(ALLOWED6), IpAddr::V6(DENIED6)),
    (IpAddr::V6(ALLOWED.to_ipv6_mapped()), IpAddr::V6(DENIED.to_ipv6_mapped())),
];

/// A network namespace, with a name in /run/netns.
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    fn create(name: String) -> Self {
        ip(&["netns", "add", &name], "");
        let file = File::open(Path::new("/run/netns").join(&name)).expect("the namespace is there");
        Self { name, file }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does something in the namespace; sockets made there stay there.
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let body = || {
            move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
            body()
        };
        // A thread of its own: a namespace is a thread's, and this one's stays as it was.
        thread::scope(|scope| scope.spawn(body).join()).expect("it succeeds in the namespace")
    }

    /// Sets a sysctl below /proc/sys/net.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Runs `ip` in the namespace, one command a line.
    pub(crate) fn ip(&self, commands: &str) {
        ip(&["-n", &self.name, "-batch", "-"], commands);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("`ip` of the package iproute2 is needed");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("`ip` reads its commands");
    drop(stdin);
    assert!(child.wait().expect("`ip` ends").success(), "ip {arguments:?} fails (root is needed): {input}");
}

/// Everything that a test needs, of its own, so that tests run side by side.
///
/// Fields are dropped in this order: what uses a namespace before the namespace.
pub(crate) struct World {
    pub(crate) loaded: Loaded,
    pub(crate) cgroup: Scratch,
    pub(crate) witness: Witness,
    _servers: (TcpListener, UdpSocket),
    pub(crate) far: Namespace,
    pub(crate) unit: Namespace,
}

/// A cgroup that goes with the test.
pub(crate) struct Scratch(pub(crate) Cgroup);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

/// Allows the witness' first addresses, for everything.
pub(crate) fn base_policy() -> Policy {
    Policy { allow: vec![any("192.0.2.2/32"), any("2001:db8:1::2/128")], ..Policy::default() }
}

pub(crate) use rules::{any, listen, rule};

mod rules {
    use opencode_egress::policy::{Listen, PortRange, Rule, RuleProtocol};

    /// A rule for every protocol and port.
    pub(crate) fn any(cidr: &str) -> Rule {
        Rule::any(cidr.parse().expect("a network"))
    }

    /// A rule for some ports, written as in a policy file.
    pub(crate) fn rule(cidr: &str, protocol: RuleProtocol, ports: &[&str]) -> Rule {
        let ports = ports.iter().map(|range| range.parse::<PortRange>().expect("ports")).collect();
        Rule::new(cidr.parse().expect("a network"), protocol, ports).expect("a rule")
    }

    pub(crate) fn listen(address: &str, port: u16, open: bool) -> Listen {
        Listen { address: address.parse().expect("an address"), port, open }
    }
}

/// No folding and no rate limit: every denial is an event.
pub(crate) const UNLIMITED: LogLimits =
    LogLimits { interval: Duration::ZERO, burst: 100_000, per_sec: 1_000_000 };

impl World {
    /// A world whose cgroup is confined to a policy.
    pub(crate) fn new(policy: &Policy) -> Self {
        let mut world = Self::unconfined();
        world.install(policy);
        world.confine();
        world
    }

    /// A world whose cgroup is not confined yet.
    pub(crate) fn unconfined() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hooks-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut loaded = load(&Lifetime::Process).expect("the kernel side loads (root is needed)");
        loaded.maps.set_limits(&UNLIMITED).expect("limits");
        let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
        let own = hierarchy.of_process(std::process::id()).expect("the test's own cgroup");
        let path = own.join(format!("opencode-egress-{name}"));
        let cgroup = Scratch(hierarchy.create(&path).expect("a cgroup"));
        let far = Namespace::create(format!("{name}-far"));
        let unit = Namespace::create(format!("{name}-unit"));
        connect(&unit, &far);
        let servers = far.enter(|| {
            let any = (Ipv6Addr::UNSPECIFIED, PORT);
            (TcpListener::bind(any).expect("a listener"), UdpSocket::bind(any).expect("a socket"))
        });
        let mut witness = Witness::start(&far, &unit);
        let _ = witness.arrived();
        Self { loaded, cgroup, witness, _servers: servers, far, unit }
    }

    /// Confines the cgroup.
    pub(crate) fn confine(&mut self) {
        let attach = |loaded: &mut Loaded, hook, cgroup: &Cgroup| loaded.programs.attach_for_good(hook, cgroup);
        self.loaded.confine(&self.cgroup.0, InstanceIndex::FIRST, attach).expect("the cgroup is confined");
    }

    /// Puts a policy in force.
    pub(crate) fn install(&mut self, policy: &Policy) {
        let policy = compile(policy).expect("the policy compiles");
        self.loaded.maps.install(InstanceIndex::FIRST, &policy).expect("the policy is installed");
    }

    /// Starts a probe in the confined cgroup.
    pub(crate) fn start(&self, body: impl FnOnce(&mut Steps) -> io::Result<u64>) -> Probe {
        Probe::start(&self.cgroup.0, &self.unit, body)
    }

    /// Runs a probe in the confined cgroup to its end.
    pub(crate) fn run(&mut self, technique: impl FnOnce() -> io::Result<()>) -> (Outcome, Arrived) {
        let outcome = self.start(|_| technique().map(|()| 0)).end();
        (outcome, self.witness.arrived())
    }

    /// The technique works towards an allowed destination: the control without which a denial proves nothing.
    #[track_caller]
    pub(crate) fn passes<A: Copy + Into<SocketAddr>>(
        &mut self,
        name: &str,
        to: A,
        technique: impl FnOnce(SocketAddr) -> io::Result<()>,
    ) {
        let to = to.into();
        let (outcome, arrived) = self.run(|| technique(to));
        assert_eq!(outcome, Outcome::DONE, "{name} to {to} is allowed");
        assert!(!arrived.to(to.ip()).is_empty(), "{name} to {to} arrives; the witness saw {arrived:#?}");
    }

    /// The technique is refused with `EPERM`, counted and told, and nothing arrives.
    #[track_caller]
    pub(crate) fn refuses<A: Copy + Into<SocketAddr>>(
        &mut self,
        name: &str,
        to: A,
        technique: impl FnOnce(SocketAddr) -> io::Result<()>,
    ) {
        self.refuses_as(name, to, Outcome::EPERM, technique);
    }

    /// As [`Self::refuses`], where the kernel tells the caller something else.
    #[track_caller]
    pub(crate) fn refuses_as<A: Copy + Into<SocketAddr>>(
        &mut self,
        name: &str,
        to: A,
        expect: Outcome,
        technique: impl FnOnce(SocketAddr) -> io::Result<()>,
    ) {
        let to = to.into();
        self.events();
        let before = self.denied();
        let (outcome, arrived) = self.run(|| technique(to));
        assert!(arrived.to(to.ip()).is_empty(), "LEAK: {name} to {to} ({outcome:?}) arrived: {arrived:#?}");
        assert_eq!(outcome, expect, "what {name} to {to} is told");
        assert!(self.denied() > before, "{name} to {to} is counted");
        assert!(!self.events().is_empty(), "{name} to {to} is told");
    }

    /// The technique passes to each allowed destination and is refused to each denied one.
    #[track_caller]
    pub(crate) fn judges(&mut self, name: &str, technique: impl Fn(SocketAddr) -> io::Result<()>) {
        for (allowed, denied) in PAIRS {
            self.passes(name, (allowed, PORT), &technique);
            self.refuses(name, (denied, PORT), &technique);
        }
    }

    /// What was counted so far.
    pub(crate) fn counters(&self) -> Counters {
        self.loaded.maps.counters(InstanceIndex::FIRST).expect("counters")
    }

    /// How many denials were counted so far.
    pub(crate) fn denied(&self) -> u64 {
        self.counters().denied.reasons.iter().map(|counter| counter.packets).sum()
    }

    /// The events since the last call.
    pub(crate) fn events(&mut self) -> Vec<Record> {
        drain(&mut self.loaded.events).into_iter().map(|record| record.expect("an event")).collect()
    }
}

/// Joins the namespaces by a wire. Addresses and neighbours are fixed, so that nothing is sent but what a
/// test sends.
fn connect(unit: &Namespace, far: &Namespace) {
    let wire = |own: &str, addresses: &str| {
        let mut commands = format!("link set lo up\nlink set {INTERFACE} addrgenmode none address {own}\n");
        for address in addresses.split_whitespace() {
            let options = if address.contains(':') { "nodad" } else { "broadcast +" };
            commands += &format!("addr add {address} dev {INTERFACE} {options}\n");
        }
        commands + &format!("link set {INTERFACE} up\n")
    };
    let neighbours = |mac: &str, addresses: &str| {
        let neighbour = |address| format!("neigh add {address} lladdr {mac} nud permanent dev {INTERFACE}\n");
        addresses.split_whitespace().map(neighbour).collect::<String>()
    };
    let (unit_mac, far_mac) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    unit.ip(&format!("link add {INTERFACE} type veth peer name {INTERFACE} netns {}\n", far.name()));
    far.ip(&wire(
        far_mac,
        "192.0.2.2/24 192.0.2.3/24 192.0.2.254/24 198.51.100.9/32 \
         2001:db8:1::2/64 2001:db8:1::3/64 2001:db8:1::254/64 fe80::2/64 fe80::3/64",
    ));
    unit.ip(&wire(unit_mac, "192.0.2.1/24 2001:db8:1::1/64 fe80::1/64"));
    far.ip(&neighbours(unit_mac, "192.0.2.1 2001:db8:1::1 fe80::1"));
    unit.ip(&neighbours(
        far_mac,
        "192.0.2.2 192.0.2.3 192.0.2.254 2001:db8:1::2 2001:db8:1::3 2001:db8:1::254 fe80::2 fe80::3",
    ));
    unit.ip(&format!(
        "route add default via 192.0.2.254\nroute add default via 2001:db8:1::254 dev {INTERFACE}\n"
    ));
}
