//! A server that answers what a test has it answer, and remembers what it was asked.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Condvar, Mutex, mpsc::Sender},
    thread,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, SOA},
    },
};

use crate::world::{PATIENCE, name};

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Udp,
    Tcp,
}

/// What became of one: messages to send, in order.
pub(crate) type Answers = Vec<Message>;
type Answering = dyn Fn(&Message, Via) -> Answers + Send + Sync;

/// What it was asked: the bytes, and how and whence they came.
type Asked = Vec<(Vec<u8>, Via, SocketAddr)>;

#[derive(Default)]
struct Log {
    asked: Mutex<Asked>,
    more: Condvar,
}

impl Log {
    fn add(&self, bytes: &[u8], via: Via, from: SocketAddr) {
        self.asked.lock().expect("a log").push((bytes.to_vec(), via, from));
        self.more.notify_all();
    }
}

/// The server.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
}

impl Upstream {
    pub(crate) fn new(answer: impl Fn(&Message, Via) -> Answers + Send + Sync + 'static) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), answer)
    }

    pub(crate) fn at(
        address: SocketAddr,
        answer: impl Fn(&Message, Via) -> Answers + Send + Sync + 'static,
    ) -> Self {
        let answer: Arc<Answering> = Arc::new(answer);
        let udp = UdpSocket::bind(address).expect("a socket");
        let address = udp.local_addr().expect("an address");
        let tcp = TcpListener::bind(address).expect("a listener");
        let log = Arc::new(Log::default());
        let (logging, answering) = (Arc::clone(&log), Arc::clone(&answer));
        // A thread each: an answer may take its time.
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let bytes = buffer[..length].to_vec();
                logging.add(&bytes, Via::Udp, from);
                let (udp, answering) = (udp.try_clone().expect("a socket"), Arc::clone(&answering));
                thread::spawn(move || {
                    for message in answering(&Message::from_vec(&bytes).expect("a question"), Via::Udp) {
                        let _ = udp.send_to(&message.to_vec().expect("a message"), from);
                    }
                });
            }
        });
        let logging = Arc::clone(&log);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let (mut stream, log, answer) = (stream, Arc::clone(&logging), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length)?;
                    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
                    stream.read_exact(&mut bytes)?;
                    log.add(&bytes, Via::Tcp, stream.peer_addr()?);
                    for message in answer(&Message::from_vec(&bytes).expect("a question"), Via::Tcp) {
                        let bytes = message.to_vec().expect("a message");
                        let length = u16::try_from(bytes.len()).expect("short");
                        stream.write_all(&[&length.to_be_bytes(), &bytes[..]].concat())?;
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        Self { address, log }
    }

    /// One that has these addresses for every name.
    pub(crate) fn of(addresses: &'static [&'static str], ttl: u32) -> Self {
        Self::new(move |question, _| vec![addresses_of(question, addresses, ttl)])
    }

    /// Names and types that were asked for, in the letters that came.
    pub(crate) fn asked(&self) -> Vec<(String, RecordType, Via)> {
        let asked = self.log.asked.lock().expect("a log");
        let questions = asked.iter().map(|(bytes, via, _)| {
            let message = Message::from_vec(bytes).expect("a question");
            (message.queries[0].name.to_ascii(), message.queries[0].query_type, *via)
        });
        questions.collect()
    }

    /// The bytes, and whence they came.
    pub(crate) fn raw(&self) -> Asked {
        self.log.asked.lock().expect("a log").clone()
    }

    /// Waits until it was asked so often.
    pub(crate) fn wait(&self, times: usize) {
        let asked = self.log.asked.lock().expect("a log");
        let waited = self.log.more.wait_timeout_while(asked, PATIENCE, |asked| asked.len() < times);
        assert_eq!(waited.expect("a log").0.len(), times);
    }
}

/// A message without records.
pub(crate) fn empty(question: &Message) -> Message {
    let mut message = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
    message.metadata.recursion_available = true;
    message.queries.clone_from(&question.queries);
    message
}

/// Those of the type that was asked for.
pub(crate) fn addresses_of(question: &Message, addresses: &[&str], ttl: u32) -> Message {
    let mut message = empty(question);
    let own = question.queries[0].name.to_ascii();
    message.answers = addresses
        .iter()
        .map(|address| address_record(&own, address, ttl))
        .filter(|record| record.record_type() == question.queries[0].query_type)
        .collect();
    message
}

pub(crate) fn address_record(owner: &str, address: &str, ttl: u32) -> Record {
    let data = match address.parse().expect("an address") {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name(owner), ttl, data)
}

pub(crate) fn alias(owner: &str, target: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

/// That there is nothing, by an authority.
pub(crate) fn nothing(question: &Message, code: ResponseCode, ttl: u32) -> Message {
    let mut message = empty(question);
    message.metadata.response_code = code;
    let soa = SOA::new(name("ns.example."), name("nobody.example."), 1, 3600, 600, 86400, ttl);
    message.authorities.push(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
    message
}

/// An answer that waits until the test lets it go.
pub(crate) fn held(answer: impl Fn(&Message) -> Message + Send + Sync + 'static) -> (Upstream, Sender<()>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let receiver = Mutex::new(receiver);
    let upstream = Upstream::new(move |question, _| {
        // The test may be over.
        let _ = receiver.lock().expect("a receiver").recv();
        vec![answer(question)]
    });
    (upstream, sender)
}
