//! A verdict and what is behind it, for machines and for people.

use std::{fmt, net::IpAddr};

use opencode_egress_common::reason::DropReason;
use serde::{Deserialize, Serialize};

use crate::policy::{AnyRule, InstanceName, Policy};

/// The reason of a question for a name that no rule lists.
pub const NAME_NOT_ALLOWED: &str = "name-not-allowed";

/// The reason of a denied flow to an address whose time is over.
pub const NAME_EXPIRED: &str = "name-expired";

/// The reason of a question whose answer had an address that no name may bring.
pub const FORBIDDEN_ADDRESS: &str = "forbidden-address";

/// A verdict and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Whether the rules let it pass.
    pub allowed: bool,
    /// Whether it passes to a socket of the instance's own alone: no rule speaks of it.
    #[serde(default)]
    pub own_only: bool,
    /// The drop reason's name, when they do not, or when the socket is somebody else's.
    pub reason: Option<String>,
    /// The rules behind the verdict; for a denial without a deny rule, those that cover the address but not the flow.
    pub rules: Vec<Behind>,
    /// The mode; in audit mode a denied flow passes all the same.
    pub audit: bool,
    /// What becomes of a bind to the address and port, where the instance might try one.
    pub bind: Option<BindJudgement>,
    /// What is known of a name, where one was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NameJudgement>,
}

/// A rule behind a verdict: text, for who reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Behind {
    rule: String,
    /// The rule itself, where a lease has it.
    pub(super) leased: Option<AnyRule>,
    /// What is known of that lease.
    pub(super) lease: Option<String>,
    /// What else there is to say.
    also: Option<String>,
}

impl Behind {
    /// A rule that the policy file has or, if it does not, a lease.
    pub(super) fn allowing(policy: &Policy, rule: AnyRule) -> Self {
        match policy.has(&rule) {
            true => format!("allow {rule}").into(),
            false => Self { leased: Some(rule.clone()), ..format!("lease {rule}").into() },
        }
    }

    /// The same, with something to say of it.
    #[must_use]
    pub(super) fn also(self, also: String) -> Self {
        Self { also: Some(also), ..self }
    }
}

impl From<String> for Behind {
    fn from(rule: String) -> Self {
        Self { rule, leased: None, lease: None, also: None }
    }
}

impl From<Behind> for String {
    fn from(behind: Behind) -> Self {
        behind.to_string()
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, leased: _, lease, also } = self;
        f.write_str(rule)?;
        lease.iter().try_for_each(|lease| write!(f, " {lease}"))?;
        let and = if lease.is_some() { ';' } else { ':' };
        also.iter().try_for_each(|also| write!(f, "{and} {also}"))
    }
}

/// The verdict on a bind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindJudgement {
    /// Whether the policy lets it pass.
    pub allowed: bool,
    /// Whether only the instance itself reaches what is bound there, as no listener is listed there.
    #[serde(default)]
    pub own_only: bool,
    /// The drop reason's name, when it does not.
    pub reason: Option<String>,
    /// What to bind instead, when it does not.
    pub instead: Option<String>,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameJudgement {
    /// The addresses that answers brought and that new flows may go to.
    pub addresses: Vec<KnownAddress>,
    /// Addresses that answers had and that were refused, for no name may bring them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedAddress>,
    /// What to do to have it allowed, where it is not.
    pub instead: Option<String>,
}

/// An address that an answer had, and that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedAddress {
    /// The address.
    pub address: IpAddr,
    /// Why no name may bring it.
    pub why: String,
}

/// An address that an answer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAddress {
    /// The address.
    pub address: IpAddr,
    /// How many seconds new flows may go to it.
    pub seconds: u64,
}

impl Judgement {
    /// The verdict on everything where no policy is in force.
    pub fn without_policy() -> Self {
        let reason = Some(DropReason::NoPolicy.name().to_owned());
        Self { allowed: false, own_only: false, reason, rules: vec![], audit: false, bind: None, name: None }
    }

    /// Another instance lists the port under `listen`, so no place there is the instance's own.
    pub fn place_is_taken(&mut self, other: &InstanceName) {
        if let Some(bind) = self.bind.as_mut().filter(|bind| bind.own_only) {
            *bind = BindJudgement {
                allowed: false,
                own_only: false,
                reason: Some(DropReason::BindNotListed.name().to_owned()),
                instead: Some(format!("instance `{other}` lists the port; bind another one")),
            };
        }
    }

    /// Whether another judgement means the same for the flow.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let all_pass =
            |judgement: &Self| judgement.allowed && judgement.bind.as_ref().is_none_or(|bind| bind.allowed);
        (self.allowed, self.own_only, &self.reason, &self.bind)
            == (other.allowed, other.own_only, &other.reason, &other.bind)
            && (all_pass(self) || self.audit == other.audit)
    }

    pub(super) fn fmt_flow(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, own_only, reason, rules, audit, name, .. } = self;
        if let (true, Some(reason)) = (own_only, reason) {
            let theirs = if *audit { ", but mode audit lets it pass" } else { "" };
            return write!(
                f,
                "own sockets only\n  allowed where a socket of the instance's own takes it; where somebody else's does, denied ({reason}){theirs}; where nobody listens, a connection is refused"
            );
        }
        match (allowed, audit) {
            (true, false) => write!(f, "allowed")?,
            (true, true) => write!(f, "allowed, and mode audit lets everything else pass, too")?,
            (false, false) => write!(f, "denied")?,
            (false, true) => write!(f, "denied, but mode audit lets it pass")?,
        }
        if let Some(reason) = reason {
            write!(f, " ({reason})")?;
        }
        match (rules.is_empty(), allowed, reason.as_deref()) {
            (true, false, Some("no-policy")) => write!(f, "\n  no policy is in force")?,
            (true, false, _) if name.is_some() => write!(f, "\n  no rule lists the name")?,
            (false, false, Some(reason)) if name.is_some() && reason != FORBIDDEN_ADDRESS => {
                write!(f, "\n  the name is listed, but not this flow, by")?
            }
            (true, false, _) => write!(f, "\n  no rule covers the address")?,
            (false, false, Some("deny-rule" | "other-resolver" | NAME_EXPIRED | FORBIDDEN_ADDRESS))
            | (_, true, _) => {}
            _ => write!(f, "\n  the address is covered, but not this flow, by")?,
        }
        rules.iter().try_for_each(|rule| write!(f, "\n  {rule}"))?;
        name.iter().try_for_each(|name| name.fmt(f, *allowed))
    }

    pub(super) fn fmt_bind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(BindJudgement { allowed, own_only, reason, instead }) = &self.bind else { return Ok(()) };
        f.write_str(match (allowed, self.audit) {
            (true, _) if *own_only => {
                "to bind there: allowed, and nobody but the instance reaches it until it is listed under `listen`"
            }
            (true, _) => "to bind there: allowed, it is listed under `listen`",
            (false, false) => "to bind there: denied",
            (false, true) => "to bind there: denied, but mode audit lets it pass",
        })?;
        if let Some(reason) = reason {
            write!(f, " ({reason})")?;
        }
        instead.iter().try_for_each(|instead| write!(f, "\n  {instead}"))
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_flow(f)?;
        if self.bind.is_some() {
            f.write_str("\n")?;
        }
        self.fmt_bind(f)
    }
}

impl NameJudgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>, allowed: bool) -> fmt::Result {
        let Self { addresses, refused, instead } = self;
        for (index, KnownAddress { address, seconds }) in addresses.iter().enumerate() {
            let before = if index == 0 { "\n  its addresses: " } else { ", " };
            write!(f, "{before}{address} (for {seconds} s)")?;
        }
        for RefusedAddress { address, why } in refused {
            write!(f, "\n  an answer had {address}, which was refused ({FORBIDDEN_ADDRESS}): {why}")?;
        }
        if addresses.is_empty() && allowed {
            write!(f, "\n  no addresses are known: nothing asked for it yet, or what it was told is over")?;
        }
        instead.iter().try_for_each(|instead| write!(f, "\n  {instead}"))
    }
}
