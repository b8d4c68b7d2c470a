//! Multicast groups: what joins one is judged as a flow of UDP to it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::OwnedFd, raw::c_int},
    time::{Duration, Instant},
};

use opencode_egress::policy::{Policy, RuleProtocol};
use opencode_egress_common::{
    flow::Protocol,
    reason::{DropReason, Hook},
};

use crate::{
    probe::{Outcome, Steps, unhurried},
    sys::{set_bytes, socket},
    world::{World, any, base_policy, rule},
};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 9, 9, 9);
const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 1, 1);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xff0e, 0, 0, 0, 0x6b65, 0x7900, 0, 9);
const SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// Where IGMP's reports go.
const REPORTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);

const IP_ADD_MEMBERSHIP: c_int = 35;
const IP_BLOCK_SOURCE: c_int = 38;
const IP_ADD_SOURCE_MEMBERSHIP: c_int = 39;
const IP_MSFILTER: c_int = 41;
const IPV6_JOIN_GROUP: c_int = 20;
const MCAST_JOIN_GROUP: c_int = 42;
const MCAST_BLOCK_SOURCE: c_int = 43;
const MCAST_JOIN_SOURCE_GROUP: c_int = 46;
const MCAST_MSFILTER: c_int = 48;
const SOL_IP: c_int = libc::IPPROTO_IP;
const SOL_IPV6: c_int = libc::IPPROTO_IPV6;

/// A policy that lets UDP reach some port of one group of each family, and none of any other.
fn policy() -> Policy {
    let mut policy = base_policy();
    policy.allow.push(rule("239.1.2.3/32", RuleProtocol::Udp, &["5000"]));
    policy.allow.push(rule("ff0e::1:1/128", RuleProtocol::Any, &["5000-5010"]));
    // Rules that speak of these groups and let no UDP reach them.
    policy.allow.push(rule("239.1.2.4/32", RuleProtocol::Tcp, &["5000"]));
    policy.deny.push(rule("239.1.2.5/32", RuleProtocol::Udp, &["5000"]));
    policy
}

/// A `sockaddr_storage`.
fn sockaddr(address: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    match address {
        IpAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
            bytes[4..8].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&10_u16.to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.octets());
        }
    }
    bytes
}

/// `struct group_req`, with the padding before the address that 64-bit processes have.
fn group(interface: u32, address: IpAddr) -> Vec<u8> {
    [&interface.to_ne_bytes()[..], &[0; 4], &sockaddr(address)].concat()
}

/// An option that joins a group or changes a membership: family, level, name and value.
type Join = (c_int, c_int, c_int, Vec<u8>);

/// Every way to join a group.
fn joins(interface: u32, address: IpAddr) -> Vec<Join> {
    let any_interface = [0; 4];
    let grouped = group(interface, address);
    let filter = [&grouped[..], &1_u32.to_ne_bytes(), &0_u32.to_ne_bytes()].concat();
    match address {
        IpAddr::V4(v4) => {
            let (v4, source) = (v4.octets(), SOURCE.octets());
            let with_source = [v4, any_interface, source].concat();
            let long = [v4, any_interface, 1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
            let sourced = [&grouped[..], &sockaddr(SOURCE.into())].concat();
            [libc::AF_INET, libc::AF_INET6]
                .into_iter()
                .flat_map(|family| {
                    [
                        (family, SOL_IP, IP_ADD_MEMBERSHIP, [v4, any_interface].concat()),
                        (family, SOL_IP, IP_ADD_SOURCE_MEMBERSHIP, with_source.clone()),
                        (family, SOL_IP, IP_BLOCK_SOURCE, with_source.clone()),
                        (family, SOL_IP, IP_MSFILTER, long.clone()),
                        (family, SOL_IP, MCAST_JOIN_GROUP, grouped.clone()),
                        (family, SOL_IP, MCAST_JOIN_SOURCE_GROUP, sourced.clone()),
                        (family, SOL_IP, MCAST_BLOCK_SOURCE, sourced.clone()),
                        (family, SOL_IP, MCAST_MSFILTER, filter.clone()),
                    ]
                })
                .collect()
        }
        IpAddr::V6(v6) => {
            let sourced = [&grouped[..], &sockaddr(SOURCE6.into())].concat();
            let plain = [&v6.octets()[..], &interface.to_ne_bytes()].concat();
            [
                (IPV6_JOIN_GROUP, plain),
                (MCAST_JOIN_GROUP, grouped.clone()),
                (MCAST_JOIN_SOURCE_GROUP, sourced.clone()),
                (MCAST_BLOCK_SOURCE, sourced),
                (MCAST_MSFILTER, filter),
            ]
            .map(|(name, value)| (libc::AF_INET6, SOL_IPV6, name, value))
            .into()
        }
    }
}

/// Whether an option needs a membership that is there already.
fn changes_a_membership(name: c_int) -> bool {
    [IP_BLOCK_SOURCE, IP_MSFILTER, MCAST_BLOCK_SOURCE, MCAST_MSFILTER].contains(&name)
}

fn join((family, level, name, value): &Join) -> io::Result<OwnedFd> {
    let socket = socket(*family, libc::SOCK_DGRAM, 0)?;
    set_bytes(&socket, *level, *name, value)?;
    Ok(socket)
}

#[track_caller]
fn is_refused(world: &mut World, option: &Join, address: IpAddr, reason: DropReason) {
    world.events();
    let (outcome, _) = world.run(|| join(option).map(drop));
    assert_eq!(outcome, Outcome::EPERM, "{option:?} joins {address}");
    let events = world.events();
    let [told] = &events[..] else { panic!("one event is told of {option:?}: {events:#?}") };
    assert_eq!((told.hook, told.reason), (Hook::Setsockopt, reason));
    let flow = (IpAddr::from(told.flow.address), told.flow.protocol, told.flow.port);
    assert_eq!(flow, (address, Protocol::UDP, 0), "what {option:?} is told as");
}

#[test]
fn joining_a_group_is_judged_as_udp_to_it() {
    let mut world = World::new(&policy());
    world.unit.ip("route add 224.0.0.0/4 dev wire\n");
    let interface = u32::try_from(world.unit_interface()).expect("an index");
    // The kernel tells the local network of a join.
    let mut member = world.start(|steps| {
        let _member = join(&joins(interface, GROUP.into())[0])?;
        steps.wait().map(|()| 0)
    });
    member.step();
    let deadline = Instant::now() + unhurried(Duration::from_secs(5));
    while world.witness.arrived().to(REPORTS.into()).is_empty() {
        assert!(Instant::now() < deadline, "an allowed join is reported");
    }
    for (allowed, denied) in [(IpAddr::from(GROUP), IpAddr::from(OTHER)), (GROUP6.into(), OTHER6.into())] {
        for option in joins(interface, allowed) {
            let (outcome, _) = world.run(|| join(&option).map(drop));
            if changes_a_membership(option.2) {
                let refused = [Outcome::Errno(libc::EINVAL), Outcome::Errno(libc::EADDRNOTAVAIL)];
                assert!(refused.contains(&outcome), "{option:?} is the kernel's to refuse: {outcome:?}");
                continue;
            }
            assert_eq!(outcome, Outcome::DONE, "{option:?} joins {allowed}");
        }
        for option in joins(interface, denied) {
            is_refused(&mut world, &option, denied, DropReason::NotAllowed);
        }
    }
    for (address, reason) in
        [("239.1.2.4", DropReason::ProtocolNotAllowed), ("239.1.2.5", DropReason::PortNotAllowed)]
    {
        let address = address.parse().expect("an address");
        for option in joins(interface, address) {
            is_refused(&mut world, &option, address, reason);
        }
    }
    // A membership that is there may be changed while it is allowed.
    let change = |steps: &mut Steps| {
        let socket = join(&joins(interface, GROUP.into())[0])?;
        steps.wait()?;
        let long = [&GROUP.octets()[..], &[0; 4], &1_u32.to_ne_bytes(), &0_u32.to_ne_bytes()].concat();
        set_bytes(&socket, SOL_IP, IP_MSFILTER, &long).map(|()| 0)
    };
    for (policy, expect) in [(policy(), Outcome::DONE), (base_policy(), Outcome::EPERM)] {
        let mut probe = world.start(change);
        probe.step();
        world.install(&policy);
        probe.go_on();
        assert_eq!(probe.end(), expect, "a membership is changed");
    }
}

/// A value of more than a page is not shown to a program, and may be another by the time the kernel reads it.
#[test]
fn a_value_that_is_too_long_to_be_seen_is_refused() {
    let mut world = World::unconfined();
    let filter = |address: IpAddr| {
        let mut value = group(0, address);
        value.extend([1_u32.to_ne_bytes(), 40_u32.to_ne_bytes()].as_flattened());
        (0..40).for_each(|host| value.extend(sockaddr(IpAddr::from([192, 0, 2, host]))));
        value
    };
    let change = |address: Ipv4Addr| {
        move || {
            let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            set_bytes(&socket, SOL_IP, IP_ADD_MEMBERSHIP, &[GROUP.octets(), [0; 4]].concat())?;
            set_bytes(&socket, SOL_IP, MCAST_MSFILTER, &filter(address.into()))
        }
    };
    world.unit.sysctl("ipv4/igmp_max_msf", "100");
    world.unit.ip("route add 224.0.0.0/4 dev wire\n");
    assert_eq!(world.run(change(GROUP)).0, Outcome::DONE, "without confinement the kernel takes it");
    world.install(&Policy { allow: vec![any("0.0.0.0/0")], ..Policy::default() });
    world.confine();
    assert_eq!(world.run(change(GROUP)).0, Outcome::EPERM, "a long value");
    assert_eq!(world.events().last().map(|told| told.reason), Some(DropReason::UnreadableHeader));
    // Options that join nothing may be as long as they like.
    let long = || {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        set_bytes(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &[1; 5000])
    };
    assert_eq!(world.run(long).0, Outcome::DONE, "another long value");
}
