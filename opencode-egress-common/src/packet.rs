//! From the bytes of an IP packet to what is judged, denying what cannot be read safely.
//!
//! A header that would send the packet elsewhere than its destination field says, or that hides the
//! ports, is denied here, before any rule is asked: source routes, routing headers, fragments,
//! extension headers that cannot be looked behind.

use crate::{
    flow::{Address, Flow, Protocol},
    reason::DropReason,
};

/// Access to a packet, from the first byte of its IP header, in 32-bit words as they stand in memory.
pub trait Bytes {
    /// `N` words at the constant `OFFSET` (bytes): the way of nearly every packet, so it must be cheap.
    fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]>;

    /// `N` words at any `offset` (bytes), behind options and extension headers.
    fn far<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Source port, 0 for protocols without ports.
    pub source_port: u16,
    /// Destination port, 0 for protocols without ports.
    pub destination_port: u16,
    /// A TCP segment that opens a connection: SYN without ACK.
    pub opens: bool,
}

impl Packet {
    /// What is told of one that could not be read.
    pub const UNKNOWN: Self = Self {
        source: Address::v4(0),
        destination: Address::v4(0),
        protocol: Protocol(0),
        source_port: 0,
        destination_port: 0,
        opens: false,
    };

    /// The flow towards the packet's destination.
    #[inline(always)]
    pub const fn outbound(&self) -> Flow {
        Flow { address: self.destination, protocol: self.protocol, port: self.destination_port }
    }

    /// The flow back to the packet's sender.
    #[inline(always)]
    pub const fn back(&self) -> Flow {
        Flow { address: self.source, protocol: self.protocol, port: self.source_port }
    }
}

/// An offset that is known when compiling, or only when running.
trait At {
    fn read<B: Bytes, const N: usize>(&self, bytes: &B) -> Option<[u32; N]>;
}

struct Near<const OFFSET: usize>;
struct Far(usize);

impl<const OFFSET: usize> At for Near<OFFSET> {
    #[inline(always)]
    fn read<B: Bytes, const N: usize>(&self, bytes: &B) -> Option<[u32; N]> {
        bytes.near::<OFFSET, N>()
    }
}

impl At for Far {
    #[inline(always)]
    fn read<B: Bytes, const N: usize>(&self, bytes: &B) -> Option<[u32; N]> {
        bytes.far::<N>(self.0)
    }
}

/// Reads an IPv4 packet.
///
/// # Errors
///
/// The reason for which the packet must be refused.
#[inline(always)]
pub fn ipv4(bytes: &impl Bytes) -> Result<Packet, DropReason> {
    let header = bytes.near::<0, 5>().ok_or(DropReason::UnreadableHeader)?;
    let first = u32::from_be(header[0]);
    let header_len = (first >> 24 & 0xf) as usize * 4;
    if first >> 28 != 4 || header_len < 20 {
        return Err(DropReason::UnreadableHeader);
    }
    // More fragments, or a fragment offset. The kernel fragments behind the hook.
    if u32::from_be(header[1]) & 0x3fff != 0 {
        return Err(DropReason::Fragment);
    }
    let protocol = Protocol((u32::from_be(header[2]) >> 16 & 0xff) as u8);
    let (source, destination) = (Address::v4(header[3]), Address::v4(header[4]));
    if header_len == 20 {
        transport(bytes, &Near::<20>, source, destination, protocol)
    } else {
        ipv4_options(bytes, header_len)?;
        transport(bytes, &Far(header_len), source, destination, protocol)
    }
}

/// The IPv4 options that leave a packet's way alone. Everything else is denied, both source routes
/// (131, 137) among it. <https://www.iana.org/assignments/ip-parameters>
const HARMLESS_OPTIONS: [u8; 6] = [7, 68, 130, 134, 136, 148];

#[inline(always)]
fn ipv4_options(bytes: &impl Bytes, header_len: usize) -> Result<(), DropReason> {
    whole(bytes, header_len)?;
    let mut offset = 20;
    // At most 40 bytes of options, each at least one byte.
    for _ in 0..40 {
        if offset >= header_len {
            return Ok(());
        }
        let word = bytes.far::<1>(offset).ok_or(DropReason::UnreadableHeader)?[0];
        let [kind, len, ..] = word.to_ne_bytes();
        match kind {
            0 => return Ok(()),
            1 => offset += 1,
            _ if !HARMLESS_OPTIONS.contains(&kind) => return Err(DropReason::Ipv4Option),
            _ if len < 2 => return Err(DropReason::UnreadableHeader),
            _ => offset += len as usize,
        }
    }
    if offset >= header_len { Ok(()) } else { Err(DropReason::UnreadableHeader) }
}

/// Whether a header that ends at `end` is there to its last word. What follows it may need no reading.
#[inline(always)]
fn whole(bytes: &impl Bytes, end: usize) -> Result<(), DropReason> {
    bytes.far::<1>(end - 4).map(|_| ()).ok_or(DropReason::UnreadableHeader)
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers behind which nothing is read: ESP, AH, mobility, HIP, shim6, and the two for
/// experiments. <https://www.iana.org/assignments/ipv6-parameters>
const OPAQUE: [u8; 7] = [50, 51, 135, 139, 140, 253, 254];

/// Extension headers followed at most.
const MAX_EXTENSIONS: usize = 8;

/// Reads an IPv6 packet.
///
/// # Errors
///
/// The reason for which the packet must be refused.
#[inline(always)]
pub fn ipv6(bytes: &impl Bytes) -> Result<Packet, DropReason> {
    let header = bytes.near::<0, 10>().ok_or(DropReason::UnreadableHeader)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(DropReason::UnreadableHeader);
    }
    let next = (u32::from_be(header[1]) >> 8 & 0xff) as u8;
    let source = Address::v6([header[2], header[3], header[4], header[5]]);
    let destination = Address::v6([header[6], header[7], header[8], header[9]]);
    if next == Protocol::TCP.0 || next == Protocol::UDP.0 {
        return transport(bytes, &Near::<40>, source, destination, Protocol(next));
    }
    let (protocol, offset) = ipv6_extensions(bytes, next)?;
    transport(bytes, &Far(offset), source, destination, protocol)
}

#[inline(always)]
fn ipv6_extensions(bytes: &impl Bytes, first: u8) -> Result<(Protocol, usize), DropReason> {
    let (mut next, mut offset) = (first, 40);
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            ROUTING => return Err(DropReason::RoutingHeader),
            FRAGMENT => return Err(DropReason::Fragment),
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let word = bytes.far::<1>(offset).ok_or(DropReason::UnreadableHeader)?[0];
                let [following, len, ..] = word.to_ne_bytes();
                next = following;
                // In units of 8 bytes, not counting the first.
                offset += (len as usize + 1) * 8;
                whole(bytes, offset)?;
            }
            _ if OPAQUE.contains(&next) => return Err(DropReason::ExtensionHeader),
            _ => return Ok((Protocol(next), offset)),
        }
    }
    Err(DropReason::ExtensionHeader)
}

#[inline(always)]
fn transport(
    bytes: &impl Bytes,
    at: &impl At,
    source: Address,
    destination: Address,
    protocol: Protocol,
) -> Result<Packet, DropReason> {
    let (ports, flags) = match protocol {
        Protocol::TCP => {
            let header = at.read::<_, 4>(bytes).ok_or(DropReason::UnreadableHeader)?;
            (u32::from_be(header[0]), u32::from_be(header[3]) >> 16)
        }
        Protocol::UDP | Protocol::UDPLITE => {
            let header = at.read::<_, 1>(bytes).ok_or(DropReason::UnreadableHeader)?;
            (u32::from_be(header[0]), 0)
        }
        _ => (0, 0),
    };
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    Ok(Packet {
        source,
        destination,
        protocol,
        source_port: (ports >> 16) as u16,
        destination_port: (ports & 0xffff) as u16,
        opens: flags & (SYN | ACK) == SYN,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    pub(crate) struct Slice(pub(crate) Vec<u8>);

    impl Bytes for Slice {
        fn near<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
            self.far(OFFSET)
        }

        fn far<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
            let bytes = self.0.get(offset..offset + N * 4)?;
            let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
            words.collect::<Vec<_>>().try_into().ok()
        }
    }

    const TCP_SYN: [u8; 20] = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0];

    fn v4(protocol: u8, options: &[u8], payload: &[u8]) -> Slice {
        let ihl = u8::try_from(5 + options.len() / 4).expect("a short header");
        let mut packet = vec![0x40 | ihl, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        packet.extend([192, 0, 2, 1, 203, 0, 113, 9]);
        packet.extend(options);
        packet.extend(payload);
        Slice(packet)
    }

    fn v6(next: u8, behind: &[u8]) -> Slice {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend(behind);
        Slice(packet)
    }

    fn text(packet: Packet) -> std::string::String {
        let (source, destination) =
            (core::net::IpAddr::from(packet.source), core::net::IpAddr::from(packet.destination));
        std::format!(
            "{} {source} {} > {destination} {}{}",
            packet.protocol.0,
            packet.source_port,
            packet.destination_port,
            if packet.opens { " opens" } else { "" }
        )
    }

    #[test]
    fn plain_packets_are_read() {
        let check = |packet: Result<Packet, DropReason>, expect: &str| {
            assert_eq!(text(packet.expect("a readable packet")), expect);
        };
        check(ipv4(&v4(6, &[], &TCP_SYN)), "6 192.0.2.1 40000 > 203.0.113.9 443 opens");
        check(ipv4(&v4(17, &[], &[0, 53, 0, 53, 0, 8, 0, 0])), "17 192.0.2.1 53 > 203.0.113.9 53");
        check(ipv4(&v4(1, &[], &[8, 0, 0, 0])), "1 192.0.2.1 0 > 203.0.113.9 0");
        check(ipv6(&v6(6, &TCP_SYN)), "6 2001:db8::1 40000 > 2001:db8::2 443 opens");
        check(ipv6(&v6(58, &[128, 0, 0, 0])), "58 2001:db8::1 0 > 2001:db8::2 0");
        let mut answer = TCP_SYN;
        answer[13] = 0x12;
        check(ipv4(&v4(6, &[], &answer)), "6 192.0.2.1 40000 > 203.0.113.9 443");
    }

    #[test]
    fn harmless_options_and_extensions_are_read_over() {
        // Router alert, then padding.
        let packet = ipv4(&v4(6, &[148, 4, 0, 0, 1, 1, 0, 0], &TCP_SYN)).expect("readable");
        assert_eq!(packet.destination_port, 443);
        // Hop-by-hop with padding, then destination options, then UDP.
        let mut behind = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
        behind.extend([0, 53, 0, 53, 0, 8, 0, 0]);
        assert_eq!(ipv6(&v6(0, &behind)).expect("readable").destination_port, 53);
    }

    #[test]
    fn what_redirects_or_hides_is_refused() {
        use DropReason as R;
        let check = |packet: Result<Packet, DropReason>, expect| assert_eq!(packet, Err(expect));
        // Loose and strict source route; an unknown option; one that claims no length.
        check(ipv4(&v4(6, &[131, 7, 4, 203, 0, 113, 1, 0], &TCP_SYN)), R::Ipv4Option);
        check(ipv4(&v4(6, &[1, 137, 7, 4, 203, 0, 113, 1], &TCP_SYN)), R::Ipv4Option);
        check(ipv4(&v4(6, &[99, 4, 0, 0], &TCP_SYN)), R::Ipv4Option);
        check(ipv4(&v4(6, &[7, 0, 0, 0], &TCP_SYN)), R::UnreadableHeader);
        check(ipv6(&v6(43, &TCP_SYN)), R::RoutingHeader);
        check(ipv6(&v6(0, &[43, 0, 1, 4, 0, 0, 0, 0])), R::RoutingHeader);
        check(ipv6(&v6(44, &TCP_SYN)), R::Fragment);
        for next in OPAQUE {
            check(ipv6(&v6(next, &TCP_SYN)), R::ExtensionHeader);
        }
        let endless: Vec<u8> = [60, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        check(ipv6(&v6(60, &endless)), R::ExtensionHeader);
        for (byte, value) in [(6, 0x20), (6, 0x60), (7, 1)] {
            let mut fragment = v4(17, &[], &[0; 8]);
            fragment.0[byte] = value;
            check(ipv4(&fragment), R::Fragment);
        }
        let mut other_version = v4(6, &[], &TCP_SYN);
        other_version.0[0] = 0x65;
        check(ipv4(&other_version), R::UnreadableHeader);
        other_version.0[0] = 0x44;
        check(ipv4(&other_version), R::UnreadableHeader);
        check(ipv6(&v4(6, &[], &[0; 40])), R::UnreadableHeader);
    }

    /// Headers that end too early, before protocols of which nothing more is read.
    #[test]
    fn a_header_must_be_whole() {
        let mut options = v4(1, &[0; 8], &[]);
        assert!(ipv4(&options).is_ok());
        options.0.truncate(24);
        assert_eq!(ipv4(&options), Err(DropReason::UnreadableHeader));
        let mut extension = v6(60, &[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(ipv6(&extension).is_ok());
        extension.0.truncate(48);
        assert_eq!(ipv6(&extension), Err(DropReason::UnreadableHeader));
    }

    proptest! {
        /// Truncation is denied, whatever is cut.
        #[test]
        fn a_cut_packet_is_refused(keep in 0..36_usize) {
            let mut packet = v4(6, &[], &TCP_SYN);
            packet.0.truncate(keep);
            prop_assert_eq!(ipv4(&packet), Err(DropReason::UnreadableHeader));
        }

        /// No bytes make the reader panic or loop, and what it accepts has the destination of the header.
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0x0f | 0x40;
            }
            if let Ok(packet) = ipv4(&Slice(bytes.clone())) {
                let word = u32::from_ne_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
                prop_assert_eq!(packet.destination, Address::v4(word));
            }
            if let Some(first) = bytes.first_mut() {
                *first = 0x60;
            }
            if let Ok(packet) = ipv6(&Slice(bytes.clone())) {
                prop_assert!(packet.protocol.0 != ROUTING && packet.protocol.0 != FRAGMENT);
            }
        }
    }
}
