//! Drop reasons and hooks: the numbers that events and counters carry.
//!
//! A number is never reused: dashboards and journals outlive the code that wrote them.

use crate::flow::Family;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$item_doc])* $item = $number,)+
        }

        impl $name {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$item),+];

            /// The name used in logs and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $text,)+ }
            }

            /// The one with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$item),)+ _ => None }
            }
        }
    };
}

numbered! {
    /// Why a flow was denied.
    DropReason {
        /// The cgroup is confined but has no policy (yet, or any more).
        NoPolicy = 1, "no-policy";
        /// No rule covers the destination address.
        NotAllowed = 2, "not-allowed";
        /// A deny rule covers the flow; deny wins over allow.
        DenyRule = 3, "deny-rule";
        /// Rules cover the address, but none for this protocol.
        ProtocolNotAllowed = 4, "protocol-not-allowed";
        /// Rules cover the address and the protocol, but not this port.
        PortNotAllowed = 5, "port-not-allowed";
        /// The headers are truncated, inconsistent, or of another version; or a socket option's value is too long to be
        /// looked at.
        UnreadableHeader = 6, "unreadable-header";
        /// An IPv4 option that redirects the packet (source routing), or that is not known.
        Ipv4Option = 7, "ipv4-option";
        /// An IPv6 routing header: the packet's last hop is not its destination address.
        RoutingHeader = 8, "routing-header";
        /// An IPv6 extension header that cannot be looked behind.
        ExtensionHeader = 9, "extension-header";
        /// A fragment made by the sender itself; it hides the ports, or rewrites them.
        Fragment = 10, "fragment";
        /// A connection out from the port of one of the instance's listeners.
        ListenerPort = 11, "listener-port";
        /// A bind to an address and port that the policy does not list under `listen`.
        BindNotListed = 12, "bind-not-listed";
        /// A new inbound connection to a port that is no listener of the policy.
        NotAListener = 13, "not-a-listener";
        /// A new inbound connection from beyond loopback to a listener that is not open.
        ListenerNotOpen = 14, "listener-not-open";
        /// A socket of a protocol that no rule of the policy lets speak.
        SocketNotAllowed = 15, "socket-not-allowed";
        /// A socket or option by which the sender would write the IP header itself.
        HeaderIncluded = 16, "header-included";
        /// A socket option that adds a source route or a routing header.
        RoutingOption = 17, "routing-option";
        /// An inbound datagram from a peer that the instance may not send to.
        PeerNotAllowed = 18, "peer-not-allowed";
        /// A packet that was transformed on its way from its socket, as IPsec does, so that it does not say where it
        /// goes.
        Transformed = 19, "transformed";
        /// A socket more than the instance may have open, or one that the kernel has no memory to count.
        TooManySockets = 20, "too-many-sockets";
        /// The address came with the answer for a listed name, and the time for new flows to it is over.
        NameExpired = 21, "name-expired";
        /// The resolver of another instance, whatever the rules say of loopback.
        OtherResolver = 22, "other-resolver";
        /// The hello that opens TLS names another server than those that rules with `tls` list, or none.
        TlsNameNotAllowed = 23, "tls-name-not-allowed";
        /// What comes where a hello that opens TLS must come is none.
        NotTls = 24, "not-tls";
    }
}

numbered! {
    /// The place in the kernel where a flow was judged.
    Hook {
        /// `cgroup/connect4`.
        Connect4 = 1, "connect4";
        /// `cgroup/connect6`.
        Connect6 = 2, "connect6";
        /// `cgroup/sendmsg4`.
        Sendmsg4 = 3, "sendmsg4";
        /// `cgroup/sendmsg6`.
        Sendmsg6 = 4, "sendmsg6";
        /// `cgroup_skb/egress`.
        Egress = 5, "egress";
        /// `cgroup_skb/ingress`.
        Ingress = 6, "ingress";
        /// `cgroup/bind4`.
        Bind4 = 7, "bind4";
        /// `cgroup/bind6`.
        Bind6 = 8, "bind6";
        /// `cgroup/sock_create`.
        SockCreate = 9, "sock_create";
        /// `cgroup/setsockopt`.
        Setsockopt = 10, "setsockopt";
        /// `cgroup/sock_release`. It denies nothing.
        SockRelease = 11, "sock_release";
        /// `cgroup/recvmsg4`, which judges nothing.
        Recvmsg4 = 12, "recvmsg4";
        /// `cgroup/recvmsg6`, which judges nothing.
        Recvmsg6 = 13, "recvmsg6";
        /// `cgroup/getpeername4`, which judges nothing.
        Getpeername4 = 14, "getpeername4";
        /// `cgroup/getpeername6`, which judges nothing.
        Getpeername6 = 15, "getpeername6";
        /// `cgroup_skb/egress`, once more: what opens TLS.
        Tls = 16, "tls";
    }
}

impl Hook {
    /// The hook that sees the same call for addresses of a family. An IPv4-mapped address comes to the one for IPv6,
    /// and its packets are of IPv4.
    #[inline(always)]
    pub const fn of_family(self, family: Family) -> Self {
        match (self, family) {
            (Self::Connect4 | Self::Connect6, Family::V4) => Self::Connect4,
            (Self::Connect4 | Self::Connect6, Family::V6) => Self::Connect6,
            (Self::Sendmsg4 | Self::Sendmsg6, Family::V4) => Self::Sendmsg4,
            (Self::Sendmsg4 | Self::Sendmsg6, Family::V6) => Self::Sendmsg6,
            (Self::Bind4 | Self::Bind6, Family::V4) => Self::Bind4,
            (Self::Bind4 | Self::Bind6, Family::V6) => Self::Bind6,
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::REASON_SLOTS;

    /// What journals and dashboards know by now. Lines are added, and never changed or removed.
    const REASONS: &[(u8, &str)] = &[
        (1, "no-policy"),
        (2, "not-allowed"),
        (3, "deny-rule"),
        (4, "protocol-not-allowed"),
        (5, "port-not-allowed"),
        (6, "unreadable-header"),
        (7, "ipv4-option"),
        (8, "routing-header"),
        (9, "extension-header"),
        (10, "fragment"),
        (11, "listener-port"),
        (12, "bind-not-listed"),
        (13, "not-a-listener"),
        (14, "listener-not-open"),
        (15, "socket-not-allowed"),
        (16, "header-included"),
        (17, "routing-option"),
        (18, "peer-not-allowed"),
        (19, "transformed"),
        (20, "too-many-sockets"),
        (21, "name-expired"),
        (22, "other-resolver"),
        (23, "tls-name-not-allowed"),
        (24, "not-tls"),
    ];
    const HOOKS: &[(u8, &str)] = &[
        (1, "connect4"),
        (2, "connect6"),
        (3, "sendmsg4"),
        (4, "sendmsg6"),
        (5, "egress"),
        (6, "ingress"),
        (7, "bind4"),
        (8, "bind6"),
        (9, "sock_create"),
        (10, "setsockopt"),
        (11, "sock_release"),
        (12, "recvmsg4"),
        (13, "recvmsg6"),
        (14, "getpeername4"),
        (15, "getpeername6"),
        (16, "tls"),
    ];

    /// Fails unless these are the ones that were given out, each under a name of its own.
    fn check(all: impl ExactSizeIterator<Item = (u8, &'static str)>, given_out: &[(u8, &str)]) {
        assert_eq!(all.len(), given_out.len(), "add the new one's number and name to this test's list");
        for ((now, before), index) in all.zip(given_out).zip(0..) {
            assert_eq!(now, *before, "a number or name that was given out has changed");
            assert!(given_out[..index].iter().all(|(_, name)| *name != now.1), "{} is given twice", now.1);
        }
    }

    #[test]
    fn numbers_and_names_stay_as_they_were_given_out() {
        check(DropReason::ALL.iter().map(|reason| (*reason as u8, reason.name())), REASONS);
        check(Hook::ALL.iter().map(|hook| (*hook as u8, hook.name())), HOOKS);
    }

    #[test]
    fn each_reason_has_a_counter() {
        assert!(DropReason::ALL.iter().all(|reason| (*reason as usize) < REASON_SLOTS));
    }
}
