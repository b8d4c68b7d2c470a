//! Where an instance may listen for itself.

use std::net::{IpAddr, SocketAddr};

use opencode_egress::{
    kernel::{instance::InstanceIndex, loader::Lifetime},
    policy::Policy,
};
use opencode_egress_common::{abi::RESOLVER_PORTS, reason::DropReason};

use super::{ANY_MAPPED, ANY4, ANY6, MAPPED, PLACE, TCP, V4, V6, listed, listener, own, socket_with};
use crate::{
    bpffs::Bpffs,
    network::{UNIT, UNIT6},
    probe::Outcome,
    sys::{bind, domain, socket},
    world::{World, listen},
};

const KINDS: [libc::c_int; 2] = [libc::SOCK_STREAM, libc::SOCK_DGRAM];

#[track_caller]
fn binds(world: &mut World, place: (IpAddr, u16), expect: Outcome) {
    let place = SocketAddr::from(place);
    for kind in KINDS {
        let (outcome, _) = world.run(|| bind(&socket(domain(place), kind, 0)?, place));
        assert_eq!(outcome, expect, "a bind to {place} of a socket of type {kind}");
    }
}

#[test]
fn from_port_1024_on_loopback_is_free() {
    let mut world = World::new(&own());
    for address in [V4, V6, MAPPED, ANY4, ANY6, ANY_MAPPED] {
        for port in [0, 1024, PLACE, RESOLVER_PORTS.0 - 1, RESOLVER_PORTS.1 + 1, u16::MAX] {
            binds(&mut world, (address, port), Outcome::DONE);
        }
        for port in [1, 1023, RESOLVER_PORTS.0, RESOLVER_PORTS.1] {
            binds(&mut world, (address, port), Outcome::EPERM);
        }
    }
    for address in [IpAddr::from(UNIT), UNIT6.into()] {
        binds(&mut world, (address, PLACE), Outcome::EPERM);
    }
    world.install(&listed());
    binds(&mut world, (V4, PLACE), Outcome::EPERM);
}

/// An agent must not take the place of a neighbour's server, even while that is not there.
#[test]
fn a_neighbours_listed_port_is_the_neighbours() {
    let bpffs = Bpffs::mounted();
    let mut world = World::with(&Lifetime::Pinned(bpffs.0.path()));
    world.install(&own());
    world.confine();
    let (second, third) =
        (InstanceIndex::new(2).expect("a number"), InstanceIndex::new(3).expect("a number"));
    let listens = |address| Policy { listen: vec![listen(address, PLACE, false)], ..own() };
    binds(&mut world, (V4, PLACE), Outcome::DONE);
    let neighbour = world.neighbour(second, &listens("127.0.0.2"));
    for address in [V4, V6, ANY4, ANY6] {
        binds(&mut world, (address, PLACE), Outcome::EPERM);
        binds(&mut world, (address, PLACE + 1), Outcome::DONE);
    }
    let place = SocketAddr::from(([127, 0, 0, 2], PLACE));
    let outcome = crate::probe::Probe::start(&neighbour.0, &world.unit, |_| {
        listener(place, TCP)?;
        // Beside what it lists it may have the port for itself.
        listener(SocketAddr::new(V4, PLACE), TCP).map(|_| 0)
    })
    .end();
    assert_eq!(outcome, Outcome::DONE, "the neighbour itself");
    // Two that list the port, and then one of them, and then none.
    let _other = world.neighbour(third, &listens("127.0.0.3"));
    binds(&mut world, (V4, PLACE), Outcome::EPERM);
    world.loaded.maps.retire(&[third]).expect("it is retired");
    binds(&mut world, (V4, PLACE), Outcome::EPERM);
    world.install(&listens("127.0.0.1"));
    binds(&mut world, (V4, PLACE), Outcome::DONE);
    binds(&mut world, (V6, PLACE), Outcome::EPERM);
    world.install(&own());
    world.loaded.maps.retire(&[second]).expect("it is retired");
    binds(&mut world, (V6, PLACE), Outcome::DONE);
}

/// A group shares out what comes, so nobody joins somebody else's.
#[test]
fn a_group_of_somebody_elses_is_not_joined() {
    let mut world = World::new(&own());
    let place = SocketAddr::new(V4, PLACE);
    let other =
        world.unit.enter(|| socket_with(place, libc::SOCK_STREAM, libc::SO_REUSEPORT).expect("a socket"));
    let other = world.unit.enter(|| crate::sys::listening(other).expect("a listener"));
    let (outcome, _) = world.run(|| socket_with(place, libc::SOCK_STREAM, libc::SO_REUSEPORT).map(drop));
    assert_eq!(outcome, Outcome::EPERM);
    let (outcome, _) = world.run(|| listener(place, TCP).map(drop));
    assert_eq!(outcome, Outcome::Errno(libc::EADDRINUSE), "the kernel's own answer to all others");
    drop(other);
    let (outcome, _) = world.run(|| {
        let one = socket_with(place, libc::SOCK_STREAM, libc::SO_REUSEPORT)?;
        let one = crate::sys::listening(one)?;
        let other = socket_with(place, libc::SOCK_STREAM, libc::SO_REUSEPORT)?;
        drop((one, crate::sys::listening(other)?));
        Ok(())
    });
    assert_eq!(outcome, Outcome::DONE, "a group of its own");
}

#[test]
fn a_denied_bind_is_told() {
    let mut world = World::new(&own());
    let place = SocketAddr::new(V4, 80);
    world.denies("a bind below 1024", place, |to| bind(&socket(domain(to), libc::SOCK_STREAM, 0)?, to));
    world.check_last(DropReason::BindNotListed);
}
