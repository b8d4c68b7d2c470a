//! The project's own tasks, one file each. `cargo xtask help` lists them.

mod assets;
mod bench;
mod build_ebpf;
mod clients;
mod config_test;
mod daemon;
mod demo;
mod endurance;
mod fuzz;
mod harness;
mod hellos;
mod machine;
mod offline;
mod opencode;
mod pins;
mod probe;
mod process;
mod render;
mod scenarios;
mod soak;
#[cfg(test)]
mod storeys;
mod suites;
mod test;
#[cfg(test)]
mod units;
mod upgrade;
mod upstreams;
mod vm_test;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", version, max_term_width = 100)]
enum Task {
    /// Measure what a policy costs, beside systemd and nftables, and write docs/performance.md
    Bench(bench::Args),
    /// Build the eBPF object, installing what that takes
    BuildEbpf(build_ebpf::Args),
    /// Run real clients under names, listed and not, and write how they take a refusal into docs/names.md
    Clients(clients::Args),
    /// Give opencode.json as Nix writes it to the real server, and compare what it understood
    ConfigTest,
    /// Show the main job: two real opencode servers on a real systemd, each under its own list
    Demo,
    /// Write what the NixOS module makes of example hosts into vm-tests/rendered; NIXPKGS names nixpkgs, or its lib
    Render,
    /// Do for long on a machine what the tests do for a moment, and watch what gets out
    Soak(soak::Args),
    /// Feed random bytes to what reads the bytes of others
    Fuzz(fuzz::Args),
    /// Have real programs make the TLS hellos that the reader's tests have
    Hellos(hellos::Args),
    /// Run real test suites and servers that talk to themselves, under an empty list
    Suites(suites::Args),
    /// Run the tests, installing what they take
    Test(test::Args),
    /// Build object and daemon from vendored sources, without a network
    TestOffline,
    /// Run the scenarios of vm-tests on real systemd; or the hook tests on other kernels
    VmTest(vm_test::Args),
    /// Boot a machine for a script; `vm-test` starts it
    #[command(hide = true)]
    Machine {
        /// What is copied over the machine's root
        files: PathBuf,
        /// The daemon
        binary: PathBuf,
        /// What its root is a copy of, if not this machine's
        root: Option<PathBuf>,
    },
    /// Try what is allowed and what is not; the machine tests start it in units
    #[command(hide = true, subcommand)]
    Probe(probe::Args),
    /// Serve HTTP on the second host; the machine tests start it
    #[command(hide = true)]
    Upstreams { addresses: Vec<IpAddr> },
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Bench(args) => bench::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args).map(drop),
        Task::Clients(args) => clients::run(&args),
        Task::Suites(args) => suites::run(&args),
        Task::ConfigTest => config_test::run(),
        Task::Demo => demo::run(),
        Task::Machine { files, binary, root } => machine::serve(&files, &binary, root.as_deref()),
        Task::Probe(args) => probe::run(&args),
        Task::Render => render::run(),
        Task::Soak(args) => soak::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Hellos(args) => hellos::run(&args),
        Task::Test(args) => test::run(&args),
        Task::TestOffline => offline::run(),
        Task::VmTest(args) => vm_test::run(&args),
        Task::Upstreams { addresses } => upstreams::run(&addresses),
    }
}
