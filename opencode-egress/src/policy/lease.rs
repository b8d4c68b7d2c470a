//! Leases: what an operator grants an instance for a time, beside its policy.

mod leased;
mod text;

use serde::{Deserialize, Serialize};

pub use leased::{AllLeased, Leased, LeasedRule, kernel_seconds};
pub use text::{LeaseTime, Reason};

use crate::policy::{AnyRule, Invalid, NameRule, PortRange, Rule, RuleProtocol};

/// How many leases of an instance are in force at a time.
pub const MAX_LEASES: usize = 256;
/// How many leases that ended are remembered of an instance, for the flows that began under them.
pub const MAX_ENDED: usize = 256;
/// How many ranges of ports the rule of one lease can have.
const MAX_LEASE_PORTS: usize = 64;

/// What a lease grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseKind {
    /// What a rule lets pass.
    Rule(LeaseRule),
    /// Audit mode: what the policy denies is reported, and passes.
    Audit,
}

impl std::fmt::Display for LeaseKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Audit => f.write_str("audit mode"),
        }
    }
}

/// A rule that can be a lease: for TCP and UDP, for which the kernel knows of each socket what it began. A network without a protocol is
/// for these two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LeaseRule(AnyRule);

impl LeaseRule {
    /// The rule.
    pub fn rule(&self) -> &AnyRule {
        &self.0
    }

    /// Whether these rules deny all that it would let pass. `false` for a name: where its addresses are, nobody knows yet.
    pub fn is_denied_by(&self, deny: &[Rule]) -> bool {
        let AnyRule::Network(leased) = &self.0 else { return false };
        protocols(leased).iter().all(|protocol| {
            let above = deny.iter().filter(|rule| {
                rule.cidr().net().contains(&leased.cidr().net())
                    && [*protocol, RuleProtocol::Any].contains(&rule.protocol())
            });
            let ranges = |rule: &Rule| match rule.ports() {
                [] => vec![PortRange::ALL],
                ports => ports.to_vec(),
            };
            let denied = PortRange::joined(above.flat_map(ranges).collect());
            let all = |range: &PortRange| {
                denied.iter().any(|denied| denied.contains(range.first()) && denied.contains(range.last()))
            };
            ranges(leased).iter().all(all)
        })
    }

    /// The rules that deny a part of it.
    pub fn denied_in_part<'a>(&'a self, deny: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
        deny.iter().filter(move |rule| match &self.0 {
            AnyRule::Network(leased) => {
                let (one, other) = (rule.cidr().net(), leased.cidr().net());
                (one.contains(&other) || other.contains(&one))
                    && (rule.protocol() == RuleProtocol::Any || protocols(leased).contains(&rule.protocol()))
                    && overlap(rule.ports(), leased.ports())
            }
            AnyRule::Name(_) => false,
        })
    }
}

fn overlap(one: &[PortRange], other: &[PortRange]) -> bool {
    one.is_empty()
        || other.is_empty()
        || one
            .iter()
            .any(|one| other.iter().any(|other| one.first() <= other.last() && other.first() <= one.last()))
}

/// The protocols of a network's lease.
fn protocols(rule: &Rule) -> &'static [RuleProtocol] {
    match rule.protocol() {
        RuleProtocol::Tcp => &[RuleProtocol::Tcp],
        RuleProtocol::Udp => &[RuleProtocol::Udp],
        RuleProtocol::Any | RuleProtocol::Icmp => &[RuleProtocol::Tcp, RuleProtocol::Udp],
    }
}

impl TryFrom<AnyRule> for LeaseRule {
    type Error = Invalid;

    fn try_from(rule: AnyRule) -> Result<Self, Invalid> {
        let ports = match &rule {
            AnyRule::Network(network) if network.protocol() == RuleProtocol::Icmp => {
                return Err(Invalid(format!(
                    "a lease is for TCP and UDP, and `{rule}` is for ICMP; list it in the policy file"
                )));
            }
            // By its first address: also what has more than groups, as 224.0.0.0/3 has, is written for these.
            AnyRule::Network(network) if network.cidr().net().addr().is_multicast() => {
                return Err(Invalid(format!(
                    "`{rule}` is for multicast groups, and a lease lets none be joined; list it in the policy file"
                )));
            }
            AnyRule::Network(network) => network.ports(),
            AnyRule::Name(name) => name.ports(),
        };
        if ports.len() > MAX_LEASE_PORTS {
            return Err(Invalid(format!(
                "a lease has at most {MAX_LEASE_PORTS} ranges of ports, and this one has {}; write wider ones",
                ports.len()
            )));
        }
        Ok(Self(rule))
    }
}

impl std::str::FromStr for LeaseRule {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.parse::<AnyRule>()?.try_into()
    }
}

impl TryFrom<String> for LeaseRule {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<LeaseRule> for String {
    fn from(rule: LeaseRule) -> Self {
        rule.to_string()
    }
}

impl std::fmt::Display for LeaseRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Who granted, or took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grantor {
    /// The user as whom the command ran.
    pub uid: u32,
    /// The user who logged in, as the kernel keeps it (`/proc/PID/loginuid`); `None`: it does not say.
    pub login_uid: Option<u32>,
    /// `SUDO_USER` of the command, which is as true as its caller.
    pub sudo_user: Option<Reason>,
}

impl std::fmt::Display for Grantor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { uid, login_uid, sudo_user } = self;
        write!(f, "uid {uid}")?;
        login_uid.iter().try_for_each(|login| write!(f, ", login uid {login}"))?;
        sudo_user.iter().try_for_each(|user| write!(f, ", sudo by {user}"))
    }
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What it grants.
    #[serde(rename = "grants")]
    pub kind: LeaseKind,
    /// Its end ends what began under it, too.
    #[serde(default)]
    pub hard: bool,
    /// Why it was granted.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// By whom.
    pub by: Grantor,
    /// When; seconds since 1970.
    pub from: u64,
    /// When it ends: seconds since boot, with the time that the machine was suspended (`CLOCK_BOOTTIME`).
    pub deadline: u64,
}

impl Lease {
    /// The command that says what the policy lacks of what was tried under it.
    pub fn suggestion(&self, instance: &str) -> String {
        format!("`opencode-egress suggest {instance} --since=@{}`", self.from)
    }

    /// Whether it is over at a second since boot.
    pub fn is_over(&self, now: u64) -> bool {
        self.deadline <= now
    }
}

/// A lease as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
    /// When it ends, by the clock as it is now; seconds since 1970.
    pub until: u64,
    /// How many seconds are left.
    pub seconds: u64,
}

impl LeaseStatus {
    /// Of a lease, at a second since boot and since 1970.
    pub fn of(lease: &Lease, boottime: u64, now: u64) -> Self {
        let seconds = lease.deadline.saturating_sub(boottime);
        Self { lease: lease.clone(), until: now + seconds, seconds }
    }
}

impl crate::policy::Policy {
    /// Whether the policy file itself has a rule.
    pub fn has(&self, rule: &AnyRule) -> bool {
        match rule {
            AnyRule::Network(rule) => self.allow.contains(rule),
            AnyRule::Name(rule) => self.names.contains(rule),
        }
    }

    /// The rules for names, those of leases too, each once, and until when each may bring addresses.
    pub fn all_names(&self) -> impl Iterator<Item = (&NameRule, Option<u64>)> {
        let file = self.names.iter().map(|rule| (rule, None));
        let leased = self.leased.rules.iter().filter_map(|LeasedRule { rule, until }| match rule.rule() {
            AnyRule::Name(name) if !self.names.contains(name) => Some((name, Some(*until))),
            _ => None,
        });
        file.chain(leased)
    }
}

#[cfg(test)]
mod tests;
