//! The commands of rules, and of audit mode, that end by themselves.

use clap::Args;

use super::asking::{ControlArgs, ReadArgs};
use crate::policy::{
    InstanceName,
    lease::{LeaseRule, LeaseTime, Reason},
};

/// Arguments of `learn`.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// The instance
    pub name: InstanceName,
    /// For how long, as in 90s, 30m, 1h30m or 1d, which is the longest
    #[arg(long = "for", value_name = "TIME", default_value = "1d", conflicts_with = "stop")]
    pub time: LeaseTime,
    /// End it before its time
    #[arg(long)]
    pub stop: bool,
    /// Why, for the log: one line of at most 400 bytes
    #[arg(long, value_name = "TEXT", conflicts_with = "stop")]
    pub reason: Option<Reason>,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `allow`.
#[derive(Debug, Args)]
#[group(id = "end", required = true, multiple = false, args = ["time", "until"])]
pub struct AllowArgs {
    /// The instance
    pub name: InstanceName,
    /// A network or a name, for TCP and UDP, as in 10.10.0.0/16, 203.0.113.0/24:443,8000-8100/tcp, [2001:db8::/32]:443, api.example.org
    /// (which is TCP 443), github.com:22,443 or *.example.net
    pub rule: LeaseRule,
    /// For how long, as in 90s, 30m, 1h30m or 1d, which is the longest. A change of the clock does not change it, and the time that the
    /// machine is suspended counts
    #[arg(long = "for", value_name = "TIME")]
    pub time: Option<LeaseTime>,
    /// Until when, as in 18:30, "2026-11-26 18:30", 2026-11-26T18:30:00+01:00 or "2026-11-26 18:30[Europe/Berlin]"; at most a day ahead.
    /// It counts as the time from now until then: a later change of the clock does not change that
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// At its end, end what began under it, too
    #[arg(long)]
    pub hard: bool,
    /// Why, for the log: one line of at most 400 bytes
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<Reason>,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The instance
    pub name: InstanceName,
    /// The lease's rule. One that ended counts, too: what goes on that began under it is ended
    pub rule: LeaseRule,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `leases`.
#[derive(Debug, Args)]
pub struct LeasesArgs {
    /// Only this instance's
    pub name: Option<InstanceName>,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}
