//! Which of the connections that are open a policy denies, and can be reset without a look at how they began.

use std::{collections::BTreeSet, net::IpAddr};

use opencode_egress_common::{
    abi::PolicyHeader,
    decide::{Rules, Verdict, decide},
    flow::Flow,
    names::may_be_allowed_by_name,
};

use crate::{
    daemon::names::Brought,
    policy::{AnyRule, lease::LeaseRule},
};

/// The policy by which a cgroup's connections are judged; without one, all are denied.
pub(super) struct Judge<R> {
    pub(super) policy: Option<(PolicyHeader, R)>,
    /// Addresses that only names brought which are not listed any more.
    pub(super) dropped: BTreeSet<IpAddr>,
    /// Rules of its leases, of those that ended too.
    pub(super) leased: Vec<LeaseRule>,
    /// Addresses that names ever brought: what goes there may have begun by one of them.
    pub(super) brought: Brought,
}

// Not derived: that would ask the same of `R`.
impl<R> Default for Judge<R> {
    fn default() -> Self {
        Self { policy: None, dropped: BTreeSet::new(), leased: vec![], brought: Brought::default() }
    }
}

impl<R: Rules> Judge<R> {
    /// Whether a connection from a local port is to be reset.
    pub(super) fn denies(&self, flow: &Flow, local_port: u16) -> bool {
        let Some((header, rules)) = &self.policy else { return true };
        match judge(header, rules, flow, local_port) {
            Verdict::Allow => false,
            // Which name or lease a connection began by, only its socket knows: its next packet is judged, and ends it where it is denied. One
            // that can have begun by none of these began by a network that was leased or listed until now.
            Verdict::Deny(reason) if may_be_allowed_by_name(reason) => {
                !covers(&self.leased, flow) && !self.may_be_by_name(header, IpAddr::from(flow.address))
            }
            Verdict::Deny(_) => true,
        }
    }

    /// Whether a connection to an address can have begun by a name that lasts: also by one whose lease ended.
    fn may_be_by_name(&self, header: &PolicyHeader, address: IpAddr) -> bool {
        let leased = || self.leased.iter().any(|rule| matches!(rule.rule(), AnyRule::Name(_)));
        (header.name_grants > 0 || leased())
            && self.brought.may_have(address)
            && !self.dropped.contains(&address)
    }
}

/// What the networks and listeners of a policy say of a connection.
fn judge(header: &PolicyHeader, rules: &impl Rules, flow: &Flow, local_port: u16) -> Verdict {
    if header.listens_on(local_port) {
        return Verdict::Allow;
    }
    header.judge_resolver(flow).unwrap_or_else(|| decide(rules, flow).settle(|| true))
}

/// Whether a flow is one of a lease of a network.
fn covers(leases: &[LeaseRule], flow: &Flow) -> bool {
    leases.iter().any(|rule| match rule.rule() {
        AnyRule::Network(rule) => {
            rule.cidr().net().contains(&IpAddr::from(flow.address)) && rule.speaks_of(flow)
        }
        AnyRule::Name(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use opencode_egress_common::flow::Protocol;

    use super::*;
    use crate::policy::{
        Policy,
        compile::{CompiledRules, compile},
        lease::{Leased, LeasedRule},
    };

    /// A policy with these rules, leases that last, and leases that ended.
    fn of(allow: &[&str], leased: &[&str], ended: &[&str]) -> Judge<CompiledRules> {
        let rules = |texts: &[&str]| -> Vec<LeaseRule> {
            texts.iter().map(|text| text.parse().expect("a rule")).collect()
        };
        let mut policy = Policy::default();
        allow.iter().for_each(|text| policy.allow(text.parse().expect("a rule")));
        let lasting = rules(leased).into_iter().map(|rule| LeasedRule { rule, until: u64::MAX });
        let leased = Leased { rules: lasting.collect(), ended: rules(ended), audit: None };
        let policy = policy.leased(leased);
        let compiled = compile(&policy).expect("it fits");
        let judged_by = (compiled.header, compiled.rules());
        Judge { policy: Some(judged_by), leased: policy.leased.all().cloned().collect(), ..Judge::default() }
    }

    #[test]
    fn what_may_have_begun_by_a_name_or_a_lease_is_left_to_its_next_packet() {
        let address = IpAddr::from([192, 0, 2, 20]);
        let flow = Flow { address: address.into(), protocol: Protocol::TCP, port: 80 };
        let (network, other, name) =
            (&["192.0.2.0/24:80"][..], &["192.0.2.0/24:81"][..], &["a.example:80"][..]);
        // Whether it is reset where no name ever brought the address, and where one did.
        for (allow, leased, ended, [unbrought, brought]) in [
            (&[][..], &[][..], &[][..], [true, true]),
            (network, &[], &[], [false, false]),
            (name, &[], &[], [true, false]),
            (&[], network, &[], [false, false]),
            (&[], name, &[], [true, false]),
            (&[], &[], network, [false, false]),
            (&[], &[], name, [true, false]),
            (name, &[], other, [true, false]),
            (name, &[], network, [false, false]),
            (other, other, other, [true, true]),
        ] {
            let case = format!("{allow:?} {leased:?} {ended:?}");
            assert_eq!(of(allow, leased, ended).denies(&flow, 4711), unbrought, "{case}");
            let mut judge = of(allow, leased, ended);
            judge.brought.add(&[address]);
            assert_eq!(judge.denies(&flow, 4711), brought, "brought: {case}");
            judge.dropped.insert(address);
            assert_eq!(judge.denies(&flow, 4711), unbrought, "dropped: {case}");
        }
    }
}
