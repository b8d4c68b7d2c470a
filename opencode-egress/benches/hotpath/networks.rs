//! The lists that are measured: the same networks for everyone.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Denied by every list.
pub(crate) const DENIED: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

/// `count` disjoint networks, half of them spread over 127/8 and half over 10/8.
pub(crate) fn networks(count: usize) -> Vec<Ipv4Net> {
    let inner = inner(count);
    let spread = |first, count| (0..count).map(move |index| network(first, index, count));
    spread(127, inner).chain(spread(10, count - inner)).collect()
}

/// An address in one of them, two thirds down the ones in 127/8.
pub(crate) fn destination(count: usize) -> Ipv4Addr {
    let inner = inner(count);
    let network = network(127, inner * 2 / 3, inner);
    Ipv4Addr::from_bits(network.network().to_bits() + 1)
}

fn inner(count: usize) -> usize {
    count.div_ceil(2)
}

/// The `index`th of `count` networks of four addresses, evenly spread over a /8.
fn network(first: u8, index: usize, count: usize) -> Ipv4Net {
    let step = (1 << 24) / (count + 1) / 4 * 4;
    let offset = u32::try_from((index + 1) * step).unwrap_or(u32::MAX);
    Ipv4Net::new_assert(Ipv4Addr::from_bits(u32::from(first) << 24 | offset), 30)
}
