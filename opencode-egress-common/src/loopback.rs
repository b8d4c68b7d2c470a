//! Own loopback: what an instance may say to itself, and where it may listen for itself.
//!
//! Whether a socket is the instance's own only the kernel knows; here is which flows and binds that question is asked of.

use crate::{
    abi::{PolicyHeader, RESOLVER_PORTS},
    flow::{Address, Class, Family, Flow},
    reason::DropReason,
};

/// The first port that an instance may bind for itself. Below it are the host's services.
pub const FIRST_OWN_PORT: u16 = 1024;

/// The port of every resolver that can be asked in the clear.
const DOMAIN: u16 = 53;

/// The owner of a port that several instances list as a listener's.
pub const SEVERAL_OWNERS: u32 = u32::MAX;

/// What stands in a packet's priority, with the instance's number in its lower bits: the program of the socket that sent it over loopback
/// found that the one that takes it is the same instance's. A process may write no number above 6 there without `CAP_NET_ADMIN` or
/// `CAP_NET_RAW` (socket(7), `SO_PRIORITY`), and the host's network never sees it.
pub const VOUCHED: u32 = 0x6f6c_0000;

impl Address {
    /// Whether this is a loopback address of one socket. 127.0.0.0 and 127.255.255.255 are not: what is sent there may reach all
    /// sockets of a port.
    #[inline(always)]
    pub const fn is_own_loopback(&self) -> bool {
        let words = self.words();
        match self.family() {
            Family::V4 => {
                let host = u32::from_be(words[0]);
                host >> 24 == 127 && host & 0xff_ffff != 0 && host & 0xff_ffff != 0xff_ffff
            }
            Family::V6 => words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 1_u32.to_be(),
        }
    }
}

/// Whether a port is one at which instances' resolvers listen.
#[inline(always)]
const fn is_resolvers(port: u16) -> bool {
    port >= RESOLVER_PORTS.0 && port <= RESOLVER_PORTS.1
}

impl PolicyHeader {
    /// Whether a flow that no rule speaks of passes where the socket that takes it is the instance's own. Questions for names, which go to
    /// the instance's resolver wherever they are addressed, are none.
    #[inline(always)]
    pub fn leaves_to_own(&self, flow: &Flow) -> bool {
        self.own_loopback != 0
            && matches!(flow.class(), Class::Tcp | Class::Udp)
            && flow.address.is_own_loopback()
            && !is_resolvers(flow.port)
            && !(flow.port == DOMAIN && self.has_names())
    }

    /// Whether a bind is to a place where an instance may listen for itself. `owner` is the instance whose listener has the port, or
    /// [`SEVERAL_OWNERS`], and `own` the one that binds.
    #[inline(always)]
    pub fn is_own_place(&self, address: &Address, port: u16, owner: Option<u32>, own: u32) -> bool {
        self.own_loopback != 0
            && port >= FIRST_OWN_PORT
            && !is_resolvers(port)
            && (address.is_own_loopback() || address.is_unspecified())
            && owner.is_none_or(|owner| owner == own)
    }
}

/// Whether a denial by the rules is one that own loopback may turn: no rule speaks of the flow.
#[inline(always)]
pub const fn may_be_own(reason: DropReason) -> bool {
    matches!(reason, DropReason::NotAllowed | DropReason::ProtocolNotAllowed | DropReason::PortNotAllowed)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::flow::Protocol;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn what_is_sent_to_many_is_no_own_loopback() {
        for own in ["127.0.0.1", "127.255.255.254", "127.1.0.0", "::1", "::ffff:127.0.0.1"] {
            assert!(address(own).is_own_loopback(), "{own}");
        }
        for other in
            ["127.0.0.0", "127.255.255.255", "::ffff:127.255.255.255", "128.0.0.1", "0.0.0.0", "::", "::2"]
        {
            assert!(!address(other).is_own_loopback(), "{other}");
        }
    }

    #[test]
    fn tcp_and_udp_on_loopback_are_left_to_whose_socket_it_is() {
        let header = PolicyHeader { own_loopback: 1, ..PolicyHeader::default() };
        let asks = |header: &PolicyHeader, to, protocol, port| {
            header.leaves_to_own(&Flow { address: address(to), protocol, port })
        };
        assert!(asks(&header, "127.0.0.1", Protocol::TCP, 3000));
        assert!(asks(&header, "::1", Protocol::UDP, 1));
        assert!(!asks(&header, "192.0.2.1", Protocol::TCP, 3000));
        assert!(!asks(&header, "127.0.0.1", Protocol::ICMP, 0));
        assert!(!asks(&header, "127.0.0.1", Protocol::UDPLITE, 3000));
        assert!(!asks(&header, "127.0.0.1", Protocol::TCP, RESOLVER_PORTS.0));
        assert!(!asks(&header, "::1", Protocol::UDP, RESOLVER_PORTS.1));
        assert!(!asks(&PolicyHeader::default(), "127.0.0.1", Protocol::TCP, 3000));
        assert!(asks(&header, "127.0.0.53", Protocol::TCP, 53));
        let named = PolicyHeader { name_grants: 1, ..header };
        assert!(!asks(&named, "127.0.0.53", Protocol::TCP, 53), "a question");
    }

    #[test]
    fn an_own_place_is_on_loopback_unprivileged_and_nobody_elses() {
        let header = PolicyHeader { own_loopback: 1, ..PolicyHeader::default() };
        let judge =
            |header: &PolicyHeader, at, port, owner| header.is_own_place(&address(at), port, owner, 7);
        for at in ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            assert!(judge(&header, at, 1024, None), "{at}");
            assert!(judge(&header, at, 8787, Some(7)), "{at}");
            assert!(!judge(&header, at, 1023, None), "{at}");
            assert!(!judge(&header, at, 3000, Some(8)), "{at}: a neighbour's");
            assert!(!judge(&header, at, 3000, Some(SEVERAL_OWNERS)), "{at}: neighbours'");
            assert!(!judge(&header, at, RESOLVER_PORTS.0, None), "{at}");
            assert!(!judge(&header, at, RESOLVER_PORTS.1, None), "{at}");
            assert!(!judge(&PolicyHeader::default(), at, 3000, None), "{at}");
        }
        assert!(!judge(&header, "192.0.2.1", 3000, None));
    }
}
