//! Values of which the verifier does not know what they are.
//!
//! It follows every combination of the values that it knows, through all that comes after: a family of two, a protocol of three and
//! a flag are twelve programs to it. What has gone through here is one.

use core::mem::transmute;

use opencode_egress_common::{
    flow::{Address, Family, Flow, Protocol},
    packet::Packet,
    reason::{DropReason, Hook},
};

/// How two words differ; 0 for not at all. The compiler does not see what this does, or it would make a branch of each comparison, and
/// the verifier follows every combination of branches.
#[inline(always)]
pub(crate) fn difference(one: u32, other: u32) -> u64 {
    let mut difference = u64::from(one);
    // SAFETY: one instruction on the named registers.
    unsafe {
        core::arch::asm!("{one} ^= {other}", one = inout(reg) difference, other = in(reg) u64::from(other));
    }
    difference
}

/// The same number, of which the verifier knows nothing, as it does not of `noise`: a number of 32 bits that comes from outside.
#[inline(always)]
pub(crate) fn opaque(number: u32, noise: u32) -> u32 {
    difference(difference(number, noise) as u32, noise) as u32
}

#[inline(always)]
fn address(address: Address, noise: u32) -> Address {
    address.hidden(
        // SAFETY: it is the number that it was.
        |family| unsafe { transmute::<u8, Family>(opaque(family as u32, noise) as u8) },
        |word| opaque(word, noise),
    )
}

#[inline(always)]
fn protocol(protocol: Protocol, noise: u32) -> Protocol {
    Protocol(opaque(u32::from(protocol.0), noise) as u8)
}

/// The same for what is known of a flow.
#[inline(always)]
pub(crate) fn flow(flow: Flow, noise: u32) -> Flow {
    Flow {
        address: address(flow.address, noise),
        protocol: protocol(flow.protocol, noise),
        port: opaque(u32::from(flow.port), noise) as u16,
    }
}

/// The same for the hook that judged.
#[inline(always)]
pub(crate) fn hook(hook: Hook, noise: u32) -> Hook {
    // SAFETY: it is the number that it was.
    unsafe { transmute::<u8, Hook>(opaque(hook as u32, noise) as u8) }
}

/// The same for a reason.
#[inline(always)]
pub(crate) fn reason(reason: DropReason, noise: u32) -> DropReason {
    // SAFETY: as above.
    unsafe { transmute::<u8, DropReason>(opaque(reason as u32, noise) as u8) }
}

/// The same for what is known of a packet.
#[inline(always)]
pub(crate) fn packet(packet: Packet, noise: u32) -> Packet {
    Packet {
        source: address(packet.source, noise),
        destination: address(packet.destination, noise),
        protocol: protocol(packet.protocol, noise),
        source_port: opaque(u32::from(packet.source_port), noise) as u16,
        destination_port: opaque(u32::from(packet.destination_port), noise) as u16,
        // SAFETY: it is the number that it was.
        opens: unsafe { transmute::<u8, bool>(opaque(u32::from(packet.opens), noise) as u8) },
    }
}
