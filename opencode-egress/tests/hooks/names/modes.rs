//! Audit mode: everything passes, and what would be refused is told.

use std::net::SocketAddr;

use opencode_egress::policy::{Mode, Policy};
use opencode_egress_common::reason::DropReason;

use super::{
    API, Named, RESOLVER, flows, names,
    questions::{BY_TCP, BY_UDP, asks},
};
use crate::{
    network::{DENIED, FAR, PORT},
    probe::Outcome,
};

#[test]
fn audit_mode_tells_what_names_do_not_allow() {
    let mut named = Named::new(&Policy { mode: Mode::Audit, ..names(&[API]) });
    named.learn(API, DENIED, 0);
    let tells = |named: &mut Named, name: &str, to: SocketAddr, way: flows::Way, reason| {
        named.world.events();
        named.world.passes(name, to, way);
        let told = named.world.events();
        assert!(!told.is_empty(), "{name} to {to} is told");
        for denial in told {
            assert_eq!(denial.reason, reason, "{name} to {to} at {:?}", denial.hook);
        }
    };
    for (name, way) in [flows::TCP, flows::UDP] {
        tells(&mut named, name, (DENIED, PORT).into(), way, DropReason::NameExpired);
        tells(&mut named, name, (FAR, PORT).into(), way, DropReason::NotAllowed);
    }
    named.learn(API, FAR, 100);
    for (name, way) in [flows::TCP, flows::UDP] {
        named.world.events();
        named.world.passes(name, (FAR, PORT), way);
        assert_eq!(named.world.events().len(), 0, "{name} by name is nothing to tell");
    }
    // Questions go to the resolver, which tells what it would refuse.
    for (name, ask) in BY_UDP.iter().chain(&BY_TCP) {
        let server = SocketAddr::from((FAR, 53));
        asks(&mut named, name, server, || ask(server, server));
    }
    named.world.events();
    let other = SocketAddr::from(([127, 0, 0, 1], RESOLVER + 1));
    assert_eq!(named.world.run(|| flows::TCP.1(other)).0, Outcome::Errno(libc::ECONNREFUSED));
    let told: Vec<_> = named.world.events().iter().map(|denial| denial.reason).collect();
    assert!(!told.is_empty() && told.iter().all(|reason| *reason == DropReason::OtherResolver), "{told:?}");
}
