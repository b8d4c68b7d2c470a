//! Ranges of ports, and what is said of each.

/// What says something about a port, the stronger later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Precedence {
    Allow,
    Deny,
    /// The instance's own listener, which is no egress.
    Own,
}

impl Precedence {
    const FROM_STRONGEST: [Self; 3] = [Self::Own, Self::Deny, Self::Allow];
}

/// Ports and what is said of them: sorted, disjoint, neighbours different.
pub(super) type Ports = Vec<(PortSpan, Precedence)>;

/// First and last port.
pub(super) type PortSpan = (u16, u16);

/// What is said of each port by ranges in any order: where they overlap, the strongest counts. One pass over their sorted
/// ends.
pub(super) fn merge(ranges: impl IntoIterator<Item = (PortSpan, Precedence)>) -> Ports {
    let mut ends = vec![];
    for ((first, last), precedence) in ranges {
        ends.push((u32::from(first), precedence, 1));
        ends.push((u32::from(last) + 1, precedence, -1));
    }
    ends.sort_unstable();
    let mut open = [0_i32; Precedence::FROM_STRONGEST.len()];
    let mut merged: Ports = vec![];
    let mut from = 0;
    for (at, precedence, step) in ends {
        let strongest = Precedence::FROM_STRONGEST.into_iter().find(|open_one| open[*open_one as usize] > 0);
        // Ports are below 2^16, and `at` is past the last of them.
        if let (Some(strongest), Ok(first), Ok(last)) =
            (strongest, u16::try_from(from), u16::try_from(i64::from(at) - 1))
            && first <= last
        {
            match merged.last_mut() {
                Some((span, said)) if *said == strongest && span.1.checked_add(1) == Some(first) => {
                    span.1 = last
                }
                _ => merged.push(((first, last), strongest)),
            }
        }
        open[precedence as usize] += step;
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
