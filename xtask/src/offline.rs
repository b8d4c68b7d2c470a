//! `test-offline`: object and daemon build from vendored sources, without a network and without anything that cargo
//! fetched before. That is what a Nix build does.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    process::{output, root, run as run_command},
};

/// Vendors, copies what the Nix package has of the tree, and builds both in a namespace without a network.
pub(crate) fn run() -> Result<()> {
    // What has to be there besides: the compiler and the linker.
    build_ebpf::run(&build_ebpf::Args::default())?;
    let rustc = build_ebpf::compiler(&build_ebpf::Args::default())?;
    let sysroot =
        output(Command::new(&rustc).args(["--print", "sysroot"])).context("rustc has no sysroot")?;
    let place = root().join("target/offline");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    let (vendor, tree, home) = (place.join("vendor"), place.join("tree"), place.join("cargo-home"));
    fs::create_dir_all(&tree)?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());

    // The standard library's own dependencies belong to it: cargo resolves all of its workspace for `core`.
    let mut vendoring = Command::new(&cargo);
    vendoring.current_dir(root()).args(["vendor", "--quiet", "--versioned-dirs", "--locked", "--sync"]);
    vendoring.arg(format!("{sysroot}/lib/rustlib/src/rust/library/Cargo.toml")).arg(&vendor);
    // The library's manifest uses unstable keys.
    run_command("vendoring every dependency", vendoring.env("RUSTC_BOOTSTRAP", "1"))?;

    // As a flake has them: files that Git knows, and of these what the package takes.
    let sources = root().join("nixos/package-sources.json");
    let sources: Vec<String> = serde_json::from_str(&fs::read_to_string(&sources)?)
        .with_context(|| format!("{} is no list of names", sources.display()))?;
    let mut copy = Command::new("sh");
    copy.current_dir(root()).args([
        "-c",
        "tree=$1; shift; git ls-files -z --cached -- \"$@\" | xargs -0 cp --parents -t \"$tree\"",
        "sh",
    ]);
    run_command("copying the package's sources", copy.arg(&tree).args(&sources))?;
    let config = tree.join(".cargo/config.toml");
    let own = fs::read_to_string(&config)?;
    let replacement = format!(
        "{own}\n[source.crates-io]\nreplace-with = \"vendored\"\n\n[source.vendored]\ndirectory = {:?}\n",
        vendor.display().to_string()
    );
    fs::write(&config, replacement)?;

    let path = env::var("PATH").unwrap_or_default();
    let offline = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.current_dir(&tree).arg("--net").arg(&cargo).args(words);
        command.env("CARGO_HOME", &home).env("CARGO_NET_OFFLINE", "true").env_remove("CARGO_TARGET_DIR");
        command.env("OPENCODE_EGRESS_RUSTC", &rustc);
        // Nobody looks for faults in what it builds.
        command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        command.env("PATH", format!("{}:{path}", root().join("target/tools/bin").display()));
        command
    };
    run_command(
        "building the object without a network",
        &mut offline(&["xtask", "build-ebpf", "--offline"]),
    )?;
    // As a packager does: the object is somewhere else.
    let handed = place.join("handed-over.o");
    fs::rename(tree.join("target/ebpf/opencode-egress-ebpf.o"), &handed)?;
    let mut build = offline(&["build", "--quiet", "--offline"]);
    build.env("OPENCODE_EGRESS_EBPF_OBJECT", &handed);
    run_command("building the daemon without a network, with the object handed to it", &mut build)?;
    println!("ok     object and daemon build from vendored sources without a network");
    Ok(())
}
