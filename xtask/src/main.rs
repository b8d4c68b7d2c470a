//! The project's own tasks, one file each. `cargo xtask help` lists them.

mod build_ebpf;
mod process;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Parser;

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Build the eBPF object, installing what that takes
    BuildEbpf(build_ebpf::Args),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::BuildEbpf(args) => build_ebpf::run(&args).map(drop),
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
