//! Denied flows as they come out of the ring buffer, and the line that is logged of each.

use opencode_egress_common::event::{DecodeError, Denial};

use aya::maps::{MapData, RingBuf};

/// Takes what is in the ring buffer now, one after the other: a record leaves it when `each` is done with it, so that
/// what ends this process between two loses none.
pub fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(Result<Denial, DecodeError>)) {
    while drain_some(ring, usize::MAX, &mut each) {}
}

/// The same for so many records at most. Returns whether it ended because of that.
pub fn drain_some(
    ring: &mut RingBuf<MapData>,
    most: usize,
    mut each: impl FnMut(Result<Denial, DecodeError>),
) -> bool {
    for _ in 0..most {
        let Some(item) = ring.next() else { return false };
        each(Denial::decode(&item));
    }
    true
}
