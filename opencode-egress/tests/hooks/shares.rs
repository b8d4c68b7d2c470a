//! What one instance does costs no other its events, its memory of denials or its counts; and for each of them
//! what was denied is told, folded, left out or lost, and nothing else.

use std::{io, net::SocketAddr, time::Duration};

use opencode_egress::{
    kernel::{features::Features, instance::InstanceIndex, loader::Lifetime},
    policy::{Errno, LogLimits, Mode, Policy, lease::Leased},
};
use opencode_egress_common::{
    abi::{DESTINATIONS_SHARE, RING_BYTES},
    reason::Hook,
};

use crate::{
    bpffs::Bpffs,
    network::{DENIED, DENIED6, FAR, PORT},
    probe::{Outcome, Probe},
    sys::send_to,
    tcp::tcp,
    udp::udp,
    world::{Scratch, World, base_policy},
};

/// More denials than a ring has room for.
const MANY: u64 = 20_000;

fn second() -> InstanceIndex {
    InstanceIndex::new(2).expect("a number")
}

/// Two instances on one kernel side. The file system goes last.
struct Two {
    world: World,
    neighbour: Scratch,
    _pins: Bpffs,
}

impl Two {
    fn under(log: &LogLimits) -> Self {
        let pins = Bpffs::mounted();
        let mut world = World::with(&Lifetime::Pinned(&pins.0.path().join("maps")));
        world.loaded.maps.set_limits(log).expect("limits");
        world.install(&base_policy());
        world.confine();
        let neighbour = world.neighbour(second(), &base_policy());
        Self { world, neighbour, _pins: pins }
    }

    /// Runs something in the neighbour's cgroup.
    fn at_the_neighbour(&self, body: impl FnOnce() -> io::Result<()>) -> Outcome {
        Probe::start(&self.neighbour.0, &self.world.unit, |_| body().map(|()| 0)).end()
    }

    /// The events that wait, by instance.
    fn events(&mut self) -> [u64; 2] {
        let mut told = [0; 2];
        for denial in self.world.events() {
            told[usize::try_from(denial.event.instance - 1).expect("one of two")] += 1;
        }
        told
    }

    /// Everything that was denied to an instance was told, folded, left out or lost, and nothing twice.
    #[track_caller]
    fn adds_up(&self, instance: InstanceIndex, told: u64) {
        let denied = self.world.loaded.maps.counters(instance).expect("counters").denied;
        let denials: u64 = denied.reasons.iter().map(|counter| counter.packets).sum();
        let accounted = told + denied.folded + denied.limited + denied.lost;
        assert_eq!(accounted, denials, "{instance:?}: told {told}, {denied:?}");
    }
}

/// Tries so many places that are all denied, one after the other.
fn flood(times: u64) -> io::Result<()> {
    let socket = udp(SocketAddr::from((DENIED, PORT)))?;
    for number in 0..times {
        let [.., high, low] = number.to_be_bytes();
        let to = SocketAddr::from(([10, 0, high, low], PORT));
        match send_to(&socket, b"data", 0, to) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => return Err(io::Error::other(format!("{to} is not refused: {other:?}"))),
        }
    }
    Ok(())
}

#[test]
fn a_noisy_instance_leaves_room_in_the_ring() {
    let mut two = Two::under(&crate::world::UNLIMITED);
    // Nobody reads.
    assert_eq!(two.world.run(|| flood(MANY)).0, Outcome::DONE);
    let quiet = two.at_the_neighbour(|| {
        send_to(&udp((FAR, PORT).into())?, b"data", 0, SocketAddr::from((FAR, PORT))).map(drop)
    });
    assert_eq!(quiet, Outcome::EPERM);
    let told = two.events();
    assert_eq!(told[1], 1, "the quiet instance's only denial has an event");
    let [noisy, quiet] = [InstanceIndex::FIRST, second()]
        .map(|instance| two.world.loaded.maps.counters(instance).expect("counters").denied);
    assert_eq!(quiet.lost, 0);
    assert!(noisy.lost > 0, "a ring of {RING_BYTES} bytes has no room for {MANY} events");
    two.adds_up(InstanceIndex::FIRST, told[0]);
    two.adds_up(second(), told[1]);
    // What was taken is room again.
    assert_eq!(two.world.run(|| flood(100)).0, Outcome::DONE);
    assert_eq!(two.events(), [100, 0], "after they were read there is room for others");
}

#[test]
fn a_noisy_instance_leaves_room_in_the_memory_of_denials() {
    let mut two = Two::under(&LogLimits { interval: Duration::from_secs(60), burst: 1, per_sec: 1 });
    let attempt = || tcp((FAR, PORT).into()).map(drop);
    assert_eq!(two.at_the_neighbour(attempt), Outcome::EPERM);
    assert_eq!(two.world.run(|| flood(5000)).0, Outcome::DONE);
    assert_eq!(two.at_the_neighbour(attempt), Outcome::EPERM);
    let seen = |two: &Two, instance| two.world.loaded.maps.seen(instance).expect("what the kernel remembers");
    // Processors that look at the number at once can each add one.
    let noisy = seen(&two, InstanceIndex::FIRST).len() as u64;
    assert!(
        (DESTINATIONS_SHARE..DESTINATIONS_SHARE + 64).contains(&noisy),
        "{noisy} of {DESTINATIONS_SHARE}"
    );
    let quiet = seen(&two, second());
    assert_eq!(quiet.len(), 1, "the quiet instance's only denial is remembered");
    assert_eq!(quiet[0].1.attempts, 2);
    let told = two.events();
    two.adds_up(InstanceIndex::FIRST, told[0]);
    two.adds_up(second(), told[1]);
    // The oldest make room.
    for _ in 0..3 {
        two.world.loaded.maps.make_room([InstanceIndex::FIRST, second()].into_iter()).expect("room");
    }
    let kept = seen(&two, InstanceIndex::FIRST);
    assert_eq!(kept.len() as u64, DESTINATIONS_SHARE / 2, "the oldest of the noisy instance are forgotten");
    assert_eq!(seen(&two, second()).len(), 1, "and none of the other");
    let (outcome, _) = two.world.run(attempt);
    assert_eq!(outcome, Outcome::EPERM);
    let new = seen(&two, InstanceIndex::FIRST);
    assert_eq!(new.len() as u64, DESTINATIONS_SHARE / 2 + 1, "there is room for new ones");
}

/// In audit mode the call is denied, and so are the packets that it becomes: one line tells both.
#[test]
fn audited_packets_are_folded_into_their_call() {
    let mut two = Two::under(&LogLimits { interval: Duration::from_secs(60), burst: 1000, per_sec: 1000 });
    two.world.install(&Policy { mode: Mode::Audit, ..base_policy() });
    for to in
        [SocketAddr::from((DENIED, PORT)), (DENIED6, PORT).into(), (DENIED.to_ipv6_mapped(), PORT + 1).into()]
    {
        let _ = two.world.run(|| tcp(to).map(drop));
        let told: Vec<_> = two.world.events().iter().map(|denial| (denial.hook, denial.flow.port)).collect();
        let hook = if to.is_ipv4() { Hook::Connect4 } else { Hook::Connect6 };
        assert_eq!(told, [(hook, to.port())], "one line tells of {to}");
    }
    let denied = two.world.counters().denied;
    assert!(denied.folded >= 3, "the packets are folded into it: {denied:?}");
    two.adds_up(InstanceIndex::FIRST, 3);
}

/// Where calls are judged for the sake of another error, a datagram is one denial all the same.
#[test]
fn an_audited_datagram_is_one_denial_whatever_its_error() {
    let audit = Leased { audit: Some(u64::from(u32::MAX)), ..Leased::default() };
    let policy = Policy { errno: Errno::Econnrefused, ..base_policy() }.leased(audit);
    if let Err(error) = Features::of_this_kernel().check(&policy) {
        return eprintln!("skipped: {error}");
    }
    let mut world = World::new(&policy);
    let fold = LogLimits { interval: Duration::from_secs(60), burst: 1000, per_sec: 1000 };
    world.loaded.maps.set_limits(&fold).expect("limits");
    for to in [SocketAddr::from((DENIED, PORT)), (DENIED6, PORT).into()] {
        let (outcome, _) = world.run(|| send_to(&udp(to)?, b"data", 0, to).map(drop));
        assert_eq!(outcome, Outcome::DONE);
        assert_eq!(world.events().len(), 1, "one line tells of {to}");
    }
}

/// Another hook, or another reason, is another denial.
#[test]
fn a_bind_is_another_denial_than_a_connect() {
    let mut two = Two::under(&LogLimits { interval: Duration::from_secs(60), burst: 1000, per_sec: 1000 });
    let there = SocketAddr::from(([198, 51, 100, 9], 19_876));
    let refused = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => Err(io::Error::other(format!("not refused: {other:?}"))),
    };
    let (outcome, _) = two.world.run(|| {
        refused(tcp(there).map(drop))?;
        refused(std::net::TcpListener::bind(there).map(drop))
    });
    assert_eq!(outcome, Outcome::DONE);
    let told: Vec<_> = two.world.events().iter().map(|denial| denial.hook).collect();
    assert_eq!(told, [Hook::Connect4, Hook::Bind4]);
    two.adds_up(InstanceIndex::FIRST, 2);
}
