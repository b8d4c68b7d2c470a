//! TLS: what a connection by name rules with `tls` alone may begin with. The server that records what arrives is the witness.

mod changes;
mod forms;
#[path = "../../../../opencode-egress-common/src/hello/tests/made.rs"]
mod made;
mod segments;

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use opencode_egress::{
    kernel::connections::SocketDiagnosis,
    policy::{Mode, Policy},
};
use opencode_egress_common::{
    event::Denial,
    reason::{DropReason, Hook},
};

use self::made::{filler, hello, sni};
use crate::{
    names::{Named, WAYS, names},
    network::{DENIED, DENIED6, FAR, PORT},
    probe::{Outcome, Probe, unhurried},
    sys::{send, set},
    tcp::tcp,
};

/// The rules of the policies here.
pub(crate) const RULES: [&str; 2] = ["listed.example", "*.below.example.net"];

/// Where the first rule's name has brought the listed addresses, by every way to write one.
pub(crate) fn listed() -> [SocketAddr; 3] {
    [IpAddr::from(DENIED), DENIED6.into(), DENIED.to_ipv6_mapped().into()].map(|to| SocketAddr::new(to, PORT))
}

/// A world whose instance has those rules, and has learned those addresses.
pub(crate) fn world() -> Named {
    with_policy(&names(&RULES))
}

pub(crate) fn with_policy(policy: &Policy) -> Named {
    let mut named = Named::new(policy);
    learn(&mut named);
    named
}

pub(crate) fn learn(named: &mut Named) {
    for to in [IpAddr::from(DENIED), DENIED6.into(), FAR.into()] {
        named.learn(RULES[0], to, 1000);
    }
}

/// A hello of a usual size to this server.
pub(crate) fn hello_to(name: &str) -> Vec<u8> {
    hello(&[filler(), sni(name), filler(), filler()])
}

/// How a connection ended, as its client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The server has it all, and said good-bye.
    Served,
    /// It was reset, and did not wait for a time-out.
    Reset,
    /// Something else.
    Other(Outcome),
}

/// What came of a connection: for the client, and at the server.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) end: End,
    /// What the server read.
    pub(crate) arrived: Vec<u8>,
    pub(crate) told: Vec<Denial>,
}

impl Seen {
    /// It was denied for a reason, told of once with the server's name, and the client was told.
    #[track_caller]
    pub(crate) fn check_denied(&self, what: &str, reason: DropReason, server: Option<&str>) {
        assert_eq!(self.end, End::Reset, "{what}: {self:?}");
        let told = self.told.first().unwrap_or_else(|| panic!("{what} is told of"));
        assert_eq!((told.hook, told.reason), (Hook::Tls, reason), "{what}");
        let told = told.server.map(|server| String::from_utf8_lossy(server.name()).into_owned());
        assert_eq!(told.as_deref(), server, "{what}");
    }

    /// It was served, and all arrived.
    #[track_caller]
    pub(crate) fn check_served(&self, what: &str, sent: &[u8]) {
        assert_eq!(self.end, End::Served, "{what}: told {:?}", self.told);
        assert!(self.arrived == sent, "{what}: {} bytes of {} arrived", self.arrived.len(), sent.len());
        assert!(self.told.is_empty(), "{what}: {:?}", self.told);
    }
}

const SERVED: u64 = 1;
const RESET: u64 = 2;
const RESET_LATE: u64 = 3;

/// What comes later is no reset by this project.
const PATIENCE: Duration = Duration::from_secs(1);

/// Says that all is sent, and waits for what becomes of the connection. `since` is when it was tried.
pub(crate) fn conclude(socket: &impl AsRawFd, since: Instant) -> io::Result<u64> {
    let mut stream = {
        // SAFETY: duplicates a descriptor that is open.
        let copy = unsafe { libc::dup(socket.as_raw_fd()) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        TcpStream::from(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(copy) })
    };
    let ended = stream.shutdown(std::net::Shutdown::Write).and_then(|()| stream.read(&mut [0; 16]));
    match ended.map_err(|error| error.raw_os_error()) {
        Ok(_) => Ok(SERVED),
        // It is reset already where there is no connection to shut down.
        Err(Some(libc::ECONNABORTED | libc::ECONNRESET | libc::ENOTCONN | libc::EPIPE)) => {
            Ok(if since.elapsed() < unhurried(PATIENCE) { RESET } else { RESET_LATE })
        }
        Err(error) => Err(error.map_or_else(|| io::Error::other("no error"), io::Error::from_raw_os_error)),
    }
}

/// Sends pieces, each of which the kernel sends as it is, and waits for the end.
pub(crate) fn send_pieces<'a>(to: SocketAddr, pieces: impl IntoIterator<Item = &'a [u8]>) -> io::Result<u64> {
    let socket = tcp(to)?;
    let since = Instant::now();
    set(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    for piece in pieces {
        if send(&socket, piece, 0).is_err() {
            break;
        }
    }
    conclude(&socket, since)
}

/// Tries something with the listed policy's world, while what is to be reset is reset.
pub(crate) fn tries(named: &mut Named, technique: impl FnOnce() -> io::Result<u64>) -> Seen {
    let server = Server::start(named.world.server());
    named.world.events();
    let probe = named.world.start(|_| technique());
    let outcome = finish(named, probe);
    // A client that never came has nothing to read.
    let arrived = server.end();
    let end = match outcome {
        Outcome::Done(SERVED) => End::Served,
        Outcome::Done(RESET) => End::Reset,
        other => End::Other(other),
    };
    Seen { end, arrived, told: named.world.events() }
}

/// Waits for a probe's end, while what is to be reset is reset.
pub(crate) fn finish(named: &mut Named, probe: Probe) -> Outcome {
    let diagnosis = named.world.unit.enter(SocketDiagnosis::open).expect("the kernel's socket diagnosis");
    let deadline = Instant::now() + unhurried(Duration::from_secs(5));
    while !named.world.answer_resets(&diagnosis, probe.as_fd()) && Instant::now() < deadline {}
    probe.end()
}

/// A server that takes one connection, and reads it to its end.
pub(crate) struct Server {
    thread: thread::JoinHandle<Vec<u8>>,
}

impl Server {
    pub(crate) fn start(listener: &TcpListener) -> Self {
        let listener = listener.try_clone().expect("another descriptor");
        listener.set_nonblocking(true).expect("it is a socket");
        let thread = thread::spawn(move || {
            let deadline = Instant::now() + unhurried(Duration::from_secs(5));
            let mut arrived = vec![];
            while Instant::now() < deadline {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        stream.set_nonblocking(false).expect("it is a socket");
                        stream.set_read_timeout(Some(unhurried(Duration::from_secs(5)))).expect("a timeout");
                        let mut piece = [0; 65_536];
                        while let Ok(length @ 1..) = stream.read(&mut piece) {
                            arrived.extend_from_slice(&piece[..length]);
                        }
                        break;
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
            arrived
        });
        Self { thread }
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.thread.join().expect("the server's end")
    }
}

/// The control and the denial: a listed server's hello passes, another's does not get further than its beginning.
#[test]
fn a_hello_to_a_listed_server_passes_and_another_is_reset() {
    let mut named = world();
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    for to in listed() {
        let seen = tries(&mut named, || send_pieces(to, [&good[..]]));
        seen.check_served(&format!("a listed server at {to}"), &good);
        let behind = [&good[..], &[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 4, 1, 2, 3, 4]].concat();
        let seen = tries(&mut named, || send_pieces(to, [&behind[..], b"whatever comes then"]));
        seen.check_served("what follows", &[&behind[..], b"whatever comes then"].concat());
        let seen = tries(&mut named, || send_pieces(to, [&evil[..]]));
        seen.check_denied(
            &format!("another server at {to}"),
            DropReason::TlsNameNotAllowed,
            Some("evil.example"),
        );
        assert_eq!(seen.arrived, b"", "nothing of it arrives");
    }
    let counters = named.world.counters().denied;
    assert!(counters.reasons[DropReason::TlsNameNotAllowed as usize].packets >= 3);
}

/// The middle one of some: any may be late for what else the machine does.
#[test]
fn a_reset_comes_within_50_milliseconds() {
    let mut named = world();
    let evil = hello_to("evil.example");
    let mut after = [(); 9].map(|()| {
        let probe = named.world.start(|_| {
            let begin = Instant::now();
            let ended = send_pieces((DENIED, PORT).into(), [&evil[..]])?;
            assert_eq!(ended, RESET);
            Ok(u64::try_from(begin.elapsed().as_micros()).expect("no such time"))
        });
        match finish(&mut named, probe) {
            Outcome::Done(micros) => Duration::from_micros(micros),
            other => panic!("{other:?}"),
        }
    });
    after.sort_unstable();
    assert!(after[4] < unhurried(Duration::from_millis(50)), "{after:?}");
}

/// What no rule with `tls` has to do with goes as it did.
#[test]
fn other_flows_are_not_looked_at() {
    let mut policy = names(&["listed.example", "listed.example:443-444/notls", "other.example:444"]);
    policy.allow.push(crate::world::any("198.51.100.0/24"));
    let mut named = Named::new(&policy);
    named.learn("listed.example", FAR, 1000);
    named.learn("listed.example", DENIED, 1000);
    // A rule for networks allows it.
    let seen = tries(&mut named, || send_pieces((FAR, PORT).into(), [&b"GET /"[..]]));
    seen.check_served("a network", b"GET /");
    let seen = tries(&mut named, || send_pieces((DENIED, PORT).into(), [&b"GET /"[..]]));
    seen.check_denied("an address by a name with TLS", DropReason::NotTls, None);
    // So does a name without.
    named.learn("listed.example:443-444/notls", DENIED, 1000);
    let seen = tries(&mut named, || send_pieces((DENIED, PORT).into(), [&b"GET /"[..]]));
    seen.check_served("an address by a name without TLS", b"GET /");
}

#[test]
fn audit_tells_and_lets_pass() {
    let mut named = with_policy(&Policy { mode: Mode::Audit, ..names(&RULES) });
    let evil = [&hello_to("evil.example")[..], b"what follows"].concat();
    let seen = tries(&mut named, || send_pieces((DENIED, PORT).into(), evil.chunks(100)));
    assert_eq!(seen.end, End::Served, "{:?}", seen.told);
    assert!(seen.arrived == evil, "all of it arrives");
    let told: Vec<_> = seen.told.iter().map(|denial| (denial.reason, denial.event.audit)).collect();
    assert!(
        !told.is_empty() && told.iter().all(|told| *told == (DropReason::TlsNameNotAllowed, 1)),
        "{told:?}"
    );
    let seen = tries(&mut named, || send_pieces((DENIED, PORT).into(), [&b"GET /"[..]]));
    assert_eq!(seen.told.first().map(|denial| denial.reason), Some(DropReason::NotTls));
}

/// QUIC goes to the same port by UDP, and is refused in the call or, with a peer, at its first datagram: clients fall back to TCP.
#[test]
fn quic_is_refused_at_once() {
    let mut named = world();
    for to in listed() {
        for (name, way) in &WAYS[1..] {
            named.world.denies(name, to, way);
            named.world.check_last(DropReason::NotAllowed);
        }
    }
    let good = hello_to("listed.example");
    tries(&mut named, || send_pieces((DENIED, PORT).into(), [&good[..]])).check_served("TCP", &good);
}
