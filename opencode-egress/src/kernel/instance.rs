//! The numbers of instances in the maps.

use opencode_egress_common::abi::MAX_INSTANCES;

/// The number under which the maps have an instance. It is at least 1: in them, 0 stands for no instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceIndex(u32);

impl InstanceIndex {
    /// The number for a process that confines one instance alone, as `exec` does.
    pub const FIRST: Self = Self(1);

    /// The index with this number; `None` for 0 and for numbers beyond the maps.
    pub fn new(number: u32) -> Option<Self> {
        (1..MAX_INSTANCES).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }
}
