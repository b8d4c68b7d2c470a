//! What a confined process may know of its policy: what it may reach, and what was refused to it lately.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use opencode_egress_common::{flow::Class, reason::DropReason};
use serde::{Deserialize, Serialize};

use crate::{
    policy::{
        AnyRule, InstanceName, Mode, NameRule, Policy, Rule,
        lease::{LeaseKind, LeaseStatus},
        mode_name,
        preset::presets,
    },
    report::{
        denial::{Line, LoggedDenial},
        human::{ago, duration, now},
        remedy::{Remedy, flow},
        view::place,
    },
};

/// The most rules of a kind that are shown; the rest is counted.
const RULES: usize = 100;
/// The most destinations and names that are shown.
const REFUSED: usize = 50;
/// Of so many names it is looked which presets they have: the daemon answers others meanwhile.
const COMPARED: usize = 1000;

/// The answer to a confined process that asks why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// The instance that the process belongs to.
    pub instance: String,
    /// `enforce`, or `audit`: nothing is refused.
    pub mode: String,
    /// For how many more seconds, of audit mode that ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_seconds: Option<u64>,
    /// The error that a refused call gets.
    pub errno: String,
    /// Rules for names that let pass.
    pub names: Shown,
    /// Rules for networks that let pass.
    pub networks: Shown,
    /// What is granted for a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Leased>,
    /// What never passes; in audit mode there is no such thing.
    pub deny: Shown,
    /// Presets of which every rule is among these.
    pub presets: Vec<String>,
    /// `own`: it may talk to itself over loopback; `listed`: what rules and listeners list.
    pub loopback: String,
    /// Where others reach it.
    pub listen: Vec<String>,
    /// What was refused lately, the last first; not what passed in audit mode.
    pub refused: Vec<Refused>,
    /// How many other destinations and names were.
    pub more_refused: usize,
}

/// What is granted for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// A rule.
    pub what: String,
    /// What is left of the time, in seconds.
    pub seconds: u64,
}

/// The first of a list, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// These.
    pub rules: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

/// What was refused, how often, and what would let it pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The name that was asked for, or the destination.
    pub what: String,
    /// The name behind the destination, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The drop reason.
    pub reason: String,
    /// How often, as far as it was logged.
    pub times: u64,
    /// When last, in seconds since 1970.
    pub last: u64,
    /// The rule to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// Where no rule lets it pass: why, or what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

impl Why {
    /// What an instance may know of its policy, its leases, and its last denials, which come the oldest first.
    pub fn of<'a>(
        instance: &InstanceName,
        policy: &Policy,
        leases: &[LeaseStatus],
        lately: impl DoubleEndedIterator<Item = &'a LoggedDenial>,
    ) -> Self {
        let (refused, more_refused) = refused(policy, leases, lately);
        let learns = leases.iter().find(|lease| lease.lease.kind == LeaseKind::Audit);
        // Where the file has it, too, it does not end with the lease.
        let learns = learns.filter(|_| policy.mode_of_file() == Mode::Enforce);
        let mode = if learns.is_some() { Mode::Audit } else { policy.mode };
        Self {
            instance: instance.to_string(),
            mode: mode_name(mode).to_owned(),
            audit_seconds: learns.map(|lease| lease.seconds),
            errno: policy.errno.to_string(),
            names: Shown::of(&policy.names),
            networks: Shown::of(&policy.allow),
            // Not who granted them, and why.
            leases: leases
                .iter()
                .filter(|lease| lease.lease.kind != LeaseKind::Audit)
                .map(|lease| Leased { what: lease.lease.kind.to_string(), seconds: lease.seconds })
                .collect(),
            deny: if mode == Mode::Audit { Shown::default() } else { Shown::of(&policy.deny) },
            presets: whole_presets(policy),
            loopback: policy.loopback.name().to_owned(),
            listen: policy.listen.iter().map(ToString::to_string).collect(),
            refused,
            more_refused,
        }
    }
}

impl Shown {
    fn of<T: ToString>(rules: &[T]) -> Self {
        let shown = rules.iter().take(RULES).map(ToString::to_string);
        Self { rules: shown.collect(), more: rules.len().saturating_sub(RULES) }
    }
}

/// The presets of which the policy has every rule.
fn whole_presets(policy: &Policy) -> Vec<String> {
    let listed: HashSet<_> = policy.names.iter().take(COMPARED).collect();
    let has = |rule: &AnyRule| matches!(rule, AnyRule::Name(rule) if listed.contains(rule));
    let whole = presets().iter().filter(|preset| preset.allow.iter().all(has));
    whole.map(|preset| preset.name.clone()).collect()
}

/// Denials of the same for the same reason, together, the last first; and how many did not fit. What passed in audit mode was not refused.
fn refused<'a>(
    policy: &Policy,
    leases: &[LeaseStatus],
    lately: impl DoubleEndedIterator<Item = &'a LoggedDenial>,
) -> (Vec<Refused>, usize) {
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    let mut refused: Vec<Refused> = vec![];
    for LoggedDenial { time, line, .. } in lately.rev().filter(|denial| !denial.line.passed()) {
        let (what, reason) = (what(line), reason(line));
        let next = places.len();
        let place = *places.entry((what.clone(), reason.to_owned())).or_insert(next);
        let times = line.suppressed().saturating_add(1);
        match refused.get_mut(place) {
            Some(same) => same.times = same.times.saturating_add(times),
            None if place >= REFUSED => {}
            None => {
                let remedy = match Remedy::of(line) {
                    Remedy::Rule(rule) if passes_now(line, &rule, policy, leases) => {
                        Remedy::Other("a rule lets it pass by now; try again".to_owned())
                    }
                    remedy => remedy,
                };
                refused.push(Refused {
                    what,
                    name: line.flow().and_then(|line| line.name.clone()),
                    reason: reason.to_owned(),
                    times,
                    last: *time,
                    ask: remedy.ask(),
                    instead: match remedy {
                        Remedy::Rule(_) => None,
                        Remedy::Other(text) => Some(text),
                    },
                });
            }
        }
    }
    let more = places.len() - refused.len();
    (refused, more)
}

/// Whether what was refused, and takes a rule, has one by now: a lease, or one that a reload brought. Of the policy's the first are looked at.
fn passes_now(line: &Line, rule: &AnyRule, policy: &Policy, leases: &[LeaseStatus]) -> bool {
    let to = line.flow().map(|line| (line.dst, flow(line)));
    let reaches = |rule: &Rule| {
        to.is_some_and(|(address, flow)| rule.cidr().net().contains(&address) && rule.speaks_of(&flow))
    };
    if policy.deny.iter().take(COMPARED).any(reaches) {
        return false;
    }
    // A lease is for TCP and UDP, and lets no multicast group be joined.
    let can_be_leased =
        to.is_none_or(|(_, flow)| matches!(flow.class(), Class::Tcp | Class::Udp) && flow.port != 0);
    let mut leased = leases.iter().filter(|_| can_be_leased).filter_map(|lease| match &lease.lease.kind {
        LeaseKind::Rule(rule) => Some(rule.rule()),
        LeaseKind::Audit => None,
    });
    // A hello may name the servers of such rules alone.
    let tls = reason(line) == DropReason::TlsNameNotAllowed.name();
    let by_name =
        |by: &NameRule| matches!(rule, AnyRule::Name(rule) if by.covers(rule)) && (by.tls() || !tls);
    let by_lease = |by: &AnyRule| match by {
        AnyRule::Network(by) => reaches(by),
        AnyRule::Name(by) => by_name(by),
    };
    leased.any(by_lease)
        || policy.allow.iter().take(COMPARED).any(reaches)
        || policy.names.iter().take(COMPARED).any(by_name)
}

fn what(line: &Line) -> String {
    match line {
        Line::Question(line) => line.query.clone(),
        Line::Flow(line) => format!("{}/{}", place(line), line.proto),
    }
}

fn reason(line: &Line) -> &str {
    match line {
        Line::Question(line) => &line.reason,
        Line::Flow(line) => &line.reason,
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, mode, errno, names, networks, leases, deny, presets, .. } = self;
        let Self { loopback, listen, audit_seconds, .. } = self;
        match mode.as_str() {
            "audit" => {
                write!(f, "instance {instance}, mode audit")?;
                audit_seconds.iter().try_for_each(|left| write!(f, " for {} more", duration(*left)))?;
                writeln!(f, ": nothing is refused; what the list lacks is reported, and passes")?;
            }
            _ => writeln!(
                f,
                "instance {instance}: what is not listed is refused with {errno}; other names do not exist"
            )?,
        }
        writeln!(f, "\nmay be reached (a name alone: TCP port 443)")?;
        if names.rules.is_empty() && networks.rules.is_empty() && leases.is_empty() {
            writeln!(f, "  nothing")?;
        }
        names.write(f)?;
        networks.write(f)?;
        if !presets.is_empty() {
            writeln!(f, "  with these, everything of preset {}", presets.join(", "))?;
        }
        for Leased { what, seconds } in leases {
            writeln!(f, "  {what}, for {} more", duration(*seconds))?;
        }
        if !deny.rules.is_empty() {
            writeln!(f, "but never")?;
            deny.write(f)?;
        }
        match loopback.as_str() {
            "own" => {
                writeln!(f, "own servers on loopback: yes, on any port from 1024 on, and nobody else's")?
            }
            _ => writeln!(f, "own servers on loopback: only what is listed")?,
        }
        if !listen.is_empty() {
            writeln!(f, "listens, for others: {}", listen.join(", "))?;
        }
        self.write_refused(f)
    }
}

impl Shown {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "  {rule}"))?;
        if self.more > 0 { writeln!(f, "  and {} more", self.more) } else { Ok(()) }
    }
}

impl Why {
    fn write_refused(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refused.is_empty() {
            return f.write_str("\nnothing was refused lately");
        }
        f.write_str("\nrefused lately, the last first")?;
        let now = now();
        for Refused { what, name, reason, times, last, ask, instead } in &self.refused {
            write!(f, "\n  {what}")?;
            name.iter().try_for_each(|name| write!(f, " ({name})"))?;
            let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
            write!(f, " {reason}, {times}, {}: ", ago(*last, now))?;
            match (ask, instead) {
                (Some(ask), _) => write!(f, "ask for `{ask}`")?,
                (None, Some(instead)) => f.write_str(instead)?,
                (None, None) => f.write_str("no rule lets it pass")?,
            }
        }
        if self.more_refused > 0 {
            write!(f, "\n  and {} more", self.more_refused)?;
        }
        if self.refused.iter().any(|refused| refused.ask.is_some()) {
            f.write_str(
                "\n\nThe operator of this machine decides: to have one of these, tell who gave you the task which rule to ask for, and what for.",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
