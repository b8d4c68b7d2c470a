//! `demo`: the main job on a real systemd, told step by step.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{daemon, machine::Machine, scenarios::MAIN_JOB};

/// Builds the daemon, boots a machine with it, and tells the main job step by step.
pub(crate) fn run() -> Result<()> {
    if let Some(why) = Machine::impossible() {
        bail!("no demo: {why}");
    }
    let binary = daemon::build()?;
    let begin = Instant::now();
    println!(
        "A machine: real systemd as pid 1 of fresh namespaces, over a throw-away copy of this root (192.0.2.1).\n\
         A second host behind a veth (192.0.2.10, .20, .30, .40 and the same in 2001:db8::/64), which witnesses what arrives; its server for \
         names, at .30, knows every name.\n"
    );
    let mut machine = Machine::boot(&binary)?;
    for (index, scenario) in MAIN_JOB.iter().enumerate() {
        println!("{}. {}", index + 1, scenario.title);
        let tell = |text: &str| text.trim_end().lines().for_each(|line| println!("   {line}"));
        (scenario.run)(&mut machine, &tell).with_context(|| format!("step {}", index + 1))?;
        println!();
    }
    println!("Done in {:.0} s. Everything of it is gone again.", begin.elapsed().as_secs_f32());
    Ok(())
}
