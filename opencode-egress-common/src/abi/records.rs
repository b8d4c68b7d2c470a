//! Layouts of denials: what is remembered and told of them.

use crate::{
    flow::{Address, Flow, Protocol},
    reason::{DropReason, Hook},
};

/// What user space took out of the kernel of an instance. With what the kernel counted in it is what is there
/// of an instance, so that none takes the room of others. User space alone writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Taken {
    /// Of [`super::Denied::events`].
    pub events: u64,
    /// Of [`super::Denied::remembered`]: those that were forgotten.
    pub forgotten: u64,
    /// Of [`super::Denied::resets`].
    pub resets: u64,
}

/// How events are limited, the same for all instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Limits {
    /// Repeats of a destination within this time are folded; ns.
    pub interval: u64,
    /// Time in which one event's worth of the rate comes back; ns.
    pub per_event: u64,
    /// `per_event` times the burst; ns.
    pub burst: u64,
}

/// What makes two denials the same for folding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct DestinationKey {
    /// The destination; network byte order.
    pub address: [u32; 4],
    /// The instance.
    pub instance: u32,
    /// The destination port.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`DropReason`].
    pub reason: u8,
    /// [`crate::hello::ServerName::tag`] of the server that a hello names; otherwise 0.
    pub server: u16,
}

impl DestinationKey {
    /// The key of an instance's denial of a flow.
    #[inline(always)]
    pub const fn new(instance: u32, flow: &Flow, hook: Hook, reason: DropReason) -> Self {
        Self {
            address: flow.address.words(),
            instance,
            port: flow.port,
            protocol: flow.protocol.0,
            family: flow.address.family() as u8,
            hook: hook as u8,
            reason: reason as u8,
            server: 0,
        }
    }

    /// The flow.
    pub const fn flow(&self) -> Flow {
        let address = match self.family {
            4 => Address::v4(self.address[0]),
            _ => Address::v6(self.address),
        };
        Flow { address, protocol: Protocol(self.protocol), port: self.port }
    }
}

/// A denial that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DestinationDenials {
    /// When its last event was due; monotonic ns.
    pub reported: u64,
    /// How often so far. It only grows, so a reader needs no reset.
    pub attempts: u64,
    /// `attempts` at that event.
    pub told: u64,
}

/// A ring-buffer record of a denied flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The destination (for binds: the local address; inbound: the peer); network byte order.
    pub address: [u32; 4],
    /// Where the process wanted to, where that was another destination; network byte order.
    pub asked_address: [u32; 4],
    /// [`DestinationDenials::attempts`] of this denial, this one included.
    pub attempts: u64,
    /// Repeats of this denial that were folded since its last event.
    pub suppressed: u64,
    /// The instance.
    pub instance: u32,
    /// The generation that judged.
    pub generation: u32,
    /// The process, in the root PID namespace; 0 where the hook cannot know.
    pub pid: u32,
    /// The user, in the root user namespace.
    pub uid: u32,
    /// The thread's name, NUL-padded; empty where the hook cannot know.
    pub comm: [u8; 16],
    /// The port.
    pub port: u16,
    /// The port of `asked_address`.
    pub asked_port: u16,
    /// Inbound: the local port that was tried; otherwise 0.
    pub local_port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// The family of `asked_address`, 4 or 6; 0 where the process wanted to where the flow goes.
    pub asked_family: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// [`DestinationKey::hook`]: another one than `hook` where a packet was folded into its call.
    pub key_hook: u8,
    /// A [`DropReason`].
    pub reason: u8,
    /// 1 where the mode let it pass.
    pub audit: u32,
}

/// A ring-buffer record of a TCP socket that is to be reset: a packet that would open its connection, or that belongs to
/// it, was refused, and nothing else tells the program that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Reset {
    /// The socket's own address; network byte order.
    pub source: [u32; 4],
    /// Its peer's; network byte order.
    pub destination: [u32; 4],
    /// The kernel's number of the socket, the same in all network namespaces. 0: the socket was not seen, only the packet
    /// that would open its connection, where it came out of the loopback interface.
    pub cookie: u64,
    /// The instance that refused.
    pub instance: u32,
    /// The interface to which the socket is bound; 0 for none.
    pub interface: u32,
    /// The socket's own port.
    pub source_port: u16,
    /// Its peer's.
    pub destination_port: u16,
    /// The family of its packets, 4 or 6.
    pub family: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A size that is the sum of the fields' sizes has no padding.
    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Limits>(), 24);
        assert_eq!(size_of::<Taken>(), 3 * 8);
        assert_eq!(size_of::<DestinationKey>(), 16 + 4 + 2 + 4 + 2);
        assert_eq!(size_of::<DestinationDenials>(), 24);
        assert_eq!(size_of::<Event>(), 2 * 16 + 2 * 8 + 4 * 4 + 16 + 3 * 2 + 6 + 4);
        assert_eq!(size_of::<Reset>(), 2 * 16 + 8 + 2 * 4 + 2 * 2 + 4);
    }
}
