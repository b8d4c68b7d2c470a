//! What leases make of a policy.

use std::collections::BTreeMap;

use opencode_egress_common::abi::NameRuleId;

use crate::policy::{
    AnyRule, InstanceName, Mode, Policy,
    lease::{Lease, LeaseKind, LeaseRule},
    name::DnsName,
};

/// The leases of an instance, as its policy is compiled with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leased {
    /// What passes for a time.
    pub rules: Vec<LeasedRule>,
    /// Rules of leases that ended: what began by them goes on.
    pub ended: Vec<LeaseRule>,
    /// Until when there is audit mode, in seconds since boot, though the policy file has another one.
    pub audit: Option<u64>,
}

/// What is leased, by instance.
pub type AllLeased = BTreeMap<InstanceName, Leased>;

/// A rule, and the first second since boot (`CLOCK_BOOTTIME`) at which nothing new may begin by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedRule {
    /// The rule.
    pub rule: LeaseRule,
    /// Until when.
    pub until: u64,
}

/// A time in seconds since boot, as the kernel has it. It has room for a hundred years.
pub fn kernel_seconds(until: u64) -> u32 {
    u32::try_from(until).unwrap_or(u32::MAX)
}

impl Leased {
    /// Of the leases in force, and of those that ended.
    pub fn of(active: &[Lease], ended: &[Lease]) -> Self {
        let mut leased = Self::default();
        for lease in active {
            match &lease.kind {
                LeaseKind::Rule(rule) => {
                    leased.rules.push(LeasedRule { rule: rule.clone(), until: lease.deadline });
                }
                LeaseKind::Audit => leased.audit = Some(lease.deadline),
            }
        }
        leased.ended = ended
            .iter()
            .filter_map(|lease| match &lease.kind {
                LeaseKind::Rule(rule) => Some(rule.clone()),
                LeaseKind::Audit => None,
            })
            .collect();
        leased
    }

    /// The rules, also of those that ended.
    pub fn all(&self) -> impl Iterator<Item = &LeaseRule> {
        self.rules.iter().map(|leased| &leased.rule).chain(&self.ended)
    }

    /// Whether a name had a lease that ended.
    pub fn has_ended(&self, name: &DnsName) -> bool {
        self.ended
            .iter()
            .any(|rule| matches!(rule.rule(), AnyRule::Name(rule) if rule.pattern().matches(name)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Policy {
    /// The mode that the policy file has; a lease may make it another one for a time.
    pub fn mode_of_file(&self) -> Mode {
        if self.leased.audit.is_some() { Mode::Enforce } else { self.mode }
    }

    /// Whether a connection that no network of it allows may have begun by a name or a lease that lasts: only its next packet tells then.
    pub fn may_allow_by_name_or_lease(&self) -> bool {
        !self.names.is_empty() || self.leased.all().next().is_some()
    }

    /// This policy, as the file has it, under other leases.
    #[must_use]
    pub fn leased(mut self, leased: Leased) -> Self {
        // Not what the leases before made of it.
        self.mode = self.mode_of_file();
        self.leased = leased;
        match (self.mode, self.leased.audit) {
            (Mode::Enforce, Some(_)) => self.mode = Mode::Audit,
            // It has that for good.
            (Mode::Audit, _) => self.leased.audit = None,
            (Mode::Enforce, None) => {}
        }
        self
    }
}

impl LeaseRule {
    /// What the kernel knows it by: of a name what that rule has in a policy file, too; of a network a number that is no name's, made of
    /// its text, so that what began under the lease before belongs to the one that is granted anew.
    pub fn id(&self) -> NameRuleId {
        match self.rule() {
            AnyRule::Name(rule) => rule.id(),
            AnyRule::Network(_) => NameRuleId::of_lease(self.number()),
        }
    }

    /// Of a network: the lower half of its id, by FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>).
    pub fn number(&self) -> u32 {
        self.to_string()
            .bytes()
            .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}
