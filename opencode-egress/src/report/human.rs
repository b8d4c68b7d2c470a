//! Numbers and times as people read them.

use jiff::{Timestamp, tz::TimeZone};

/// A number of things in at most five characters, as in `999`, `12.3k` or `4.0M`.
pub fn count(number: u64) -> String {
    let (scaled, prefix) = scale(number);
    if prefix.is_empty() { number.to_string() } else { format!("{scaled:.1}{prefix}") }
}

/// A number of bytes, as in `999 B`, `12.3 kB` or `4.0 MB`.
pub fn bytes(number: u64) -> String {
    let (scaled, prefix) = scale(number);
    if prefix.is_empty() { format!("{number} B") } else { format!("{scaled:.1} {prefix}B") }
}

fn scale(number: u64) -> (f64, &'static str) {
    #[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
    let mut scaled = number as f64;
    let mut prefix = "";
    for next in ["k", "M", "G", "T", "P", "E"] {
        // What would be rounded up to 1000.0 is one of the next prefix.
        if scaled < 999.95 {
            break;
        }
        (scaled, prefix) = (scaled / 1000.0, next);
    }
    (scaled, prefix)
}

/// A time in seconds since 1970, in local time as RFC 3339 has it: `2026-11-21T22:08:16+01:00`.
pub fn local_time(seconds: u64) -> String {
    in_zone(seconds, TimeZone::system())
}

fn in_zone(seconds: u64, zone: TimeZone) -> String {
    let timestamp = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let Some(timestamp) = timestamp else { return format!("{seconds} s after 1970") };
    timestamp.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// How long ago a time in seconds since 1970 was, in its largest unit: `5s ago`, `3h ago`.
pub fn ago(seconds: u64, now: u64) -> String {
    let passed = now.saturating_sub(seconds);
    match passed {
        0..60 => format!("{passed}s ago"),
        60..3600 => format!("{}m ago", passed / 60),
        3600..86_400 => format!("{}h ago", passed / 3600),
        _ => format!("{}d ago", passed / 86_400),
    }
}

/// A time in its two largest units, as one is typed: `45s`, `29m30s`, `1h5m`.
pub fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let largest = units.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(units.len() - 1);
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in units.iter().skip(largest).take(2) {
        if rest / unit > 0 || text.is_empty() {
            text += &format!("{}{name}", rest / unit);
        }
        rest %= unit;
    }
    text
}

/// Seconds since 1970.
pub fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0)
}

/// An error with everything behind it, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0, 999, 1000, 12_345, 999_949, 999_950, u64::MAX].map(count);
        assert_eq!(shown, ["0", "999", "1.0k", "12.3k", "999.9k", "1.0M", "18.4E"]);
        assert_eq!([999, 12_345, 5_000_000].map(bytes), ["999 B", "12.3 kB", "5.0 MB"]);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(in_zone(1_790_000_000, TimeZone::UTC), "2026-09-21T14:13:20+00:00");
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(in_zone(1_790_000_000, east), "2026-09-21T16:13:20+02:00");
        assert_eq!(in_zone(u64::MAX, TimeZone::UTC), "18446744073709551615 s after 1970");
    }

    #[test]
    fn ages_have_one_unit() {
        assert_eq!([100, 40, 0].map(|then| ago(then, 100)), ["0s ago", "1m ago", "1m ago"]);
        assert_eq!([0, 90_000].map(|then| ago(then, 180_000)), ["2d ago", "1d ago"]);
        assert_eq!(ago(0, 7200), "2h ago");
    }
}
