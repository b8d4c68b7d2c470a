//! What becomes of a flow, and which rule or reason is behind it.

mod judgement;
mod leased;
mod named;
mod resolver;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

pub use judgement::{
    Behind, BindJudgement, FORBIDDEN_ADDRESS, Judgement, KnownAddress, NAME_EXPIRED, NAME_NOT_ALLOWED,
    NameJudgement, RefusedAddress,
};
use leased::leases_of_networks;
pub use leased::tell_leases;
use named::{by_name, explain_name};
use opencode_egress_common::{
    abi::{Mode, PolicyHeader},
    decide::{Decision, Rules, Verdict, decide},
    loopback::may_be_own,
    names::may_be_allowed_by_name,
    reason::DropReason,
};
use resolver::{to_resolver, with_resolver};
use serde::{Deserialize, Serialize};

use crate::policy::{
    Policy, Rule, compile::CompiledPolicy, destination::Destination, name::LearnedName, target::Target,
};

/// Judges a flow by compiled rules, and finds the rules of the policy behind that. `learned` has the addresses that names
/// brought to the policy: of the name, where one is asked about, or of the address. `refused` are those that answers for the name had, and that the policy does
/// not let it bring.
pub fn explain(
    target: &Target,
    header: &PolicyHeader,
    rules: &impl Rules,
    policy: &Policy,
    learned: &[LearnedName],
    refused: &[IpAddr],
) -> Judgement {
    let audit = header.mode == Mode::Audit as u32;
    match target {
        Target::Name(named) => explain_name(named, audit, policy, learned, refused),
        Target::Address(destination) => {
            let judgement = explain_address(*destination, header, rules, policy);
            by_name(judgement, *destination, policy, learned)
        }
    }
}

fn explain_address(
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
        rules.into_iter().map(|rule| format!("{label} {rule}").into()).collect::<Vec<Behind>>()
    };
    let denying = labelled("deny", covering(&policy.deny, true));
    let own: Vec<_> = policy.listen.iter().filter(|listen| listen.is_own(address)).collect();
    let listener = own.iter().find(|listen| listen.port == flow.port);
    let leases = leases_of_networks(&flow, policy);
    let to_resolver = to_resolver(&flow, decision, !leases.is_empty(), header);
    let (allowed, reason, rules) = match decision {
        _ if let Some((reason, said)) = to_resolver => {
            (reason.is_none(), reason.map(|reason| reason.name().to_owned()), vec![said.into()])
        }
        Decision::Settled(Verdict::Allow) => (true, None, labelled("allow", covering(&policy.allow, true))),
        Decision::Settled(Verdict::Deny(reason)) | Decision::OwnOnly(reason)
            if !leases.is_empty() && may_be_allowed_by_name(reason) =>
        {
            (true, None, leases)
        }
        // Where its own server does not listen, the flow is denied, for what the rest of the policy says.
        Decision::OwnOnly(_) => {
            let own = listener.map(|listen| {
                format!("listen {listen}: the instance's own listener is no egress, as long as its own socket listens there").into()
            });
            (true, None, own.into_iter().collect())
        }
        Decision::Settled(Verdict::Deny(reason)) if may_be_own(reason) && header.leaves_to_own(&flow) => {
            (true, Some(reason.name().to_owned()), vec![])
        }
        Decision::Settled(Verdict::Deny(reason)) if !denying.is_empty() => {
            (false, Some(reason.name().to_owned()), denying)
        }
        Decision::Settled(Verdict::Deny(reason)) => {
            let mut rules = labelled("allow", covering(&policy.allow, false));
            // Either makes the address one that is known, for other ports or protocols.
            rules.extend(labelled("deny", covering(&policy.deny, false)));
            if reason != DropReason::NotAllowed {
                rules.extend(own.iter().map(|listen| format!("listen {listen}").into()));
            }
            (false, Some(reason.name().to_owned()), rules)
        }
    };
    let audit = header.mode == Mode::Audit as u32;
    let own_only = allowed && reason.is_some();
    let bind = explain_bind(destination, header, policy);
    Judgement { allowed, own_only, reason, rules, audit, bind, name: None }
}

/// `None` where nobody binds: at other machines' addresses, as far as the policy knows them, and without a port.
fn explain_bind(destination: Destination, header: &PolicyHeader, policy: &Policy) -> Option<BindJudgement> {
    let Destination { address, port, .. } = destination;
    let is_listed = policy.listen.iter().any(|listen| listen.address == address || listen.port == port);
    if port == 0 || !(address.is_unspecified() || address.is_loopback() || is_listed) {
        return None;
    }
    Some(match header.judge_bind(&address.into(), port) {
        Verdict::Allow => BindJudgement { allowed: true, own_only: false, reason: None, instead: None },
        Verdict::Deny(_) if header.is_own_place(&address.into(), port, None, 0) => {
            BindJudgement { allowed: true, own_only: true, reason: None, instead: None }
        }
        Verdict::Deny(reason) => BindJudgement {
            allowed: false,
            own_only: false,
            reason: Some(reason.name().to_owned()),
            instead: Some(policy.instead_of_bind(port)),
        },
    })
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
    /// Compares the policy in the file with the one in force, whose resolver has this port (0: none), and its verdict with `judgement`. `refused` is as for
    /// [`explain()`], by the policy in the file.
    pub fn compare(
        file: Option<(&Policy, &CompiledPolicy)>,
        (in_force, resolver_port): (&Policy, u32),
        target: &Target,
        judgement: &Judgement,
        refused: &[IpAddr],
    ) -> Self {
        match file {
            None => Self::NoInstance,
            Some((policy, _)) if policy == in_force => Self::Same,
            Some((policy, compiled)) => {
                let header = with_resolver(&compiled.header, policy, resolver_port);
                let other = explain(target, &header, &compiled.rules(), policy, &[], refused);
                if other.agrees(judgement) { Self::OtherPolicy } else { Self::OtherVerdict(other) }
            }
        }
    }
}

/// An explained verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The flow that was asked about.
    pub destination: Target,
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
        let reached = match destination {
            Target::Address(destination) => Destination::of(&destination.flow()).map(Target::Address),
            Target::Name(_) => None,
        };
        match reached {
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
