//! What a policy costs, measured beside no policy, idle programs, systemd and nftables.
//!
//! The whole measurement runs under a systemd of its own, in fresh namespaces (`boot`), because systemd's
//! own programs are one of the things compared. Every subject is a service in the same slice with a network
//! namespace of its own (`measure`); its process (`worker`) makes its sockets after the policy is in force
//! and runs a short batch of one operation whenever it is told to. Batches of all subjects take turns, so that
//! whatever disturbs the machine disturbs them alike, and the table has medians.

mod boot;
mod floor;
mod measure;
mod networks;
mod scale;
mod subject;
mod table;
mod worker;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// What a policy costs.
#[derive(Parser, Clone)]
pub(crate) struct Args {
    /// How often every subject is set up afresh
    #[arg(long, default_value_t = 5)]
    setups: usize,
    /// Batches of each operation after each set-up
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Only the subjects whose names begin with one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave out the times of installing, reloading and attaching
    #[arg(long)]
    no_scale: bool,
    /// Write the report here instead of to the standard output
    #[arg(long)]
    report: Option<PathBuf>,
    /// `cargo bench` passes it
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(clap::Subcommand, Clone)]
enum Role {
    /// Measures; runs as a service of the systemd that was booted for it
    #[command(hide = true)]
    Measure,
    /// The process that is measured
    #[command(hide = true)]
    Worker { name: String, destination: std::net::Ipv4Addr },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        None => boot::run(&args),
        Some(Role::Measure) => {
            let mut report = table::of(&measure::subjects(&args)?);
            if !args.no_scale {
                report += &scale::measure()?;
            }
            std::fs::write(boot::RESULT, report)?;
            Ok(())
        }
        Some(Role::Worker { name, destination }) => worker::serve(name, *destination),
    }
}
