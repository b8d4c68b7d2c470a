//! The error that a policy has a denied call get.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use aya::util::KernelVersion;
use opencode_egress::{
    kernel::features::Features,
    policy::{Errno, Mode, Policy},
};

use crate::{
    network::{ALLOWED, DENIED, PAIRS, PORT},
    probe::Outcome,
    sys::{bind, domain, send, send_to, socket},
    tcp::tcp,
    udp::{connected, udp},
    world::{World, base_policy},
};

const OTHERS: [Errno; 3] = [Errno::Econnrefused, Errno::Ehostunreach, Errno::Enetunreach];

fn with(errno: Errno) -> Policy {
    Policy { errno, ..base_policy() }
}

fn datagram(to: SocketAddr) -> io::Result<()> {
    send_to(&udp(to)?, b"data", 0, to).map(drop)
}

fn listener(at: SocketAddr) -> io::Result<()> {
    bind(&socket(domain(at), libc::SOCK_STREAM, 0)?, at)
}

/// What a denied call gets under a policy with this error. Where the kernel knows one alone, the policy is refused beforehand, and the programs
/// deny all the same.
fn expected(errno: Errno) -> Outcome {
    match Features::of_this_kernel().check(&with(errno)) {
        Ok(()) => Outcome::Errno(errno.number()),
        Err(error) => {
            assert!(
                KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 1, 0)),
                "{error}"
            );
            let said = error.to_string();
            assert!(said.contains(errno.name()) && said.contains("6.1"), "{said}");
            eprintln!("skipped: this kernel has EPERM alone for denied calls");
            Outcome::EPERM
        }
    }
}

/// Each of the hooks that see a call, and by name rules as well.
fn each_hook(policy: &Policy) {
    let told = expected(policy.errno);
    let mut world = World::new(policy);
    for (allowed, denied) in PAIRS {
        world.passes("connect", (allowed, PORT), |to| tcp(to).map(drop));
        world.denies_as("connect", (denied, PORT), told, |to| tcp(to).map(drop));
        world.passes("sendto", (allowed, PORT), datagram);
        world.denies_as("sendto", (denied, PORT), told, datagram);
    }
    for at in [(Ipv4Addr::LOCALHOST, PORT).into(), SocketAddr::from((Ipv6Addr::LOCALHOST, PORT))] {
        assert_eq!(world.run(|| listener(at)).0, told, "a bind to {at}, {}", policy.errno);
        // The kernel's own choice is no listener.
        let free = SocketAddr::new(at.ip(), 0);
        assert_eq!(world.run(|| listener(free)).0, Outcome::DONE, "a bind to {free}");
    }
}

#[test]
fn each_hook_has_the_error_of_the_policy() {
    each_hook(&with(Errno::Eperm));
    OTHERS.into_iter().for_each(|errno| each_hook(&with(errno)));
}

#[test]
fn so_it_is_with_rules_for_names() {
    let mut policy = with(Errno::Econnrefused);
    policy.allow("api.example.org".parse().expect("a rule"));
    each_hook(&policy);
}

/// No program of packets can choose it.
#[test]
fn a_datagram_of_a_connected_socket_gets_eperm() {
    let mut world = World::new(&with(Errno::Econnrefused));
    let technique = |to| send(&connected(to)?, b"data", 0).map(drop);
    world.passes("UDP of a connected socket", (ALLOWED, PORT), technique);
    world.denies("UDP of a connected socket", (DENIED, PORT), technique);
}

#[test]
fn in_audit_mode_there_is_no_error() {
    let mut world = World::new(&Policy { mode: Mode::Audit, ..with(Errno::Ehostunreach) });
    world.passes("sendto", (DENIED, PORT), datagram);
    world.passes("connect", (DENIED, PORT), |to| tcp(to).map(drop));
}

/// A policy that has another error is in force for the links that are there; those of datagrams come before it where a daemon installs it.
#[test]
fn another_policy_has_another_error_at_once() {
    let mut world = World::new(&with(Errno::Econnrefused));
    let attempt = |to| tcp(to).map(drop);
    for errno in [Errno::Enetunreach, Errno::Eperm, Errno::Econnrefused] {
        world.install(&with(errno));
        world.denies_as("connect", (DENIED, PORT), expected(errno), attempt);
        world.denies_as("sendto", (DENIED, PORT), expected(errno), datagram);
    }
}
