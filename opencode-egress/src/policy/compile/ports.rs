//! Ranges of ports, and what is said of each.

use opencode_egress_common::abi::Grant;

/// What is said of a port: by allow rules, by deny rules, by listeners of the instance's, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Said(u8);

impl Said {
    pub(super) const ALLOW: Self = Self(1);
    pub(super) const DENY: Self = Self(2);
    /// A listener of the instance's has the port: a connection to it is no egress, if the instance's own socket takes it.
    pub(super) const OWN: Self = Self(4);
    const EACH: [Self; 3] = [Self::ALLOW, Self::DENY, Self::OWN];

    fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    /// What becomes of it: an own listener before deny before allow.
    pub(super) fn grant(self) -> Grant {
        match (self.has(Self::OWN), self.has(Self::DENY), self.has(Self::ALLOW)) {
            (true, true, _) => Grant::OWN_OVER_DENY,
            (true, false, false) => Grant::OWN,
            (false, true, _) => Grant::DENY,
            (_, false, true) => Grant::ALLOW,
            (false, false, false) => Grant::NONE,
        }
    }
}

/// Ports and what is said of them: sorted, disjoint, neighbours different.
pub(super) type Ports = Vec<(PortSpan, Said)>;

/// First and last port.
pub(super) type PortSpan = (u16, u16);

/// What is said of each port by ranges in any order, all of it together. One pass over their sorted ends.
pub(super) fn merge(ranges: impl IntoIterator<Item = (PortSpan, Said)>) -> Ports {
    let mut ends = vec![];
    for ((first, last), said) in ranges {
        ends.push((u32::from(first), said, 1));
        ends.push((u32::from(last) + 1, said, -1));
    }
    ends.sort_unstable();
    let mut open = [0_i32; Said::EACH.len()];
    let mut merged: Ports = vec![];
    let mut from = 0;
    for (at, ending, step) in ends {
        let opened = Said::EACH.iter().zip(open).filter(|(_, count)| *count > 0);
        let together = Said(opened.fold(0, |bits, (one, _)| bits | one.0));
        // Ports are below 2^16, and `at` is past the last of them.
        if let (Ok(first), Ok(last)) = (u16::try_from(from), u16::try_from(i64::from(at) - 1))
            && first <= last
            && together != Said(0)
        {
            match merged.last_mut() {
                Some((span, said)) if *said == together && span.1.checked_add(1) == Some(first) => {
                    span.1 = last
                }
                _ => merged.push(((first, last), together)),
            }
        }
        for (one, count) in Said::EACH.iter().zip(&mut open) {
            *count += if ending.has(*one) { step } else { 0 };
        }
        from = at;
    }
    merged
}

/// The fewest prefixes that make up a port range.
pub(super) fn prefixes_of((first, last): PortSpan) -> Vec<(u16, u8)> {
    let (mut from, end) = (u32::from(first), u32::from(last) + 1);
    let mut prefixes = vec![];
    while from < end {
        let mut bits = from.trailing_zeros().min(16);
        while from + (1 << bits) > end {
            bits -= 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 2^16, and at most 16")]
        prefixes.push((from as u16, 16 - bits as u8));
        from += 1 << bits;
    }
    prefixes
}
