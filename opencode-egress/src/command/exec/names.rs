//! Names under `exec`: a resolver of its own, and the daemon's part of the conversation with it.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    process::Child,
    time::Instant,
};

use anyhow::{Context as _, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{
    command::{
        exec::{output::Output, scratch},
        resolve,
    },
    control::learned::{FromResolver, MAX_FROM_RESOLVER, MAX_TTL, ToResolver},
    daemon::names::{Question, Questions, ResolverSockets, Shown, until, weigh},
    kernel::{
        addresses::own_addresses,
        instance::InstanceIndex,
        loader::Loaded,
        maps::{LoadedPolicy, boottime},
    },
    policy::{LogLimits, Mode, Resolver, compile::CompiledName, known::KnownNames, name::DnsName},
    report::denial::Asker,
};

/// The resolver of the one command, and what it brought.
pub(super) struct Names {
    rules: Vec<CompiledName>,
    mode: Mode,
    log: LogLimits,
    known: KnownNames,
    questions: Questions,
    resolver: Child,
    /// `None`: it is gone.
    stream: Option<UnixStream>,
    /// What of it was read and not yet taken.
    read: Vec<u8>,
}

impl Names {
    /// Starts a resolver for a policy with rules for names, and gives the policy what it takes for it.
    pub(super) fn start(
        rules: Vec<CompiledName>,
        mode: Mode,
        (log, settings): (LogLimits, &Resolver),
        policy: &mut LoadedPolicy,
    ) -> Result<Self> {
        let sockets = ResolverSockets::bind(std::process::id())
            .context("there can be no resolver for the names that are listed")?;
        policy.with_names(sockets.port(), settings.mark, vec![]);
        let program =
            std::env::current_exe().context("cannot find this program, which is also the resolver")?;
        let (resolver, stream) = resolve::start(&program).context("cannot start the resolver")?;
        let told = "cannot tell the resolver what is listed";
        send(&stream, &ToResolver::Upstream { servers: settings.upstream.clone() }, &[]).context(told)?;
        let names = rules.iter().map(|compiled| compiled.rule.pattern().to_string()).collect();
        let number = InstanceIndex::FIRST.number();
        let audit = mode == Mode::Audit;
        let instance = ToResolver::Instance { number, names, leased: vec![], audit, audit_until: None };
        send(&stream, &instance, &sockets.descriptors().collect::<Vec<_>>()).context(told)?;
        send(&stream, &ToResolver::AllTold, &[]).context(told)?;
        stream.set_nonblocking(true)?;
        let (known, questions) = (KnownNames::default(), Questions::default());
        Ok(Self { rules, mode, log, known, questions, resolver, stream: Some(stream), read: vec![] })
    }

    /// What is to be waited for.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// The name by which an address is known.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<String> {
        self.known.name_of(address).map(ToString::to_string)
    }

    /// How many questions were refused in all, and what of them had no line.
    pub(super) fn shown(&self) -> Shown {
        self.questions.shown()
    }

    /// Takes some of what the resolver has said, and answers it. Returns whether there may be more.
    pub(super) fn take(&mut self, loaded: &mut Loaded, output: &mut Output) -> bool {
        let Some(stream) = self.stream.take() else { return false };
        match self.converse(&stream, loaded, output) {
            Ok(Some(more)) => {
                self.stream = Some(stream);
                return more;
            }
            Ok(None) => output.say("the resolver has ended: no more names are answered"),
            Err(error) => output
                .say(&format!("the resolver is not understood, and no more names are answered: {error}")),
        }
        false
    }

    /// Returns whether the resolver had said something; `None`: it is gone.
    fn converse(
        &mut self,
        mut stream: &UnixStream,
        loaded: &mut Loaded,
        output: &mut Output,
    ) -> io::Result<Option<bool>> {
        let mut buffer = [0; 16 * 1024];
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(Some(false));
            }
            Err(error) => return Err(error),
        };
        self.read.extend_from_slice(&buffer[..read]);
        while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = self.read.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                FromResolver::Learn { id, name, addresses, ttl, source, .. } => {
                    let answer = (&*addresses, ttl, source);
                    let told = self.learn(loaded, &name, answer, output).unwrap_or_default();
                    send(stream, &ToResolver::Learned { id, addresses: told }, &[])?;
                }
                FromResolver::Refused { name, qtype, reason, source, .. } => {
                    let question = Question { name, qtype, reason, address: None };
                    self.refuse(loaded, question, source, output);
                }
                FromResolver::Counts(counts) => self.questions.add(&counts),
            }
        }
        match self.read.len() < MAX_FROM_RESOLVER {
            true => Ok(Some(true)),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")),
        }
    }

    /// Takes note of a refused question, and says so where it is to have a line.
    fn refuse(&mut self, loaded: &Loaded, question: Question, source: SocketAddr, output: &mut Output) {
        let limits = (&self.log, self.mode, Instant::now());
        let asker = || {
            let asker = loaded.maps.asker(InstanceIndex::FIRST, source)?;
            Some(Asker::of(&asker, scratch::caller))
        };
        if let Some(line) = self.questions.refuse(question, asker, limits) {
            output.say(&format!("denied: {line}"));
        }
    }

    /// What of an answer may be told, once flows to it pass.
    fn learn(
        &mut self,
        loaded: &mut Loaded,
        name: &str,
        (addresses, ttl, source): (&[IpAddr], u32, SocketAddr),
        output: &mut Output,
    ) -> Option<Vec<IpAddr>> {
        let audit = self.mode == Mode::Audit;
        let Ok(name) = name.parse::<DnsName>() else {
            // No rule can list it.
            return audit.then(|| addresses.to_vec());
        };
        let own = own_addresses().ok()?;
        let (_, rules) = loaded.maps.policy(InstanceIndex::FIRST).ok()??;
        let now = boottime();
        let until = until(now, ttl, MAX_TTL);
        let listed = self.rules.iter().any(|compiled| compiled.rule.pattern().matches(&name));
        if audit && !listed {
            // For its lines: nothing passes by that.
            self.known.learn(&name, addresses, until, now);
            return Some(addresses.to_vec());
        }
        let mut weighed = weigh(&name, addresses, until, &self.rules, &rules, &own);
        for learned in &weighed.learned {
            if loaded.maps.learn(InstanceIndex::FIRST, learned).is_err() {
                weighed.told.retain(|told| *told != learned.address);
            }
        }
        if let Some(question) = Question::forbidden(&name, &weighed.forbidden) {
            self.refuse(loaded, question, source, output);
        }
        self.known.learn(&name, &weighed.told, until, now);
        Some(if audit { addresses.to_vec() } else { weighed.told })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = self.resolver.kill();
        let _ = self.resolver.wait();
    }
}

/// Sends a message, with sockets.
fn send(mut stream: &UnixStream, message: &ToResolver, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    let sent = sendmsg(stream, &[io::IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&line[sent..])
}
