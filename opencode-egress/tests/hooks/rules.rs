//! What rules say of protocols and ports, deny over allow, and audit mode.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use opencode_egress::policy::{Mode, Policy, RuleProtocol};
use opencode_egress_common::reason::{DropReason, Hook};

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, FAR, PAIRS, PORT},
    probe::Outcome,
    raw::ping,
    sys::{bind, send, send_to, set_bytes, socket},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, any, base_policy, rule},
};

fn connects(to: SocketAddr) -> io::Result<()> {
    tcp(to).map(drop)
}

fn sends(to: SocketAddr) -> io::Result<()> {
    send_to(&udp(to)?, b"data", 0, to).map(drop)
}

#[test]
fn protocols_and_ports_are_judged() {
    let policy = Policy {
        allow: vec![
            rule("192.0.2.2/32", RuleProtocol::Tcp, &["443"]),
            rule("192.0.2.3/32", RuleProtocol::Udp, &["53", "400-500"]),
            rule("2001:db8:1::2/128", RuleProtocol::Any, &["443"]),
            rule("198.51.100.0/24", RuleProtocol::Icmp, &[]),
        ],
        ..Policy::default()
    };
    let mut world = World::new(&policy);
    world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
    world.passes("TCP to its port", (ALLOWED, 443), connects);
    for port in [442, 444, 80, 65535] {
        world.denies("TCP to another port", (ALLOWED, port), connects);
        world.check_last(DropReason::PortNotAllowed);
    }
    world.denies("UDP where TCP is allowed", (ALLOWED, 443), sends);
    world.check_last(DropReason::ProtocolNotAllowed);
    world.denies("ping where TCP is allowed", (ALLOWED, 0), ping);
    world.check_last(DropReason::ProtocolNotAllowed);
    for port in [53, 400, 443, 500] {
        world.passes("UDP to its ports", (DENIED, port), sends);
    }
    for port in [52, 54, 399, 501] {
        world.denies("UDP to another port", (DENIED, port), sends);
        world.check_last(DropReason::PortNotAllowed);
    }
    world.denies("TCP where UDP is allowed", (DENIED, 443), connects);
    world.check_last(DropReason::ProtocolNotAllowed);
    world.passes("TCP to a port for any protocol", (ALLOWED6, 443), connects);
    world.passes("UDP to a port for any protocol", (ALLOWED6, 443), sends);
    world.denies("TCP to another port", (ALLOWED6, 80), connects);
    world.denies("UDP to another port", (ALLOWED6, 80), sends);
    world.passes("ping where ICMP is allowed", (FAR, 0), ping);
    world.denies("TCP where ICMP is allowed", (FAR, 443), connects);
    world.denies("UDP where ICMP is allowed", (FAR, 443), sends);
}

#[test]
fn deny_wins_over_allow() {
    let policy = Policy {
        // The denied network is the wider one here and the narrower one there.
        allow: vec![any("192.0.2.0/24"), any("198.51.100.9/32"), any("2001:db8:1::/64")],
        deny: vec![
            any("192.0.2.3/32"),
            any("198.51.100.0/24"),
            any("2001:db8:1::3/128"),
            rule("192.0.2.2/32", RuleProtocol::Tcp, &["25"]),
        ],
        ..Policy::default()
    };
    let mut world = World::new(&policy);
    world.judges("TCP", connects);
    world.check_last(DropReason::DenyRule);
    world.judges("UDP", sends);
    world.check_last(DropReason::DenyRule);
    world.denies("TCP to a denied port", (ALLOWED, 25), connects);
    world.check_last(DropReason::DenyRule);
    world.passes("UDP to the port that is denied to TCP", (ALLOWED, 25), sends);
}

#[test]
fn audit_lets_pass_and_tells() {
    let mut world = World::new(&Policy { mode: Mode::Audit, ..base_policy() });
    for (allowed, denied) in PAIRS {
        for to in [allowed, denied] {
            let denials = world.denied();
            world.events();
            world.passes("audited TCP", (to, PORT), connects);
            let hook = if to.is_ipv4() { Hook::Connect4 } else { Hook::Connect6 };
            check_audited(&mut world, to, allowed, denials, hook);
            let denials = world.denied();
            world.passes("audited UDP", (to, PORT), sends);
            // An IPv4-mapped destination reaches the hook of IPv4.
            let v6 = matches!(to, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none());
            let hook = match (world.judges_sendmsg(), v6) {
                (true, true) => Hook::Sendmsg6,
                (true, false) => Hook::Sendmsg4,
                (false, _) => Hook::Egress,
            };
            check_audited(&mut world, to, allowed, denials, hook);
        }
    }
    let operations = |world: &mut World, expect| {
        let (outcome, _) =
            world.run(|| bind(&socket(libc::AF_INET, libc::SOCK_STREAM, 0)?, SocketAddr::from(([0; 4], 87))));
        assert_eq!(outcome, expect, "an unlisted bind");
        let (outcome, _) = world.run(|| {
            let route = [131, 7, 4, 192, 0, 2, 3, 0];
            set_bytes(&udp(SocketAddr::from((ALLOWED, PORT)))?, libc::IPPROTO_IP, libc::IP_OPTIONS, &route)
        });
        assert_eq!(outcome, expect, "a source route");
    };
    operations(&mut world, Outcome::DONE);
    let told: Vec<_> =
        world.events().iter().map(|record| (record.hook, record.reason, record.event.audit)).collect();
    let expect =
        [(Hook::Bind4, DropReason::BindNotListed, 1), (Hook::Setsockopt, DropReason::RoutingOption, 1)];
    assert_eq!(told, expect, "audited operations are told");
    // The same under enforcement: the audit above was the mode's doing.
    world.install(&base_policy());
    operations(&mut world, Outcome::EPERM);
    world.judges("TCP", connects);
}

/// An allowed destination leaves no trace; a denied one is counted and told as audited.
#[track_caller]
fn check_audited(world: &mut World, to: IpAddr, allowed: IpAddr, denials: u64, hook: Hook) {
    let events = world.events();
    if to == allowed {
        assert_eq!((world.denied() - denials, events.len()), (0, 0), "{to} is allowed");
        return;
    }
    assert!(world.denied() > denials, "what passes to {to} only by the mode is counted");
    assert_eq!(events.first().map(|record| record.hook), Some(hook), "the first hook that sees {to}");
    for record in events {
        assert_eq!(record.event.audit, 1, "{record:?} is audited");
        assert_eq!(IpAddr::from(record.flow.address), to.to_canonical(), "the destination of {record:?}");
    }
}

/// A rule for IPv4 written in its mapped form is the same rule.
#[test]
fn mapped_rules_are_ipv4_rules() {
    let policy = Policy {
        allow: vec![any("::ffff:192.0.2.0/120"), any("2001:db8:1::2/128")],
        deny: vec![any("::ffff:192.0.2.3/128"), any("::ffff:198.51.100.9/128")],
        ..Policy::default()
    };
    let mut world = World::new(&policy);
    world.judges("TCP", connects);
    world.judges("UDP of a connected socket", |to| send(&connected(to)?, b"data", 0).map(drop));
}
