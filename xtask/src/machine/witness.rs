//! What arrives at the second host, as tcpdump on its interface tells it.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{cable::in_netns, parts::Process, wait::PATIENCE};
use crate::process::checked;

/// tcpdump on the second host's interface.
pub(super) struct Witness {
    tcpdump: Process,
    lines: mpsc::Receiver<String>,
    /// What tcpdump says of itself.
    said: mpsc::Receiver<String>,
    markers: u32,
}

impl Witness {
    /// Begins to watch the one interface of a namespace.
    pub(super) fn start(netns: &str) -> Result<Self> {
        let tcpdump = in_netns(netns, "tcpdump")
            .args(["-n", "-l", "-U", "--immediate-mode", "-i", "veth", "-Q", "in"])
            // Headers, and room for many of them: its buffer is cut into pieces of the first size.
            .args(["-s", "256", "-B", "32768", "ip or ip6"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run tcpdump")?;
        let mut tcpdump = Process(tcpdump);
        let said = tcpdump.0.stderr.take().context("tcpdump has no stderr")?;
        let mut said = BufReader::new(said);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                bail!("tcpdump ended before it listened");
            }
        }
        let printed = BufReader::new(tcpdump.0.stdout.take().context("tcpdump has no stdout")?);
        Ok(Self { tcpdump, lines: received(printed), said: received(said), markers: 40000 })
    }

    /// The port for the next marker. Nothing else is sent to it.
    pub(super) fn next_marker(&mut self) -> u32 {
        self.markers += 1;
        self.markers
    }

    /// Adds what arrives before the marker to `seen`. Returns whether the marker came within `patience`.
    pub(super) fn until(&self, marker: u32, patience: Duration, seen: &mut Vec<String>) -> Result<bool> {
        // What tcpdump takes it for depends on the port.
        let end = format!("> 192.0.2.10.{marker}: ");
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(&end) => {
                    self.missed_nothing()?;
                    return Ok(true);
                }
                Ok(line) => seen.push(line),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("tcpdump has ended"),
            }
        }
    }

    /// Fails when tcpdump lost packets: then it does not show what did not arrive.
    fn missed_nothing(&self) -> Result<()> {
        let mut kill = Command::new("kill");
        kill.args(["-USR1", &self.tcpdump.0.id().to_string()]);
        checked(kill)?;
        loop {
            let line = self.said.recv_timeout(PATIENCE).context("tcpdump does not say what it lost")?;
            if let Some((before, _)) = line.split_once(" packets dropped by kernel") {
                let dropped = before.rsplit(' ').next().unwrap_or_default();
                return if dropped == "0" { Ok(()) } else { bail!("the witness lost {dropped} packets") };
            }
        }
    }
}

/// The lines of a pipe, which is read whether somebody receives them or not.
fn received(pipe: impl BufRead + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in pipe.lines().map_while(Result::ok) {
            // Nobody receives any more: the machine is going.
            let _ = sender.send(line);
        }
    });
    lines
}
