//! A flow: the protocol, destination address and destination port that are judged.

/// An address family, with the number it has in keys and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// An IP address as packets carry it: words in network byte order.
///
/// An IPv4-mapped IPv6 address is its IPv4 address, however it was written: [`Address::v6`] is the
/// only way to make an IPv6 one and it normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    family: Family,
    words: [u32; 4],
}

impl Address {
    /// The IPv4 address whose network-order word is `word`.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { family: Family::V4, words: [word, 0, 0, 0] }
    }

    /// The IPv6 address whose network-order words are `words`; an IPv4-mapped one becomes IPv4.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        if words[0] == 0 && words[1] == 0 && words[2] == 0x0000_ffff_u32.to_be() {
            Self::v4(words[3])
        } else {
            Self { family: Family::V6, words }
        }
    }

    /// The address's family, after normalisation.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The same address, of which family and words have gone through `family` and `word`, which return what they are given in a way that the
    /// kernel's verifier does not see through.
    #[inline(always)]
    pub fn hidden(self, family: impl FnOnce(Family) -> Family, word: impl Fn(u32) -> u32) -> Self {
        let [first, words @ ..] = self.words;
        let [second, third, fourth] = words.map(word);
        Self { family: family(self.family), words: [first, second, third, fourth] }
    }

    /// The network-order words; an IPv4 address has its one word first and zeros after it.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// Where the kernel sends what is addressed here by a socket that is bound to no address: the unspecified address
    /// stands for loopback.
    #[inline(always)]
    pub const fn reached(self) -> Self {
        self.reached_from(Self { family: self.family, words: [0; 4] })
    }

    /// Where the kernel sends what a socket that is bound to `local` addresses here. The unspecified IPv4 address stands for
    /// the socket's own one (`ip_route_output_key_hash_rcu`,
    /// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/route.c#L2705>), that of IPv6 for loopback, of IPv4 where the
    /// socket is bound to an IPv4-mapped address (`tcp_v6_connect`,
    /// <https://github.com/torvalds/linux/blob/v6.12/net/ipv6/tcp_ipv6.c#L158>).
    #[inline(always)]
    pub const fn reached_from(self, local: Self) -> Self {
        match (self.family, local.family) {
            _ if !self.is_unspecified() => self,
            (Family::V4, Family::V4) if !local.is_unspecified() => local,
            (Family::V6, Family::V6) => Self::v6([0, 0, 0, 1_u32.to_be()]),
            _ => Self::v4(0x7f00_0001_u32.to_be()),
        }
    }

    /// Whether this is `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.words[3] == 0
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            core::net::IpAddr::V6(v6) => {
                let octets = v6.octets();
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(*bytes);
                }
                Self::v6(words)
            }
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        match address.family {
            Family::V4 => Self::from(address.words[0].to_ne_bytes()),
            Family::V6 => {
                let mut octets = [0; 16];
                for (bytes, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(address.words) {
                    *bytes = word.to_ne_bytes();
                }
                Self::from(octets)
            }
        }
    }
}

/// An IP protocol number, as the IPv4 header's protocol field and the last IPv6 next header have it.
///
/// Numbers: <https://www.iana.org/assignments/protocol-numbers>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// UDP-Lite. A protocol of its own: only rules for any protocol let it pass.
    pub const UDPLITE: Self = Self(136);

    /// The name used in logs, where the protocol has one.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::ICMP => Some("icmp"),
            Self::TCP => Some("tcp"),
            Self::UDP => Some("udp"),
            Self::ICMPV6 => Some("icmpv6"),
            Self::UDPLITE => Some("udplite"),
            Self(132) => Some("sctp"),
            Self(255) => Some("raw"),
            _ => None,
        }
    }
}

/// The part of a rule's protocol that a flow falls under. The numbers index [`crate::abi::Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// TCP, MPTCP's subflows included.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp = 2,
    /// Every other protocol: let through only by a rule for any protocol and all ports.
    Other = 3,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Other];
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination address.
    pub address: Address,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port, host byte order; 0 for protocols without ports.
    pub port: u16,
}

impl Flow {
    /// What is told of a packet that could not be read.
    pub const UNKNOWN: Self = Self { address: Address::v4(0), protocol: Protocol(0), port: 0 };

    /// The class under which rules see this flow. ICMP counts only with its own family.
    #[inline(always)]
    pub const fn class(&self) -> Class {
        match (self.protocol, self.address.family) {
            (Protocol::TCP, _) => Class::Tcp,
            (Protocol::UDP, _) => Class::Udp,
            (Protocol::ICMP, Family::V4) | (Protocol::ICMPV6, Family::V6) => Class::Icmp,
            _ => Class::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
        assert_eq!(address("::ffff:192.0.2.1").family(), Family::V4);
        assert_eq!(address("::fffe:c000:201").family(), Family::V6);
    }

    #[test]
    fn the_unspecified_address_reaches_loopback() {
        for (to, reached) in [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::ffff:0.0.0.0", "127.0.0.1")] {
            assert_eq!(address(to).reached(), address(reached));
        }
        assert_eq!(address("192.0.2.1").reached(), address("192.0.2.1"));
    }

    #[test]
    fn the_unspecified_address_reaches_what_the_socket_is_bound_to() {
        for (to, local, reached) in [
            ("0.0.0.0", "192.0.2.1", "192.0.2.1"),
            ("::ffff:0.0.0.0", "::ffff:192.0.2.1", "192.0.2.1"),
            ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
            ("::ffff:0.0.0.0", "::", "127.0.0.1"),
            ("::", "::", "::1"),
            ("::", "2001:db8::1", "::1"),
            ("::", "::ffff:192.0.2.1", "127.0.0.1"),
            ("192.0.2.9", "192.0.2.1", "192.0.2.9"),
        ] {
            assert_eq!(address(to).reached_from(address(local)), address(reached), "{to} from {local}");
        }
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["0.0.0.0", "203.0.113.9", "::", "2001:db8::1", "fe80::1"] {
            assert_eq!(IpAddr::from(address(text)).to_string(), text);
        }
    }

    #[test]
    fn icmp_counts_only_with_its_own_family() {
        let class = |dst, protocol| Flow { address: address(dst), protocol, port: 0 }.class();
        assert_eq!(class("192.0.2.1", Protocol::ICMP), Class::Icmp);
        assert_eq!(class("2001:db8::1", Protocol::ICMPV6), Class::Icmp);
        assert_eq!(class("192.0.2.1", Protocol::ICMPV6), Class::Other);
        assert_eq!(class("2001:db8::1", Protocol::ICMP), Class::Other);
        assert_eq!(class("192.0.2.1", Protocol::UDPLITE), Class::Other);
    }

    extern crate std;
    use std::string::ToString;
}
