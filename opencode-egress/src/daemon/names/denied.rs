//! The names of addresses that were denied, for lines and for `suggest`. Nothing passes by what is here.

use std::{collections::VecDeque, net::IpAddr};

use opencode_egress_common::abi::DESTINATIONS_SHARE;

use crate::policy::{known::KnownNames, name::DnsName};

/// Addresses of names that no rule lists, of one instance.
const MAX_UNLISTED: usize = 8192;

/// The names of addresses that were, or would be, denied to an instance.
#[derive(Debug, Default)]
pub(super) struct DeniedNames {
    /// In audit mode, what answers brought for names that no rule lists.
    unlisted: KnownNames,
    /// Addresses that were denied, and the name that brought each, the last one last. `suggest` may ask when their time is long over.
    denied: VecDeque<(IpAddr, DnsName)>,
}

impl DeniedNames {
    /// Takes note of what was answered in audit mode for a name that no rule lists, and forgets what was over at a second.
    pub(super) fn answered(&mut self, name: &DnsName, addresses: &[IpAddr], until: u64, over: u64) {
        if self.unlisted.count().1 + addresses.len() <= MAX_UNLISTED {
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_canonical).collect();
            self.unlisted.learn(name, &addresses, until, over);
        }
    }

    /// Takes note that an address was denied. Returns the name that brought it: one of the `known`, or else one that no rule lists.
    pub(super) fn deny(&mut self, known: &KnownNames, address: IpAddr) -> Option<String> {
        let name = known.name_of(address).or_else(|| self.unlisted.name_of(address))?.clone();
        let text = name.to_string();
        self.denied.retain(|(denied, _)| *denied != address);
        // The kernel remembers no more denials.
        if self.denied.len() as u64 >= DESTINATIONS_SHARE {
            self.denied.pop_front();
        }
        self.denied.push_back((address, name));
        Some(text)
    }

    /// The name that brought an address which was denied, also where its time is long over.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<&DnsName> {
        let denied = self.denied.iter().find(|(denied, _)| *denied == address);
        denied.map(|(_, name)| name).or_else(|| self.unlisted.name_of(address))
    }

    /// Forgets what was over at a second, but for the names of what was denied.
    pub(super) fn forget(&mut self, over: u64) {
        self.unlisted.forget(over);
    }

    /// Forgets what was answered for names that `stay` does not hold for.
    pub(super) fn retain(&mut self, stay: impl Fn(&DnsName) -> bool) {
        self.unlisted.retain(stay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::known::tests::{address, name};

    #[test]
    fn what_was_denied_keeps_its_name_when_its_time_is_over() {
        let (mut names, mut known) = (DeniedNames::default(), KnownNames::default());
        known.learn(&name("listed.example"), &[address(1)], 100, 0);
        let mapped = "::ffff:192.0.2.2".parse().expect("an address");
        names.answered(&name("other.example"), &[address(1), mapped, address(3)], 100, 0);
        assert_eq!(names.deny(&known, address(1)).as_deref(), Some("listed.example"));
        assert_eq!(names.deny(&known, address(2)).as_deref(), Some("other.example"));
        assert_eq!(names.deny(&known, address(4)), None);
        assert_eq!(names.name_of(address(3)), Some(&name("other.example")));
        names.forget(100);
        let named = |last| names.name_of(address(last)).map(ToString::to_string);
        assert_eq!(named(1).as_deref(), Some("listed.example"));
        assert_eq!(named(2).as_deref(), Some("other.example"));
        assert_eq!((named(3), named(4)), (None, None));
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let (mut names, mut known) = (DeniedNames::default(), KnownNames::default());
        let address = |number: u64| IpAddr::from(u128::from(number).to_be_bytes());
        for number in 0..=DESTINATIONS_SHARE {
            known.learn(&name(&format!("n{}.example", number / 1000)), &[address(number)], 100, 0);
            names.deny(&known, address(number));
        }
        assert_eq!(names.denied.len() as u64, DESTINATIONS_SHARE);
        assert_eq!(names.name_of(address(0)), None);
        assert!(names.name_of(address(1)).is_some());
    }
}
