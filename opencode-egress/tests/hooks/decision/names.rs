//! Random addresses that names brought to a policy, and what they let pass.

use std::net::IpAddr;

use fastrand::Rng;
use opencode_egress::{
    kernel::maps::{LearnedAddress, boottime},
    policy::{NameRule, Policy, compile::CompiledPolicy},
};
use opencode_egress_common::{
    abi::{Learned, RESOLVER_PORTS},
    decide::Verdict,
    flow::{Flow, Protocol},
    reason::DropReason,
};

use super::reference;

/// What the host has for a policy with rules for names.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Where the instance's resolver listens; 0 for nowhere.
    pub(crate) resolver: u16,
    pub(crate) brought: Vec<Brought>,
}

/// An address that the name of a rule brought.
#[derive(Debug)]
pub(crate) struct Brought {
    rule: NameRule,
    address: IpAddr,
    /// Whether the time for new flows is over.
    over: bool,
}

impl Host {
    /// One for a policy, with addresses of the flows.
    pub(crate) fn random(rng: &mut Rng, policy: &Policy, flows: &[Flow]) -> Self {
        if policy.names.is_empty() {
            return Self::default();
        }
        let brought = (0..rng.usize(..200)).map(|_| Brought {
            rule: rng.choice(&policy.names).expect("one").clone(),
            address: rng.choice(flows).expect("flows").address.into(),
            over: rng.bool(),
        });
        Self { brought: brought.collect(), resolver: rng.u16(RESOLVER_PORTS.0..=RESOLVER_PORTS.1) }
    }

    /// The same as the kernel is to have it.
    pub(crate) fn learned(&self, policy: &CompiledPolicy) -> Vec<LearnedAddress> {
        let learned = |brought: &Brought| {
            let rule = brought.rule.id();
            let compiled = policy.names.iter().find(|name| name.id == rule).expect("a rule of the policy");
            let until = if brought.over { 0 } else { boottime() + 10_000 };
            let learned = Learned { until, rule };
            LearnedAddress { address: brought.address, grant: compiled.grant, learned }
        };
        self.brought.iter().map(learned).collect()
    }

    /// Flows to what names brought, and to resolvers, its own and others.
    pub(crate) fn flows(&self, rng: &mut Rng) -> Vec<Flow> {
        let by_name = |rng: &mut Rng, brought: &Brought| {
            let port = rng.choice(brought.rule.ports()).map_or(0, |range| range.first());
            Flow { address: brought.address.into(), protocol: Protocol::TCP, port }
        };
        let often = (0..3).flat_map(|_| &self.brought);
        let mut flows: Vec<_> = often.map(|brought| by_name(rng, brought)).collect();
        let (first, last) = RESOLVER_PORTS;
        let ports = [self.resolver, first, last, first - 1, last + 1];
        let addresses = ["127.0.0.1", "::1", "127.0.0.2"].map(|text| text.parse::<IpAddr>().expect("one"));
        let mut flow = |port| {
            let protocol = if rng.bool() { Protocol::TCP } else { Protocol::UDP };
            Flow { address: (*rng.choice(&addresses).expect("one")).into(), protocol, port }
        };
        for _ in 0..16 {
            flows.extend(ports.map(&mut flow));
        }
        flows
    }

    /// The verdict on a flow to or from where resolvers listen; `None` for others.
    pub(crate) fn judge_resolver(&self, flow: &Flow) -> Option<Verdict> {
        let address = IpAddr::from(flow.address);
        let resolvers = ["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().expect("one"));
        let (first, last) = RESOLVER_PORTS;
        let speaks = matches!(flow.protocol, Protocol::TCP | Protocol::UDP);
        if !speaks || !resolvers.contains(&address) || !(first..=last).contains(&flow.port) {
            return None;
        }
        Some(if flow.port == self.resolver {
            Verdict::Allow
        } else {
            Verdict::Deny(DropReason::OtherResolver)
        })
    }

    /// What names make of the network rules' verdict on a packet of a flow.
    pub(crate) fn turn(&self, verdict: Verdict, flow: &Flow) -> Verdict {
        use DropReason::{NotAllowed, PortNotAllowed, ProtocolNotAllowed};
        let Verdict::Deny(NotAllowed | PortNotAllowed | ProtocolNotAllowed) = verdict else { return verdict };
        let address = IpAddr::from(flow.address);
        let mut hits = self
            .brought
            .iter()
            .filter(|brought| brought.address == address && reference::passes_by_name(&brought.rule, flow));
        match (hits.clone().any(|brought| !brought.over), hits.next()) {
            (true, _) => Verdict::Allow,
            (false, Some(_)) => Verdict::Deny(DropReason::NameExpired),
            (false, None) => verdict,
        }
    }
}
