//! How many sockets an instance may have open.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
    process::abort,
    thread,
};

use opencode_egress::{
    cgroups::Hierarchy,
    kernel::{hooks::Needs, instance::InstanceIndex, loader::Lifetime},
    policy::{Mode, Policy, compile::compile},
};
use opencode_egress_common::{
    abi::SOCKET_SLOTS,
    reason::{DropReason, Hook},
};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
        sendmsg,
    },
    process::{Resource, Rlimit, setrlimit},
};

use crate::{
    bpffs::Bpffs,
    probe::{Outcome, Probe},
    sys::socket,
    world::{World, any, base_policy},
};

const LIMIT: u32 = 8;

fn limited(max_sockets: u32) -> Policy {
    Policy { max_sockets, ..base_policy() }
}

fn udp() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
}

/// As many sockets of every kind as there may be.
fn eight() -> io::Result<Vec<OwnedFd>> {
    let mut sockets = vec![];
    for domain in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
            (libc::SOCK_RAW, libc::IPPROTO_UDP),
        ] {
            sockets.push(socket(domain, kind, protocol)?);
        }
    }
    Ok(sockets)
}

/// Fails unless a socket is refused with `EPERM`.
fn none_is_left(socket: io::Result<OwnedFd>) -> io::Result<()> {
    match socket {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("there was one more")),
    }
}

impl World {
    fn open_sockets(&self) -> u32 {
        self.loaded.maps.open_sockets(InstanceIndex::FIRST).expect("the count")
    }

    /// Fails unless the probe comes to its next step with so many sockets; then it goes on.
    #[track_caller]
    fn counts(&self, probe: &mut Probe, expect: u32, after: &str) {
        probe.step();
        assert_eq!(self.open_sockets(), expect, "sockets that are open after {after}");
        probe.go_on();
    }
}

#[test]
fn one_socket_more_than_the_limit_is_refused_and_told() {
    let mut world = World::new(&limited(LIMIT));
    let mut probe = world.start(|steps| {
        let mut sockets = eight()?;
        steps.wait()?;
        for domain in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                none_is_left(socket(domain, kind, 0))?;
            }
        }
        // They are no IP sockets.
        UnixStream::pair()?;
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        steps.wait()?;
        drop(sockets.pop());
        steps.wait()?;
        sockets.push(udp()?);
        none_is_left(udp())?;
        steps.wait()?;
        Ok(0)
    });
    let pid = probe.pid();
    world.counts(&mut probe, LIMIT, "eight were made");
    probe.step();
    assert_eq!(world.open_sockets(), LIMIT, "what is refused is not counted");
    let told = world.events();
    assert_eq!(told.len(), 4, "{told:?}");
    for denial in &told {
        assert_eq!((denial.hook, denial.reason), (Hook::SockCreate, DropReason::TooManySockets));
        assert_eq!(denial.event.pid, pid, "{denial:?}");
    }
    probe.go_on();
    world.counts(&mut probe, LIMIT - 1, "one was closed");
    world.counts(&mut probe, LIMIT, "another took its place");
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.open_sockets(), 0, "sockets end with their process");
}

/// What is refused for another reason takes no place, and a limit that becomes less takes no socket away.
#[test]
fn the_limit_is_that_of_the_policy_in_force() {
    let mut world = World::new(&limited(LIMIT));
    let mut probe = world.start(|steps| {
        let mut sockets = eight()?;
        none_is_left(socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW))?;
        steps.wait()?;
        for _ in 0..7 {
            sockets.pop();
            none_is_left(udp())?;
        }
        steps.wait()?;
        sockets.clear();
        udp()?;
        Ok(0)
    });
    probe.step();
    let told = world.events();
    assert_eq!(told.last().map(|denial| denial.reason), Some(DropReason::HeaderIncluded), "{told:?}");
    world.install(&limited(1));
    probe.go_on();
    world.counts(&mut probe, 1, "seven were closed, and no other could be had");
    assert_eq!(probe.end(), Outcome::DONE);
    // Everything is denied to an instance without a policy, and it has no more than by default.
    world.loaded.maps.retire(&[InstanceIndex::FIRST]).expect("the policy is retired");
    let outcome = world.start(|_| udp().map(|_| 0)).end();
    assert_eq!(outcome, Outcome::DONE);
    assert_eq!(world.open_sockets(), 0);
}

#[test]
fn in_audit_mode_more_pass_and_are_told() {
    let mut world = World::new(&Policy { mode: Mode::Audit, ..limited(1) });
    let outcome =
        world.start(|_| [udp()?, udp()?].map(drop).len().try_into().map_err(io::Error::other)).end();
    assert_eq!(outcome, Outcome::Done(2));
    let told = world.events();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].reason == DropReason::TooManySockets && told[0].event.audit == 1, "{told:?}");
    assert_eq!(world.open_sockets(), 0);
}

/// They take no port, and peers make them, not the instance.
#[test]
fn accepted_sockets_are_not_counted() {
    let world = World::new(&Policy { allow: vec![any("127.0.0.0/8")], ..limited(LIMIT) });
    let mut probe = world.start(|steps| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let mut clients = vec![];
        let mut accepted = vec![];
        for _ in 0..5 {
            clients.push(TcpStream::connect(address)?);
            accepted.push(listener.accept()?);
        }
        steps.wait()?;
        accepted.clear();
        steps.wait()?;
        clients.clear();
        steps.wait()?;
        Ok(0)
    });
    world.counts(&mut probe, 6, "five connections");
    world.counts(&mut probe, 6, "their accepted ends were closed");
    world.counts(&mut probe, 1, "the others were closed");
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.open_sockets(), 0);
}

/// A socket is one, however many descriptors, processes and messages have it, and is closed when the last of them is.
#[test]
fn copies_of_a_socket_are_one() {
    let world = World::new(&limited(LIMIT));
    let mut probe = world.start(|steps| {
        let made = udp()?;
        let copy = made.try_clone()?;
        drop(made);
        steps.wait()?;
        let (ours, childs) = UnixDatagram::pair()?;
        // SAFETY: the child waits for a message and ends without running what this process registered for its end.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(ours);
            if childs.recv(&mut [0]).is_err() {
                abort();
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        drop(copy);
        steps.wait()?;
        ours.send(&[0])?;
        // SAFETY: waits for the child that was made above.
        if unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } != child {
            return Err(io::Error::last_os_error());
        }
        steps.wait()?;
        let (one, other) = UnixDatagram::pair()?;
        send_away(&one, udp()?)?;
        steps.wait()?;
        let received = receive(&other)?;
        steps.wait()?;
        drop(received);
        steps.wait()?;
        // Nobody takes it out.
        send_away(&one, udp()?)?;
        drop((one, other));
        Ok(0)
    });
    world.counts(&mut probe, 1, "one of two descriptors was closed");
    world.counts(&mut probe, 1, "the child alone had it");
    world.counts(&mut probe, 0, "the child ended");
    world.counts(&mut probe, 1, "it was in a message alone");
    world.counts(&mut probe, 1, "it was received");
    world.counts(&mut probe, 0, "it was closed");
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.open_sockets(), 0, "a message that nobody takes goes with its queue");
}

fn send_away(to: &UnixDatagram, socket: OwnedFd) -> io::Result<()> {
    let descriptors = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &UnixDatagram) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::empty())?;
    let rights = control.drain().filter_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

/// Those that find their slot taken are counted in another way.
#[test]
fn more_sockets_than_slots_are_counted() {
    const MORE: u32 = SOCKET_SLOTS + 1000;
    let world = World::new(&limited(MORE));
    let mut probe = world.start(|steps| {
        let room = Some(u64::from(MORE) + 100);
        let room = Rlimit { current: room, maximum: room };
        setrlimit(Resource::Nofile, room)?;
        let mut sockets = (0..MORE).map(|_| udp()).collect::<io::Result<Vec<_>>>()?;
        none_is_left(udp())?;
        steps.wait()?;
        // Some of both.
        sockets.drain(..2000);
        sockets.drain(sockets.len() - 2000..);
        steps.wait()?;
        sockets.push(udp()?);
        steps.wait()?;
        Ok(0)
    });
    world.counts(&mut probe, MORE, "as many were made as there may be");
    world.counts(&mut probe, MORE - 4000, "the first and the last were closed");
    world.counts(&mut probe, MORE - 3999, "another was made");
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.open_sockets(), 0);
}

#[test]
fn a_count_survives_many_sockets_at_once() {
    let world = World::new(&limited(LIMIT));
    let outcome = world
        .start(|_| {
            let many = || (0..25_000).try_for_each(|_| udp().map(drop));
            thread::scope(|scope| {
                let threads = [scope.spawn(many), scope.spawn(many)];
                threads
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| io::Error::other("it panicked"))?)
            })?;
            Ok(0)
        })
        .end();
    assert_eq!(outcome, Outcome::DONE);
    assert_eq!((world.open_sockets(), world.denied()), (0, 0));
}

/// What an earlier count had is in none.
#[test]
fn a_new_count_begins_at_nothing() {
    let mut world = World::new(&limited(2));
    let mut probe = world.start(|steps| {
        let before = [udp()?, udp()?];
        steps.wait()?;
        let after = [udp()?, udp()?];
        none_is_left(udp())?;
        drop(before);
        steps.wait()?;
        drop(after);
        Ok(0)
    });
    probe.step();
    world.loaded.maps.count_sockets_anew(InstanceIndex::FIRST).expect("a new count");
    assert_eq!(world.open_sockets(), 0);
    probe.go_on();
    world.counts(&mut probe, 2, "those of the earlier count were closed");
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!(world.open_sockets(), 0);
}

/// A socket that passes the programs of two confined cgroups, one below the other, is the lower one's.
#[test]
fn a_socket_is_in_one_count() {
    let bpffs = Bpffs::mounted();
    let mut world = World::with(&Lifetime::Pinned(&bpffs.0.path().join("maps")));
    world.install(&limited(LIMIT));
    world.confine();
    world.move_below("below");
    let below = Hierarchy::find().and_then(|hierarchy| hierarchy.open(&world.cgroup.0.path().join("below")));
    let below = below.expect("the cgroup below");
    let second = InstanceIndex::new(2).expect("a number");
    world.loaded.maps.install(second, &compile(&limited(2)).expect("it compiles")).expect("a policy");
    let confined = world.loaded.confine(&below, second, Needs::NONE, |loaded, hook, cgroup| {
        loaded.programs.attach_for_good(hook, cgroup)
    });
    confined.expect("it is confined");
    let mut probe = world.start(|steps| {
        let sockets = [udp()?, udp()?];
        none_is_left(udp())?;
        steps.wait()?;
        drop(sockets);
        Ok(0)
    });
    let second_has = |world: &World| world.loaded.maps.open_sockets(second).expect("the count");
    probe.step();
    assert_eq!((world.open_sockets(), second_has(&world)), (0, 2));
    probe.go_on();
    assert_eq!(probe.end(), Outcome::DONE);
    assert_eq!((world.open_sockets(), second_has(&world)), (0, 0));
}
