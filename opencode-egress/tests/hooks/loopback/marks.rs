//! The mark by which the second lock lets own loopback pass.

use std::net::SocketAddr;

use opencode_egress::policy::Policy;

use super::{TCP, V4, V6, at, client, datagrams, free_port, own, server, talks};
use crate::{
    network::{ALLOWED, PORT},
    probe::Outcome,
    sys::{connect, disconnect, domain, get, send_to, socket},
    udp::udp,
    world::{World, any},
};

const BIT: u32 = 1 << 28;

fn marked() -> Policy {
    Policy { loopback_mark: BIT, ..own() }
}

/// A second lock like the module's, that knows own loopback by its mark and lets nothing else of loopback pass but replies.
fn lock(world: &World) {
    world.unit.nft(
        "table inet lock { chain output { type filter hook output priority filter; policy accept;
            ct direction reply accept
            oifname \"lo\" ip daddr 127.0.0.0/8 meta l4proto { tcp, udp } meta mark & 0x10000000 == 0x10000000 accept
            oifname \"lo\" ip6 daddr ::1 meta l4proto { tcp, udp } meta mark & 0x10000000 == 0x10000000 accept
            oifname \"lo\" meta l4proto { tcp, udp } reject with icmpx admin-prohibited; }; }",
    );
}

#[test]
fn own_loopback_passes_a_second_lock_that_knows_its_mark() {
    for address in [V4, V6] {
        let mut world = World::new(&own());
        let (_server, _) = server(&world, at(address), TCP);
        lock(&world);
        let datagram = |to: SocketAddr| {
            let server = datagrams(to)?;
            // The first one of a socket without a peer has no other hook.
            send_to(&udp(to)?, b"data", 0, to)?;
            server.recv(&mut [0; 8]).map(drop)
        };
        let place = SocketAddr::new(address, free_port(&world));
        let (outcome, _) = world.run(|| client(at(address), TCP).map(drop));
        assert!(
            matches!(outcome, Outcome::Errno(_)),
            "TCP without a mark meets the second lock: {outcome:?}"
        );
        let (outcome, _) = world.run(|| datagram(place));
        assert!(matches!(outcome, Outcome::Errno(_)), "so does UDP: {outcome:?}");
        world.install(&marked());
        let (outcome, _) = world.run(|| talks(&mut client(at(address), TCP)?));
        assert_eq!(outcome, Outcome::DONE, "TCP");
        let (outcome, _) = world.run(|| datagram(place));
        assert_eq!(outcome, Outcome::DONE, "UDP");
        // Nobody is there, which the kernel says, as far as the second lock lets the question through.
        let nobody = SocketAddr::new(address, free_port(&world));
        let (outcome, _) = world.run(|| client(nobody, TCP).map(drop));
        assert_eq!(outcome, Outcome::Errno(libc::ECONNREFUSED));
        // Who has no first lock has no mark.
        let outside = world.unit.enter(|| client(at(address), TCP).map(drop));
        assert!(outside.is_err(), "a program without a policy, under the second lock alone");
    }
}

#[test]
fn a_socket_that_goes_elsewhere_has_no_mark() {
    let mut policy = marked();
    policy.allow.push(any("192.0.2.2/32"));
    let mut world = World::new(&policy);
    let (_server, _) = server(&world, at(V4), TCP);
    let (outcome, _) = world.run(|| {
        let mark = |socket: &_| get(socket, libc::SOL_SOCKET, libc::SO_MARK).map(i32::cast_unsigned);
        let there = SocketAddr::from((ALLOWED, PORT));
        // The second time the verdict is remembered.
        for _ in 0..2 {
            let socket = socket(domain(at(V4)), libc::SOCK_STREAM, 0)?;
            connect(&socket, at(V4))?;
            assert_eq!(mark(&socket)?, BIT, "to itself");
            disconnect(&socket)?;
            connect(&socket, there)?;
            assert_eq!(mark(&socket)?, 0, "elsewhere");
        }
        Ok(())
    });
    assert_eq!(outcome, Outcome::DONE);
}
