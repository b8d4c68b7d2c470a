//! The real opencode server, from npm, under `target/`.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::process::{ensure, root, run as run_command};

/// The version that the tests run.
pub(crate) const VERSION: &str = "1.18.33";

/// Where the real server is; it is installed when it is not there.
pub(crate) fn binary() -> Result<PathBuf> {
    let package = match std::env::consts::ARCH {
        "x86_64" => "opencode-linux-x64",
        "aarch64" => "opencode-linux-arm64",
        other => bail!("there is no opencode for {other}"),
    };
    let directory = root().join("target/tools/opencode").join(VERSION);
    let binary = directory.join("node_modules").join(package).join("bin/opencode");
    if !binary.exists() {
        ensure("the real opencode server", &[("npm", "npm")])?;
        fs::create_dir_all(&directory)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-save", "--ignore-scripts", "--prefix"]).arg(&directory);
        npm.arg(format!("{package}@{VERSION}")).stdout(Stdio::null());
        run_command(&format!("installing opencode {VERSION} from npm under target/tools"), &mut npm)?;
    }
    Ok(binary)
}
