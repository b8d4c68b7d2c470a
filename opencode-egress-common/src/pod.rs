//! What lets the layouts of [`crate::abi`] cross into maps from user space. The trait can only be implemented
//! where the types are.

use crate::abi::{
    Asker, AskerKey, CallerLayout, ConfinedCgroup, Counter, Denied, DestinationDenials, DestinationKey,
    Entry, Learned, LearnedKey, Limits, PolicyHeader, SocketCount, Taken,
};

macro_rules! plain_old_data {
    ($($name:ident),+ $(,)?) => {
        $(
            // SAFETY: the type is `repr(C)` or transparent, has no padding (a test in `abi` adds up the sizes)
            // and no pointers, and every bit pattern is a value of it.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

plain_old_data!(
    Asker,
    AskerKey,
    CallerLayout,
    Counter,
    Denied,
    Entry,
    PolicyHeader,
    Learned,
    LearnedKey,
    Limits,
    ConfinedCgroup,
    DestinationDenials,
    DestinationKey,
    SocketCount,
    Taken
);
