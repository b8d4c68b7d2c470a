//! Which addresses names ever brought to an instance, so that a connection to another one is known to have begun by no name.

use std::{collections::BTreeSet, net::IpAddr};

/// How many are remembered of an instance: twice as many as are in force at a time.
const MOST: usize = 16 * 1024;

/// Addresses that names brought to an instance since the machine started, or more than can be remembered.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Brought(BTreeSet<IpAddr>);

impl Brought {
    /// Takes note of what an answer brought.
    pub(in crate::daemon) fn add(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            // One more than the most says that there were others.
            if self.0.len() <= MOST {
                self.0.insert(*address);
            }
        }
    }

    /// Whether a name may have brought an address.
    pub(in crate::daemon) fn may_have(&self, address: IpAddr) -> bool {
        self.0.len() > MOST || self.0.contains(&address)
    }

    /// What is remembered.
    pub(in crate::daemon) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_more_came_than_is_remembered_each_may_have() {
        let address = |number: usize| IpAddr::from(u32::try_from(number).expect("a number").to_be_bytes());
        let mut brought = Brought::default();
        brought.add(&(0..MOST).map(address).collect::<Vec<_>>());
        assert!(brought.may_have(address(0)) && !brought.may_have(address(MOST)));
        brought.add(&[address(MOST), address(MOST + 1)]);
        assert_eq!(brought.addresses().count(), MOST + 1);
        assert!(brought.may_have(address(MOST + 2)));
        // As the next daemon reads it.
        let mut again = Brought::default();
        again.add(&brought.addresses().collect::<Vec<_>>());
        assert!(again.may_have(address(MOST + 2)));
    }
}
