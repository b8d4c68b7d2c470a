//! Destinations that are more than one host, or one only on this wire.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

use crate::{
    network::PORT,
    sys::{connect, send, send_to, set},
    tcp::tcp,
    udp::udp,
    world::{World, any, base_policy},
};

const IPV6_MULTICAST_IF: libc::c_int = 17;

fn broadcast(to: SocketAddr) -> io::Result<()> {
    let socket = udp(to)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
    send_to(&socket, b"data", 0, to).map(drop)
}

fn broadcast_connected(to: SocketAddr) -> io::Result<()> {
    let socket = udp(to)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
    connect(&socket, to)?;
    send(&socket, b"data", 0).map(drop)
}

#[test]
fn broadcasts_are_judged() {
    let mut world = World::new(&base_policy());
    let addresses = [Ipv4Addr::new(192, 0, 2, 255), Ipv4Addr::BROADCAST];
    for to in addresses {
        world.denies("UDP broadcast", (to, PORT), broadcast);
        world.denies("UDP broadcast of a connected socket", (to, PORT), broadcast_connected);
    }
    let mut policy = base_policy();
    policy.allow.extend(addresses.map(|to| any(&format!("{to}/32"))));
    world.install(&policy);
    for to in addresses {
        world.passes("UDP broadcast", (to, PORT), broadcast);
        world.passes("UDP broadcast of a connected socket", (to, PORT), broadcast_connected);
    }
}

#[test]
fn multicasts_are_judged() {
    let mut world = World::new(&base_policy());
    let wire = world.unit_interface();
    let multicast = |to: SocketAddr| {
        let socket = udp(to)?;
        if to.is_ipv6() {
            set(&socket, libc::IPPROTO_IPV6, IPV6_MULTICAST_IF, wire)?;
        }
        send_to(&socket, b"data", 0, to).map(drop)
    };
    let addresses = ["239.1.2.3", "224.0.0.251", "ff02::fb", "ff05::1:3"]
        .map(|text| text.parse::<IpAddr>().expect("one"));
    for to in addresses {
        world.denies("UDP multicast", (to, PORT), multicast);
    }
    let mut policy = base_policy();
    policy.allow.extend([any("224.0.0.0/4"), any("ff00::/8")]);
    world.install(&policy);
    for to in addresses {
        world.passes("UDP multicast", (to, PORT), multicast);
    }
}

#[test]
fn link_local_addresses_are_judged() {
    let mut policy = base_policy();
    policy.allow.push(any("fe80::2/128"));
    let mut world = World::new(&policy);
    let scope = u32::try_from(world.unit_interface()).expect("an interface");
    let at = |host| {
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host);
        SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, scope))
    };
    let datagram = |to| send_to(&udp(to)?, b"data", 0, to).map(drop);
    world.passes("TCP to a link-local address", at(2), |to| tcp(to).map(drop));
    world.denies("TCP to a link-local address", at(3), |to| tcp(to).map(drop));
    world.passes("UDP to a link-local address", at(2), datagram);
    world.denies("UDP to a link-local address", at(3), datagram);
}
