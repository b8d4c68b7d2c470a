//! Denied flows as they come out of the ring buffer, and the line that is logged of each.

use opencode_egress_common::event::{DecodeError, Denial};

use aya::maps::{MapData, RingBuf};

/// Takes what is in the ring buffer now, one after the other: a record leaves it when `each` is done with it, so that
/// what ends this process between two loses none.
pub fn drain(ring: &mut RingBuf<MapData>, mut each: impl FnMut(Result<Denial, DecodeError>)) {
    while let Some(item) = ring.next() {
        each(Denial::decode(&item));
    }
}
