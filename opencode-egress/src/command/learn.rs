//! `learn`: audit mode for a time.

use anyhow::Result;

use crate::{
    command::{
        args::LearnArgs,
        client::{ask, ask_status, unexpected},
        leases::sudo_user,
        print::print_line,
    },
    control::request::{Reply, Request},
    policy::lease::LeaseKind,
    report::human::{duration, local_time},
};

/// Has the daemon begin audit mode, or end it.
pub(super) fn learn(args: &LearnArgs) -> Result<()> {
    if args.stop { stop(args) } else { start(args) }
}

fn start(args: &LearnArgs) -> Result<()> {
    let request = Request::Allow {
        instance: args.name.to_string(),
        grants: LeaseKind::Audit,
        time: args.time,
        hard: false,
        reason: args.reason.clone(),
        sudo_user: sudo_user(),
    };
    let (lease, replaced, notes) = match ask(&args.read.control, &request)? {
        Reply::Granted { lease, replaced, notes } => (lease, replaced, notes),
        other => return Err(unexpected(&other)),
    };
    if args.read.json {
        return print_line(serde_json::to_string_pretty(&lease)?);
    }
    let name = &args.name;
    let how = if replaced { ", instead of the time that there was" } else { "" };
    print_line(format_args!(
        "{name}: nothing is refused until {} ({}){how}; what the policy denies, deny rules too, is told, and passes",
        local_time(lease.until),
        duration(lease.seconds)
    ))?;
    print_line(format_args!(
        "then, or after `opencode-egress learn {name} --stop`: {}",
        lease.lease.suggestion(name.as_str())
    ))?;
    notes.iter().for_each(|note| eprintln!("opencode-egress: {note}"));
    if let Some(instance) = ask_status(&args.read.control)?.instances.get(name.as_str())
        && instance.names.is_none()
    {
        eprintln!(
            "opencode-egress: {name} has no rule for a name, so nobody is asked here which names it uses, and addresses alone are learned; list one, as in \"api.example.org\", and learn then"
        );
    }
    Ok(())
}

fn stop(args: &LearnArgs) -> Result<()> {
    let name = &args.name;
    let request =
        Request::Revoke { instance: name.to_string(), grants: LeaseKind::Audit, sudo_user: sudo_user() };
    match ask(&args.read.control, &request)? {
        Reply::Revoked { lease, .. } if args.read.json => print_line(serde_json::to_string_pretty(&lease)?),
        Reply::Revoked { lease, not_reset, .. } => {
            let status = ask_status(&args.read.control)?;
            let mode = status.instances.get(name.as_str()).map(|instance| &*instance.mode);
            print_line(format_args!("{name}: {}", stopped(mode)))?;
            print_line(format_args!("what it lacks: {}", lease.lease.suggestion(name.as_str())))?;
            not_reset.iter().for_each(|what| eprintln!("opencode-egress: {what}"));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

/// What comes after it, in the mode that there is then.
fn stopped(mode: Option<&str>) -> &'static str {
    match mode {
        Some("audit") => {
            "the time is over, and audit mode goes on: the policy file says `\"mode\": \"audit\"`; take that out, and reload"
        }
        _ => "its policy is enforced again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_mode_that_goes_on_is_told() {
        assert_eq!(stopped(Some("enforce")), "its policy is enforced again");
        let says = stopped(Some("audit"));
        assert!(says.contains("audit mode goes on") && !says.contains("enforced again"), "{says}");
    }
}
