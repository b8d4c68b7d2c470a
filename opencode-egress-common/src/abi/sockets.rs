//! Layouts of what is counted of an instance's sockets.

/// The sockets of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SocketCount {
    /// How many are open, of those that it made itself: accepted ones are not among them.
    pub open: u32,
    /// Of which count that is. User space raises it where it begins a new one: sockets of an earlier count are in none.
    pub epoch: u32,
}

/// In which count a socket is. A new one is all zeros: in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct CountedSocket {
    /// The instance; 0 is none, and so is [`CountedSocket::DENIED`].
    pub instance: u32,
    /// [`SocketCount::epoch`] when it was counted.
    pub epoch: u32,
}

impl CountedSocket {
    /// In [`CountedSocket::instance`]: it was one too many. Where it passes all the same, in audit mode, it is in no count.
    pub const DENIED: u32 = u32::MAX;
}

/// A slot of the counted sockets: the kernel's number of a socket, reduced to how many slots there are, says which one it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct SocketSlot {
    /// In the lower 16 bits how many sockets want the slot now, in the others the number of the one that has it; 0 for none.
    pub taken: u64,
    /// What is said of that one.
    pub counted: CountedSocket,
}
