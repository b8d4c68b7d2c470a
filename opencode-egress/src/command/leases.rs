//! `allow`, `revoke` and `leases`.

use anyhow::{Context as _, Result, bail};
use jiff::{SignedDuration, Timestamp, Zoned, civil, fmt::temporal::Pieces};

use crate::{
    command::{
        args::{AllowArgs, LeasesArgs, RevokeArgs},
        client::{ask, unexpected},
        print::print_line,
    },
    control::request::{Reply, Request},
    policy::lease::{Lease, LeaseKind, LeaseStatus, LeaseTime, Reason},
    report::human::{duration, local_time},
};

/// Has the daemon grant a lease.
pub(super) fn allow(args: &AllowArgs) -> Result<()> {
    let time = match (&args.time, &args.until) {
        (Some(time), _) => *time,
        (None, Some(until)) => time_until(until, &Zoned::now())?,
        (None, None) => bail!("write --for TIME or --until WHEN"),
    };
    let request = Request::Allow {
        instance: args.name.to_string(),
        grants: LeaseKind::Rule(args.rule.clone()),
        time,
        hard: args.hard,
        reason: args.reason.clone(),
        sudo_user: sudo_user(),
    };
    match ask(&args.read.control, &request)? {
        Reply::Granted { lease, .. } if args.read.json => print_line(serde_json::to_string_pretty(&lease)?),
        Reply::Granted { lease, replaced, notes } => {
            let how = if replaced { ", instead of the lease that there was" } else { "" };
            let Lease { kind, hard, .. } = &lease.lease;
            print_line(format_args!(
                "{}: {kind} is allowed until {} ({}){how}",
                args.name,
                local_time(lease.until),
                duration(lease.seconds)
            ))?;
            print_line(if *hard {
                "then what began under it is ended, too"
            } else {
                "what begins under it goes on then; `opencode-egress revoke` ends it"
            })?;
            notes.iter().for_each(|note| eprintln!("opencode-egress: {note}"));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// Has the daemon end a lease.
pub(super) fn revoke(args: &RevokeArgs) -> Result<()> {
    let request = Request::Revoke {
        instance: args.name.to_string(),
        grants: LeaseKind::Rule(args.rule.clone()),
        sudo_user: sudo_user(),
    };
    match ask(&args.control, &request)? {
        Reply::Revoked { lease, until_next_packet, not_reset } => {
            print_line(format_args!("{}: {}", args.name, revoked(&lease, until_next_packet)))?;
            not_reset.iter().for_each(|what| eprintln!("opencode-egress: {what}"));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// What is over, and when that is.
fn revoked(LeaseStatus { lease, seconds, .. }: &LeaseStatus, until_next_packet: bool) -> String {
    let what = &lease.kind;
    match (seconds, until_next_packet) {
        (0, false) => format!("what began under the lease of {what}, which was over, is ended"),
        (0, true) => {
            format!("what began under the lease of {what}, which was over, ends now or at its next packet")
        }
        (_, false) => format!("the lease of {what} is over, and what began under it"),
        (_, true) => {
            format!("the lease of {what} is over; what began under it ends now or at its next packet")
        }
    }
}

/// Prints the leases in force.
pub(super) fn leases(args: &LeasesArgs) -> Result<()> {
    let instance = args.name.as_ref().map(ToString::to_string);
    let leases = match ask(&args.read.control, &Request::Leases { instance })? {
        Reply::Leases(leases) => leases,
        other => return Err(unexpected(&other)),
    };
    if args.read.json {
        return print_line(serde_json::to_string_pretty(&leases)?);
    }
    if leases.values().all(Vec::is_empty) {
        eprintln!("opencode-egress: no lease is in force");
    }
    for (instance, leases) in leases {
        leases.iter().try_for_each(|lease| print_line(format_args!("{instance}: {}", line(lease))))?;
    }
    Ok(())
}

fn line(LeaseStatus { lease, until, seconds }: &LeaseStatus) -> String {
    let Lease { kind, hard, reason, by, from, .. } = lease;
    let hard = if *hard { ", hard" } else { "" };
    let reason = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    format!(
        "{kind} until {} ({} left{hard}), granted {} by {by}{reason}",
        local_time(*until),
        duration(*seconds),
        local_time(*from)
    )
}

/// Who called sudo (sudo(8)); what is no name is nobody.
pub(super) fn sudo_user() -> Option<Reason> {
    std::env::var("SUDO_USER").ok()?.parse().ok()
}

/// From now until then.
fn time_until(text: &str, now: &Zoned) -> Result<LeaseTime> {
    let passed = || format!("{text} is in the past; it is {} now", now.strftime("%Y-%m-%d %H:%M:%S"));
    let then = match (text.parse::<Zoned>(), text.parse::<Timestamp>()) {
        (Ok(then), _) => Some(then.timestamp()),
        // One with a zone's name, too, takes no heed of it.
        (_, Ok(then)) if !text.contains('[') => Some(then),
        _ => here(text, now)?,
    };
    let then = then.with_context(|| {
        format!(
            "`{text}` is no time; write it as in 18:30, \"2026-11-26 18:30\", 2026-11-26T18:30:00+01:00 or \"2026-11-26 18:30[Europe/Berlin]\""
        )
    })?;
    // A second that has begun counts.
    let left = then.duration_since(now.timestamp()) + SignedDuration::from_millis(999);
    let seconds = u64::try_from(left.as_secs()).ok().filter(|seconds| *seconds > 0).with_context(passed)?;
    LeaseTime::try_from(seconds).with_context(|| format!("{text} is too far ahead"))
}

/// When a date and a time, or the next such time of day, is in this machine's zone. `None`: it is neither, or says another zone.
fn here(text: &str, now: &Zoned) -> Result<Option<Timestamp>> {
    let zone = now.time_zone();
    // The types for these skip an offset and a zone's name, so they would take another zone's time for this one's.
    let of_day = format!("{}T{}", now.date(), text.trim_start_matches(['T', 't']));
    let says_zone = |text: &str| {
        Pieces::parse(text)
            .is_ok_and(|pieces| pieces.offset().is_some() || pieces.time_zone_annotation().is_some())
    };
    if says_zone(text) || says_zone(&of_day) {
        return Ok(None);
    }
    // A time of day last: a date with one can be read as that, too.
    Ok(match (text.parse::<civil::DateTime>(), text.parse::<civil::Time>()) {
        (Ok(then), _) => Some(then.to_zoned(zone.clone())?.timestamp()),
        (_, Ok(time)) => {
            let on = |date: civil::Date| date.to_datetime(time).to_zoned(zone.clone());
            let today = on(now.date())?;
            let next = if today > *now { today } else { on(now.date().tomorrow()?)? };
            Some(next.timestamp())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::view::tests::lease;

    #[test]
    fn what_ends_at_its_next_packet_is_not_said_to_be_over() {
        let over = LeaseStatus { seconds: 0, ..lease() };
        let of = "the lease of 192.0.2.0/24:443/tcp";
        assert_eq!(revoked(&lease(), false), format!("{of} is over, and what began under it"));
        assert_eq!(revoked(&over, false), format!("what began under {of}, which was over, is ended"));
        let later = "ends now or at its next packet";
        assert_eq!(revoked(&lease(), true), format!("{of} is over; what began under it {later}"));
        assert_eq!(revoked(&over, true), format!("what began under {of}, which was over, {later}"));
    }

    #[test]
    fn a_time_of_day_is_the_next_one() {
        let now: Zoned = "2026-11-26T17:00:00+01:00[+01:00]".parse().expect("a time");
        let seconds =
            |text: &str| time_until(text, &now).map(LeaseTime::seconds).map_err(|error| format!("{error:#}"));
        assert_eq!(seconds("18:30"), Ok(5400));
        assert_eq!(seconds("16:59:59"), Ok(86_399));
        assert_eq!(seconds("17:00"), Ok(86_400));
        assert_eq!(seconds("2026-11-26 18:30"), Ok(5400));
        assert_eq!(seconds("2026-11-26T18:30:00Z"), Ok(9000));
        assert_eq!(seconds("2026-11-26T18:30:00+01:00"), Ok(5400));
        // A zone that is said counts, and none is skipped.
        assert_eq!(seconds("2026-11-26 18:30-05:00"), Ok(27_000));
        assert_eq!(seconds("2026-11-26 18:30[Europe/London]"), Ok(9000));
        assert_eq!(
            seconds("2026-11-26 06:00[America/New_York]").map_err(|_| ()),
            Err(()),
            "it is past there"
        );
        assert_eq!(seconds("2026-11-26 13:00[America/New_York]"), Ok(7200));
        let error = |text: &str| seconds(text).expect_err("an error");
        assert!(error("2026-11-26 16:00").contains("in the past; it is 2026-11-26 17:00:00 now"));
        assert!(error("2026-11-27 17:01").contains("24 hours at most"), "{}", error("2026-11-27 17:01"));
        assert!(error("2026-11-26").contains("in the past"));
        for none in [
            "soon",
            "18:30+01:00",
            "18:30-05:00",
            "T18:30+01:00",
            "T1830-05",
            "18:30Z",
            "18:30 CET",
            "18:30[Europe/London]",
            "18:30+01:00[Europe/Berlin]",
            "2026-11-26+01:00",
            "2026-11-26 18:30[Nowhere/Else]",
            "2026-11-26T18:30:00+05:00[Europe/Berlin]",
        ] {
            assert!(error(none).contains("is no time; write it as in 18:30"), "{none}: {}", error(none));
        }
    }
}
