//! A resolver, with an instance, and what it talks to.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Child,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType, rdata::opt::EdnsOption},
};
use opencode_egress::{
    command::resolve::start,
    control::learned::{Counts, FromResolver, QueryReason, ToResolver},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::upstream::Upstream;

/// The instance's number.
pub(crate) const NUMBER: u32 = 7;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

pub(crate) fn name(text: &str) -> Name {
    // In its letters, which `from_str` does not keep.
    Name::from_ascii(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What the daemon does with addresses that it is to learn.
pub(crate) type Teach = Box<dyn FnMut(&str, &[IpAddr]) -> Option<Vec<IpAddr>> + Send>;

/// The sockets of an instance.
pub(crate) struct Sockets {
    udp: [UdpSocket; 2],
    tcp: [TcpListener; 2],
    /// By IPv4.
    pub(crate) address: SocketAddr,
    /// By IPv6.
    pub(crate) address_v6: SocketAddr,
}

impl Sockets {
    pub(crate) fn new() -> Self {
        let udp: [UdpSocket; 2] = [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)]
            .map(|address| UdpSocket::bind((address, 0)).expect("a socket"));
        let [address, address_v6] = [0, 1].map(|index| udp[index].local_addr().expect("an address"));
        let tcp = [address, address_v6].map(|address| TcpListener::bind(address).expect("a listener"));
        Self { udp, tcp, address, address_v6 }
    }

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 4] {
        [self.udp[0].as_fd(), self.tcp[0].as_fd(), self.udp[1].as_fd(), self.tcp[1].as_fd()]
    }
}

/// What the resolver said.
#[derive(Default)]
pub(crate) struct Heard {
    messages: Mutex<Vec<FromResolver>>,
    more: Condvar,
}

impl Heard {
    /// Waits until what was heard has it.
    pub(crate) fn wait<T>(&self, what: &str, has: impl Fn(&[FromResolver]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut messages = self.messages.lock().expect("messages");
        loop {
            if let Some(found) = has(&messages) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {what} came; these did: {messages:#?}");
            messages = self.more.wait_timeout(messages, left).expect("messages").0;
        }
    }

    pub(crate) fn learns(&self) -> Vec<String> {
        let messages = self.messages.lock().expect("messages");
        let learns = messages.iter().filter_map(|message| match message {
            FromResolver::Learn { name, .. } => Some(name.clone()),
            _ => None,
        });
        learns.collect()
    }

    /// Waits for a question to be told as refused.
    pub(crate) fn refused(&self, wanted: &str, wanted_type: &str, wanted_reason: QueryReason) {
        self.wait(&format!("refusal of {wanted} {wanted_type}"), |messages| {
            messages.iter().find_map(|message| match message {
                FromResolver::Refused { instance: NUMBER, name, qtype, reason, source }
                    if name == wanted && qtype == wanted_type && *reason == wanted_reason =>
                {
                    source.ip().is_loopback().then_some(())
                }
                _ => None,
            })
        });
    }

    /// Waits for counts that are these in all.
    pub(crate) fn counts(&self, wanted: Counts) {
        self.wait(&format!("{wanted:?}"), |messages| {
            let mut sum = Counts { instance: NUMBER, ..Counts::default() };
            for message in messages {
                if let FromResolver::Counts(counts) = message
                    && counts.instance == NUMBER
                {
                    sum.questions += counts.questions;
                    sum.cached += counts.cached;
                    sum.answered += counts.answered;
                    sum.refused += counts.refused;
                    sum.failed += counts.failed;
                    sum.lost += counts.lost;
                }
            }
            (sum == Counts { instance: NUMBER, ..wanted }).then_some(())
        });
    }
}

/// The daemon's end of a connection.
pub(crate) struct Daemon {
    stream: Arc<Mutex<UnixStream>>,
    pub(crate) heard: Arc<Heard>,
}

impl Daemon {
    pub(crate) fn new(stream: UnixStream, mut teach: Teach) -> Self {
        let reading = BufReader::new(stream.try_clone().expect("a stream"));
        let stream = Arc::new(Mutex::new(stream));
        let heard = Arc::new(Heard::default());
        let daemon = Self { stream, heard };
        let (stream, heard) = (Arc::clone(&daemon.stream), Arc::clone(&daemon.heard));
        thread::spawn(move || {
            for line in reading.lines().map_while(Result::ok) {
                let message = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
                let learned = match &message {
                    FromResolver::Learn { id, instance: NUMBER, name, addresses, ttl, source } => {
                        assert!(source.ip().is_loopback(), "{line}");
                        assert!(*ttl <= 3600, "{line}");
                        teach(name, addresses).map(|addresses| ToResolver::Learned { id: *id, addresses })
                    }
                    _ => None,
                };
                heard.messages.lock().expect("messages").push(message);
                heard.more.notify_all();
                if let Some(learned) = learned {
                    // The resolver may have gone.
                    let _ = send(&stream.lock().expect("a stream"), &learned, &[]);
                }
            }
        });
        daemon
    }

    pub(crate) fn tell(&self, message: &ToResolver) {
        self.tell_with(message, &[]);
    }

    pub(crate) fn tell_with(&self, message: &ToResolver, descriptors: &[BorrowedFd<'_>]) {
        send(&self.stream.lock().expect("a stream"), message, descriptors).expect("sent");
    }

    pub(crate) fn instance(&self, names: &[&str], audit: bool, sockets: Option<&Sockets>) {
        let message = instance(NUMBER, names, audit);
        let descriptors = sockets.map(Sockets::descriptors);
        self.tell_with(&message, descriptors.as_ref().map_or(&[], |all| &all[..]));
    }

    /// Waits for the resolver to have done what it was told: it takes the messages in order, and answers at these sockets only after
    /// the one that they come with.
    pub(crate) fn settle(&self) {
        let sockets = Sockets::new();
        self.tell_with(&instance(u32::MAX, &[], false), &sockets.descriptors());
        by_udp(sockets.address, &question("settled.invalid.", RecordType::A));
        self.tell(&ToResolver::Gone { number: u32::MAX });
    }

    /// As when it ends.
    pub(crate) fn hang_up(&self) {
        self.stream.lock().expect("a stream").shutdown(std::net::Shutdown::Both).expect("hung up");
    }
}

/// What the resolver is told of an instance without leases.
pub(crate) fn instance(number: u32, names: &[&str], audit: bool) -> ToResolver {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    ToResolver::Instance { number, names, leased: vec![], audit, audit_until: None }
}

fn send(stream: &UnixStream, message: &ToResolver, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let line = serde_json::to_string(message).expect("JSON") + "\n";
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let parts = [std::io::IoSlice::new(line.as_bytes())];
    let sent = sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)?;
    (&*stream).write_all(&line.as_bytes()[sent..])
}

/// A resolver with an instance.
pub(crate) struct World {
    pub(crate) resolver: Child,
    pub(crate) daemon: Daemon,
    pub(crate) upstream: Upstream,
    pub(crate) sockets: Sockets,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.resolver.kill();
        let _ = self.resolver.wait();
    }
}

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_opencode-egress"))
}

/// A daemon that learns everything.
pub(crate) fn learns_all() -> Teach {
    Box::new(|_, addresses| Some(addresses.to_vec()))
}

impl World {
    pub(crate) fn new(names: &[&str], upstream: Upstream) -> Self {
        Self::with(names, false, upstream, learns_all())
    }

    pub(crate) fn with(names: &[&str], audit: bool, upstream: Upstream, teach: Teach) -> Self {
        let servers = vec![upstream.address];
        let world = Self::without_upstream(names, audit, upstream, teach);
        world.daemon.tell(&ToResolver::Upstream { servers });
        world
    }

    /// Whose resolver is still to be told whom to ask.
    pub(crate) fn without_upstream(names: &[&str], audit: bool, upstream: Upstream, teach: Teach) -> Self {
        let (resolver, stream) = start(program()).expect("a resolver");
        let daemon = Daemon::new(stream, teach);
        let sockets = Sockets::new();
        daemon.instance(names, audit, Some(&sockets));
        Self { resolver, daemon, upstream, sockets }
    }

    /// Asks by UDP, without EDNS.
    pub(crate) fn ask(&self, name_text: &str, qtype: RecordType) -> Message {
        by_udp(self.sockets.address, &question(name_text, qtype))
    }

    pub(crate) fn settle(&self) {
        self.daemon.settle();
    }
}

pub(crate) fn question(name_text: &str, qtype: RecordType) -> Message {
    question_of(name(name_text), qtype)
}

pub(crate) fn question_of(name: Name, qtype: RecordType) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(name, qtype));
    message
}

pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

pub(crate) fn by_udp(server: SocketAddr, message: &Message) -> Message {
    let bytes = raw_by_udp(server, &message.to_vec().expect("a message")).expect("an answer");
    Message::from_vec(&bytes).expect("a message")
}

/// What comes, if anything does.
pub(crate) fn raw_by_udp(server: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let own: IpAddr = if server.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((own, 0)).expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.send(bytes).expect("sent");
    let mut buffer = vec![0; 65536];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

pub(crate) fn send_by_tcp(stream: &mut TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).expect("sent");
}

pub(crate) fn receive_by_tcp(stream: &mut TcpStream) -> std::io::Result<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(Message::from_vec(&bytes).expect("a message"))
}

pub(crate) fn by_tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    send_by_tcp(&mut stream, &message.to_vec().expect("a message"));
    receive_by_tcp(&mut stream).expect("an answer")
}

pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().map(|record| record.data.ip_addr().expect("an address")).collect()
}

/// That nothing is there: with what makes clients remember that, and for people why.
pub(crate) fn assert_none(message: &Message, code: ResponseCode) {
    assert_eq!(message.metadata.response_code, code, "{message}");
    assert!(message.answers.is_empty(), "{message}");
    let soa = message.authorities.iter().find(|record| matches!(record.data, RData::SOA(_)));
    let soa = soa.unwrap_or_else(|| panic!("nothing to remember: {message}"));
    assert!((1..=30).contains(&soa.ttl), "{message}");
}

/// The code and the text of the extended error.
pub(crate) fn extended_error(message: &Message) -> Option<(u16, String)> {
    let edns = message.edns.as_ref()?;
    edns.options().as_ref().iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(15, data) => {
            let (code, text) = data.split_first_chunk()?;
            Some((u16::from_be_bytes(*code), String::from_utf8_lossy(text).into_owned()))
        }
        _ => None,
    })
}
