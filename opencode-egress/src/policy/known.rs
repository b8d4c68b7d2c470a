//! What answers brought for the names that an instance's policy lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::policy::name::DnsName;

/// How many names are known of one instance. A wildcard's zone has as many as whoever asks can think of.
const MAX_NAMES: usize = 4096;
/// How many addresses are known of one name: a name may have other ones each time.
const MAX_ADDRESSES: usize = 1024;

/// A name and the addresses that answers for it brought, each with the second at which its time is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownName {
    addresses: Vec<(IpAddr, u64)>,
}

impl KnownName {
    /// The addresses, each with the second at which its time is over.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u64)> {
        self.addresses.iter().copied()
    }

    /// When the last of its addresses is over.
    fn until(&self) -> u64 {
        self.addresses.iter().map(|(_, until)| *until).max().unwrap_or(0)
    }
}

/// The names that are known of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNames(BTreeMap<DnsName, KnownName>);

impl KnownNames {
    /// Takes note of an answer, and forgets what was over at a second. Where there is no room, what is over first goes; flows to its
    /// addresses pass as long as before.
    pub fn learn(&mut self, name: &DnsName, addresses: &[IpAddr], until: u64, over: u64) {
        if !self.0.contains_key(name) && self.0.len() >= MAX_NAMES {
            let first = self.0.iter().min_by_key(|(_, known)| known.until()).map(|(name, _)| name.clone());
            first.map(|name| self.0.remove(&name));
        }
        let known = &mut self.0.entry(name.clone()).or_default().addresses;
        known.retain(|(_, until)| *until > over);
        for address in addresses {
            if let Some((_, over)) = known.iter_mut().find(|(known, _)| known == address) {
                *over = until.max(*over);
            } else if known.len() < MAX_ADDRESSES {
                known.push((*address, until));
            }
        }
    }

    /// Forgets addresses that were over at a second, and names without any.
    pub fn forget(&mut self, over: u64) {
        for known in self.0.values_mut() {
            known.addresses.retain(|(_, until)| *until > over);
        }
        self.0.retain(|_, known| !known.addresses.is_empty());
    }

    /// Forgets names that are not `listed`.
    pub fn retain(&mut self, listed: impl Fn(&DnsName) -> bool) {
        self.0.retain(|name, _| listed(name));
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = (&DnsName, &KnownName)> {
        self.0.iter()
    }

    /// All addresses.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.iter().flat_map(|(_, known)| known.addresses().map(|(address, _)| address)).collect()
    }

    /// What is known of a name.
    pub fn get(&self, name: &DnsName) -> Option<&KnownName> {
        self.0.get(name)
    }

    /// The name that brought an address, the one whose time for it is over last.
    pub fn name_of(&self, address: IpAddr) -> Option<&DnsName> {
        let until =
            |known: &KnownName| known.addresses().find(|(of, _)| *of == address).map(|(_, over)| over);
        let named = self.0.iter().filter_map(|(name, known)| Some((until(known)?, name)));
        named.max_by_key(|(over, _)| *over).map(|(_, name)| name)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many names are known, and how many addresses of them.
    pub fn count(&self) -> (usize, usize) {
        (self.0.len(), self.0.values().map(|known| known.addresses.len()).sum())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn name(text: &str) -> DnsName {
        text.parse().expect("a name")
    }

    pub(crate) fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn the_later_time_counts_and_what_is_over_goes() {
        let mut known = KnownNames::default();
        known.learn(&name("a.example"), &[address(1), address(2)], 100, 0);
        known.learn(&name("a.example"), &[address(1)], 50, 0);
        let mut addresses: Vec<_> = known.get(&name("a.example")).expect("it").addresses().collect();
        addresses.sort_unstable();
        assert_eq!(addresses, [(address(1), 100), (address(2), 100)]);
        known.learn(&name("a.example"), &[address(3)], 300, 100);
        assert_eq!(known.count(), (1, 1));
        known.forget(300);
        assert!(known.is_empty());
    }

    #[test]
    fn an_address_has_the_name_that_brought_it_last() {
        let mut known = KnownNames::default();
        known.learn(&name("a.example"), &[address(1)], 100, 0);
        known.learn(&name("b.example"), &[address(1)], 200, 0);
        assert_eq!(known.name_of(address(1)), Some(&name("b.example")));
        assert_eq!(known.name_of(address(2)), None);
        known.retain(|name| name.as_str() == "a.example");
        assert_eq!(known.name_of(address(1)), Some(&name("a.example")));
    }

    #[test]
    fn there_is_an_end_to_what_is_known() {
        let mut known = KnownNames::default();
        for number in 0..=MAX_NAMES {
            known.learn(&name(&format!("n{number}.example")), &[address(1)], 100 + number as u64, 0);
        }
        assert_eq!(known.count(), (MAX_NAMES, MAX_NAMES));
        assert!(known.get(&name("n0.example")).is_none(), "the first that is over");
        let many: Vec<_> =
            (0..2000_u32).map(|number| IpAddr::from((0x2000_0000 + number).to_be_bytes())).collect();
        known.learn(&name("many.example"), &many, 9000, 0);
        assert_eq!(known.get(&name("many.example")).expect("it").addresses().count(), MAX_ADDRESSES);
    }
}
