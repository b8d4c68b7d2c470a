//! `soak`: what a test has no time for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{daemon, endurance::Probes, machine::Machine, scenarios, upgrade};

/// What to do, and how often or for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Mix restarts, reloads, kills of daemon and resolver, floods, names and legitimate traffic for so long
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Restart two units so many times, with a reload in between
    #[arg(long, value_name = "N")]
    restarts: Option<usize>,
    /// Start a unit that ends at once so many times
    #[arg(long, value_name = "N")]
    starts: Option<usize>,
    /// Upgrade from the daemon before there were names, and back, so many times
    #[arg(long, value_name = "N")]
    upgrades: Option<usize>,
    /// Resolve so many fresh names, and connect to them
    #[arg(long, value_name = "N")]
    names: Option<usize>,
    /// Keep a flow for so many minutes whose address came by an answer that is good for a second
    #[arg(long, value_name = "N")]
    flow_minutes: Option<u64>,
}

/// Fails at the first leaked, wrongly denied or uncounted packet.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { minutes, restarts, starts, upgrades, names, flow_minutes } = args;
    let times = [minutes, flow_minutes];
    if times.iter().all(|time| time.is_none())
        && [restarts, starts, upgrades, names].iter().all(|count| count.is_none())
    {
        bail!(
            "nothing to do; say --minutes N, --flow-minutes N, --restarts N, --starts N, --upgrades N or --names N"
        );
    }
    if let Some(why) = Machine::impossible() {
        bail!("no soak: {why}");
    }
    let mut machine = Machine::boot(&daemon::build()?)?;
    machine.succeed(&["systemctl", "start", "opencode-egress"])?;
    let begin = Instant::now();
    let told = |what: String| println!("{what} in {:.0} s", begin.elapsed().as_secs_f32());
    if let Some(count) = upgrades {
        upgrade::upgrades(&mut machine, *count)?;
        told(format!("ok     {count} upgrades, and as many back: nothing leaked, nothing wrongly denied"));
    }
    if let Some(count) = names {
        let seen = scenarios::race_of_names(&mut machine, *count)?;
        told(format!("ok     {count} fresh names: none refused; {seen}"));
    }
    if let Some(minutes) = flow_minutes {
        let seen = scenarios::long_flow(&mut machine, *minutes)?;
        told(format!("ok     a flow of {minutes} minutes over an answer of one second; {seen}"));
    }
    if minutes.is_none() && restarts.is_none() && starts.is_none() {
        return Ok(());
    }
    let mut probes = Probes::install(&mut machine)?;
    if let Some(count) = starts {
        probes.starts(*count)?;
        told(format!("ok     {count} starts and stops left nothing behind"));
    }
    if let Some(count) = restarts {
        probes.restarts(*count)?;
        told(format!(
            "ok     {count} restarts with reloads: nothing leaked, nothing wrongly denied, all counted"
        ));
    }
    if let Some(minutes) = minutes {
        let mixed = probes.mixed(Duration::from_secs(60 * minutes))?;
        told(format!(
            "ok     {} rounds of everything: nothing leaked, nothing wrongly denied, all counted; the daemon had {} KiB resident, and {} KiB after {} rounds more,",
            mixed.rounds, mixed.first, mixed.last, mixed.undisturbed
        ));
    }
    Ok(())
}
