//! A TCP segment's place in its stream, for what follows streams.

use crate::{
    flow::{Address, Flow, Protocol},
    packet::Bytes,
};

/// What of a segment says where its bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes.
    pub destination: Address,
    /// The port there.
    pub port: u16,
    /// Its flags: those below.
    pub flags: u8,
    /// The number of its first byte, or of its SYN.
    pub sequence: u32,
    /// Where its TCP header begins in the packet.
    pub header: u32,
    /// Where its bytes begin in the packet.
    pub payload: u32,
}

/// It opens a connection, or answers one that does.
pub const SYN: u8 = 0x02;
/// It answers something.
pub const ACK: u8 = 0x10;
/// Some of its bytes are urgent: whoever takes them out of the stream reads another one than is sent.
pub const URG: u8 = 0x20;

/// The next header of IPv6 with which the kernel itself begins packets that are longer than 64 KiB.
const HOP_BY_HOP: u8 = 0;

impl Segment {
    /// Reads a packet's headers. `None`: it is no TCP segment that a socket of TCP sends.
    #[inline(always)]
    pub fn read(bytes: &impl Bytes) -> Option<Self> {
        let first = bytes.near::<0, 5>()?;
        let (destination, header) = if first[0].to_ne_bytes()[0] >> 4 == 6 {
            let words = bytes.near::<24, 4>()?;
            (Address::v6(words), behind_ipv6(bytes, first[1].to_ne_bytes()[2])?)
        } else {
            if first[2].to_ne_bytes()[1] != Protocol::TCP.0 {
                return None;
            }
            (Address::v4(first[4]), u32::from(first[0].to_ne_bytes()[0] & 0xf) * 4)
        };
        let tcp = bytes.far::<5>(header as usize)?;
        let [length, flags, ..] = tcp[3].to_ne_bytes();
        let [_, _, upper, lower] = tcp[0].to_ne_bytes();
        Some(Self {
            destination,
            port: u16::from_be_bytes([upper, lower]),
            flags,
            sequence: u32::from_be(tcp[1]),
            header,
            payload: header + u32::from(length >> 4) * 4,
        })
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// The flow that it is of.
    #[inline(always)]
    pub const fn flow(&self) -> Flow {
        Flow { address: self.destination, protocol: Protocol::TCP, port: self.port }
    }
}

#[inline(always)]
fn behind_ipv6(bytes: &impl Bytes, next: u8) -> Option<u32> {
    if next == Protocol::TCP.0 {
        return Some(40);
    }
    if next != HOP_BY_HOP {
        return None;
    }
    let [next, length, ..] = bytes.far::<1>(40)?[0].to_ne_bytes();
    (next == Protocol::TCP.0).then_some(40 + (u32::from(length) + 1) * 8)
}

/// What a SYN says of MPTCP (RFC 8684).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mptcp {
    /// Nothing: it is of TCP alone.
    None = 0,
    /// The connection can have more subflows than this one.
    Capable = 1,
    /// It is one of the others, or nobody knows.
    Joins = 2,
}

/// Reads a SYN's options. There are seven kinds that a SYN has, and some have a byte or two before them to be aligned; what has more than
/// sixteen may be anything.
#[inline(always)]
pub fn mptcp(bytes: &impl Bytes, segment: &Segment) -> Mptcp {
    if has_plain_options(bytes, segment) {
        return Mptcp::None;
    }
    let mut at = segment.header + 20;
    // Written out: of the turns of a loop the kernel's verifier forgets too soon what it saw.
    macro_rules! options {
        ($($option:literal)*) => {
            $(
                let _ = $option;
                match behind_option(bytes, at, segment.payload) {
                    IS_NONE => return Mptcp::None,
                    IS_CAPABLE => return Mptcp::Capable,
                    JOINS => return Mptcp::Joins,
                    next => at = next,
                }
            )*
        };
    }
    options!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    let _ = at;
    Mptcp::Joins
}

/// Whether a SYN has the options that Linux puts into nearly every one, and no others: the segment's size, selective acknowledgement,
/// timestamps and the window's scale. They are read at once.
#[inline(always)]
fn has_plain_options(bytes: &impl Bytes, segment: &Segment) -> bool {
    if segment.payload.wrapping_sub(segment.header) != 40 {
        return false;
    }
    let Some([size, timestamps, _, _, scale]) = bytes.far::<5>(segment.header as usize + 20) else {
        return false;
    };
    // A no-operation is what aligns the scale.
    u32::from_be(size) >> 16 == 0x0204
        && u32::from_be(timestamps) == 0x0402_080a
        && u32::from_be(scale) >> 8 == 0x01_0303
}

// What an option says instead of where the next one is.
const IS_NONE: u32 = 1 << 16;
const IS_CAPABLE: u32 = 2 << 16;
const JOINS: u32 = 3 << 16;

/// Where the option behind this one is, or what it says.
#[inline(never)]
fn behind_option(bytes: &impl Bytes, at: u32, end: u32) -> u32 {
    const MPTCP: u8 = 30;
    if at >= end {
        return IS_NONE;
    }
    // The last ones may have nothing behind them.
    let behind = (at + 4).saturating_sub(end);
    let Some(words) = bytes.far::<1>((at - behind) as usize) else { return JOINS };
    let [kind, length, subtype, _] = (u32::from_be(words[0]) << ((behind & 3) * 8)).to_be_bytes();
    match (kind, length) {
        (0, _) => IS_NONE,
        (1, _) => at + 1,
        (MPTCP, _) if subtype >> 4 == 0 => IS_CAPABLE,
        (MPTCP, _) | (_, 0 | 1) => JOINS,
        (_, length) => at + u32::from(length),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::packet::tests::Slice;

    fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
        let length = u8::try_from(5 + options.len() / 4).expect("a short one") << 4;
        let mut header =
            vec![0x9c, 0x40, 1, 0xbb, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0, length, flags, 0, 0, 0, 0, 0, 0];
        header.extend(options);
        header.extend(b"data");
        header
    }

    fn v4(options: &[u8], behind: &[u8]) -> Slice {
        let length = u8::try_from(5 + options.len() / 4).expect("a short one");
        let mut packet = vec![0x40 | length, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 203, 0, 113, 9];
        packet.extend(options);
        packet.extend(behind);
        Slice(packet)
    }

    fn v6(next: u8, behind: &[u8]) -> Slice {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([0; 16]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend(behind);
        Slice(packet)
    }

    fn address(text: &str) -> Address {
        text.parse::<core::net::IpAddr>().expect("an address").into()
    }

    #[test]
    fn a_segment_is_placed() {
        let mss = [2, 4, 5, 0xb4];
        for (packet, destination, header, options) in [
            (v4(&[], &tcp(SYN, &[])), "203.0.113.9", 20, 0),
            (v4(&[1; 8], &tcp(SYN, &mss)), "203.0.113.9", 28, 4),
            (v6(6, &tcp(SYN, &mss)), "2001:db8::2", 40, 4),
            (v6(0, &[&[6, 0, 0xc2, 4, 0, 1, 0, 0][..], &tcp(SYN, &[])].concat()), "2001:db8::2", 48, 0),
        ] {
            let segment = Segment::read(&packet).expect("a segment");
            let expected = Segment {
                destination: address(destination),
                port: 443,
                flags: SYN,
                sequence: 0x1234_5678,
                header,
                payload: header + 20 + options,
            };
            assert_eq!(segment, expected);
            assert_eq!(&packet.0[segment.payload as usize..], b"data");
            assert!(segment.opens());
        }
        assert!(!Segment::read(&v4(&[], &tcp(SYN | ACK, &[]))).expect("a segment").opens());
        let mut udp = v4(&[], &tcp(SYN, &[]));
        udp.0[9] = 17;
        assert_eq!(Segment::read(&udp), None);
        assert_eq!(Segment::read(&v6(60, &[&[6, 0, 1, 4, 0, 0, 0, 0][..], &tcp(SYN, &[])].concat())), None);
        for length in 0..40 {
            let mut cut = v4(&[], &tcp(SYN, &[]));
            cut.0.truncate(length);
            assert_eq!(Segment::read(&cut), None, "{length}");
        }
    }

    #[test]
    fn a_syn_says_what_it_has_to_do_with_mptcp() {
        let said = |options: &[u8]| {
            let packet = v4(&[], &tcp(SYN, options));
            mptcp(&packet, &Segment::read(&packet).expect("a segment"))
        };
        let without_data = |options: &[u8]| {
            let mut packet = v4(&[], &tcp(SYN, options));
            packet.0.truncate(packet.0.len() - 4);
            mptcp(&packet, &Segment::read(&packet).expect("a segment"))
        };
        assert_eq!(said(&[]), Mptcp::None);
        assert_eq!(said(&[2, 4, 5, 0xb4, 1, 1, 4, 2, 0, 30, 4, 0x10]), Mptcp::None);
        assert_eq!(said(&[2, 4, 5, 0xb4, 30, 4, 0x01, 0x81]), Mptcp::Capable);
        assert_eq!(said(&[2, 4, 5, 0xb4, 30, 12, 0x10, 1, 1, 1, 1, 1, 1, 1, 1, 1]), Mptcp::Joins);
        assert_eq!(said(&[2, 0, 5, 0xb4]), Mptcp::Joins);
        assert_eq!(said(&[1; 40]), Mptcp::Joins, "more than there are");
        assert_eq!(without_data(&[2, 4, 5, 0xb4, 1, 3, 3, 7]), Mptcp::None);
        let plain = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(said(&plain), Mptcp::None);
        assert_eq!(without_data(&plain), Mptcp::None);
        assert_eq!(said(&[&plain[..], &[30, 4, 0x01, 0x81]].concat()), Mptcp::Capable);
        // As many bytes.
        assert_eq!(said(&[&plain[..16], &[30, 4, 0x01, 0x81]].concat()), Mptcp::Capable);
        assert_eq!(said(&[&[30, 4, 0x01, 0x81], &plain[4..]].concat()), Mptcp::Capable);
        assert_eq!(
            said(&[&plain[..4], &[30, 12, 0x10, 1, 1, 1, 1, 1, 1, 1, 1, 1], &plain[16..]].concat()),
            Mptcp::Joins
        );
        assert_eq!(without_data(&[2, 4, 5, 0xb4, 30, 4, 0x01, 0x81]), Mptcp::Capable);
    }
}
