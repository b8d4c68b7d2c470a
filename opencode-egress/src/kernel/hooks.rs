//! The hooks, as the kernel numbers them and in the order in which links are made.

use opencode_egress_common::{abi::PolicyHeader, reason::Hook};

use crate::kernel::features::Features;

/// Every hook that has links, in the order in which they are made. `sock_release` lets everything pass; it comes first, for a socket that
/// `sock_create` counts must not close unseen. That lets nearly everything pass whatever the policy is, so it can come before the
/// scope is written, and its link makes the scope's storage.
pub const ATTACH_ORDER: [Hook; 15] = [
    Hook::SockRelease,
    Hook::SockCreate,
    Hook::Egress,
    Hook::Ingress,
    Hook::Connect4,
    Hook::Connect6,
    Hook::Recvmsg4,
    Hook::Recvmsg6,
    Hook::Getpeername4,
    Hook::Getpeername6,
    Hook::Sendmsg4,
    Hook::Sendmsg6,
    Hook::Bind4,
    Hook::Bind6,
    Hook::Setsockopt,
];

/// What a policy takes, beside what every policy does: links at some hooks are made for those that need them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The calls of datagram sockets: it has rules for names, or another error than `EPERM`.
    pub calls: bool,
}

impl Needs {
    /// Nothing.
    pub const NONE: Self = Self { calls: false };
    /// All there is.
    pub const ALL: Self = Self { calls: true };

    /// What a policy takes.
    pub const fn of(header: &PolicyHeader) -> Self {
        Self { calls: header.takes_datagram_calls() }
    }

    /// What either takes.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { calls: self.calls || other.calls }
    }
}

/// The hooks at which links are made on a kernel, in that order, for an instance whose policy has these needs. Where a packet's
/// program can name the process, nothing is lost when datagrams are judged there alone, and each costs one program less. Questions
/// for names are given another address before they are packets.
pub fn to_attach(features: &Features, needs: Needs) -> impl Iterator<Item = Hook> + use<> {
    let at_packets = features.packet_knows_caller;
    ATTACH_ORDER.into_iter().filter(move |hook| match hook {
        Hook::Sendmsg4 | Hook::Sendmsg6 => needs.calls || !at_packets,
        Hook::Recvmsg4 | Hook::Recvmsg6 | Hook::Getpeername4 | Hook::Getpeername6 => needs.calls,
        _ => true,
    })
}

/// The hooks whose programs are loaded on a kernel. That for TLS is not attached: the one for what leaves goes on with it, where it can.
pub fn to_load(features: &Features) -> impl Iterator<Item = Hook> + use<> {
    to_attach(features, Needs::ALL).chain(features.egress_calls_tls.then_some(Hook::Tls))
}

/// The kernel's attach type of a hook (`enum bpf_attach_type`,
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L1042>).
pub const fn attach_type(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => 0,
        // The latter has no links; it is a program of that type.
        Hook::Egress | Hook::Tls => 1,
        Hook::SockCreate => 2,
        Hook::Bind4 => 8,
        Hook::Bind6 => 9,
        Hook::Connect4 => 10,
        Hook::Connect6 => 11,
        Hook::Sendmsg4 => 14,
        Hook::Sendmsg6 => 15,
        Hook::Recvmsg4 => 19,
        Hook::Recvmsg6 => 20,
        Hook::Setsockopt => 22,
        Hook::Getpeername4 => 29,
        Hook::Getpeername6 => 30,
        Hook::SockRelease => 34,
    }
}
