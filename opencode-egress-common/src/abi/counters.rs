//! What is counted of each instance: what it sent and what was refused to it.

use super::REASON_SLOTS;

/// Packets (or refused operations) and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Counter {
    /// How many.
    pub packets: u64,
    /// Their IP length; 0 for refused operations, which never became packets.
    pub bytes: u64,
}

impl Counter {
    /// All of them together.
    pub fn sum<'a>(counters: impl IntoIterator<Item = &'a Self>) -> Self {
        counters.into_iter().fold(Self::default(), |sum, counter| Self {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        })
    }
}

/// What was refused to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Denied {
    /// By drop reason's number.
    pub reasons: [Counter; REASON_SLOTS],
    /// Events that found no room in the ring buffer.
    pub lost: u64,
    /// Denials folded into an earlier event of the same destination.
    pub folded: u64,
    /// Denials left out by the rate limit.
    pub limited: u64,
    /// Rate limiter's state: the time at which the bucket is full again, monotonic ns.
    pub bucket: u64,
    /// Events that were put into the ring buffer.
    pub events: u64,
    /// Denials that were remembered for the first time.
    pub remembered: u64,
    /// Requests for a reset that were put into their ring buffer.
    pub resets: u64,
}

impl Default for Denied {
    fn default() -> Self {
        Self {
            reasons: [Counter::default(); REASON_SLOTS],
            lost: 0,
            folded: 0,
            limited: 0,
            bucket: 0,
            events: 0,
            remembered: 0,
            resets: 0,
        }
    }
}

/// What an instance sent and what was refused to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// What passed.
    pub allowed: Counter,
    /// What did not.
    pub denied: Denied,
}
