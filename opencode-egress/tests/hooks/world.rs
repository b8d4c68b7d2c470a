//! A confined cgroup under a policy, on a host that has a second one for a witness.

use std::{
    ffi::CString,
    fs, io,
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::{
        Once, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use opencode_egress::{
    cgroups::{Cgroup, Hierarchy},
    kernel::{
        connections::SocketDiagnosis,
        hooks::Needs,
        instance::InstanceIndex,
        loader::{Lifetime, Loaded, load},
        maps::boottime,
        ring::Reported,
    },
    policy::{Listen, LogLimits, Policy, PortRange, Rule, RuleProtocol, compile::compile},
};
use opencode_egress_common::{
    abi::Counters,
    event::Denial,
    reason::{DropReason, Hook},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    network::{INTERFACE, Namespace, PAIRS, PORT, join},
    probe::{Outcome, Probe, Steps, unhurried},
    witness::{Arrived, Witness},
};

/// Everything that a test needs, of its own, so that tests run side by side.
///
/// Fields are dropped in this order: what uses a namespace before the namespace.
pub(crate) struct World {
    pub(crate) loaded: Loaded,
    pub(crate) cgroup: Scratch,
    pub(crate) witness: Witness,
    servers: (TcpListener, UdpSocket),
    pub(crate) far: Namespace,
    pub(crate) unit: Namespace,
    /// Cgroups below the confined one, the last one where probes start.
    places: Vec<Cgroup>,
    /// The reason of the last refusal that was checked.
    last: Option<DropReason>,
}

/// A cgroup that goes with the test.
pub(crate) struct Scratch(pub(crate) Cgroup);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

/// Held to turn off the kernel's compiler of programs; by all others while they load some.
pub(crate) static COMPILER: RwLock<()> = RwLock::new(());

/// Allows the witness' first addresses, for everything.
pub(crate) fn base_policy() -> Policy {
    Policy { allow: vec![any("192.0.2.2/32"), any("2001:db8:1::2/128")], ..Policy::default() }
}

/// A rule for every protocol and port.
pub(crate) fn any(cidr: &str) -> Rule {
    Rule::any(cidr.parse().expect("a network"))
}

/// A rule for some ports, written as in a policy file.
pub(crate) fn rule(cidr: &str, protocol: RuleProtocol, ports: &[&str]) -> Rule {
    let ports: Vec<_> = ports.iter().map(|range| range.parse::<PortRange>().expect("ports")).collect();
    Rule::new(cidr.parse().expect("a network"), protocol, ports).expect("a rule")
}

/// A listener.
pub(crate) fn listen(address: &str, port: u16, open: bool) -> Listen {
    Listen { address: address.parse().expect("an address"), port, open }
}

/// No folding and no rate limit: every denial is an event.
pub(crate) const UNLIMITED: LogLimits =
    LogLimits { interval: Duration::ZERO, burst: 100_000, per_sec: 1_000_000 };

impl World {
    /// Waits until the first second since boot at which something is over that was to be until then. The witness begins anew.
    pub(crate) fn wait_until(&mut self, over: u64) {
        while boottime() < over {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.witness.arrived();
    }

    /// A world whose cgroup is confined to a policy.
    pub(crate) fn new(policy: &Policy) -> Self {
        let mut world = Self::unconfined();
        world.install(policy);
        world.confine();
        world
    }

    /// A world whose cgroup is not confined yet.
    pub(crate) fn unconfined() -> Self {
        Self::with(&Lifetime::Process)
    }

    /// The same, with the kernel side loaded for as long as this says; pinned, it has room for more than one instance.
    pub(crate) fn with(lifetime: &Lifetime<'_>) -> Self {
        let _compiled = COMPILER.read().unwrap_or_else(PoisonError::into_inner);
        Self::of(load(lifetime).expect("the kernel side loads (root is needed)"))
    }

    /// The same with a kernel side that is loaded.
    pub(crate) fn of(mut loaded: Loaded) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static FIRST: Once = Once::new();
        FIRST.call_once(remove_leftovers);
        let name = format!("hooks-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        loaded.maps.set_limits(&UNLIMITED).expect("limits");
        let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
        let own = hierarchy.of_process(std::process::id()).expect("the test's own cgroup");
        let cgroup =
            Scratch(hierarchy.create(&own.join(format!("{CGROUP_PREFIX}{name}"))).expect("a cgroup"));
        let far = Namespace::create(format!("{name}-far"));
        let unit = Namespace::create(format!("{name}-unit"));
        join(&unit, &far);
        let servers = far.enter(|| {
            let any = (Ipv6Addr::UNSPECIFIED, PORT);
            (TcpListener::bind(any).expect("a listener"), UdpSocket::bind(any).expect("a socket"))
        });
        let mut witness = Witness::start(&far, &unit);
        let _ = witness.arrived();
        Self { loaded, cgroup, witness, servers, far, unit, places: vec![], last: None }
    }

    /// Confines the cgroup.
    pub(crate) fn confine(&mut self) {
        let attach =
            |loaded: &mut Loaded, hook, cgroup: &Cgroup| loaded.programs.attach_for_good(hook, cgroup);
        let needs = self.loaded.maps.needs(InstanceIndex::FIRST);
        self.loaded
            .confine(&self.cgroup.0, InstanceIndex::FIRST, needs, attach)
            .expect("the cgroup is confined");
    }

    /// Makes another cgroup and confines it to another instance, under a policy of its own.
    pub(crate) fn neighbour(&mut self, instance: InstanceIndex, policy: &Policy) -> Scratch {
        let path = self.cgroup.0.path().with_extension(instance.number().to_string());
        let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
        let cgroup = Scratch(hierarchy.create(&path).expect("a cgroup"));
        let policy = compile(policy).expect("the policy compiles");
        self.loaded.maps.install(instance, &policy).expect("the policy is installed");
        let attach =
            |loaded: &mut Loaded, hook, cgroup: &Cgroup| loaded.programs.attach_for_good(hook, cgroup);
        let needs = self.loaded.maps.needs(instance);
        self.loaded.confine(&cgroup.0, instance, needs, attach).expect("the cgroup is confined");
        cgroup
    }

    /// Puts a policy in force.
    pub(crate) fn install(&mut self, policy: &Policy) {
        let policy = compile(policy).expect("the policy compiles");
        self.loaded.maps.install(InstanceIndex::FIRST, &policy).expect("the policy is installed");
    }

    /// Makes a cgroup below the one where probes start, and lets them start there from now on.
    pub(crate) fn move_below(&mut self, name: &str) {
        let path = self.places.last().unwrap_or(&self.cgroup.0).path().join(name);
        let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
        self.places.push(hierarchy.create(&path).expect("a child cgroup"));
    }

    /// Lets probes start in the confined cgroup itself again.
    pub(crate) fn move_up(&mut self) {
        self.places.clear();
    }

    /// Starts a probe in the confined cgroup, or the one below that was moved to.
    pub(crate) fn start(&self, body: impl FnOnce(&mut Steps) -> io::Result<u64>) -> Probe {
        Probe::start(self.places.last().unwrap_or(&self.cgroup.0), &self.unit, body)
    }

    /// The number of the wire's end in the unit's namespace.
    pub(crate) fn unit_interface(&self) -> libc::c_int {
        let name = CString::new(INTERFACE).expect("no zero in it");
        // SAFETY: reads a string that ends in zero.
        let index = self.unit.enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) });
        libc::c_int::try_from(index).expect("an index")
    }

    /// Runs a probe in the confined cgroup to its end.
    pub(crate) fn run(&mut self, technique: impl FnOnce() -> io::Result<()>) -> (Outcome, Arrived) {
        let outcome = self.start(|_| technique().map(|()| 0)).end();
        (outcome, self.witness.arrived())
    }

    /// As [`Self::run`], while what the kernel asks to reset is reset, as the daemon does it. Also returns how long it took.
    pub(crate) fn run_with_resets(
        &mut self,
        technique: impl FnOnce() -> io::Result<()>,
    ) -> (Outcome, Arrived, Duration) {
        let diagnosis = self.unit.enter(SocketDiagnosis::open).expect("the kernel's socket diagnosis");
        let started = Instant::now();
        let probe = self.start(|_| technique().map(|()| 0));
        let mut answered = false;
        while !answered && started.elapsed() < unhurried(Duration::from_secs(5)) {
            answered = self.answer_resets(&diagnosis, probe.as_fd());
        }
        let outcome = probe.end();
        let took = started.elapsed();
        (outcome, self.witness.arrived(), took)
    }

    /// Resets what the kernel asks to reset, until there is something to read elsewhere or nothing happens for a while.
    /// Returns whether there is something to read.
    pub(crate) fn answer_resets(&mut self, diagnosis: &SocketDiagnosis, until: BorrowedFd<'_>) -> bool {
        let mut fds = [
            PollFd::from_borrowed_fd(until, PollFlags::IN),
            PollFd::from_borrowed_fd(self.loaded.resets.as_fd(), PollFlags::IN),
        ];
        let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut fds, Some(&patience)).expect("descriptors that can be polled");
        let over = !fds[0].revents().is_empty();
        self.loaded.resets.take(usize::MAX, |reset| {
            diagnosis.reset_requested(reset, true).expect("the kernel resets the socket");
        });
        over
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
    pub(crate) fn denies<A: Copy + Into<SocketAddr>>(
        &mut self,
        name: &str,
        to: A,
        technique: impl FnOnce(SocketAddr) -> io::Result<()>,
    ) {
        self.denies_as(name, to, Outcome::EPERM, technique);
    }

    /// As [`Self::denies`], where the kernel tells the caller something else.
    #[track_caller]
    pub(crate) fn denies_as<A: Copy + Into<SocketAddr>>(
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
        let told = self.events();
        assert!(!told.is_empty(), "{name} to {to} is told");
        self.last = told.last().map(|record| record.reason);
    }

    /// Whether a datagram's call is judged, and not only its packet.
    pub(crate) fn judges_sendmsg(&self) -> bool {
        self.loaded.programs.hooks(Needs::NONE).any(|hook| hook == Hook::Sendmsg4)
    }

    /// Whether the program of a datagram's call may mark its socket.
    pub(crate) fn sendmsg_may_mark(&self) -> bool {
        self.loaded.programs.features().sendmsg_may_mark
    }

    /// The last refusal was for this reason.
    #[track_caller]
    pub(crate) fn check_last(&self, expect: DropReason) {
        assert_eq!(self.last, Some(expect), "the reason of the last refusal");
    }

    /// The witness' TCP listener.
    pub(crate) fn server(&self) -> &TcpListener {
        &self.servers.0
    }

    /// The technique passes to each allowed destination and is refused to each denied one.
    #[track_caller]
    pub(crate) fn judges(&mut self, name: &str, technique: impl Fn(SocketAddr) -> io::Result<()>) {
        for (allowed, denied) in PAIRS {
            self.passes(name, (allowed, PORT), &technique);
            self.denies(name, (denied, PORT), &technique);
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
    pub(crate) fn events(&mut self) -> Vec<Denial> {
        self.reported().into_iter().map(|reported| reported.denial).collect()
    }

    /// The same, with who asked.
    pub(crate) fn reported(&mut self) -> Vec<Reported> {
        let mut records = vec![];
        self.loaded.events.take(usize::MAX, |record| records.push(record.expect("an event")));
        records
    }
}

const CGROUP_PREFIX: &str = "opencode-egress-";

/// The process that made something of this name.
fn maker(name: &str) -> Option<&str> {
    name.strip_prefix("hooks-")?.split('-').next()
}

/// Removes what earlier runs left that were killed.
fn remove_leftovers() {
    let dead = |name: &str| maker(name).is_some_and(|pid| !Path::new("/proc").join(pid).exists());
    for name in names_in(Path::new("/run/netns")).into_iter().filter(|name| dead(name)) {
        Namespace::remove(&name);
    }
    let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
    let own = hierarchy.of_process(std::process::id()).expect("the test's own cgroup");
    for name in names_in(&hierarchy.mount().join(&own)) {
        if name.strip_prefix(CGROUP_PREFIX).is_some_and(dead)
            && let Ok(cgroup) = hierarchy.open(&own.join(name))
        {
            let _ = cgroup.remove();
        }
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
