//! What becomes of a flow, and which rule or reason is behind it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use opencode_egress_common::{
    abi::{Mode, PolicyHeader},
    decide::{Decision, Rules, Verdict, decide},
    reason::DropReason,
};
use serde::{Deserialize, Serialize};

use crate::policy::{Policy, Rule, compile::CompiledPolicy, destination::Destination};

/// A verdict and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Whether the rules let it pass.
    pub allowed: bool,
    /// The drop reason's name, when they do not.
    pub reason: Option<String>,
    /// The rules behind the verdict, as text; for a denial without a deny rule, those that cover the
    /// address but not the flow.
    pub rules: Vec<String>,
    /// The mode; in audit mode a denied flow passes all the same.
    pub audit: bool,
    /// What becomes of a bind to the address and port, where the instance might try one.
    pub bind: Option<BindJudgement>,
}

/// The verdict on a bind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindJudgement {
    /// Whether the policy lists it.
    pub allowed: bool,
    /// The drop reason's name, when it does not.
    pub reason: Option<String>,
    /// What to bind instead, when it does not.
    pub instead: Option<String>,
}

/// Judges a flow by compiled rules, and finds the rules of the policy behind that.
pub fn explain(
    destination: Destination,
    header: &PolicyHeader,
    rules: &impl Rules,
    policy: &Policy,
) -> Judgement {
    let flow = destination.flow();
    let decision = decide(rules, &flow);
    // Where the kernel sends it, which is what is judged.
    let address = IpAddr::from(flow.address);
    let covering = |list: &[Rule], flow_too: bool| {
        let covering = list
            .iter()
            .filter(|rule| rule.cidr().net().contains(&address) && (!flow_too || rule.speaks_of(&flow)));
        covering.map(ToString::to_string).collect::<Vec<_>>()
    };
    let labelled = |label: &str, rules: Vec<String>| {
        rules.into_iter().map(|rule| format!("{label} {rule}")).collect::<Vec<_>>()
    };
    let denying = labelled("deny", covering(&policy.deny, true));
    let own: Vec<_> = policy.listen.iter().filter(|listen| listen.is_own(address)).collect();
    let listener = own.iter().find(|listen| listen.port == flow.port);
    let (allowed, reason, rules) = match decision {
        Decision::Settled(Verdict::Allow) => (true, None, labelled("allow", covering(&policy.allow, true))),
        // Where its own server does not listen, the flow is denied, for what the rest of the policy says.
        Decision::OwnOnly(_) => {
            let own = listener.map(|listen| {
                format!("listen {listen}: the instance's own listener is no egress, as long as its own socket listens there")
            });
            (true, None, own.into_iter().collect())
        }
        Decision::Settled(Verdict::Deny(reason)) if !denying.is_empty() => {
            (false, Some(reason.name().to_owned()), denying)
        }
        Decision::Settled(Verdict::Deny(reason)) => {
            let mut rules = labelled("allow", covering(&policy.allow, false));
            // Either makes the address one that is known, for other ports or protocols.
            rules.extend(labelled("deny", covering(&policy.deny, false)));
            if reason != DropReason::NotAllowed {
                rules.extend(own.iter().map(|listen| format!("listen {listen}")));
            }
            (false, Some(reason.name().to_owned()), rules)
        }
    };
    let audit = header.mode == Mode::Audit as u32;
    Judgement { allowed, reason, rules, audit, bind: explain_bind(destination, header, policy) }
}

/// `None` where nobody binds: at other machines' addresses, as far as the policy knows them, and without a port.
fn explain_bind(destination: Destination, header: &PolicyHeader, policy: &Policy) -> Option<BindJudgement> {
    let Destination { address, port, .. } = destination;
    let is_listed = policy.listen.iter().any(|listen| listen.address == address || listen.port == port);
    if port == 0 || !(address.is_unspecified() || address.is_loopback() || is_listed) {
        return None;
    }
    Some(match header.judge_bind(&address.into(), port) {
        Verdict::Allow => BindJudgement { allowed: true, reason: None, instead: None },
        Verdict::Deny(reason) => BindJudgement {
            allowed: false,
            reason: Some(reason.name().to_owned()),
            instead: Some(policy.instead_of_bind(port)),
        },
    })
}

impl Judgement {
    /// The verdict on everything where no policy is in force.
    pub fn without_policy() -> Self {
        let reason = Some(DropReason::NoPolicy.name().to_owned());
        Self { allowed: false, reason, rules: vec![], audit: false, bind: None }
    }

    /// Whether another judgement means the same for the flow.
    fn agrees(&self, other: &Self) -> bool {
        let all_pass =
            |judgement: &Self| judgement.allowed && judgement.bind.as_ref().is_none_or(|bind| bind.allowed);
        (self.allowed, &self.reason, &self.bind) == (other.allowed, &other.reason, &other.bind)
            && (all_pass(self) || self.audit == other.audit)
    }

    fn fmt_flow(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, reason, rules, audit, .. } = self;
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
            (true, false, _) => write!(f, "\n  no rule covers the address")?,
            (false, false, Some("deny-rule")) | (_, true, _) => {}
            _ => write!(f, "\n  the address is covered, but not this flow, by")?,
        }
        rules.iter().try_for_each(|rule| write!(f, "\n  {rule}"))
    }

    fn fmt_bind(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(BindJudgement { allowed, reason, instead }) = &self.bind else { return Ok(()) };
        f.write_str(match (allowed, self.audit) {
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

/// What the policy file says, beside what is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PolicyFile {
    /// It has the policy that is in force.
    Same,
    /// It has another policy, with the same verdict on this flow.
    OtherPolicy,
    /// It has another policy, with another verdict on this flow.
    OtherVerdict(Judgement),
    /// It does not have the instance any more.
    NoInstance,
    /// It cannot be applied.
    Unusable {
        /// What is wrong with the file.
        error: String,
    },
}

impl PolicyFile {
    /// Compares the policy in the file with the one in force, and its verdict with `judgement`.
    pub fn compare(
        file: Option<(&Policy, &CompiledPolicy)>,
        in_force: &Policy,
        destination: Destination,
        judgement: &Judgement,
    ) -> Self {
        match file {
            None => Self::NoInstance,
            Some((policy, _)) if policy == in_force => Self::Same,
            Some((policy, compiled)) => {
                let other = explain(destination, &compiled.header, &compiled.rules(), policy);
                if other.agrees(judgement) { Self::OtherPolicy } else { Self::OtherVerdict(other) }
            }
        }
    }
}

/// An explained verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The flow that was asked about.
    pub destination: Destination,
    /// The verdict of the policy in force.
    #[serde(flatten)]
    pub judgement: Judgement,
    /// The instance's links were taken away on request, so nothing holds its units to that.
    pub detached: bool,
    /// The policy file's path.
    pub config: String,
    /// What the policy file says of the flow.
    pub file: PolicyFile,
    /// Where the kernel sent such a flow lately, when that was elsewhere and denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten: Option<Rewritten>,
}

/// A destination that was rewritten on the way, to one that is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// Where the kernel sent it.
    pub to: SocketAddr,
    /// The drop reason's name.
    pub reason: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, judgement, detached, config, file, rewritten } = self;
        match Destination::of(&destination.flow()) {
            // Nobody is at a wildcard: it is there to be bound.
            Some(reached) if reached != *destination && judgement.bind.is_some() => {
                write!(f, "{destination}: ")?;
                judgement.fmt_bind(f)?;
                write!(f, "\nto connect there, which reaches {reached}: ")?;
                judgement.fmt_flow(f)?;
            }
            _ => write!(f, "{destination}: {judgement}")?,
        }
        if let Some(Rewritten { to, reason }) = rewritten {
            write!(
                f,
                "\n! the host sent such a flow to {to} instead, and that was denied ({reason}): address translation (nft list ruleset), or a program of another cgroup, rewrites the destination. Both must be allowed"
            )?;
        }
        if *detached {
            f.write_str(
                "\n! the instance was detached on request, so its running units are not held to this; `opencode-egress reload` confines them again",
            )?;
        }
        match file {
            PolicyFile::Same => Ok(()),
            PolicyFile::OtherPolicy => write!(
                f,
                "\n! {config} has another policy, with the same verdict here; `opencode-egress reload` puts it in force"
            ),
            PolicyFile::OtherVerdict(other) => write!(
                f,
                "\n! {config} says otherwise; `opencode-egress reload` puts it in force:\n  {}",
                other.to_string().replace('\n', "\n  ")
            ),
            PolicyFile::NoInstance => write!(
                f,
                "\n! {config} does not have this instance any more; after `opencode-egress reload` everything is denied to it"
            ),
            PolicyFile::Unusable { error } => {
                write!(f, "\n! the policy file cannot be applied, so a reload changes nothing: {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
