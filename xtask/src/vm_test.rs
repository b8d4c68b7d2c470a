//! `vm-test`: the whole system, scenario by scenario; or the hook tests on other kernels.

mod debian;
mod emulated;
mod kernels;
mod qemu;
pub(crate) mod roots;
pub(crate) mod script;
mod scripts;
mod steps;
pub(crate) mod verification;

use anyhow::Result;
use clap::ValueEnum as _;

use self::{debian::Kernel, roots::Root};

/// What to run, and on what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the hook tests on this kernel, in an emulated machine, and not the scenarios on this one
    #[arg(long = "kernel", value_enum, conflicts_with = "all_kernels")]
    kernels: Vec<Kernel>,
    /// On every kernel, one after the other
    #[arg(long)]
    all_kernels: bool,
    /// Run the scenarios on this root only, and its systemd; on every one by default
    #[arg(long = "root", value_enum, conflicts_with_all = ["kernels", "all_kernels"])]
    roots: Vec<Root>,
    /// Run scenarios in an emulated machine with Debian 13, where every controller is in the unified hierarchy of cgroups
    #[arg(long, conflicts_with_all = ["kernels", "all_kernels", "roots"], requires = "names")]
    emulated: bool,
    /// Only scenarios or tests with one of these in their names
    names: Vec<String>,
}

/// Runs the scenarios here, or the hook tests on other kernels.
pub(crate) fn run(args: &Args) -> Result<()> {
    let kernels = if args.all_kernels { Kernel::value_variants() } else { &args.kernels };
    if args.emulated {
        emulated::run(&args.names)
    } else if kernels.is_empty() {
        scripts::run(&args.roots, &args.names)
    } else {
        kernels::run(kernels, &args.names)
    }
}
