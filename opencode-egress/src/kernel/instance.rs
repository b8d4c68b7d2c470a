//! The numbers of instances in the maps.

use opencode_egress_common::abi::MAX_INSTANCES;

/// An instance's number in the maps, not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceIndex(u32);

impl InstanceIndex {
    /// The first instance.
    pub const FIRST: Self = Self(1);

    /// The index with this number, if it is one.
    pub fn new(number: u32) -> Option<Self> {
        (1..MAX_INSTANCES).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}
