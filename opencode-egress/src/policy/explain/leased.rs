//! What becomes of flows by lease.

use std::net::IpAddr;

use opencode_egress_common::flow::{Class, Flow};

use crate::policy::{
    AnyRule, Policy,
    explain::judgement::{Behind, Judgement},
    lease::{Lease, LeaseKind, LeaseStatus, LeasedRule},
};

/// The leases of networks that let a flow pass which no rule for networks speaks of.
pub(super) fn leases_of_networks(flow: &Flow, policy: &Policy) -> Vec<Behind> {
    if !matches!(flow.class(), Class::Tcp | Class::Udp) {
        return vec![];
    }
    let address = IpAddr::from(flow.address);
    let covers = |leased: &&LeasedRule| match leased.rule.rule() {
        AnyRule::Network(rule) => rule.cidr().net().contains(&address) && rule.speaks_of(flow),
        AnyRule::Name(_) => false,
    };
    let covering = policy.leased.rules.iter().filter(covers);
    covering.map(|leased| Behind::allowing(policy, leased.rule.rule().clone())).collect()
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
