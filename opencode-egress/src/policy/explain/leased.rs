//! What becomes of flows by lease.

use std::net::IpAddr;

use opencode_egress_common::{flow::Class, reason::DropReason};

use crate::policy::{
    AnyRule, Policy,
    destination::Destination,
    explain::judgement::{Behind, Judgement, NAME_EXPIRED},
    lease::{Lease, LeaseKind, LeaseStatus, LeasedRule},
};

/// A judgement of a flow to an address by networks and names, and what the leases of networks change.
pub(super) fn by_lease(judgement: Judgement, destination: Destination, policy: &Policy) -> Judgement {
    let flow = destination.flow();
    let turned = |reason: &str| {
        let reasons = [DropReason::NotAllowed, DropReason::ProtocolNotAllowed, DropReason::PortNotAllowed];
        reason == NAME_EXPIRED || reasons.iter().any(|turned| turned.name() == reason)
    };
    let denied = !judgement.allowed && judgement.reason.as_deref().is_some_and(turned);
    if !denied || !matches!(flow.class(), Class::Tcp | Class::Udp) {
        return judgement;
    }
    let address = IpAddr::from(flow.address);
    let covers = |leased: &&LeasedRule| match leased.rule.rule() {
        AnyRule::Network(rule) => rule.cidr().net().contains(&address) && rule.speaks_of(&flow),
        AnyRule::Name(_) => false,
    };
    let covering = policy.leased.rules.iter().filter(covers);
    let rules: Vec<_> = covering.map(|leased| Behind::allowing(policy, leased.rule.rule().clone())).collect();
    if rules.is_empty() { judgement } else { Judgement { allowed: true, reason: None, rules, ..judgement } }
}

/// Says of each lease behind a judgement until when it is, and who granted it.
pub fn tell_leases(judgement: &mut Judgement, leases: &[LeaseStatus], local_time: impl Fn(u64) -> String) {
    for LeaseStatus { lease: Lease { kind, by, reason, .. }, until, .. } in leases {
        let LeaseKind::Rule(rule) = kind else { continue };
        for behind in judgement.rules.iter_mut().filter(|behind| behind.leased.as_ref() == Some(rule.rule()))
        {
            let why = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            behind.lease = Some(format!("until {}, granted by {by}{why}", local_time(*until)));
        }
    }
}
