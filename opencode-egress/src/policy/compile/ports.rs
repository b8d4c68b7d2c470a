//! Ranges of ports, and what is said of each.

/// What says something about a port, the stronger later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Precedence {
    Allow,
    Deny,
    /// The instance's own listener, which is no egress.
    Own,
}

/// Ports and what is said of them: sorted, disjoint, neighbours different.
pub(super) type Ports = Vec<(PortSpan, Precedence)>;

/// First and last port.
pub(super) type PortSpan = (u16, u16);

/// Lays a range over ports; where something is said already, the stronger precedence stays.
pub(super) fn overlay(ports: &Ports, (first, last): PortSpan, precedence: Precedence) -> Ports {
    // Cut points: every start, and one past every end.
    let spans = ports.iter().map(|(span, _)| *span).chain([(first, last)]);
    let mut cuts: Vec<u32> =
        spans.flat_map(|(first, last)| [u32::from(first), u32::from(last) + 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut result: Ports = vec![];
    for pair in cuts.windows(2) {
        let (Ok(from), Ok(to)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else { continue };
        let before =
            ports.iter().find(|((a, b), _)| *a <= from && from <= *b).map(|(_, precedence)| *precedence);
        let now = (first <= from && from <= last).then_some(precedence);
        let Some(strongest) = before.max(now) else { continue };
        match result.last_mut() {
            Some((span, precedence)) if *precedence == strongest && span.1.checked_add(1) == Some(from) => {
                span.1 = to
            }
            _ => result.push(((from, to), strongest)),
        }
    }
    result
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
