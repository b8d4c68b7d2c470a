//! The programs' verdicts on random packets under random policies, against a naive model.
//!
//! The packets go through the real programs as the kernel loaded them, by its own test run (`kernel`). The model
//! (`model`) reads the same bytes as the RFCs have them, and asks the policy rule by rule.
//!
//! The test run's socket is a dummy, so nothing in it was accepted by a listener: that replies of accepted
//! connections pass, and nothing else for their sake, is for `listeners` to show. And all of its packets are linear. Every run has
//! a socket of its own, without a type and a port, so of names it shows what a flow's first packets get, and of those by UDP the ones
//! whose port is 0: what goes on, and what is of no socket's own flow, is for `names` to show.

mod kernel;
mod model;
#[allow(dead_code, reason = "the compiler's own tests have rules of both kinds")]
#[path = "../../../src/policy/compile/tests/names.rs"]
mod name_rules;
mod names;
mod packets;
#[path = "../../../src/policy/compile/tests/reference.rs"]
mod reference;
#[path = "../../../src/policy/compile/tests/strategies.rs"]
mod strategies;

use std::{collections::BTreeMap, env, panic, thread};

use opencode_egress::policy::compile::compile;
use opencode_egress_common::{
    abi::{Counter, Mode},
    decide::Verdict,
    flow::Flow,
    reason::{DropReason, Hook},
};
use proptest::{
    collection::vec,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::{kernel::Kernel, names::Host};
use crate::{policy::Policy, world::World};

/// Where the packets come from; a failure prints what to set.
const SEED: &str = "OPENCODE_EGRESS_TEST_SEED";
/// How many.
const PACKETS: &str = "OPENCODE_EGRESS_TEST_PACKETS";
const PACKETS_A_POLICY: u64 = 500;

const UNREADABLE: [DropReason; 5] = [
    DropReason::UnreadableHeader,
    DropReason::Ipv4Option,
    DropReason::RoutingHeader,
    DropReason::ExtensionHeader,
    DropReason::Fragment,
];
const OUTBOUND: [DropReason; 8] = [
    DropReason::NoPolicy,
    DropReason::NotAllowed,
    DropReason::DenyRule,
    DropReason::ProtocolNotAllowed,
    DropReason::PortNotAllowed,
    DropReason::ListenerPort,
    DropReason::NameExpired,
    DropReason::OtherResolver,
];
const INBOUND: [DropReason; 4] =
    [DropReason::NoPolicy, DropReason::NotAListener, DropReason::ListenerNotOpen, DropReason::PeerNotAllowed];

#[test]
fn random_packets_are_judged_like_the_model_does() {
    // A thread of its own, which moves into a namespace.
    if let Err(failure) = thread::spawn(compare).join() {
        panic::resume_unwind(failure);
    }
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn compare() {
    let (seed, wanted) = (number(SEED, 1), number(PACKETS, 100_000));
    println!("{SEED}={seed} {PACKETS}={wanted}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::unconfined();
    move_into_link_name_space(world.unit.fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
    let mut kernel = Kernel::of(&world.loaded);
    let mut seen: BTreeMap<(Hook, Option<DropReason>), u64> = BTreeMap::new();
    let mut by_name: BTreeMap<Hook, u64> = BTreeMap::new();
    for round in 0..wanted.div_ceil(PACKETS_A_POLICY) {
        let (policy, mut flows) = draw(&mut rng);
        // Every tenth: none.
        let policy = (round % 10 != 9).then_some(policy);
        let host =
            policy.as_ref().map_or_else(Host::default, |policy| Host::random(&mut rng, policy, &flows));
        flows.extend(host.flows(&mut rng));
        let compiled = policy.as_ref().map(|policy| compile(policy).expect("it fits"));
        kernel.put_in_force(&mut world.loaded, compiled.as_ref(), &host);
        let audit = policy.as_ref().is_some_and(|policy| policy.mode == Mode::Audit);
        let before = kernel.counters();
        let (mut allowed, mut denied) = (Counter::default(), BTreeMap::<DropReason, Counter>::new());
        for _ in 0..PACKETS_A_POLICY {
            let packet = packets::random(&mut rng, policy.as_ref(), &flows);
            let (egress, loopback) = (rng.bool(), rng.bool());
            // The second time a verdict is remembered, if it is one of the kind.
            let times = rng.u32(1..=2);
            let hook = if egress { Hook::Egress } else { Hook::Ingress };
            let expected = model::judge(hook, policy.as_ref(), &host, loopback, &packet);
            let Some(passed) = kernel.run(hook, &packet, loopback, times) else { continue };
            let context = || {
                let set = format!("{SEED}={seed} {PACKETS}={wanted}");
                format!(
                    "{hook:?} loopback={loopback} times={times} {packet:02x?}\nunder {policy:?}\nwith {host:?}\n{set}"
                )
            };
            let told = world.events();
            let sum = Counter { packets: times.into(), bytes: u64::from(times) * packet.len() };
            let reason = match expected.verdict {
                Verdict::Allow => {
                    assert!(passed && told.is_empty(), "refused, {told:?}, but allowed: {}", context());
                    if expected.counted {
                        add(&mut allowed, &sum);
                    }
                    *by_name.entry(hook).or_default() += u64::from(expected.by_name);
                    None
                }
                Verdict::Deny(reason) => {
                    assert_eq!(passed, audit, "expected {reason:?}, told {told:?}: {}", context());
                    assert_eq!(told.len(), times as usize, "an event for each: {}", context());
                    for record in told {
                        let as_told = (record.hook, record.reason, record.flow);
                        assert_eq!(as_told, (hook, reason, expected.flow), "{}", context());
                    }
                    add(denied.entry(reason).or_default(), &sum);
                    Some(reason)
                }
            };
            *seen.entry((hook, reason)).or_default() += 1;
        }
        let after = kernel.counters();
        assert_eq!(less(after.allowed, before.allowed), allowed, "what passed, round {round} of seed {seed}");
        for &reason in DropReason::ALL {
            let (after, before) = (after.denied.reasons, before.denied.reasons);
            let counted = less(after[reason as usize], before[reason as usize]);
            let expected = denied.get(&reason).copied().unwrap_or_default();
            assert_eq!(counted, expected, "{reason:?} counted, round {round} of seed {seed}");
        }
    }
    for ((hook, reason), times) in &seen {
        println!("{:8} {:22} {times}", hook.name(), reason.map_or("allowed", DropReason::name));
    }
    println!("allowed by name: {by_name:?}");
    check_coverage(wanted, &seen);
    for hook in [Hook::Egress, Hook::Ingress] {
        assert!(by_name.get(&hook).is_some_and(|times| *times >= wanted / 1000), "{hook:?} by name");
    }
}

/// A policy, and flows of the kind that it speaks of.
fn draw(rng: &mut fastrand::Rng) -> (Policy, Vec<Flow>) {
    let seed: [u8; 32] = std::array::from_fn(|_| rng.u8(..));
    let seeded = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), seeded);
    let policy = strategies::policies().new_tree(&mut runner).expect("a policy").current();
    let mut names = vec(name_rules::name_rules(), 0..8).new_tree(&mut runner).expect("rules").current();
    // Half of the policies have networks alone.
    names.truncate(if rng.bool() { 8 } else { 0 });
    let policy = Policy { names, ..policy };
    let flows = vec(strategies::flows(), 64).new_tree(&mut runner).expect("flows").current();
    (policy, flows)
}

/// Every verdict and reason that a packet can get was there, often.
fn check_coverage(wanted: u64, seen: &BTreeMap<(Hook, Option<DropReason>), u64>) {
    let count = |hook, reason| seen.get(&(hook, reason)).copied().unwrap_or(0);
    for (hook, reasons) in [(Hook::Egress, &OUTBOUND[..]), (Hook::Ingress, &INBOUND)] {
        for reason in UNREADABLE.iter().chain(reasons) {
            let times = count(hook, Some(*reason));
            assert!(times >= wanted / 1000, "{hook:?} {reason:?} only {times} times of {wanted}");
        }
        let allowed = count(hook, None);
        assert!(allowed >= wanted / 20, "{hook:?} allowed only {allowed} of {wanted}");
    }
    let judged: u64 = seen.values().sum();
    assert!(judged >= wanted * 9 / 10, "the kernel ran only {judged} of {wanted}");
}

fn add(sum: &mut Counter, more: &Counter) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

fn less(all: Counter, before: Counter) -> Counter {
    Counter { packets: all.packets - before.packets, bytes: all.bytes - before.bytes }
}
