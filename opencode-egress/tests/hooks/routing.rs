//! What sends a packet elsewhere than its destination says, or hides what it carries: source routes, routing
//! headers, extension headers.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use opencode_egress::policy::Policy;
use opencode_egress_common::reason::DropReason;

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, FAR, PORT},
    probe::Outcome,
    sys::{Message, domain, send_to, set_bytes, socket},
    udp::udp,
    world::{World, any, base_policy},
};

const IP_RETOPTS: libc::c_int = 7;
const IPV6_2292PKTOPTIONS: libc::c_int = 6;
const IPV6_HOPOPTS: libc::c_int = 54;
const IPV6_RTHDRDSTOPTS: libc::c_int = 55;
const IPV6_RTHDR: libc::c_int = 57;
const IPV6_DSTOPTS: libc::c_int = 59;

/// Allows every address, so that only the routing itself can be the reason.
fn everything() -> Policy {
    Policy { allow: vec![any("0.0.0.0/0"), any("::/0")], ..Policy::default() }
}

/// A loose (131) or strict (137) source route by a hop: <https://www.rfc-editor.org/rfc/rfc791>.
fn source_route(kind: u8, hop: Ipv4Addr) -> [u8; 8] {
    let [a, b, c, d] = hop.octets();
    [kind, 7, 4, a, b, c, d, 0]
}

/// A router alert: an option that does not change the packet's way.
const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];

fn datagram_by(option: &[u8; 8], to: SocketAddr) -> io::Result<()> {
    let control = Some((libc::IPPROTO_IP, IP_RETOPTS, &option[..]));
    Message::new(Some(to.into()), b"data", control).send(&udp(to)?, 0).map(drop)
}

#[test]
fn source_routes_are_refused() {
    let mut world = World::unconfined();
    let routes = [131, 137].map(|kind| [ALLOWED, DENIED].map(|hop| (hop, source_route(kind, hop))));
    // The packet goes to the hop; the address that it is sent to stands in the option.
    for (hop, option) in routes.as_flattened() {
        world.passes("without confinement, UDP by a source route", (*hop, PORT), |_| {
            datagram_by(option, (FAR, PORT).into())
        });
    }
    world.install(&everything());
    world.confine();
    for (hop, option) in routes.as_flattened() {
        for transport in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let (outcome, _) = world.run(|| {
                let socket = socket(libc::AF_INET, transport, 0)?;
                set_bytes(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, option)
            });
            assert_eq!(outcome, Outcome::EPERM, "IP_OPTIONS with {option:?} is refused");
        }
        world.denies("UDP by a source route", (*hop, PORT), |_| datagram_by(option, (FAR, PORT).into()));
        world.check_last(DropReason::Ipv4Option);
    }
}

#[test]
fn harmless_ipv4_options_are_judged_like_none() {
    let mut world = World::new(&base_policy());
    let alert = |to: SocketAddr| {
        let control = Some((libc::IPPROTO_IP, IP_RETOPTS, &ROUTER_ALERT[..]));
        Message::new(Some(to.into()), b"data", control).send(&udp(to)?, 0).map(drop)
    };
    world.passes("UDP with a router alert", (ALLOWED, PORT), alert);
    world.denies("UDP with a router alert", (DENIED, PORT), alert);
    let cleared = |to: SocketAddr| {
        let socket = udp(to)?;
        set_bytes(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[])?;
        send_to(&socket, b"data", 0, to).map(drop)
    };
    world.passes("UDP with cleared options", (ALLOWED, PORT), cleared);
    world.denies("UDP with cleared options", (DENIED, PORT), cleared);
}

/// A routing header of some type by a hop, before UDP: <https://www.rfc-editor.org/rfc/rfc8200#section-4.4>.
fn routing_header(kind: u8, hop: Ipv6Addr) -> Vec<u8> {
    // Length in units of 8 bytes after the first; one segment left.
    let mut header = vec![17, 2, kind, 1, 0, 0, 0, 0];
    header.extend(hop.octets());
    header
}

/// A segment routing header (type 4) of two segments: <https://www.rfc-editor.org/rfc/rfc8754#section-2>.
fn segment_routing_header(hop: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend([hop.octets(), hop.octets()].as_flattened());
    header
}

/// What the kernel puts into packets for the sender: an option of the socket, or a control message.
#[test]
fn routing_headers_by_the_kernel_are_refused() {
    let to = SocketAddr::from((ALLOWED6, PORT));
    let set = |transport, name, value: &[u8]| {
        set_bytes(&socket(libc::AF_INET6, transport, 0)?, libc::IPPROTO_IPV6, name, value)
    };
    let mut world = World::unconfined();
    world.passes("without confinement, UDP with a segment routing header", (ALLOWED6, PORT), |_| {
        let socket = udp(to)?;
        set_bytes(&socket, libc::IPPROTO_IPV6, IPV6_RTHDR, &segment_routing_header(ALLOWED6))?;
        send_to(&socket, b"data", 0, SocketAddr::from((DENIED6, PORT))).map(drop)
    });
    world.install(&everything());
    world.confine();
    let headers = [ALLOWED6, DENIED6]
        .map(|hop| [routing_header(0, hop), routing_header(2, hop), segment_routing_header(hop)]);
    for header in headers.as_flattened() {
        for transport in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            for name in [IPV6_RTHDR, IPV6_2292PKTOPTIONS] {
                let (outcome, _) = world.run(|| set(transport, name, header));
                assert_eq!(outcome, Outcome::EPERM, "option {name} with {header:?} is refused");
            }
        }
        let (outcome, arrived) = world.run(|| {
            let control = Some((libc::IPPROTO_IPV6, IPV6_RTHDR, &header[..]));
            Message::new(Some(to.into()), b"data", control).send(&udp(to)?, 0).map(drop)
        });
        let leaked = [arrived.to(ALLOWED6.into()), arrived.to(DENIED6.into())].concat();
        assert_eq!(leaked, [""; 0], "LEAK: {header:?} in a message");
        // A kernel without mobile IPv6 denies the control message itself.
        let refused = [Outcome::EPERM, Outcome::Errno(libc::EINVAL)].contains(&outcome);
        assert!(refused, "{header:?} in a message is refused: {outcome:?}");
    }
    let (outcome, _) = world.run(|| set(libc::SOCK_DGRAM, IPV6_RTHDR, &[]));
    assert_eq!(outcome, Outcome::DONE, "a routing header may be taken away");
}

/// Padding of 8 bytes before the next header.
fn options_before(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// A raw socket of an extension header's number sends that header, hand-made.
#[test]
fn hand_made_extension_headers_are_refused_unless_harmless() {
    let datagram = [0x9c, 0x40, 0x01, 0xbb, 0, 8, 0, 0];
    let fragment = vec![17, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
    let mut cases = vec![
        (44, fragment, DropReason::Fragment),
        (60, [options_before(43), routing_header(0, ALLOWED6)].concat(), DropReason::RoutingHeader),
        (60, options_before(60).repeat(20), DropReason::ExtensionHeader),
        (60, options_before(6), DropReason::UnreadableHeader),
    ];
    for kind in [0, 2, 4] {
        for hop in [ALLOWED6, DENIED6] {
            let header = [routing_header(kind, hop), datagram.to_vec()].concat();
            cases.push((43, header, DropReason::RoutingHeader));
        }
    }
    // What cannot be looked behind: ESP, AH, mobility, HIP, shim6, experiments.
    cases.extend(
        [50, 51, 135, 139, 140, 253, 254]
            .map(|protocol| (protocol, vec![0; 24], DropReason::ExtensionHeader)),
    );
    let raw = |protocol, payload: &[u8], to| {
        send_to(&socket(domain(to), libc::SOCK_RAW, protocol)?, payload, 0, to).map(drop)
    };
    let mut world = World::unconfined();
    for (protocol, payload, _) in &cases {
        let name = format!("without confinement, a hand-made header {protocol}");
        world.passes(&name, (ALLOWED6, 0), |to| raw(*protocol, payload, to));
    }
    world.install(&everything());
    world.confine();
    for (protocol, payload, reason) in &cases {
        let name = format!("a hand-made header {protocol}");
        world.denies(&name, (ALLOWED6, 0), |to| raw(*protocol, payload, to));
        world.check_last(*reason);
    }
    let harmless = [options_before(17), datagram.to_vec()].concat();
    world.install(&base_policy());
    world.passes("hand-made options before UDP", (ALLOWED6, 0), |to| raw(60, &harmless, to));
    world.denies("hand-made options before UDP", (DENIED6, 0), |to| raw(60, &harmless, to));
}

/// Options headers that the kernel adds for a privileged sender.
#[test]
fn options_headers_are_looked_behind() {
    let mut world = World::new(&base_policy());
    for (name, option) in
        [("hop-by-hop", IPV6_HOPOPTS), ("destination", IPV6_DSTOPTS), ("early", IPV6_RTHDRDSTOPTS)]
    {
        let value = options_before(0);
        let sticky = |to| {
            let socket = udp(to)?;
            set_bytes(&socket, libc::IPPROTO_IPV6, option, &value)?;
            send_to(&socket, b"data", 0, to).map(drop)
        };
        let in_message = |to: SocketAddr| {
            let control = Some((libc::IPPROTO_IPV6, option, &value[..]));
            Message::new(Some(to.into()), b"data", control).send(&udp(to)?, 0).map(drop)
        };
        world.passes(&format!("UDP with {name} options"), (ALLOWED6, PORT), sticky);
        world.denies(&format!("UDP with {name} options"), (DENIED6, PORT), sticky);
        world.passes(&format!("UDP with {name} options in a message"), (ALLOWED6, PORT), in_message);
        world.denies(&format!("UDP with {name} options in a message"), (DENIED6, PORT), in_message);
    }
}
