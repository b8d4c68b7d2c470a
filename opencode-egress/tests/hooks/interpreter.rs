//! A kernel that does not compile programs, but interprets them.

use std::{fs, sync::PoisonError};

use opencode_egress::{
    kernel::{
        features::Features,
        loader::{Lifetime, load},
    },
    policy::Policy,
};

use crate::{
    names::names,
    network::{PAIRS, PORT},
    sys::send_to,
    tcp::tcp,
    udp::udp,
    world::{COMPILER, World, base_policy},
};

/// Everything is judged there but TLS, and a policy that asks for that is refused.
#[test]
fn without_the_compiler_a_policy_with_tls_is_refused_and_others_are_enforced() {
    const ENABLED: &str = "/proc/sys/net/core/bpf_jit_enable";
    if std::env::var_os("OPENCODE_EGRESS_TEST_OWNS_MACHINE").is_none() {
        return eprintln!(
            "skipped: no machine whose compiler may be turned off (cargo xtask vm-test --kernel 5.10 interpreter)"
        );
    }
    let (mut world, features) = {
        let _alone = COMPILER.write().unwrap_or_else(PoisonError::into_inner);
        fs::write(ENABLED, "0").expect("the compiler is turned off");
        let loaded = load(&Lifetime::Process);
        let features = Features::of_this_kernel();
        fs::write(ENABLED, "1").expect("the compiler is turned on again");
        (World::of(loaded.expect("the kernel side loads")), features)
    };
    let error = features.check(&names(&["listed.example"])).expect_err("rules with `tls` are refused");
    let said = error.to_string();
    assert!(said.contains("listed.example") && said.contains("/notls"), "{said}");
    features.check(&names(&["listed.example/notls"])).expect("others are not");
    let policy = Policy { names: names(&["listed.example/notls"]).names, ..base_policy() };
    world.install(&policy);
    world.confine();
    for (allowed, denied) in PAIRS {
        world.passes("TCP", (allowed, PORT), |to| tcp(to).map(drop));
        world.denies("TCP", (denied, PORT), |to| tcp(to).map(drop));
        world.passes("UDP", (allowed, PORT), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
        world.denies("UDP", (denied, PORT), |to| send_to(&udp(to)?, b"data", 0, to).map(drop));
    }
}
