//! Addresses that no name may bring, whatever an answer says: whoever runs a zone would choose whom an instance reaches on the inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for, as far as it matters to whom a name may lead.
///
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// On the internet.
    Public,
    /// In networks of one's own: RFC 1918, RFC 4193, and a provider's behind its address translation (RFC 6598).
    Private,
    /// This machine, by an unspecified or a loopback address.
    Loopback,
    /// The network that a machine is plugged into, where clouds have their metadata services.
    LinkLocal,
    /// A group.
    Multicast,
    /// Nobody's: "this network", broadcast, what is kept for later.
    Reserved,
}

impl AddressKind {
    /// The kind of an address. One that holds an IPv4 address in it (mapped, compatible, RFC 6052, RFC 3056) is of the kind of that one, for that is
    /// where packets to it may end.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        match (a, b) {
            _ if address.is_unspecified() || address.is_loopback() => Self::Loopback,
            _ if address.is_link_local() => Self::LinkLocal,
            _ if address.is_multicast() => Self::Multicast,
            _ if address.is_private() => Self::Private,
            (100, 64..=127) => Self::Private,
            (0 | 240..=255, _) => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        let v4 = |upper: u16, lower: u16| {
            let [[a, b], [c, d]] = [upper.to_be_bytes(), lower.to_be_bytes()];
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match segments {
            _ if address.is_unspecified() || address.is_loopback() => Self::Loopback,
            [0, 0, 0, 0, 0, 0 | 0xffff, upper, lower] => v4(upper, lower),
            [0x64, 0xff9b, 0, 0, 0, 0, upper, lower] => v4(upper, lower),
            // A network of one's own for the same.
            [0x64, 0xff9b, 1, ..] => Self::Private,
            [0x2002, upper, lower, ..] => v4(upper, lower),
            _ if address.is_multicast() => Self::Multicast,
            _ if address.is_unicast_link_local() => Self::LinkLocal,
            // Site-local, which is no more and which machines still route within a site.
            [0xfec0..=0xfeff, ..] => Self::Private,
            _ if address.is_unique_local() => Self::Private,
            // Global unicast is all that there is besides.
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known_in_each_of_its_forms() {
        use AddressKind::{LinkLocal, Loopback, Multicast, Private, Public, Reserved};
        for (text, kind) in [
            ("192.0.2.1", Public),
            ("2001:db8::1", Public),
            ("0.0.0.0", Loopback),
            ("127.9.9.9", Loopback),
            ("::", Loopback),
            ("::1", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("::127.0.0.1", Loopback),
            ("64:ff9b::7f00:1", Loopback),
            ("2002:7f00:1::1", Loopback),
            ("169.254.169.254", LinkLocal),
            ("fe80::1", LinkLocal),
            ("64:ff9b::a9fe:a9fe", LinkLocal),
            ("224.0.0.251", Multicast),
            ("ff02::fb", Multicast),
            ("10.1.2.3", Private),
            ("172.31.0.1", Private),
            ("192.168.0.1", Private),
            ("100.64.0.1", Private),
            ("fd00:ec2::254", Private),
            ("fec0::1", Private),
            ("64:ff9b:1::1", Private),
            ("2002:c0a8:1::1", Private),
            ("0.1.2.3", Reserved),
            ("255.255.255.255", Reserved),
            ("240.0.0.1", Reserved),
            ("4000::1", Reserved),
            ("100.128.0.1", Public),
            ("2002:c000:201::1", Public),
            ("64:ff9b::c000:201", Public),
        ] {
            assert_eq!(AddressKind::of(text.parse().expect("an address")), kind, "{text}");
        }
    }
}
