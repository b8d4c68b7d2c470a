//! Building the daemon, object first.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    build_ebpf,
    process::{root, run},
};

/// Builds the object of the present sources, and the daemon with it.
pub(crate) fn build() -> Result<PathBuf> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    with_object()
}

/// Builds the daemon with the object that is there, and returns where it is.
pub(crate) fn with_object() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--quiet", "--release", "--package", "opencode-egress"]);
    run("building the daemon", &mut cargo)?;
    Ok(root().join("target/release/opencode-egress"))
}
