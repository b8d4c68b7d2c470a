//! How long an answer takes, remembered and asked for, and how many are given a second: the resolver beside systemd-resolved, dnsmasq and
//! the server that all of them ask, by turns in one run, for the machine is not the same from one minute to the next.
//!
//! All of them, the server and the client too, are on the last CPU: what it measures is the work that an answer takes, the client's in it.
//! Between two CPUs it would be, as the scheduler chooses, how long it takes to wake an idle one, which is longer than all the rest in a
//! virtual machine.
//!
//! `cargo bench --bench names`, as root; it wants Debian's `dnsmasq-base` and `systemd-resolved`, which `cargo xtask bench` brings.

mod subjects;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Child,
    str::FromStr as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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
/// How long an answer is waited for: other work on the machine can keep whoever gives it from its CPU.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an answer takes.
#[derive(Parser)]
struct Args {
    /// Where Debian's packages systemd-resolved and libsystemd-shared are unpacked
    #[arg(long, default_value = "/")]
    resolved: PathBuf,
    /// `cargo bench` passes it
    #[arg(long, hide = true)]
    bench: bool,
}

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
    let args = Args::parse();
    let cpus = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rfind(|cpu| cpus.is_set(*cpu)).context("no CPU")?;
    let mut cpus = CpuSet::new();
    cpus.set(last);
    // What is started from now on stays there.
    sched_setaffinity(None, &cpus)?;
    let upstream = subjects::upstream()?;
    let server = Subject::new("the server itself", upstream, None);
    let mut subjects = [
        subjects::ours(upstream)?,
        subjects::resolved(upstream, &args.resolved)?,
        subjects::dnsmasq(upstream)?,
        server,
    ];
    for subject in &mut subjects {
        subject.warm()?;
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            let name = subject.name;
            subject.turn().with_context(|| format!("{name} does not answer any more"))?;
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
        socket.set_read_timeout(Some(PATIENCE))?;
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

    /// Measures everything once.
    fn turn(&mut self) -> Result<()> {
        self.cached.extend(self.one_by_one(NAME)?);
        self.fresh.extend(self.one_by_one(FRESH)?);
        self.at_once()
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
