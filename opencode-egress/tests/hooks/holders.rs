//! Hooks that somebody else's program keeps to itself.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use opencode_egress::{
    cgroups::{Cgroup, Hierarchy},
    kernel::hooks::attach_type,
    report::human::error_chain,
};
use opencode_egress_common::reason::Hook;

use crate::world::World;

/// Attaches a program as `bpftool cgroup attach` does, with or without `multi`.
fn attach(world: &World, hook: Hook, cgroup: &Cgroup, flags: u32) {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    let program = world.loaded.programs.program(hook).expect("a program").fd().expect("it is loaded");
    let number = |fd: i32| fd.unsigned_abs();
    let attr =
        [number(cgroup.as_fd().as_raw_fd()), number(program.as_fd().as_raw_fd()), attach_type(hook), flags];
    // SAFETY: the layout of BPF_PROG_ATTACH, which points to nothing.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn below(world: &World, names: &str) -> Cgroup {
    let hierarchy = Hierarchy::find().expect("a cgroup2 hierarchy");
    let path = world.cgroup.0.path().join(names);
    hierarchy.create(&path).expect("a cgroup")
}

#[test]
fn a_program_that_lets_no_other_be_attached_is_named() {
    let world = World::unconfined();
    let (outer, hook) = (&world.cgroup.0, Hook::Egress);
    let inner = below(&world, "inner");
    let innermost = below(&world, "inner/most");
    attach(&world, hook, outer, 0);
    let id =
        world.loaded.programs.program(hook).expect("a program").info().expect("what the kernel says").id();
    for cgroup in [outer, &inner, &innermost] {
        let error = world.loaded.programs.attach(hook, cgroup).expect_err("the hook is taken");
        let (said, at) = (error_chain(&error), outer.path().display());
        assert!(
            said.starts_with(&format!("cannot attach egress to {}: ", cgroup.path().display())),
            "{said}"
        );
        let expect =
            format!("program {id} (`egress`) is attached to {at} for egress and lets nobody else be.");
        assert!(said.contains(&expect), "{said}");
        assert!(said.contains(&format!("bpftool cgroup attach {at} egress id {id} multi")), "{said}");
        world.loaded.programs.attach(Hook::Ingress, cgroup).expect("another hook is free");
    }
}

/// One that may be overridden below is in the way where it is, and nowhere else; one beside others never is.
#[test]
fn a_program_that_is_not_in_the_way_is_not_blamed() {
    const OVERRIDE: u32 = 1;
    const MULTI: u32 = 2;
    let world = World::unconfined();
    let (outer, inner) = (&world.cgroup.0, below(&world, "inner"));
    attach(&world, Hook::Egress, outer, OVERRIDE);
    let error = world.loaded.programs.attach(Hook::Egress, outer).expect_err("the hook is taken");
    assert!(error_chain(&error).contains("lets nobody else be"), "{}", error_chain(&error));
    world.loaded.programs.attach(Hook::Egress, &inner).expect("it may be overridden");
    attach(&world, Hook::Ingress, outer, MULTI);
    for cgroup in [outer, &inner] {
        world.loaded.programs.attach(Hook::Ingress, cgroup).expect("there is room beside it");
    }
}
