//! A refused TCP packet ends its socket: whatever denies it, the program that waits is told within a second.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use opencode_egress::{
    cgroups::{Cgroup, Hierarchy},
    kernel::{
        connections::SocketDiagnosis, hooks::Needs, instance::InstanceIndex, links::attach_for_good,
        loader::Loaded,
    },
    policy::{Policy, Rule},
};
use opencode_egress_common::reason::{DropReason, Hook};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    network::{ALLOWED, ALLOWED6, DENIED, DENIED6, PORT, UNIT},
    probe::{Outcome, unhurried},
    sys::{bind, connect, domain, local_port, send, send_to, socket},
    tcp::{has_mptcp, mptcp, tcp},
    udp::{connected, udp},
    world::{World, any, base_policy, listen},
};

const ABORTED: Outcome = Outcome::Errno(libc::ECONNABORTED);

/// Sends everything that goes to the allowed addresses to the denied ones.
const REWRITE: &str = "
    table ip rewrite { chain output { type nat hook output priority -100;
        ip daddr 192.0.2.2 tcp dport 443 dnat to 192.0.2.3:444
        ip daddr 192.0.2.2 udp dport 443 dnat to 192.0.2.3:444
    };
    }
    table ip6 rewrite { chain output { type nat hook output priority -100;
        ip6 daddr 2001:db8:1::2 tcp dport 443 dnat to [2001:db8:1::3]:444
    };
    }";

/// The technique ends with this error within a second, nothing of it arrives, and what was asked for is told.
#[track_caller]
fn ends(
    world: &mut World,
    name: &str,
    (asked, became): (SocketAddr, SocketAddr),
    expect: Outcome,
    technique: impl FnOnce() -> io::Result<()>,
) {
    world.events();
    let (outcome, arrived, took) = world.run_with_resets(technique);
    assert_eq!(arrived.to(became.ip()), [""; 0], "LEAK: {name} to {became}");
    assert_eq!(outcome, expect, "what {name} is told");
    assert!(took < unhurried(Duration::from_secs(1)), "{name} is told after {took:?}");
    let events = world.events();
    let told = events.first().unwrap_or_else(|| panic!("{name} is told"));
    let to = SocketAddr::new(told.flow.address.into(), told.flow.port);
    let wanted = told.asked.map(|(address, port)| SocketAddr::new(address.into(), port));
    assert_eq!((to, wanted), (became, (asked != became).then_some(asked)), "what is told of {name}");
}

fn rewritten(asked: IpAddr) -> (SocketAddr, SocketAddr) {
    let became = if asked.is_ipv4() { IpAddr::from(DENIED) } else { DENIED6.into() };
    (SocketAddr::new(asked, PORT), SocketAddr::new(became, 444))
}

#[test]
fn a_destination_that_is_translated_behind_the_verdict() {
    let mut world = World::new(&base_policy());
    world.passes("TCP", (ALLOWED, PORT), |to| tcp(to).map(drop));
    world.unit.nft(REWRITE);
    for asked in [IpAddr::from(ALLOWED), ALLOWED6.into()] {
        let (to, _) = rewritten(asked);
        ends(&mut world, "TCP", rewritten(asked), ABORTED, || tcp(to).map(drop));
    }
    // An IPv4-mapped destination is its IPv4 address in all that is told.
    let mapped = SocketAddr::from((ALLOWED.to_ipv6_mapped(), PORT));
    ends(&mut world, "mapped TCP", rewritten(ALLOWED.into()), ABORTED, || tcp(mapped).map(drop));
    let to = SocketAddr::from((ALLOWED, PORT));
    ends(&mut world, "TCP fast open", rewritten(ALLOWED.into()), ABORTED, || {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        send_to(&socket, b"data", libc::MSG_FASTOPEN, to).map(drop)
    });
    ends(&mut world, "bound TCP", rewritten(ALLOWED.into()), ABORTED, || {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        bind(&socket, SocketAddr::from((UNIT, 0)))?;
        connect(&socket, to)
    });
    ends(&mut world, "UDP of a connected socket", rewritten(ALLOWED.into()), Outcome::EPERM, || {
        send(&connected(to)?, b"data", 0).map(drop)
    });
    if has_mptcp(&mut world) {
        // Its connection is of another socket than the one of the call.
        ends(&mut world, "MPTCP", rewritten(ALLOWED.into()), ABORTED, || mptcp(to).map(drop));
    }
    world.move_below("child");
    ends(&mut world, "TCP of a child cgroup", rewritten(ALLOWED.into()), ABORTED, || tcp(to).map(drop));
}

/// `r1`: the context, whose second word is the destination.
fn rewriting_program(from: Ipv4Addr, to: Ipv4Addr) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        prog_type: u32,
        instructions: u32,
        code: u64,
        license: u64,
        /// The log, the kernel's version and flags.
        unused: [u64; 3],
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    let word = |address: Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets())) << 32;
    let code: [u64; 6] = [
        0x0000_0004_1261,         // r2 = *(u32 *)(r1 + 4)
        0x0002_0256 | word(from), // if w2 != from goto +2
        0x0000_02b4 | word(to),   // w2 = to
        0x0000_0004_2163,         // *(u32 *)(r1 + 4) = r2
        0x0000_0001_0000_00b7,    // r0 = 1
        0x95,                     // exit
    ];
    let mut attr = Attr {
        prog_type: 18,
        instructions: 6,
        code: code.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        attach_type: 10,
        ..Attr::default()
    };
    // SAFETY: the layout of BPF_PROG_LOAD; code and licence outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 5, &raw mut attr, size_of::<Attr>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Programs of cgroups above run after those of the unit's, and may change where it goes.
#[test]
fn a_destination_that_a_program_above_rewrites() {
    let mut world = World::unconfined();
    world.install(&base_policy());
    world.move_below("unit");
    let path = world.cgroup.0.path().join("unit");
    let unit = Hierarchy::find().and_then(|hierarchy| hierarchy.open(&path)).expect("the unit's cgroup");
    let attach = |loaded: &mut Loaded, hook, cgroup: &Cgroup| loaded.programs.attach_for_good(hook, cgroup);
    world.loaded.confine(&unit, InstanceIndex::FIRST, Needs::NONE, attach).expect("the cgroup is confined");
    world.passes("TCP", (ALLOWED, PORT), |to| tcp(to).map(drop));
    let program = rewriting_program(ALLOWED, DENIED).expect("a program");
    attach_for_good(program.as_fd(), world.cgroup.0.as_fd(), Hook::Connect4).expect("it is attached");
    let (asked, became) = (SocketAddr::from((ALLOWED, PORT)), SocketAddr::from((DENIED, PORT)));
    ends(&mut world, "TCP", (asked, became), ABORTED, || tcp(asked).map(drop));
}

/// The kernel picks the source port after the hook of connect.
#[test]
fn a_source_port_that_is_a_listeners() {
    let port = 40_001;
    let mut world = World::new(&Policy { listen: vec![listen("192.0.2.1", port, true)], ..base_policy() });
    world.unit.sysctl("ipv4/ip_local_port_range", &format!("{port} {port}"));
    let to = SocketAddr::from((ALLOWED, PORT));
    ends(&mut world, "TCP from a listener's port", (to, to), ABORTED, || tcp(to).map(drop));
}

/// A connection over loopback that the other side's instance denies. Its client need not be confined.
#[test]
fn a_connection_that_another_instance_refuses() {
    let mut world = World::new(&base_policy());
    for own in [IpAddr::from(UNIT), Ipv4Addr::LOCALHOST.into(), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])] {
        let mut server = world.start(|steps| {
            let server = TcpListener::bind((own, 0))?;
            steps.wait_with(u64::from(local_port(&server)?))?;
            steps.wait().map(|()| 0)
        });
        let port = u16::try_from(server.step()).expect("a port");
        let to = SocketAddr::new(own, port);
        let diagnosis = world.unit.enter(SocketDiagnosis::open).expect("the kernel's socket diagnosis");
        world.events();
        let (started, namespace) =
            (Instant::now(), world.unit.fd().try_clone_to_owned().expect("a descriptor"));
        let error = thread::scope(|scope| {
            let client = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("the namespace");
                TcpStream::connect_timeout(&to, Duration::from_secs(3))
            });
            while !client.is_finished() {
                // The server says nothing more; what is asked for ends the wait.
                world.answer_resets(&diagnosis, server.as_fd());
            }
            client.join().expect("the client's end").expect_err("the server's instance denies")
        });
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "what a client of {to} is told");
        assert!(started.elapsed() < unhurried(Duration::from_secs(1)), "after {:?}", started.elapsed());
        let told = world.events();
        let told: Vec<_> =
            told.iter().map(|denial| (denial.hook, denial.reason, denial.event.local_port)).collect();
        assert_eq!(
            told,
            [(Hook::Ingress, DropReason::NotAListener, port)],
            "what is told of a client of {to}"
        );
        server.go_on();
    }
}

/// A packet in somebody else's name ends no connection that is there.
#[test]
fn an_open_connection_is_not_ended_by_a_packet() {
    let world = World::new(&base_policy());
    let mut probe = world.start(|steps| {
        let socket = tcp((ALLOWED, PORT).into())?;
        steps.wait_with(u64::from(local_port(&socket)?))?;
        send(&socket, b"data", 0).map(|_| 0)
    });
    let port = u16::try_from(probe.step()).expect("a port");
    let diagnosis = world.unit.enter(SocketDiagnosis::open).expect("the kernel's socket diagnosis");
    let word = |address: Ipv4Addr| [u32::from_ne_bytes(address.octets()), 0, 0, 0];
    let forged = opencode_egress_common::abi::Reset {
        source: word(UNIT),
        destination: word(ALLOWED),
        cookie: 0,
        instance: 1,
        interface: 0,
        source_port: port,
        destination_port: PORT,
        family: 4,
    };
    assert!(!diagnosis.reset_requested(&forged, true).expect("an answer"), "an open connection is let alone");
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
}

/// `0.0.0.0` stands for the address that the socket is bound to.
#[test]
fn the_unspecified_address_of_a_bound_socket() {
    let loopback: Rule = any("127.0.0.0/8");
    let mut world = World::new(&Policy { allow: vec![loopback], ..Policy::default() });
    let own = SocketAddr::from((UNIT, PORT));
    let bound = |kind, to: SocketAddr, from: IpAddr| {
        move || {
            let socket = socket(domain(to), kind, 0)?;
            bind(&socket, SocketAddr::new(from, 0))?;
            if kind == libc::SOCK_STREAM {
                connect(&socket, to)
            } else {
                send_to(&socket, b"data", 0, to).map(drop)
            }
        }
    };
    let mapped = IpAddr::from(UNIT.to_ipv6_mapped());
    let unspecified4 = SocketAddr::from(([0; 4], PORT));
    let unspecified6 = SocketAddr::new("::ffff:0.0.0.0".parse().expect("an address"), PORT);
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
        ends(
            &mut world,
            "a bound socket",
            (own, own),
            Outcome::EPERM,
            bound(kind, unspecified4, UNIT.into()),
        );
        ends(
            &mut world,
            "a mapped bound socket",
            (own, own),
            Outcome::EPERM,
            bound(kind, unspecified6, mapped),
        );
    }
    // The control: where that address is allowed, nothing listens there; and without an address it is loopback.
    world.install(&Policy { allow: vec![any("192.0.2.1/32")], ..Policy::default() });
    let closed = Outcome::Errno(libc::ECONNREFUSED);
    assert_eq!(world.run(bound(libc::SOCK_STREAM, unspecified4, UNIT.into())).0, closed);
    assert_eq!(world.run(bound(libc::SOCK_STREAM, unspecified6, mapped)).0, closed);
    let free = world.run(|| send_to(&udp(unspecified4)?, b"data", 0, unspecified4).map(drop)).0;
    assert_eq!(free, Outcome::EPERM, "an unbound socket reaches loopback, which is not allowed now");
}

#[test]
fn an_open_connection_whose_peer_is_denied_now() {
    for address in [IpAddr::from(ALLOWED), ALLOWED6.into()] {
        let mut world = World::new(&base_policy());
        let diagnosis = world.unit.enter(SocketDiagnosis::open).expect("the kernel's socket diagnosis");
        let mut probe = world.start(|steps| {
            let socket = tcp((address, PORT).into())?;
            steps.wait()?;
            send(&socket, b"data", 0)?;
            let mut byte = [0];
            // SAFETY: one byte of room.
            match unsafe { libc::recv(socket.as_raw_fd(), byte.as_mut_ptr().cast(), 1, 0) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(0),
            }
        });
        probe.step();
        world.install(&Policy::default());
        let _ = world.witness.arrived();
        probe.go_on();
        let started = Instant::now();
        while !world.answer_resets(&diagnosis, probe.as_fd()) {
            assert!(started.elapsed() < unhurried(Duration::from_secs(1)), "the program is told");
        }
        assert_eq!(probe.end(), ABORTED);
        assert_eq!(world.witness.arrived().to(address), [""; 0], "LEAK");
    }
}
