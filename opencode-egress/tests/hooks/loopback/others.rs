//! What is somebody else's: their servers, which the instance does not reach, and they, who do not reach the instance's.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use opencode_egress::{
    kernel::{instance::InstanceIndex, loader::Lifetime},
    policy::{Listen, Policy},
};
use opencode_egress_common::reason::DropReason;

use super::{
    ANSWER, ANY4, ANY6, PLACE, SILENCE, TCP, V4, V6, WAYS, at, client, connects, listener, own, server,
    socket_with, talks,
};
use crate::{
    bpffs::Bpffs,
    network::{Namespace, UNIT, UNIT6},
    probe::{Outcome, Probe},
    sys::{listening, send_to, set_bytes, socket},
    tcp::{IPPROTO_MPTCP, has_mptcp},
    world::World,
};

#[test]
fn another_programs_server_is_not_reached() {
    let mut world = World::new(&own());
    for protocol in [TCP, IPPROTO_MPTCP] {
        if protocol == IPPROTO_MPTCP && !has_mptcp(&mut world) {
            return;
        }
        // The kernel closes a listener of MPTCP when it comes to it, so each has a port of its own.
        for ((place, to), port) in WAYS.into_iter().zip(PLACE..) {
            let [place, to] = [place, to].map(|address| SocketAddr::new(address, port));
            let other = world.unit.enter(|| listener(place, protocol).expect("the place is free"));
            world.denies("a connection to another program", to, |to| client(to, TCP).map(drop));
            world.check_last(DropReason::NotAllowed);
            other.set_nonblocking(true).expect("a listener");
            assert!(other.accept().is_err(), "LEAK: another program has a connection");
        }
    }
}

fn reaches(place: &Namespace, to: SocketAddr) -> io::Result<()> {
    let mut client = place.enter(|| TcpStream::connect_timeout(&to, SILENCE))?;
    client.set_read_timeout(Some(ANSWER))?;
    talks(&mut client)
}

#[test]
fn others_do_not_reach_the_instances_server_until_it_is_listed() {
    let mut world = World::new(&own());
    for (place, to) in [
        (V4, vec![V4]),
        (V6, vec![V6]),
        (ANY4, vec![V4, UNIT.into()]),
        (ANY6, vec![V4, V6, UNIT.into(), UNIT6.into()]),
    ] {
        let (_server, _) = server(&world, at(place), TCP);
        for to in to {
            world.events();
            assert!(reaches(&world.unit, at(to)).is_err(), "LEAK: a program of this host reaches {to}");
            let told = world.events();
            assert_eq!(told.first().map(|told| told.reason), Some(DropReason::NotAListener), "{to}");
            if !to.is_loopback() {
                assert!(reaches(&world.far, at(to)).is_err(), "LEAK: another host reaches {to}");
            }
            let allowed = Listen { address: place, port: PLACE, open: true };
            world.install(&Policy { listen: vec![allowed], ..own() });
            let reached = reaches(if to.is_loopback() { &world.unit } else { &world.far }, at(to));
            assert!(reached.is_ok(), "{to}, which is listed: {reached:?}");
            world.install(&own());
        }
        let (outcome, _) = world.run(|| talks(&mut client(at(if place.is_ipv4() { V4 } else { V6 }), TCP)?));
        assert_eq!(outcome, Outcome::DONE, "the instance itself");
    }
}

/// A rule for loopback lets the instance reach others, and not others the instance.
#[test]
fn a_rule_for_loopback_lets_nobody_in() {
    let mut policy = own();
    policy.allow.push(crate::world::any("127.0.0.0/8"));
    let mut world = World::new(&policy);
    let (_server, _) = server(&world, at(V4), TCP);
    assert!(reaches(&world.unit, at(V4)).is_err(), "LEAK: another program reaches it");
    let (outcome, _) = world.run(|| talks(&mut client(at(V4), TCP)?));
    assert_eq!(outcome, Outcome::DONE, "the instance itself");
}

#[test]
fn instances_do_not_reach_each_other() {
    let bpffs = Bpffs::mounted();
    let mut world = World::with(&Lifetime::Pinned(bpffs.0.path()));
    world.install(&own());
    world.confine();
    let second = InstanceIndex::new(2).expect("a number");
    let neighbour = world.neighbour(second, &own());
    let (_server, _) = server(&world, at(V4), TCP);
    let reach = |cgroup: &_, unit: &Namespace| {
        Probe::start(cgroup, unit, |_| talks(&mut client(at(V4), TCP)?).map(|()| 0)).end()
    };
    assert_eq!(reach(&neighbour.0, &world.unit), Outcome::EPERM, "the neighbour");
    assert_eq!(reach(&world.cgroup.0, &world.unit), Outcome::DONE, "the instance itself");
    // Even where the neighbour's rules let it, the instance does not take it.
    let mut policy = own();
    policy.allow.push(crate::world::any("127.0.0.0/8"));
    let compiled = opencode_egress::policy::compile::compile(&policy).expect("it compiles");
    world.loaded.maps.install(second, &compiled).expect("it is installed");
    let outcome =
        Probe::start(&neighbour.0, &world.unit, |_| TcpStream::connect_timeout(&at(V4), SILENCE).map(|_| 0));
    assert_ne!(outcome.end(), Outcome::DONE, "LEAK: a neighbour with a rule for loopback");
}

/// Who listens is who made the socket, not who has it now.
#[test]
fn a_listener_that_was_handed_over_is_its_makers() {
    let mut world = World::new(&own());
    let theirs = world.unit.enter(|| listener(at(V4), TCP).expect("a listener"));
    let pid = std::process::id();
    let number = theirs.as_raw_fd();
    let (outcome, _) = world.run(|| {
        let handed = TcpListener::from(descriptor_of(pid, number)?);
        handed.set_nonblocking(true)?;
        let result = client(at(V4), TCP).map(drop);
        match handed.accept() {
            Ok(_) => Err(io::Error::other("LEAK: it is reached")),
            Err(_) => result,
        }
    });
    assert_eq!(outcome, Outcome::EPERM, "one that another program made");
    drop(theirs);
    let mut probe = world.start(|steps| {
        let listener = listener(at(V4), TCP)?;
        steps.wait_with(u64::from(listener.as_raw_fd().unsigned_abs()))?;
        drop(listener);
        steps.wait()?;
        talks(&mut client(at(V4), TCP)?).map(|()| 0)
    });
    let number = i32::try_from(probe.step()).expect("a descriptor");
    let handed = TcpListener::from(descriptor_of(probe.pid(), number).expect("it is handed over"));
    std::thread::spawn(move || super::serve(&handed));
    probe.go_on();
    probe.step();
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE, "one that the instance made");
}

/// Another process' descriptor, as `SCM_RIGHTS` would hand it over.
fn descriptor_of(pid: u32, number: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), number, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
}

/// The kernel shares out what comes among the sockets of a group, by a number or by a program of any of them.
#[test]
fn a_group_with_somebody_elses_socket_reaches_only_the_instances() {
    for (steered, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new(&own());
        // Without a cookie, and whoever listens.
        world.unit.sysctl("ipv4/tcp_fastopen", "1543");
        let mut probe = world.start(|steps| {
            let mine = listening(socket_with(at(V4), libc::SOCK_STREAM, libc::SO_REUSEPORT)?)?;
            steps.wait()?;
            mine.set_nonblocking(true)?;
            let mut reached = 0;
            for number in 0..24 {
                if theirs && number % 2 == 1 {
                    // A SYN with data, which whoever gets it has at once.
                    let fast = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
                    let _ = send_to(&fast, b"data", libc::MSG_FASTOPEN, at(V4));
                    reached += u64::from(mine.accept().is_ok());
                    continue;
                }
                // A SYN that is denied is not answered.
                let Ok(mut client) = TcpStream::connect_timeout(&at(V4), SILENCE / 3) else { continue };
                let _ = client.write_all(b"data");
                reached += u64::from(mine.accept().is_ok());
            }
            Ok(reached)
        });
        probe.step();
        let join = || {
            let other = socket_with(at(V4), libc::SOCK_STREAM, libc::SO_REUSEPORT).expect("it joins");
            let other = listening(other).expect("it listens");
            if steered {
                // Returns 1: all that comes is the second socket's.
                let program = [0x06_u64 | 1 << 32];
                let bpf = libc::sock_fprog { len: 1, filter: program.as_ptr().cast_mut().cast() };
                // SAFETY: the bytes of a `sock_fprog`, whose program lives until the call returns.
                let bytes: [u8; 16] = unsafe { std::mem::transmute(bpf) };
                set_bytes(&other, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &bytes)
                    .expect("a program chooses");
            }
            other
        };
        let mut beside = None;
        let other = theirs.then(|| world.unit.enter(join));
        if !theirs {
            let mut probe = world.start(|steps| {
                let other = join();
                steps.wait()?;
                super::serve(&other)
            });
            probe.step();
            probe.go_on();
            beside = Some(probe);
        }
        probe.go_on();
        let Outcome::Done(reached) = probe.end() else { panic!("the probe ends") };
        drop(beside);
        let Some(other) = other else {
            // The control: a group of its own, of which the first socket has its share, unless a program gives it none.
            assert!(steered || reached > 0, "the instance's own group");
            assert_eq!(world.denied(), 0, "nothing of it is denied");
            continue;
        };
        other.set_nonblocking(true).expect("a listener");
        assert!(other.accept().is_err(), "LEAK: somebody else has a connection of the instance's");
        world.events();
    }
}

/// Where network address translation leads to somebody else's server, the packet says so.
#[test]
fn a_destination_that_becomes_loopback_is_somebody_elses() {
    let mut policy = own();
    policy.allow.push(crate::world::any("192.0.2.2/32"));
    let mut world = World::new(&policy);
    world.unit.nft(
        "table ip nat { chain output { type nat hook output priority -100; ip daddr 192.0.2.2 tcp dport 80 dnat to 127.0.0.1:3000; }; }",
    );
    let other = world.unit.enter(|| listener(at(V4), TCP).expect("a listener"));
    let to: IpAddr = [192, 0, 2, 2].into();
    let (outcome, _, _) = world.run_with_resets(|| client(SocketAddr::new(to, 80), TCP).map(drop));
    assert_ne!(outcome, Outcome::DONE, "LEAK: the host's server");
    other.set_nonblocking(true).expect("a listener");
    assert!(other.accept().is_err(), "LEAK: the host's server has a connection");
    drop(other);
    // The control: without translation.
    connects(&mut world, SocketAddr::new(to, crate::network::PORT), Outcome::DONE);
}
