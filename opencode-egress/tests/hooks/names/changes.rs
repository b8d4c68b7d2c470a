//! Changes of policy: what is still listed stays, and what is not goes, with the generation.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use opencode_egress::{kernel::instance::InstanceIndex, policy::Policy};
use opencode_egress_common::{
    abi::{Learned, LearnedKey},
    reason::{DropReason, Hook},
};

use super::{API, Named, flows, names, time::refused};
use crate::{
    network::{ALLOWED, DENIED, DENIED6, FAR, PORT},
    probe::{Outcome, Probe, unhurried},
    sys::{send, send_to},
    tcp::tcp,
    udp::udp,
    world::any,
};

/// Another policy that has the rule too.
fn other() -> Policy {
    let mut policy = names(&["more.example.org:80", API]);
    policy.allow.push(any("203.0.113.0/24"));
    policy
}

/// One that has it no more.
fn without() -> Policy {
    names(&["more.example.org:80"])
}

/// A connection and a datagram socket, at each step; tells whether the datagram was refused.
fn keep_talking(named: &Named, to: SocketAddr) -> Probe {
    named.world.start(|steps| {
        let (stream, datagrams) = (tcp(to)?, udp(to)?);
        loop {
            send(&stream, b"data", 0)?;
            let refused = refused(send_to(&datagrams, b"data", 0, to))?;
            steps.wait_with(refused)?;
        }
    })
}

#[test]
fn flows_go_on_under_a_policy_that_still_lists_their_rule() {
    for address in [IpAddr::from(DENIED), DENIED6.into(), DENIED.to_ipv6_mapped().into()] {
        let mut named = Named::new(&names(&[API]));
        let over = named.learn_briefly(API, address.to_canonical());
        let to = SocketAddr::new(address, PORT);
        let mut probe = keep_talking(&named, to);
        assert_eq!(probe.step(), 0);
        let (mut peer, _) = named.world.server().accept().expect("the connection");
        peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut data = [0; 4];
        peer.read_exact(&mut data).expect("what was sent in time");
        named.world.wait_until(over);
        // The address is over, and nobody carries it over.
        for policy in [other(), names(&[API]), other()] {
            named.install(&policy, &[]);
            named.world.denies("a new flow", to, flows::UDP.1);
            named.world.check_last(DropReason::NotAllowed);
            named.world.denies("a new flow", to, flows::TCP.1);
            let _ = named.world.witness.arrived();
            probe.go_on();
            assert_eq!(probe.step(), 0, "the datagram under {policy:?}");
            peer.read_exact(&mut data).expect("what is sent on the connection");
            let arrived = named.world.witness.arrived();
            assert!(arrived.to(address).len() >= 2, "a segment and a datagram: {arrived:#?}");
        }
        // Under one that does not list it nothing passes, from its first packet on.
        named.install(&without(), &[]);
        let _ = named.world.witness.arrived();
        probe.go_on();
        assert_eq!(probe.step(), 1, "the datagram under a policy without the rule");
        assert_eq!(
            named.world.witness.arrived().to(address),
            [""; 0],
            "LEAK: under a policy without the rule"
        );
        // The kernel sends again what is allowed again.
        named.install(&other(), &[]);
        peer.read_exact(&mut data).expect("what is sent on the connection once it is listed again");
    }
}

/// The other protocol or other ports under the same name are another rule.
#[test]
fn a_rule_with_other_ports_is_another() {
    let mut named = Named::new(&names(&[API]));
    named.learn(API, DENIED, 100);
    let to = SocketAddr::from((DENIED, PORT));
    let mut probe = keep_talking(&named, to);
    assert_eq!(probe.step(), 0);
    named.install(&names(&["api.example.org:444-500/any"]), &[]);
    let _ = named.world.witness.arrived();
    probe.go_on();
    assert_eq!(probe.step(), 1);
    assert_eq!(
        named.world.witness.arrived().to(DENIED.into()),
        [""; 0],
        "LEAK: under a rule for other ports"
    );
    named.install(&names(&[API]), &[(API, DENIED.into(), 100)]);
    named.world.passes("TCP", to, flows::TCP.1);
}

/// What is carried over is good without a gap.
#[test]
fn a_client_is_never_refused_while_policies_change() {
    const CHANGES: u32 = 200;
    let mut named = Named::new(&names(&[API]));
    let addresses = [IpAddr::from(DENIED), DENIED6.into()];
    for address in addresses {
        named.learn(API, address, 1000);
    }
    let time = unhurried(Duration::from_secs(3));
    let probe = named.world.start(|_| {
        let started = Instant::now();
        let mut rounds = 0;
        while started.elapsed() < time {
            for address in addresses {
                // Nobody listens there: the answer to the first packet ends it.
                match tcp(SocketAddr::new(address, 450)) {
                    Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                    other => return Err(io::Error::other(format!("TCP: {other:?}"))),
                }
                let to = SocketAddr::new(address, PORT);
                send_to(&udp(to)?, b"data", 0, to)?;
            }
            // And what nobody told of never passes.
            match tcp(SocketAddr::from((FAR, PORT))) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
                other => return Err(io::Error::other(format!("not refused: {other:?}"))),
            }
            rounds += 1;
        }
        Ok(rounds)
    });
    let mut changes = 0;
    let end = thread::scope(|scope| {
        let probe = scope.spawn(|| probe.end());
        while !probe.is_finished() || changes < CHANGES {
            let policy = if changes % 2 == 0 { other() } else { names(&[API]) };
            named.install(&policy, &addresses.map(|address| (API, address, 1000)));
            named.world.loaded.maps.forget_expired().expect("a step");
            changes += 1;
        }
        probe.join().expect("the probe's end")
    });
    let Outcome::Done(rounds) = end else { panic!("refused under one of {changes} changes: {end:?}") };
    assert!(rounds > 100, "the probe tried only {rounds} times under {changes} changes");
    assert_eq!(named.world.witness.arrived().to(FAR.into()), [""; 0], "LEAK: during a change");
}

#[test]
fn what_a_policy_does_not_list_is_refused_from_then_on() {
    let mut named = Named::new(&names(&[API]));
    let to = SocketAddr::from((DENIED, PORT));
    named.learn(API, DENIED, 1000);
    named.world.passes("TCP", to, flows::TCP.1);
    named.install(&without(), &[]);
    named.world.denies("TCP", to, flows::TCP.1);
    named.world.check_last(DropReason::NotAllowed);
    // It comes back neither with the slot nor with the rule.
    for _ in 0..4 {
        named.install(&names(&[API]), &[]);
        named.world.denies("TCP", to, flows::TCP.1);
        named.world.denies("UDP", to, flows::UDP.1);
        named.world.check_last(DropReason::NotAllowed);
    }
    // Nor over a policy without any names.
    named.install(&Policy::default(), &[]);
    named.world.denies("TCP", to, flows::TCP.1);
    named.install(&names(&[API]), &[]);
    named.world.denies("TCP", to, flows::TCP.1);
    named.learn(API, DENIED, 1000);
    named.world.passes("TCP, once it is learned again", to, flows::TCP.1);
    named.world.passes("TCP to a network", (ALLOWED, PORT), flows::TCP.1);
}

/// What the kernel's map has: until when, by address and generation.
fn in_the_kernel(named: &Named) -> BTreeMap<(u32, IpAddr), u64> {
    let program = named.world.loaded.programs.program(Hook::Egress).expect("a program");
    let ids = program.info().expect("its info").map_ids().expect("ids").expect("its maps");
    let opened = ids.into_iter().map(|id| MapData::from_id(id).expect("a map of the program"));
    let mut found = opened.filter(|map| map.info().expect("its info").name_as_str() == Some("LEARNED"));
    let map: HashMap<_, LearnedKey, Learned> =
        HashMap::try_from(Map::HashMap(found.next().expect("the map"))).expect("its layout");
    let entry = |entry: Result<(LearnedKey, Learned), _>| {
        let (key, learned) = entry.expect("an entry");
        let [first, ..] = key.address;
        ((key.generation, IpAddr::from(first.to_ne_bytes())), learned.until)
    };
    map.iter().map(entry).collect()
}

#[test]
fn what_is_over_is_removed_and_what_is_in_force_stays() {
    let mut named = Named::new(&names(&[API]));
    named.learn(API, DENIED, 1000);
    named.install(&other(), &[(API, FAR.into(), 1000)]);
    named.learn(API, ALLOWED, 0);
    let generations = |named: &Named| in_the_kernel(named).into_keys().collect::<Vec<_>>();
    let [old, new] = [1, 2];
    assert_eq!(generations(&named), [(old, DENIED.into()), (new, ALLOWED.into()), (new, FAR.into())]);
    named.world.loaded.maps.forget_expired().expect("a step");
    // What is just over is kept for a while, so that a denial can say so.
    assert_eq!(generations(&named), [(new, ALLOWED.into()), (new, FAR.into())]);
    named.world.passes("TCP", (FAR, PORT), flows::TCP.1);
    named.world.denies("TCP", (DENIED, PORT), flows::TCP.1);
    // Without a policy there is nothing to keep.
    named.world.loaded.maps.retire(&[InstanceIndex::FIRST]).expect("it is");
    named.world.loaded.maps.forget_expired().expect("a step");
    assert_eq!(generations(&named), []);
}
