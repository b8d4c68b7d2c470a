//! How each subject is set up, and the rounds in which they take turns.

use std::{
    fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use opencode_egress::{
    cgroups::{Cgroup, Hierarchy},
    kernel::{
        hooks::Needs,
        instance::InstanceIndex,
        loader::{Lifetime, Loaded, load},
        maps::{LearnedAddress, LoadedPolicy},
    },
    policy::{LogLimits, Policy, Rule, compile::compile},
};
use opencode_egress_common::abi::{Learned, RESOLVER_PORTS};
use rustix::{
    net::sockopt::set_socket_recv_buffer_size_force,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    Args, boot, floor,
    networks::{destination, networks},
    subject::Subject,
    table::Table,
    worker::{NAME, Operation, PORT, SERVE, SOCKET},
};

/// Sets up every subject again and again, and measures its operations in turn with those of the others.
pub(crate) fn subjects(args: &Args) -> Result<Table> {
    let subjects = Subject::chosen(args);
    let listener = UnixListener::bind(SOCKET)?;
    let mut table = Table::new(&subjects);
    for setup in 1..=args.setups {
        eprintln!("set-up {setup} of {}", args.setups);
        let mut running = vec![];
        for subject in &subjects {
            match Running::start(*subject, &listener) {
                Ok(one) => running.push(one),
                Err(error) => {
                    eprintln!("SKIPPED: {subject}: {error:#}");
                    // It may be running without what was to be measured.
                    let _ = systemctl("stop", *subject);
                }
            }
        }
        table.new_setup();
        for round in 0..args.rounds {
            let first = round % running.len().max(1);
            running.rotate_left(first);
            for operation in Operation::ROUND {
                for one in &mut running {
                    // Only ours gives an error; the others are asked once.
                    if operation == Operation::Denied
                        && !matches!(
                            one.subject,
                            Subject::Ours(_) | Subject::Named | Subject::NamedTls | Subject::BesideNames
                        )
                    {
                        continue;
                    }
                    let nanoseconds = one.batch(operation)?;
                    table.add(one.subject, operation, nanoseconds);
                }
            }
            running.rotate_right(first);
        }
        for mut one in running {
            if setup == 1 && matches!(one.subject, Subject::Systemd(_) | Subject::Nftables(_)) {
                one.check_denial(&mut table)?;
            }
            one.stop()?;
        }
    }
    Ok(table)
}

/// A subject that is set up: its unit runs, confined by what is to be measured.
struct Running {
    subject: Subject,
    worker: BufReader<UnixStream>,
    receiver: Receiver,
    /// Keeps our maps and programs loaded.
    _loaded: Option<Loaded>,
}

impl Running {
    fn start(subject: Subject, listener: &UnixListener) -> Result<Self> {
        fs::write(unit_path(subject), unit_file(subject))?;
        systemctl("start", subject)?;
        let mut worker = BufReader::new(listener.accept()?.0);
        let mut hello = String::new();
        worker.read_line(&mut hello)?;
        let pid = hello.split_whitespace().nth(1).context("a name and a process id")?;
        let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
        let own = subject.has_own_server();
        let ready = thread::spawn(move || -> Result<_> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            // Closed connections go at once, so that ports do not run out.
            fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")?;
            if let Subject::Nftables(rules) = subject {
                nft(&nft_rules(&cgroup_of(subject), rules))?;
            }
            if own { Ok(None) } else { Receiver::new().map(Some) }
        });
        let receiver = ready.join().map_err(|_| anyhow::anyhow!("the receiver's thread panicked"))??;
        let hierarchy = Hierarchy::find()?;
        let cgroup = hierarchy.open(Path::new(&cgroup_of(subject)))?;
        let loaded = match subject {
            Subject::Floor => {
                floor::confine(&cgroup, Needs::NONE)?;
                None
            }
            Subject::FloorOfCalls => {
                floor::confine(&cgroup, Needs::ALL)?;
                None
            }
            Subject::Ours(rules) => Some(confine(&cgroup, &policy(rules), vec![])?),
            Subject::Own => Some(confine(&cgroup, &Policy::default(), vec![])?),
            Subject::OwnListed => Some(confine(&cgroup, &policy(1), vec![])?),
            Subject::Named | Subject::NamedTls => {
                let policy = named_policy(subject == Subject::NamedTls)?;
                let learned = learned(&policy, destination(subject.rules()))?;
                Some(confine(&cgroup, &policy, learned)?)
            }
            Subject::BesideNames => {
                let policy = Policy { names: named_policy(true)?.names, ..policy(1) };
                Some(confine(&cgroup, &policy, vec![])?)
            }
            _ => None,
        };
        // One of the instance's own is made by its process.
        let receiver = match receiver {
            Some(receiver) => receiver,
            None => Receiver::of_worker(&mut worker, pid.parse()?)?,
        };
        Ok(Self { subject, worker, receiver, _loaded: loaded })
    }

    /// Nanoseconds of one operation, from one batch.
    fn batch(&mut self, operation: Operation) -> Result<f64> {
        let count = operation.batch();
        let stream = self.worker.get_mut();
        writeln!(stream, "{operation:?} {count}")?;
        let mut answer = String::new();
        self.worker.read_line(&mut answer)?;
        self.receiver.drain()?;
        let total: f64 = answer
            .trim()
            .parse()
            .with_context(|| format!("bench-{} gave up in the middle of {operation:?}", self.subject))?;
        Ok(total / f64::from(count))
    }

    /// How a denied connect ends where it gives no error.
    fn check_denial(&mut self, table: &mut Table) -> Result<()> {
        let nanoseconds = self.batch(Operation::GiveUp)?;
        table.add(self.subject, Operation::Denied, nanoseconds);
        Ok(())
    }

    fn stop(self) -> Result<()> {
        drop(self.worker);
        systemctl("stop", self.subject)
    }
}

fn cgroup_of(subject: Subject) -> String {
    format!("bench.slice/bench-{subject}.service")
}

fn unit_path(subject: Subject) -> String {
    format!("/run/systemd/system/bench-{subject}.service")
}

fn unit_file(subject: Subject) -> String {
    let destination = destination(subject.rules());
    let last_cpu = thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
    let mut text = format!(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=exec\nSlice=bench.slice\nPrivateNetwork=yes\n\
         CPUAffinity={last_cpu}\nNice=-10\nStandardOutput=null\nStandardError=append:/run/bench/log\n\
         ExecStart={} worker {subject} {destination}\n",
        boot::PROGRAM
    );
    if let Subject::Systemd(rules) = subject {
        text += "IPAddressDeny=any\n";
        for networks in networks(rules).chunks(1000) {
            let list: Vec<_> = networks.iter().map(ToString::to_string).collect();
            text += &format!("IPAddressAllow={}\n", list.join(" "));
        }
    }
    text
}

fn systemctl(verb: &str, subject: Subject) -> Result<()> {
    let output = Command::new("systemctl").args([verb, &format!("bench-{subject}.service")]).output()?;
    if !output.status.success() {
        bail!("systemctl {verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The policy with these many rules.
pub(crate) fn policy(rules: usize) -> Policy {
    let allow = networks(rules).into_iter().map(|net| net.to_string().parse().map(Rule::any));
    Policy { allow: allow.collect::<Result<_, _>>().unwrap_or_default(), ..Policy::default() }
}

/// A policy that lists one name, for every port of UDP, and of TCP, maybe with TLS.
fn named_policy(tls: bool) -> Result<Policy> {
    let mut policy = Policy::default();
    policy.allow(format!("{NAME}/udp").parse()?);
    policy.allow(format!("{NAME}/tcp{}", if tls { "/tls" } else { "" }).parse()?);
    Ok(policy)
}

/// What an answer for that name brought, for long, by each rule.
fn learned(policy: &Policy, address: impl Into<IpAddr>) -> Result<Vec<LearnedAddress>> {
    let compiled = compile(policy)?;
    let address = address.into();
    let learned = compiled.names.iter().map(|name| LearnedAddress {
        address,
        grant: name.grant,
        learned: Learned { until: u64::MAX, rule: name.id },
    });
    Ok(learned.collect())
}

fn confine(cgroup: &Cgroup, policy: &Policy, learned: Vec<LearnedAddress>) -> Result<Loaded> {
    let mut loaded = load(&Lifetime::Process)?;
    loaded.maps.set_limits(&LogLimits::default())?;
    let compiled = compile(policy)?;
    let mut loaded_policy = LoadedPolicy::load(&compiled)?;
    let needs = loaded_policy.needs();
    if needs.calls {
        loaded_policy.with_names(RESOLVER_PORTS.0, 1 << 25, learned);
    }
    loaded.maps.put_in_force(vec![(InstanceIndex::FIRST, loaded_policy)])?;
    loaded.confine(cgroup, InstanceIndex::FIRST, needs, |loaded, hook, cgroup| {
        loaded.programs.attach_for_good(hook, cgroup)
    })?;
    Ok(loaded)
}

fn nft_rules(cgroup: &str, rules: usize) -> String {
    let level = cgroup.split('/').count();
    let list: Vec<_> = networks(rules).iter().map(ToString::to_string).collect();
    let list = list.join(", ");
    format!(
        "table inet bench {{\n\
         set allowed {{\n type ipv4_addr\n flags interval\n elements = {{ {list} }}\n}}\n\
         chain out {{\n type filter hook output priority 0\n\
         socket cgroupv2 level {level} \"{cgroup}\" ip daddr @allowed accept\n\
         socket cgroupv2 level {level} \"{cgroup}\" drop\n}}\n}}\n"
    )
}

fn nft(rules: &str) -> Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("no nft")?;
    child.stdin.take().context("a pipe")?.write_all(rules.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("nft ended with {status}");
    }
    Ok(())
}

/// The other end: sockets in the worker's network namespace and this process' cgroup.
struct Receiver {
    tcp: TcpListener,
    udp: UdpSocket,
    /// The connection that stays open.
    stream: Option<TcpStream>,
}

impl Receiver {
    /// Has the worker make its sockets, and takes them over.
    fn of_worker(worker: &mut BufReader<UnixStream>, pid: i32) -> Result<Self> {
        writeln!(worker.get_mut(), "{SERVE}")?;
        let mut numbers = String::new();
        worker.read_line(&mut numbers)?;
        let (tcp, udp) = numbers.trim().split_once(' ').context("two descriptors")?;
        let process = pidfd_open(Pid::from_raw(pid).context("a process id")?, PidfdFlags::empty())?;
        let take = |number: &str| {
            Ok::<_, anyhow::Error>(pidfd_getfd(&process, number.parse()?, PidfdGetfdFlags::empty())?)
        };
        Self::of(take(tcp)?.into(), take(udp)?.into())
    }

    fn new() -> Result<Self> {
        Self::of(TcpListener::bind(("0.0.0.0", PORT))?, UdpSocket::bind(("0.0.0.0", PORT))?)
    }

    fn of(tcp: TcpListener, udp: UdpSocket) -> Result<Self> {
        tcp.set_nonblocking(true)?;
        // Room for a whole batch; std asks for less.
        rustix::net::listen(&tcp, 4096)?;
        set_socket_recv_buffer_size_force(&tcp, 64 << 20)?;
        udp.set_nonblocking(true)?;
        set_socket_recv_buffer_size_force(&udp, 64 << 20)?;
        Ok(Self { tcp, udp, stream: None })
    }

    /// Takes everything that arrived, between batches, so that receiving is not part of what is measured.
    fn drain(&mut self) -> Result<()> {
        let mut buffer = [0; 65_536];
        loop {
            match self.udp.recv(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match self.tcp.accept() {
                Ok((stream, _)) if self.stream.is_none() => {
                    stream.set_nonblocking(true)?;
                    self.stream = Some(stream);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut buffer) {
                Ok(0) => bail!("the connection that stays open has ended"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// How long a unit with its list, or a table with its set, takes from the command on. What starting any unit
/// takes is left out.
pub(crate) fn in_force(subject: Subject) -> Result<Duration> {
    let start_unit = |subject| -> Result<Duration> {
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET)?;
        fs::write(unit_path(subject), unit_file(subject))?;
        let start = Instant::now();
        systemctl("start", subject)?;
        let took = start.elapsed();
        // Its process says hello and ends when nobody wants anything of it.
        BufReader::new(listener.accept()?.0).read_line(&mut String::new())?;
        systemctl("stop", subject)?;
        Ok(took)
    };
    match subject {
        Subject::Systemd(_) => Ok(start_unit(subject)?.saturating_sub(start_unit(Subject::None)?)),
        Subject::Nftables(rules) => {
            let rules = nft_rules("bench.slice", rules);
            let start = Instant::now();
            nft(&rules)?;
            Ok(start.elapsed())
        }
        other => bail!("{other} has no list"),
    }
}
