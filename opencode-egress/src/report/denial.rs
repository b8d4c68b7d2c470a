//! Denials as they are logged: one line each.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use opencode_egress_common::{abi, event::Denial, reason::DropReason};
use serde::{Deserialize, Serialize};

use crate::{
    policy::{Policy, destination::protocol_name},
    report::{caller::Caller, human::local_time},
};

/// What the log says of a denial: what was tried, by which process, and why the policy denies it. In audit mode it passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialLine {
    /// The protocol's name, or its number.
    pub proto: String,
    /// The destination; for binds the local address, for inbound ones the peer.
    pub dst: IpAddr,
    /// The port; 0 for protocols without ports.
    pub dport: u16,
    /// Where the process wanted to, where the kernel sent it elsewhere: network address translation, or a program of
    /// another cgroup, rewrote the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<SocketAddr>,
    /// The local port that an inbound packet tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lport: Option<u16>,
    /// The hook that judged it.
    pub hook: String,
    /// The drop reason.
    pub reason: String,
    /// The id of the process that tried; 0 where the hook cannot know it.
    pub pid: u32,
    /// That process' name; empty where the hook cannot know it.
    pub comm: String,
    /// The id of the user that it ran as.
    pub uid: u32,
    /// Earlier denials of this destination that were folded into this line.
    pub suppressed: u64,
    /// The generation of the policy that judged.
    pub generation: u32,
    /// Whether it passed, because the instance is in audit mode.
    pub audit: bool,
    /// What to do instead, where the policy has that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The name whose answer brought the address; in audit mode that may be one that no rule lists. Where it was denied for what the
    /// hello says that opens TLS: the server that this names, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which program tried, as far as it is known.
    #[serde(flatten)]
    pub caller: Caller,
}

/// What the log says of a question for a name that was refused. In audit mode it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionLine {
    /// The name that was asked for.
    pub query: String,
    /// The type, as in `AAAA`.
    #[serde(rename = "type")]
    pub qtype: String,
    /// Why.
    pub reason: String,
    /// The address that no name may bring, where that is why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Who asked.
    #[serde(flatten)]
    pub asker: Asker,
    /// Earlier ones that were folded into this line.
    pub suppressed: u64,
    /// Whether it was answered, because the instance is in audit mode.
    pub audit: bool,
}

/// Who sent a question, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The id of the process; 0: unknown.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub pid: u32,
    /// That process' name; empty: unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comm: String,
    /// The id of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Which program it is, where it ran still.
    #[serde(flatten)]
    pub caller: Caller,
}

impl Asker {
    /// What the kernel remembers, and what `caller` finds of the process, if that is known.
    pub fn of(asker: &abi::Asker, caller: impl FnOnce(u32) -> Caller) -> Self {
        let caller = if asker.pid == 0 { Caller::default() } else { caller(asker.pid) };
        Self { pid: asker.pid, comm: shown_comm(&asker.comm), uid: Some(asker.user), caller }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_unknown(pid: &u32) -> bool {
    *pid == 0
}

/// A process' name as it may be logged. A process chooses its own: nothing in it may end the line, turn its direction, or look like
/// another field.
pub fn shown_comm(comm: &[u8]) -> String {
    let comm = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(comm).replace(|c: char| !c.is_ascii_graphic() || c == '=', "?")
}

impl fmt::Display for QuestionLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { query, qtype, reason, address, asker, suppressed, audit } = self;
        let Asker { pid, comm, uid, caller } = asker;
        write!(f, "query={query} type={qtype} reason={reason} ")?;
        if let Some(address) = address {
            write!(f, "address={address} ")?;
        }
        write!(f, "pid={pid} comm={} ", if comm.is_empty() { "-" } else { comm })?;
        match uid {
            Some(uid) => write!(f, "uid={uid} ")?,
            None => f.write_str("uid=- ")?,
        }
        write!(f, "suppressed={suppressed} {caller}")?;
        if *audit { f.write_str(" mode=audit") } else { Ok(()) }
    }
}

/// The line of a denied flow, or of a refused question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A flow.
    Flow(DenialLine),
    /// A question.
    Question(QuestionLine),
}

impl Line {
    /// The flow, if it is of one.
    pub fn flow(&self) -> Option<&DenialLine> {
        match self {
            Self::Flow(line) => Some(line),
            Self::Question(_) => None,
        }
    }

    /// The process that tried: its number, 0 where that is unknown; its name, empty where that is; and which program it is.
    pub fn process(&self) -> (u32, &str, &Caller) {
        match self {
            Self::Flow(DenialLine { pid, comm, caller, .. }) => (*pid, comm, caller),
            Self::Question(QuestionLine { asker: Asker { pid, comm, caller, .. }, .. }) => {
                (*pid, comm, caller)
            }
        }
    }

    /// Whether it passed, because the instance was in audit mode.
    pub fn passed(&self) -> bool {
        match self {
            Self::Flow(line) => line.audit,
            Self::Question(line) => line.audit,
        }
    }

    /// Earlier ones that were folded into this line.
    pub fn suppressed(&self) -> u64 {
        match self {
            Self::Flow(line) => line.suppressed,
            Self::Question(line) => line.suppressed,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(line) => line.fmt(f),
            Self::Question(line) => line.fmt(f),
        }
    }
}

impl DenialLine {
    /// The line of a denial into which `suppressed` earlier ones of the same destination were folded.
    pub fn of(record: &Denial, suppressed: u64) -> Self {
        Self {
            proto: protocol_name(record.flow.protocol),
            dst: record.flow.address.into(),
            dport: record.flow.port,
            asked: record.asked.map(|(address, port)| SocketAddr::new(address.into(), port)),
            lport: (record.event.local_port != 0).then_some(record.event.local_port),
            hook: record.hook.name().to_owned(),
            reason: record.reason.name().to_owned(),
            pid: record.event.pid,
            comm: shown_comm(&record.event.comm),
            uid: record.event.uid,
            suppressed,
            generation: record.event.generation,
            audit: record.event.audit != 0,
            hint: None,
            name: record.server.map(|server| shown_server(server.name())),
            caller: Caller::default(),
        }
    }

    /// The line with the program that tried.
    pub fn with_caller(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// The line with the name that brought the address, unless it is about another one: the server that a hello names, or does not.
    pub fn with_name(self, name: Option<String>) -> Self {
        if self.reason == DropReason::TlsNameNotAllowed.name() { self } else { Self { name, ..self } }
    }

    /// The line with what the instance's policy has instead of what was denied: for a bind, the listener that is listed.
    pub fn with_hint(self, policy: &Policy) -> Self {
        let hint = self.is_of_bind().then(|| policy.instead_of_bind(self.dport));
        Self { hint, ..self }
    }

    /// Whether it is of a bind to what the policy does not list.
    pub fn is_of_bind(&self) -> bool {
        self.reason == DropReason::BindNotListed.name()
    }
}

impl fmt::Display for DenialLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proto, dst, dport, asked, lport, hook, reason, pid, comm, uid, suppressed, .. } = self;
        let comm = if comm.is_empty() { "-" } else { comm };
        write!(f, "proto={proto} dst={dst} dport={dport} ")?;
        if let Some(asked) = asked {
            write!(f, "asked={asked} ")?;
        }
        if let Some(lport) = lport {
            write!(f, "lport={lport} ")?;
        }
        if let Some(name) = &self.name {
            write!(f, "name={name} ")?;
        }
        write!(f, "hook={hook} reason={reason} ")?;
        write!(f, "pid={pid} comm={comm} uid={uid} suppressed={suppressed} {}", self.caller)?;
        if let Some(hint) = &self.hint {
            write!(f, " hint=\"{hint}\"")?;
        }
        if self.audit { f.write_str(" mode=audit") } else { Ok(()) }
    }
}

/// A server's name as a hello has it, of which any byte may be anything: it cannot end its line, nor look like another field.
fn shown_server(name: &[u8]) -> String {
    let shown = |byte: &u8| if byte.is_ascii_graphic() && *byte != b'=' { char::from(*byte) } else { '?' };
    name.iter().map(shown).collect()
}

/// The line of a denial with its instance and time, as `events` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedDenial {
    /// Seconds since 1970.
    pub time: u64,
    /// The instance.
    pub instance: String,
    /// What the log says of it.
    #[serde(flatten)]
    pub line: Line,
}

impl fmt::Display for LoggedDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", local_time(self.time), self.instance, self.line)
    }
}

#[cfg(test)]
pub(crate) mod tests;
