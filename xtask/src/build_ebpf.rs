//! `build-ebpf`: the eBPF object, from source, on a machine that may have nothing for it yet.
//!
//! It takes a linker for eBPF, which is installed under `target/`, and a compiler that has the sources of
//! `core`, because no toolchain ships it compiled for this target.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{apt_install, output, root, run as run_command},
    render,
};

/// The oldest bpf-linker that will do, and the one that is installed where there is none.
const LINKER_VERSION: &str = "0.10.3";
const TARGET: &str = "bpfel-unknown-none";
/// The instruction set: 32-bit arithmetic and jumps, which every supported kernel has (5.1).
const CPU: &str = "v3";

/// How to build the object.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Use only what is here: vendored sources, a linker in PATH, a compiler with sources
    #[arg(long)]
    offline: bool,
    /// Build in the debug messages (aya-log); for development only
    #[arg(long)]
    log: bool,
}

/// Builds the object and returns where it is.
pub(crate) fn run(args: &Args) -> Result<PathBuf> {
    let root = root();
    let rustc = compiler(args)?;
    let linker = linker(&root, args, &rustc)?;
    let directory = root.join("target/ebpf");
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        format!("-Ctarget-cpu={CPU}"),
    ];
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&root).args(["build", "--quiet", "--package", "opencode-egress-ebpf"]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core", "--profile", "ebpf", "--target-dir"]);
    cargo.arg(&directory).env("RUSTC", &rustc).env("RUSTC_BOOTSTRAP", "1");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if args.offline {
        cargo.arg("--offline");
    }
    if args.log {
        cargo.args(["--features", "log"]);
    }
    run_command(&format!("building the eBPF object with {}", rustc.display()), &mut cargo)?;
    let built = directory.join(TARGET).join("ebpf/opencode-egress-ebpf");
    let object = directory.join("opencode-egress-ebpf.o");
    let new = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // Written again where the daemon's build, which compares times, would not take it; else left alone, for that build begins anew with it.
    if !fs::read(&object).is_ok_and(|old| old == new) || older_than_sources(&object)? {
        fs::write(&object, new).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}

/// Whether the object is older than one of the files that `opencode-egress/build.rs` compares it with.
fn older_than_sources(object: &Path) -> Result<bool> {
    let mut files = vec![root().join("opencode-egress-ebpf/Cargo.toml")];
    for directory in ["opencode-egress-ebpf/src", "opencode-egress-common/src"] {
        render::collect(&root().join(directory), &mut files)?;
    }
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let made = modified(object)?;
    Ok(files.iter().any(|file| modified(file).is_ok_and(|changed| changed > made)))
}

/// A compiler with the sources of its library: one that is named, one in a toolchain, the system's, or Debian's
/// pair of packages.
pub(crate) fn compiler(args: &Args) -> Result<PathBuf> {
    if let Some(rustc) = env::var_os("OPENCODE_EGRESS_RUSTC") {
        let rustc = PathBuf::from(rustc);
        if !has_sources(&rustc) {
            bail!("OPENCODE_EGRESS_RUSTC={} has no library sources in its sysroot", rustc.display());
        }
        return Ok(rustc);
    }
    let nightly = output(Command::new("rustup").args(["which", "rustc", "--toolchain", "nightly"]));
    let current = output(Command::new("rustup").args(["which", "rustc"]));
    let candidates = [nightly, current, Some("rustc".into()), Some("/usr/bin/rustc".into())];
    let found = candidates.into_iter().flatten().map(PathBuf::from).find(|rustc| has_sources(rustc));
    if let Some(rustc) = found {
        return Ok(rustc);
    }
    if !args.offline && output(Command::new("apt-get").arg("--version")).is_some() {
        let installed = apt_install("a compiler with library sources", &["rustc-web", "rust-web-src"]);
        let debian = PathBuf::from("/usr/bin/rustc");
        if installed.is_ok() && has_sources(&debian) {
            return Ok(debian);
        }
    }
    bail!(
        "no rustc with library sources: run `rustup toolchain install nightly --component rust-src`, or name one in OPENCODE_EGRESS_RUSTC"
    )
}

fn has_sources(rustc: &Path) -> bool {
    output(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|sysroot| {
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    })
}

/// The linker: ours under `target/`, one in PATH that is not older, or a fresh one. It loads the LLVM of
/// the compiler that it is built with, so that is the same compiler.
fn linker(root: &Path, args: &Args, rustc: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let ours = tools.join("bin/bpf-linker");
    for linker in [ours.as_path(), Path::new("bpf-linker")] {
        if output(Command::new(linker).arg("--version")).is_some_and(|said| suffices(&said)) {
            return Ok(linker.to_owned());
        }
    }
    if args.offline {
        bail!("no bpf-linker {LINKER_VERSION} or newer in PATH; install one, or leave out --offline");
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "--quiet", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"]);
    cargo.arg(&tools).env("RUSTC", rustc);
    run_command(
        &format!("installing bpf-linker {LINKER_VERSION} under target/tools (some minutes, once)"),
        &mut cargo,
    )?;
    Ok(ours)
}

/// Whether a linker that says this of itself, `bpf-linker 0.10.3`, is new enough.
fn suffices(said: &str) -> bool {
    let found = said.strip_prefix("bpf-linker ").and_then(version);
    found.is_some_and(|found| Some(found) >= version(LINKER_VERSION))
}

/// Major, minor and patch version.
fn version(text: &str) -> Option<[u32; 3]> {
    let numbers: Option<Vec<u32>> = text.split('.').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::{LINKER_VERSION, suffices};

    #[test]
    fn a_linker_of_this_version_or_a_newer_one_will_do() {
        assert!(suffices(&format!("bpf-linker {LINKER_VERSION}")));
        for newer in ["bpf-linker 0.10.12", "bpf-linker 0.11.0", "bpf-linker 1.0.0"] {
            assert!(suffices(newer), "{newer}");
        }
        let others =
            ["bpf-linker 0.10.2", "bpf-linker 0.9.15", "bpf-linker 0.11", "bpf-linker", "other 1.0.0", ""];
        for refused in others {
            assert!(!suffices(refused), "{refused}");
        }
    }
}
