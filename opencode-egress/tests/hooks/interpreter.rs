//! A kernel that does not compile programs, but interprets them.

use std::{fs, sync::PoisonError};

use opencode_egress::{
    kernel::{
        features::Features,
        loader::{Lifetime, Loaded, load_for},
    },
    policy::Policy,
};

use crate::{
    bpffs::Bpffs,
    leases::{FAR_AHEAD, leases},
    names::names,
    network::{ALLOWED, DENIED, PAIRS, PORT},
    sys::send_to,
    tcp::tcp,
    udp::udp,
    world::{COMPILER, World, base_policy},
};

/// The kernel side, while nobody turns off the compiler.
fn compiled(lifetime: &Lifetime<'_>, features: Features) -> Loaded {
    let _on = COMPILER.read().unwrap_or_else(PoisonError::into_inner);
    load_for(lifetime, features).expect("the kernel side loads")
}

/// Everything is judged there but TLS, and a policy that asks for that is refused. On a machine of its own the compiler is turned off; elsewhere
/// the programs are those for such a kernel.
#[test]
fn without_the_compiler_a_policy_with_tls_is_refused_and_others_are_enforced() {
    const ENABLED: &str = "/proc/sys/net/core/bpf_jit_enable";
    let (mut world, features) = match std::env::var_os("OPENCODE_EGRESS_TEST_OWNS_MACHINE") {
        Some(_) => {
            let _alone = COMPILER.write().unwrap_or_else(PoisonError::into_inner);
            fs::write(ENABLED, "0").expect("the compiler is turned off");
            let features = Features::ask();
            let loaded = load_for(&Lifetime::Process, features);
            fs::write(ENABLED, "1").expect("the compiler is turned on again");
            (World::of(loaded.expect("the kernel side loads")), features)
        }
        None => {
            let features = Features { egress_calls_tls: false, ..Features::of_this_kernel() };
            (World::of(compiled(&Lifetime::Process, features)), features)
        }
    };
    let refused = names(&["listed.example"]);
    for policy in [&refused, &base_policy().leased(leases(&["listed.example"], FAR_AHEAD, &[]))] {
        let error = features.check(policy).expect_err("rules with `tls` are refused");
        let said = error.to_string();
        assert!(said.contains("listed.example") && said.contains("/notls"), "{said}");
    }
    let policy = Policy { names: names(&["listed.example/notls"]).names, ..base_policy() };
    features.check(&policy).expect("others are not");
    world.install(&policy);
    world.confine();
    for (allowed, denied) in PAIRS {
        world.passes("TCP", (allowed, PORT), |to| tcp(to).map(drop));
        world.denies("TCP", (denied, PORT), |to| tcp(to).map(drop));
        world.passes("UDP", (allowed, PORT), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
        world.denies("UDP", (denied, PORT), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
    }
}

/// Who turns the compiler on or off between two daemons has the programs of each.
#[test]
fn pins_are_good_with_the_compiler_and_without() {
    let pins = Bpffs::mounted();
    let maps = pins.0.path().join("maps");
    let with = Features::of_this_kernel();
    let without = Features { egress_calls_tls: false, ..with };
    for features in [without, with, without, with] {
        let mut world = World::of(compiled(&Lifetime::Pinned(&maps), features));
        world.install(&base_policy());
        world.confine();
        world.passes("TCP", (ALLOWED, PORT), |to| tcp(to).map(drop));
        world.denies("TCP", (DENIED, PORT), |to| tcp(to).map(drop));
    }
}

/// The kernel takes no program for a map of cgroups beside one for another.
#[test]
fn the_map_of_cgroups_may_be_gone() {
    let pins = Bpffs::mounted();
    let maps = pins.0.path().join("maps");
    let load = || compiled(&Lifetime::Pinned(&maps), Features::of_this_kernel());
    drop(load());
    fs::remove_file(maps.join("SCOPES")).expect("it is pinned");
    drop(load());
}
