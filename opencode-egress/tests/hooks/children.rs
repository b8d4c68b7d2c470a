//! Child cgroups of the confined one.

use std::net::SocketAddr;

use opencode_egress::{cgroups::Hierarchy, kernel::instance::InstanceIndex};

use crate::{
    network::{ALLOWED, DENIED, PORT},
    probe::Outcome,
    raw::ping,
    sys::{send_to, socket},
    tcp::tcp,
    udp::udp,
    world::{World, base_policy},
};

fn check(world: &mut World, place: &str) {
    world.unit.sysctl("ipv4/ping_group_range", "0 2147483647");
    world.judges(&format!("TCP from {place}"), |to| tcp(to).map(drop));
    world.judges(&format!("UDP from {place}"), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
    world.passes(&format!("ping from {place}"), (ALLOWED, 0), ping);
    world.denies(&format!("ping from {place}"), (DENIED, 0), ping);
}

#[test]
fn children_are_confined_whenever_they_were_made() {
    let mut world = World::unconfined();
    world.move_below("before");
    world.install(&base_policy());
    world.confine();
    check(&mut world, "a child made before");
    world.move_below("after");
    check(&mut world, "a grandchild made after");
    world.move_up();
    world.move_below("another");
    check(&mut world, "a child made after");
}

/// A child cgroup has no storage of its own: instance and remembered verdicts are those of the confined cgroup above it.
#[test]
fn children_have_no_scope_of_their_own() {
    let mut world = World::new(&base_policy());
    let confined = world.cgroup.0.id();
    world.move_below("child");
    let path = world.cgroup.0.path().join("child");
    let child = Hierarchy::find().and_then(|hierarchy| hierarchy.open(&path)).expect("the child");
    check(&mut world, "a child");
    assert_eq!(world.loaded.maps.instance_of(confined), Some(InstanceIndex::FIRST));
    assert_eq!(world.loaded.maps.instance_of(child.id()), None, "a child has no storage of its own");
}

/// A socket stays its cgroup's, also when its process goes elsewhere, and is confined although it is older
/// than the links.
#[test]
fn sockets_older_than_the_links_are_confined() {
    let mut world = World::unconfined();
    let mut probe = world.start(|steps| {
        let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        send_to(&socket, b"data", 0, SocketAddr::from((DENIED, PORT)))?;
        steps.wait()?;
        send_to(&socket, b"data", 0, SocketAddr::from((ALLOWED, PORT)))?;
        send_to(&socket, b"data", 0, SocketAddr::from((DENIED, PORT))).map(|_| 0)
    });
    probe.step();
    assert_eq!(world.witness.arrived().to(DENIED.into()).len(), 1, "nothing is confined yet");
    world.install(&base_policy());
    world.confine();
    probe.go_on();
    assert_eq!(probe.end(), Outcome::EPERM, "the old socket is refused what is denied");
    let arrived = world.witness.arrived();
    assert_eq!(arrived.to(ALLOWED.into()).len(), 1, "what is allowed to the old socket arrives");
    assert_eq!(arrived.to(DENIED.into()), [""; 0], "LEAK: from a socket older than the links");
}
