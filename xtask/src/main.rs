//! The project's own tasks, one file each. `cargo xtask help` lists them.

mod bench;
mod build_ebpf;
mod daemon;
mod demo;
mod machine;
mod offline;
mod process;
mod scenarios;
mod test;
mod upstreams;
mod vm_test;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Measure what a policy costs, beside systemd and nftables, and write docs/performance.md
    Bench(bench::Args),
    /// Build the eBPF object, installing what that takes
    BuildEbpf(build_ebpf::Args),
    /// Show the main job: two real opencode servers on a real systemd, each under its own list
    Demo,
    /// Run the tests, installing what they take
    Test(test::Args),
    /// Build object and daemon from vendored sources, without a network
    TestOffline,
    /// Run the hook tests on another kernel, in an emulated machine
    VmTest(vm_test::Args),
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
        Task::Demo => demo::run(),
        Task::Test(args) => test::run(&args),
        Task::TestOffline => offline::run(),
        Task::VmTest(args) => vm_test::run(&args),
        Task::Upstreams { addresses } => upstreams::run(&addresses),
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
