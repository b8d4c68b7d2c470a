//! The resolvers themselves: an instance reaches its own, and no other's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use opencode_egress::policy::Policy;
use opencode_egress_common::{abi::RESOLVER_PORTS, reason::DropReason};

use super::{
    API, Named, RESOLVER,
    flows::WAYS,
    names,
    questions::{BY_TCP, BY_UDP, asks},
    resolver::Resolver,
};
use crate::{
    network::{ALLOWED, PORT},
    probe::Outcome,
    sys::send_to,
    tcp::tcp,
    udp::udp,
    world::{World, any, base_policy},
};

/// The port of another instance's.
const OTHER: u16 = RESOLVER + 1;

const LOOPBACK: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
];

/// Loopback, all of it.
fn with_loopback(mut policy: Policy) -> Policy {
    policy.allow.extend([any("127.0.0.0/8"), any("::1/128")]);
    policy
}

#[test]
fn an_instance_reaches_its_own_resolver() {
    // No rule lists loopback here, one does there, and one denies it in the end.
    let mut denied = names(&[API]);
    denied.deny = vec![any("127.0.0.0/8"), any("::1/128")];
    for policy in [names(&[API]), with_loopback(names(&[API])), denied] {
        let mut named = Named::new(&policy);
        for (name, ask) in BY_UDP.iter().chain(&BY_TCP) {
            for address in LOOPBACK {
                let to = SocketAddr::new(address, RESOLVER);
                asks(&mut named, name, to, || ask(to, to));
            }
        }
    }
}

#[test]
fn no_instance_reaches_anothers_resolver() {
    let mut named = Named::new(&with_loopback(names(&[API])));
    let other = Resolver::start(&named.world.unit, OTHER);
    refuses_others(&mut named.world, &other);
    // One without names has no resolver, and reaches none.
    let mut world = World::new(&with_loopback(base_policy()));
    let other = Resolver::start(&world.unit, OTHER);
    refuses_others(&mut world, &other);
}

#[track_caller]
fn refuses_others(world: &mut World, other: &Resolver) {
    for address in LOOPBACK.into_iter().chain([[0; 4].into(), [0; 16].into()]) {
        for (name, way) in WAYS {
            world.denies(name, (address, OTHER), way);
            world.check_last(DropReason::OtherResolver);
            for port in [RESOLVER_PORTS.0, RESOLVER_PORTS.1] {
                world.denies(name, (address, port), way);
                world.check_last(DropReason::OtherResolver);
            }
        }
    }
    assert_eq!(other.asked(), Vec::<Vec<u8>>::new(), "LEAK: to another instance's resolver");
    // The controls: other addresses of loopback, and other ports, are as the rules have them.
    let served = world.unit.enter(|| UdpSocket::bind(("127.0.0.2", OTHER)).expect("a socket"));
    let beside = SocketAddr::from(([127, 0, 0, 2], OTHER));
    for way in &WAYS[1..] {
        assert_eq!(world.run(|| way.1(beside)).0, Outcome::DONE, "{} to {beside}", way.0);
        assert_eq!(served.recv(&mut [0; 8]).expect("a datagram"), 4);
    }
    for port in [RESOLVER_PORTS.0 - 1, RESOLVER_PORTS.1 + 1] {
        for address in LOOPBACK {
            let (outcome, _) = world.run(|| tcp(SocketAddr::new(address, port)).map(drop));
            assert_eq!(outcome, Outcome::Errno(libc::ECONNREFUSED), "nobody listens at {address} {port}");
        }
    }
    world.passes("TCP", (ALLOWED, PORT), |to| tcp(to).map(drop));
    world.install(&base_policy());
    world.denies("UDP", beside, |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
    world.check_last(DropReason::NotAllowed);
}
