//! A daemon that is slow, goes away and comes back; and what the resolver is as a process.

use std::{
    fs,
    net::Shutdown,
    os::unix::net::UnixListener,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use opencode_egress::control::learned::{Counts, ToResolver};

use crate::{
    upstream::Upstream,
    world::{
        Daemon, NUMBER, Sockets, World, assert_none, by_udp, extended_error, instance, learns_all, program,
        question, with_edns,
    },
};

const LISTED: [&str; 2] = ["api.example.org", "*.example.net"];

#[test]
fn an_answer_waits_for_the_daemon_but_not_for_ever() {
    static SLOW: AtomicBool = AtomicBool::new(true);
    let teach = Box::new(|_: &str, addresses: &[std::net::IpAddr]| {
        (!SLOW.load(Ordering::Relaxed)).then(|| addresses.to_vec())
    });
    let world = World::with(&LISTED, false, Upstream::of(&["192.0.2.1"], 300), teach);
    let message = with_edns(question("api.example.org.", RecordType::A), 1232);
    let begin = Instant::now();
    let answer = by_udp(world.sockets.address, &message);
    let waited = begin.elapsed();
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NXDomain, 0));
    assert_eq!(
        extended_error(&answer).expect("why"),
        (14, "opencode-egress: the daemon does not answer".to_owned())
    );
    assert!(answer.authorities.is_empty(), "it is not to be remembered");
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(4), "{waited:?}");
    SLOW.store(false, Ordering::Relaxed);
    assert_eq!(by_udp(world.sockets.address, &message).answers.len(), 1);
    world.daemon.heard.counts(Counts { questions: 2, answered: 1, failed: 1, ..Counts::default() });
}

/// A resolver that finds its daemon by a path.
struct Unit {
    resolver: std::process::Child,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = self.resolver.kill();
        let _ = self.resolver.wait();
    }
}

impl Unit {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolver.sock");
        // It is nobody by the time that it connects.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory.path(), everybody).expect("open");
        let listener = UnixListener::bind(&path).expect("a listener");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("open");
        let resolver = Self::start(&path);
        Self { resolver, listener, _directory: directory }
    }

    fn start(path: &std::path::Path) -> std::process::Child {
        let mut command = Command::new(program());
        command.args(["resolve", "--control"]).arg(path).stderr(Stdio::null());
        command.spawn().expect("a resolver")
    }

    fn restart(&mut self) {
        self.resolver.kill().expect("killed");
        self.resolver.wait().expect("ended");
        let path = self.listener.local_addr().expect("a path");
        self.resolver = Self::start(path.as_pathname().expect("a path"));
    }

    fn daemon(&self) -> Daemon {
        Daemon::new(self.listener.accept().expect("a resolver").0, learns_all())
    }
}

#[test]
fn without_a_daemon_what_is_known_is_answered_and_the_rest_fails_at_once() {
    let unit = Unit::new();
    let daemon = unit.daemon();
    let (sockets, upstream) = (Sockets::new(), Upstream::of(&["192.0.2.1"], 300));
    daemon.tell(&ToResolver::Upstream { servers: vec![upstream.address] });
    daemon.instance(&LISTED, false, Some(&sockets));
    let ask = |name: &str| by_udp(sockets.address, &question(name, RecordType::A));
    assert_eq!(ask("api.example.org.").answers.len(), 1);
    daemon.hang_up();
    // It knows that when it connects again. Nothing of a new daemon's is there yet.
    let next = unit.listener.accept().expect("the resolver again").0;
    next.shutdown(Shutdown::Both).expect("hung up");
    drop(next);
    let begin = Instant::now();
    assert_eq!(ask("api.example.org.").answers.len(), 1, "it is remembered");
    let answer = loop {
        // Between two daemons, or while it thinks that the second is there.
        let answer = ask("new.example.net.");
        if answer.metadata.response_code == ResponseCode::NXDomain {
            break answer;
        }
    };
    assert!(answer.answers.is_empty() && answer.authorities.is_empty());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_none(&ask("evil.example."), ResponseCode::NXDomain);
    // The next one has the same sockets, and other names. It may have learned nothing of what was.
    let daemon = unit.daemon();
    daemon.instance(&["api.example.org"], false, Some(&sockets));
    daemon.tell(&ToResolver::AllTold);
    daemon.settle();
    assert_eq!(ask("api.example.org.").answers.len(), 1);
    assert_eq!(daemon.heard.learns(), ["api.example.org"]);
    assert_none(&ask("new.example.net."), ResponseCode::NXDomain);
}

/// What the resolver was told ends by itself: the daemon may be gone by then, or unable to say so.
#[test]
fn a_leased_name_and_audit_mode_end_without_a_daemon() {
    let unit = Unit::new();
    let daemon = unit.daemon();
    let (sockets, upstream) = (Sockets::new(), Upstream::of(&["192.0.2.1"], 300));
    daemon.tell(&ToResolver::Upstream { servers: vec![upstream.address] });
    let now = || {
        u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec).expect("a time")
    };
    let lease = |leased: &[&str], audit: bool| {
        let until = now() + 2;
        let leased = leased.iter().map(|name| ((*name).to_owned(), until)).collect();
        let message =
            ToResolver::Instance { number: NUMBER, names: vec![], leased, audit, audit_until: Some(until) };
        daemon.tell_with(&message, &sockets.descriptors());
        daemon.settle();
        until
    };
    let ask = |name: &str, qtype| by_udp(sockets.address, &question(name, qtype));
    let over = |until: u64| loop {
        let (begin, answer, end) = (now(), ask("api.example.org.", RecordType::A), now());
        match answer.metadata.response_code {
            ResponseCode::NoError if begin < until => std::thread::sleep(Duration::from_millis(20)),
            ResponseCode::NXDomain if end >= until => return,
            code => panic!("until {until}, from {begin} to {end}: {code}"),
        }
    };
    over(lease(&["api.example.org"], false));
    let until = lease(&[], true);
    daemon.hang_up();
    over(until);
    let asked = upstream.asked().len();
    for qtype in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        assert_none(&ask("other.example.", qtype), ResponseCode::NXDomain);
    }
    assert_eq!(upstream.asked().len(), asked, "nobody is asked");
}

#[test]
fn what_the_next_daemon_does_not_have_is_gone() {
    let unit = Unit::new();
    let (sockets, other) = (Sockets::new(), Sockets::new());
    let daemon = unit.daemon();
    daemon.instance(&LISTED, false, Some(&sockets));
    daemon.tell_with(&instance(NUMBER + 1, &[], false), &other.descriptors());
    assert_none(&by_udp(other.address, &question("a.example.", RecordType::A)), ResponseCode::NXDomain);
    daemon.hang_up();
    let daemon = unit.daemon();
    daemon.instance(&LISTED, false, Some(&sockets));
    daemon.tell(&ToResolver::AllTold);
    daemon.settle();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(other.address).expect("connected");
    socket.send(&question("b.example.", RecordType::A).to_vec().expect("a message")).expect("sent");
    daemon.settle();
    socket.set_nonblocking(true).expect("set");
    assert!(socket.recv(&mut [0; 512]).is_err(), "nobody reads it");
}

#[test]
fn one_that_is_killed_leaves_what_is_queued_to_the_next() {
    let mut unit = Unit::new();
    let (sockets, upstream) = (Sockets::new(), Upstream::of(&["192.0.2.1"], 300));
    let set_up = |unit: &Unit| {
        let daemon = unit.daemon();
        daemon.tell(&ToResolver::Upstream { servers: vec![upstream.address] });
        daemon.instance(&LISTED, false, Some(&sockets));
        daemon
    };
    let _daemon = set_up(&unit);
    assert_eq!(by_udp(sockets.address, &question("api.example.org.", RecordType::A)).answers.len(), 1);
    unit.restart();
    let clients: Vec<_> = (0..100)
        .map(|number| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
            socket.connect(sockets.address).expect("connected");
            socket.set_read_timeout(Some(crate::world::PATIENCE)).expect("set");
            let message = question(&format!("n{number}.example.net."), RecordType::A);
            socket.send(&message.to_vec().expect("a message")).expect("sent");
            socket
        })
        .collect();
    let _daemon = set_up(&unit);
    for socket in clients {
        let length = socket.recv(&mut [0; 512]).expect("an answer");
        assert!(length > 12);
    }
}

#[test]
fn one_that_is_told_to_stop_answers_what_it_has_read() {
    let (upstream, go) =
        crate::upstream::held(|question| crate::upstream::addresses_of(question, &["192.0.2.1"], 300));
    let mut world = World::new(&LISTED, upstream);
    let address = world.sockets.address;
    let asking = std::thread::spawn(move || by_udp(address, &question("api.example.org.", RecordType::A)));
    world.daemon.heard.counts(Counts { questions: 1, ..Counts::default() });
    let process = rustix::process::Pid::from_child(&world.resolver);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("told");
    go.send(()).expect("sent");
    assert_eq!(asking.join().expect("an answer").answers.len(), 1);
    assert!(world.resolver.wait().expect("its end").success());
}

#[test]
fn it_ends_with_the_one_that_started_it() {
    let mut world = World::new(&LISTED, Upstream::of(&[], 300));
    world.daemon.hang_up();
    assert!(world.resolver.wait().expect("its end").success());
}

#[test]
fn it_has_no_privileges() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    world.settle();
    let status = fs::read_to_string(format!("/proc/{}/status", world.resolver.id())).expect("its status");
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
        line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    if rustix::process::getuid().is_root() {
        assert_eq!(field("CapBnd"), "0000000000000000");
        assert_eq!(
            (field("Uid"), field("Gid")),
            ("65534 ".repeat(4).trim().into(), "65534 ".repeat(4).trim().into())
        );
        assert_eq!(field("Groups"), "");
    } else {
        println!("SKIPPED that root becomes nobody: the tests are not root's");
    }
}

#[test]
fn a_descriptor_that_is_none_is_an_error_that_says_so() {
    let said = |arguments: &[&str]| {
        let output = Command::new(program()).arg("resolve").args(arguments).output().expect("it");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--fd", "999"]).contains("--fd 999 is not open"));
    assert!(said(&["--fd", "1"]).contains("--fd 1 is a standard stream"));
    assert!(said(&["--fd", "5", "--control", "/x"]).contains("cannot be used with"));
}
