//! The witness: tcpdump on the second host's interface. It decides whether something leaked, not the sender.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use crate::{
    network::{INTERFACE, Namespace},
    probe::unhurried,
};

/// The address to which markers are sent, and nothing else.
const MARKER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
const FIRST_MARKER: u16 = 10_000;
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Witness {
    tcpdump: Child,
    lines: Receiver<String>,
    /// In the unit's namespace but of no confined cgroup.
    sender: UdpSocket,
    next_marker: u16,
}

/// What arrived, one line a packet, as tcpdump has it.
#[derive(Debug)]
pub(crate) struct Arrived(pub(crate) Vec<String>);

impl Arrived {
    /// The packets to an address.
    pub(crate) fn to(&self, address: IpAddr) -> Vec<&str> {
        let address = address.to_canonical().to_string();
        let lines = self.0.iter().map(String::as_str);
        lines.filter(|line| destination(line).is_some_and(|host| is_at(host, &address))).collect()
    }

    /// All but what the kernel says by itself: which groups of multicast it is in.
    pub(crate) fn sent(&self) -> Vec<&str> {
        let lines = self.0.iter().map(String::as_str);
        lines.filter(|line| !line.contains("> ff02::16: HBH ICMP6, multicast listener report")).collect()
    }
}

/// The destination of a line like `IP 192.0.2.1.40000 > 192.0.2.2.443: Flags [S], ...`.
fn destination(line: &str) -> Option<&str> {
    line.split_once(" > ")?.1.split_once(": ").map(|(destination, _)| destination)
}

/// Whether a host, maybe with a port behind a dot, is at this address.
fn is_at(host: &str, address: &str) -> bool {
    host.strip_prefix(address).is_some_and(|port| port.is_empty() || port.starts_with('.'))
}

impl Witness {
    pub(crate) fn start(witness: &Namespace, unit: &Namespace) -> Self {
        let mut tcpdump = Command::new("ip");
        tcpdump.args(["netns", "exec", witness.name(), "tcpdump", "-i", INTERFACE, "-Q", "in"]);
        tcpdump.args(["-l", "-n", "-t", "-U", "-s", "256", "-B", "8192", "-Z", "root", "--immediate-mode"]);
        // SAFETY: between fork and exec only a system call.
        unsafe {
            tcpdump.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let mut tcpdump = tcpdump
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`ip` of the package iproute2 is needed");
        // It says so on stderr when it sees packets; when it is not there, `ip` says that.
        let mut said = String::new();
        let mut stderr = BufReader::new(tcpdump.stderr.take().expect("a pipe"));
        while !said.contains("listening on") {
            if stderr.read_line(&mut said).expect("text") == 0 {
                panic!("the witness needs tcpdump (package tcpdump); `ip netns exec` says: {said}");
            }
        }
        let stdout = BufReader::new(tcpdump.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let sender = unit.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        Self { tcpdump, lines, sender, next_marker: FIRST_MARKER }
    }

    /// Everything that was sent before this call and arrived, since the last call.
    ///
    /// Packets keep their order between the two hosts only within one CPU's queue, so a marker is sent
    /// from each CPU; what was sent before them has been seen when they all have.
    pub(crate) fn arrived(&mut self) -> Arrived {
        let mut markers = self.send_markers();
        let deadline = Instant::now() + unhurried(PATIENCE);
        let mut lines = vec![];
        while !markers.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).expect("the markers arrive at the witness");
            match destination(&line) {
                Some(host) if is_at(host, &MARKER.to_string()) => markers.retain(|marker| host != marker),
                _ => lines.push(line),
            }
        }
        Arrived(lines)
    }

    fn send_markers(&mut self) -> Vec<String> {
        let allowed = sched_getaffinity(None).expect("the CPUs of this process");
        let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let first = self.next_marker;
        self.next_marker += u16::try_from(cpus.len()).expect("fewer CPUs than ports");
        let markers: Vec<_> = (first..self.next_marker).map(|port| SocketAddr::new(MARKER, port)).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for (cpu, marker) in cpus.iter().zip(&markers) {
                    let mut one = CpuSet::new();
                    one.set(*cpu);
                    sched_setaffinity(None, &one).expect("a CPU of this process");
                    self.sender.send_to(b"marker", marker).expect("the marker's way is free");
                }
            });
        });
        markers.iter().map(|marker| format!("{}.{}", marker.ip(), marker.port())).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}
