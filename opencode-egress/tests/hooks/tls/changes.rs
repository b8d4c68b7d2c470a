//! Policies that change while a hello is on its way.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use opencode_egress::{
    kernel::{instance::InstanceIndex, loader::Lifetime},
    policy::{Policy, compile::compile},
};
use opencode_egress_common::{abi::Mode, reason::DropReason};

use super::{RESET, SERVED, Server, conclude, finish, hello_to, learn, with_policy, world};
use crate::{
    bpffs::Bpffs,
    leases::{FAR_AHEAD, leases},
    names::{Named, names},
    network::{DENIED, PORT},
    probe::{Outcome, Steps, unhurried},
    sys::{connect, disconnect, send, set, socket},
    tcp::tcp,
    world::any,
};

/// Sends a hello in two pieces, between which something happens, and returns what came of it and what arrived.
fn between(named: &mut Named, hello: &[u8], happens: impl FnOnce(&mut Named)) -> (Outcome, Vec<u8>) {
    let server = Server::start(named.world.server());
    named.world.events();
    let (one, two) = hello.split_at(60);
    let mut probe = named.world.start(|steps| {
        let socket = tcp((DENIED, PORT).into())?;
        set(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        send(&socket, one, 0)?;
        steps.wait()?;
        let since = Instant::now();
        let _ = send(&socket, two, 0);
        conclude(&socket, since)
    });
    probe.step();
    happens(named);
    probe.go_on();
    (finish(named, probe), server.end())
}

fn again(named: &mut Named, policy: &Policy) {
    named.install(policy, &[("listed.example", IpAddr::from(DENIED), 1000)]);
}

#[test]
fn a_hello_on_its_way_is_followed_under_the_next_policy() {
    let mut named = world();
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let same = names(&super::RULES);
    let (outcome, arrived) = between(&mut named, &good, |named| again(named, &same));
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &good));
    let (outcome, arrived) = between(&mut named, &evil, |named| again(named, &same));
    assert_eq!((outcome, &arrived[..]), (Outcome::Done(RESET), &evil[..60]));
    // The next one lists it.
    let both = names(&["listed.example", "evil.example"]);
    let (outcome, arrived) = between(&mut named, &evil, |named| again(named, &both));
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &evil));
    // The next one does not, and has another name at the address.
    again(&mut named, &both);
    let (outcome, arrived) = between(&mut named, &evil, |named| again(named, &same));
    assert_eq!((outcome, &arrived[..]), (Outcome::Done(RESET), &evil[..60]));
    // The next one allows the network.
    let network = Policy { allow: vec![any("192.0.2.0/24")], ..same.clone() };
    let (outcome, arrived) = between(&mut named, &evil, |named| again(named, &network));
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &evil));
}

/// Another daemon's programs find how far the earlier one's had followed it.
#[test]
fn a_hello_on_its_way_is_followed_by_the_next_daemon() {
    let pins = Bpffs::mounted();
    let maps = pins.0.path().join("maps");
    for (name, served) in [("listed.example", true), ("evil.example", false)] {
        let mut named = Named::with(&Lifetime::Pinned(&maps), &names(&super::RULES));
        learn(&mut named);
        let hello = hello_to(name);
        let (outcome, arrived) = between(&mut named, &hello, |named| {
            // What is attached judges on; the next one's programs are put beside it, and judge too.
            let mut next = opencode_egress::kernel::loader::load(&Lifetime::Pinned(&maps))
                .expect("the kernel side loads");
            std::mem::swap(&mut named.world.loaded, &mut next);
            named.world.confine();
        });
        let expected =
            if served { (Outcome::Done(SERVED), &hello[..]) } else { (Outcome::Done(RESET), &hello[..60]) };
        assert_eq!((outcome, &arrived[..]), expected, "{name}");
    }
}

/// New flows need the address in time, and so does nothing else.
#[test]
fn an_open_connection_outlives_its_addresss_time() {
    let mut named = Named::new(&names(&super::RULES));
    let over = named.learn_briefly("listed.example", DENIED);
    let good = hello_to("listed.example");
    let (outcome, arrived) = between(&mut named, &good, |named| named.world.wait_until(over));
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &good));
    let evil = hello_to("evil.example");
    let over = named.learn_briefly("listed.example", DENIED);
    let (outcome, arrived) = between(&mut named, &evil, |named| named.world.wait_until(over));
    assert_eq!((outcome, &arrived[..]), (Outcome::Done(RESET), &evil[..60]));
    let told = named.world.events();
    assert_eq!(told.first().map(|denial| denial.reason), Some(DropReason::TlsNameNotAllowed));
}

/// What is denied stays denied until its socket is reset, and is told of as one thing.
#[test]
fn a_denied_connection_stays_denied() {
    let mut named = world();
    let evil = hello_to("evil.example");
    let server = Server::start(named.world.server());
    let mut probe = named.world.start(|steps| {
        let socket = tcp((DENIED, PORT).into())?;
        set(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        for _ in 0..20 {
            let _ = send(&socket, &evil, 0);
        }
        steps.wait()?;
        Ok(0)
    });
    probe.step();
    // Nobody resets it meanwhile, so it sends again.
    let (mut told, deadline) = (vec![], Instant::now() + unhurried(Duration::from_secs(10)));
    while told.len() < 2 {
        assert!(Instant::now() < deadline, "{told:?}");
        told.extend(named.world.events());
    }
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
    assert!(told.iter().all(|denial| denial.reason == DropReason::TlsNameNotAllowed), "{told:?}");
    let mut names = told.iter().map(|denial| denial.server.expect("a server").name().to_vec());
    assert!(names.all(|name| name == b"evil.example"), "{told:?}");
    assert_eq!(server.end(), b"", "nothing of it arrives");
}

/// What audit mode let pass is denied when that ends.
#[test]
fn what_audit_let_pass_ends_with_it() {
    let mut named = with_policy(&Policy { mode: Mode::Audit, ..names(&super::RULES) });
    let evil = hello_to("evil.example");
    let server = Server::start(named.world.server());
    let mut probe = named.world.start(|steps| {
        let socket = tcp((DENIED, PORT).into())?;
        send(&socket, &evil, 0)?;
        steps.wait()?;
        let since = Instant::now();
        let _ = send(&socket, b"more", 0);
        conclude(&socket, since)
    });
    probe.step();
    again(&mut named, &names(&super::RULES));
    probe.go_on();
    assert_eq!(finish(&mut named, probe), Outcome::Done(RESET));
    assert_eq!(server.end(), evil, "what it let pass, and no more");
}

/// A hello on its way goes on where the next policy has no rule that looks at it.
#[test]
fn a_hello_on_its_way_is_free_under_a_policy_without_tls() {
    let mut named = world();
    let evil = hello_to("evil.example");
    let without = "listed.example/notls";
    let (outcome, arrived) = between(&mut named, &evil, |named| {
        named.install(&names(&[without]), &[(without, IpAddr::from(DENIED), 1000)]);
    });
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &evil));
}

/// What began by a network that is listed or leased no more ends, whatever it says: a name with `tls` at its address is for what brought a hello.
#[test]
fn what_began_without_a_hello_ends_under_rules_with_tls() {
    let tls = names(&super::RULES);
    let listed = Policy { allow: vec![any("192.0.2.0/24")], ..tls.clone() };
    let leased = tls.clone().leased(leases(&["192.0.2.0/28:443/tcp"], FAR_AHEAD, &[]));
    for (how, policy) in [("listed", &listed), ("leased", &leased)] {
        let mut named = with_policy(policy);
        again(&mut named, policy);
        for said in [
            &b"no hello, and more than sixty bytes of something else that is not to go on"[..],
            &hello_to("listed.example"),
        ] {
            let (outcome, arrived) = between(&mut named, said, |named| again(named, &tls));
            assert_eq!((outcome, &arrived[..]), (Outcome::Done(RESET), &said[..60]), "{how}");
            let told = named.world.events();
            assert_eq!(
                told.first().map(|denial| denial.reason),
                Some(DropReason::NotAllowed),
                "{how}: {told:?}"
            );
            again(&mut named, policy);
        }
    }
}

/// Opens a connection, which waits once, sends no hello under another policy, and more when that has ended.
fn opened_under(
    named: &mut Named,
    open: impl FnOnce(&mut Steps) -> io::Result<OwnedFd>,
    other: impl FnOnce(&mut Named),
) -> Outcome {
    let mut probe = named.world.start(|steps| {
        let socket = open(steps)?;
        send(&socket, b"no hello", 0)?;
        steps.wait()?;
        let since = Instant::now();
        let _ = send(&socket, b"more", 0);
        conclude(&socket, since)
    });
    probe.step();
    other(named);
    probe.go_on();
    probe.step();
    again(named, &names(&super::RULES));
    probe.go_on();
    finish(named, probe)
}

/// A network that is listed meanwhile frees a connection that brought no hello yet, and that ends with it. A lease is for what begins under it.
#[test]
fn what_a_network_frees_ends_with_it() {
    let tls = names(&super::RULES);
    let listed = Policy { allow: vec![any("192.0.2.0/24")], ..tls.clone() };
    let leased = tls.leased(leases(&["192.0.2.0/28:443/tcp"], FAR_AHEAD, &[]));
    for (how, policy, arrives) in [("listed", &listed, &b"no hello"[..]), ("leased", &leased, b"")] {
        let mut named = world();
        let server = Server::start(named.world.server());
        let open = |steps: &mut Steps| {
            let socket = tcp((DENIED, PORT).into())?;
            set(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
            steps.wait()?;
            Ok(socket)
        };
        let outcome = opened_under(&mut named, open, |named| again(named, policy));
        assert_eq!(outcome, Outcome::Done(RESET), "{how}");
        assert_eq!(server.end(), arrives, "{how}");
    }
}

/// The same of one that a rule with `tls` let begin, and whose SYN leaves while the network is listed: it waits for what is to be sent in it.
#[test]
fn what_a_network_lets_open_ends_with_it() {
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
    let listed = Policy { allow: vec![any("192.0.2.0/24")], ..names(&super::RULES) };
    let mut named = world();
    named.world.unit.sysctl("ipv4/tcp_fastopen", "1");
    let server = Server::start(named.world.server());
    let open = |steps: &mut Steps| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)?;
        set(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?;
        connect(&socket, SocketAddr::from((DENIED, PORT)))?;
        steps.wait()?;
        Ok(socket)
    };
    let outcome = opened_under(&mut named, open, |named| again(named, &listed));
    assert_eq!(outcome, Outcome::Done(RESET));
    assert_eq!(server.end(), b"no hello");
}

/// Likewise under audit mode, by a socket that was connected before.
#[test]
fn what_audit_lets_open_ends_with_it() {
    let audit = Policy { mode: Mode::Audit, ..names(&["other.example"]) };
    let mut named = world();
    let open = |steps: &mut Steps| {
        let socket = tcp((DENIED, PORT).into())?;
        disconnect(&socket)?;
        steps.wait()?;
        connect(&socket, SocketAddr::from((DENIED, PORT)))?;
        Ok(socket)
    };
    let outcome = opened_under(&mut named, open, |named| named.install(&audit, &[]));
    assert_eq!(outcome, Outcome::Done(RESET));
}

/// A socket whose connection brought a hello is connected again while a network is listed and no name is: that brought none. Also of an instance that
/// was gone meanwhile.
#[test]
fn a_socket_that_a_network_connects_again_brought_no_hello() {
    // With what follows a hello that the server has answered: nobody follows the connection any more.
    let good = [&hello_to("listed.example")[..], &[23, 3, 3, 0, 4, 1, 2, 3, 4]].concat();
    let listed = Policy { allow: vec![any("192.0.2.0/24")], ..names(&[]) };
    for gone in [false, true] {
        let mut named = world();
        let server = Server::start(named.world.server());
        let open = |steps: &mut Steps| {
            let socket = tcp((DENIED, PORT).into())?;
            send(&socket, &good, 0)?;
            conclude(&socket, Instant::now())?;
            disconnect(&socket)?;
            steps.wait()?;
            connect(&socket, SocketAddr::from((DENIED, PORT)))?;
            Ok(socket)
        };
        let outcome = opened_under(&mut named, open, |named| {
            if gone {
                named.world.loaded.maps.retire(&[InstanceIndex::FIRST]).expect("the policy goes");
            }
            named.install(&listed, &[]);
        });
        assert_eq!(outcome, Outcome::Done(RESET), "gone: {gone}");
        assert_eq!(server.end(), good, "of the first connection");
    }
}

/// What a socket remembers is its instance's: another one, which takes over its cgroup, has generations of the same numbers.
#[test]
fn what_an_instance_let_begin_is_not_anothers() {
    let pins = Bpffs::mounted();
    let maps = pins.0.path().join("maps");
    let mut named = Named::with(&Lifetime::Pinned(&maps), &names(&["listed.example/notls"]));
    named.learn("listed.example/notls", DENIED, 1000);
    let other = InstanceIndex::new(2).expect("a number");
    let (outcome, arrived) = between(&mut named, &[7; 100], |named| {
        let maps = &mut named.world.loaded.maps;
        let others = compile(&names(&["other.example"])).expect("it compiles");
        while maps.current(other).generation() < maps.current(InstanceIndex::FIRST).generation() {
            maps.install(other, &others).expect("it is in force");
        }
        maps.set_instance_of(named.world.cgroup.0.id(), other).expect("the cgroup is another's");
    });
    assert_eq!((outcome, &arrived[..]), (Outcome::Done(RESET), &[7; 60][..]));
}

/// What brought a hello goes on where another rule has its name and address in place of the one by which it began.
#[test]
fn what_began_with_a_hello_goes_on_by_another_rule() {
    let (one, other) = ("a.listed.example", "*.listed.example");
    let mut named = Named::new(&names(&[one]));
    named.learn(one, DENIED, 1000);
    let good = hello_to(one);
    let (outcome, arrived) = between(&mut named, &good, |named| {
        named.install(&names(&[other]), &[(other, IpAddr::from(DENIED), 1000)]);
    });
    assert_eq!((outcome, &arrived), (Outcome::Done(SERVED), &good));
}
