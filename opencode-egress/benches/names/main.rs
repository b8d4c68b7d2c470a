//! How long an answer takes, remembered and asked for, and how many are given a second: the resolver beside dnsmasq and the server
//! that both ask, by turns in one run, for the machine is not the same from one minute to the next.
//!
//! `cargo bench --bench names`; it wants Debian's `dnsmasq-base`.

use std::{
    io::{BufRead as _, BufReader, IoSlice, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Child, Command},
    str::FromStr as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use opencode_egress::{
    command::resolve::start,
    control::learned::{FromResolver, ToResolver},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Listed, and remembered for an hour.
const NAME: &str = "api.example.org";
/// Listed, and not remembered.
const FRESH: &str = "fresh.example.org";
/// How often the subjects take turns.
const ROUNDS: usize = 20;
/// Questions in a turn, one after another.
const QUESTIONS: usize = 2000;
/// How many are on their way at a time, and for how long, where questions a second are counted.
const OUTSTANDING: usize = 50;
const TURN: Duration = Duration::from_millis(250);

struct Subject {
    name: &'static str,
    address: SocketAddr,
    /// `None` for the server, which is a thread.
    process: Option<Child>,
    cached: Vec<f64>,
    fresh: Vec<f64>,
    per_second: Vec<f64>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn main() -> Result<()> {
    let upstream = upstream()?;
    let server = Subject::new("the server itself", upstream, None);
    let mut subjects = [ours(upstream)?, dnsmasq(upstream)?, server];
    for subject in &mut subjects {
        subject.warm()?;
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            subject.cached.extend(subject.one_by_one(NAME)?);
            subject.fresh.extend(subject.one_by_one(FRESH)?);
            subject.at_once()?;
        }
    }
    println!("| | cached: median | p99 | a second, {OUTSTANDING} outstanding | asked for: median | p99 |");
    println!("|---|---|---|---|---|---|");
    for subject in &mut subjects {
        let [cached, fresh] = [&mut subject.cached, &mut subject.fresh].map(|times| {
            times.sort_by(f64::total_cmp);
            [50, 99].map(|share| format!("{:.1} µs", times[times.len() * share / 100])).join(" | ")
        });
        subject.per_second.sort_by(f64::total_cmp);
        let per_second = subject.per_second[subject.per_second.len() / 2];
        println!("| {} | {cached} | {per_second:.0} | {fresh} |", subject.name);
    }
    Ok(())
}

impl Subject {
    fn new(name: &'static str, address: SocketAddr, process: Option<Child>) -> Self {
        Self { name, address, process, cached: vec![], fresh: vec![], per_second: vec![] }
    }

    fn client(&self) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(socket)
    }

    /// Waits until it answers.
    fn warm(&self) -> Result<()> {
        let (socket, question) = (self.client()?, question(NAME)?);
        let mut buffer = [0; 512];
        for _ in 0..100 {
            // Nobody may listen there yet.
            if socket.send(&question).is_ok()
                && let Ok(length) = socket.recv(&mut buffer)
                && Message::from_vec(&buffer[..length])?.answers.len() == 1
            {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        anyhow::bail!("{} does not answer", self.name)
    }

    /// Microseconds of each question.
    fn one_by_one(&self, name: &str) -> Result<Vec<f64>> {
        let (socket, question) = (self.client()?, question(name)?);
        let mut times = vec![];
        let mut buffer = [0; 512];
        for _ in 0..QUESTIONS {
            let begin = Instant::now();
            socket.send(&question)?;
            let length = socket.recv(&mut buffer)?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
            ensure!(length > question.len(), "{} has no answer", self.name);
        }
        Ok(times)
    }

    fn at_once(&mut self) -> Result<()> {
        let (socket, question) = (self.client()?, question(NAME)?);
        let mut buffer = [0; 512];
        for _ in 0..OUTSTANDING {
            socket.send(&question)?;
        }
        let (begin, mut answers) = (Instant::now(), 0_u32);
        while begin.elapsed() < TURN {
            socket.recv(&mut buffer)?;
            answers += 1;
            socket.send(&question)?;
        }
        self.per_second.push(f64::from(answers) / begin.elapsed().as_secs_f64());
        Ok(())
    }
}

fn question(name: &str) -> Result<Vec<u8>> {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_str(name)?, RecordType::A));
    Ok(message.to_vec()?)
}

/// A server that has one address for every name.
fn upstream() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    let fresh = Name::from_str(FRESH)?.append_domain(&Name::root())?;
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            let mut message = Message::from_vec(&buffer[..length])?.into_response();
            message.metadata.response_code = ResponseCode::NoError;
            message.metadata.recursion_available = true;
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            let name = message.queries.first().context("no question")?.name.clone();
            let ttl = if name == fresh { 0 } else { 3600 };
            message.answers.push(Record::from_rdata(name, ttl, data));
            socket.send_to(&message.to_vec()?, from)?;
        }
        #[expect(unreachable_code, reason = "the type of the errors above")]
        anyhow::Ok(())
    });
    Ok(address)
}

fn ours(upstream: SocketAddr) -> Result<Subject> {
    let (process, daemon) = start(Path::new(env!("CARGO_BIN_EXE_opencode-egress")))?;
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = udp.local_addr()?;
    let tcp = TcpListener::bind(address)?;
    let names = [NAME, FRESH].map(str::to_owned).to_vec();
    let instance = ToResolver::Instance { number: 1, names, leased: vec![], audit: false, audit_until: None };
    let line = serde_json::to_string(&instance)? + "\n";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [udp.as_fd(), tcp.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&daemon, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::empty())?;
    say(&daemon, &ToResolver::Upstream { servers: vec![upstream] })?;
    thread::spawn(move || learn(&daemon));
    Ok(Subject::new("opencode-egress", address, Some(process)))
}

/// Has every address learned at once.
fn learn(daemon: &UnixStream) -> Result<()> {
    for line in BufReader::new(daemon).lines() {
        if let FromResolver::Learn { id, addresses, .. } = serde_json::from_str(&line?)? {
            say(daemon, &ToResolver::Learned { id, addresses })?;
        }
    }
    Ok(())
}

fn say(mut daemon: &UnixStream, message: &ToResolver) -> Result<()> {
    Ok(daemon.write_all((serde_json::to_string(message)? + "\n").as_bytes())?)
}

fn dnsmasq(upstream: SocketAddr) -> Result<Subject> {
    // Free until this moment.
    let address = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces", "--no-resolv"]);
    command.args(["--no-hosts", "--user=root", "--pid-file", "--log-facility=/dev/null"]);
    command.arg(format!("--listen-address={}", IpAddr::from(Ipv4Addr::LOCALHOST)));
    command.arg(format!("--port={}", address.port()));
    command.arg(format!("--server={}#{}", upstream.ip(), upstream.port()));
    let process = command.spawn().context("cannot run dnsmasq; apt-get install dnsmasq-base")?;
    Ok(Subject::new("dnsmasq", address, Some(process)))
}
