//! `render`: what the module makes of the hosts in `nixos/examples` and `vm-tests/hosts`, as files. They are committed, so that
//! tests can start them where there is no Nix; hashes of what they are made from and of themselves tell when they are stale, or
//! were written by hand.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::process::{ensure as ensure_program, root};

/// Where the rendered files are: a directory for each host.
pub(crate) fn directory() -> PathBuf {
    root().join("vm-tests/rendered")
}

/// Renders, and writes the option reference and nginx' templates.
pub(crate) fn run() -> Result<()> {
    let hosts: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&evaluate("nixos/render.nix")?)?;
    let directory = directory();
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    for (host, files) in &hosts {
        for (path, text) in files {
            let file = directory.join(host).join(path.trim_start_matches('/'));
            fs::create_dir_all(file.parent().unwrap_or(&directory))?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        }
        println!("{host}: {} files", files.len());
    }
    fs::write(options(), serde_json::from_str::<String>(&evaluate("nixos/options-doc.nix")?)?)?;
    let templates: BTreeMap<String, String> = serde_json::from_str(&evaluate("nixos/templates.nix")?)?;
    for (name, text) in templates {
        fs::write(root().join("dist").join(name), text)?;
    }
    fs::write(hashes(), format!("{}\n{}\n", digest(inputs()?)?, digest(outputs()?)?))?;
    Ok(())
}

/// Fails when the files were made from other sources than these, or are not as they were made.
pub(crate) fn check() -> Result<()> {
    const AGAIN: &str = "render them again: NIXPKGS=… cargo xtask render";
    let path = hashes();
    let recorded =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}; {AGAIN}", path.display()))?;
    let (of_inputs, of_outputs) = recorded
        .trim_end()
        .split_once('\n')
        .with_context(|| format!("{} has not two lines; {AGAIN}", path.display()))?;
    ensure!(
        of_inputs == digest(inputs()?)?,
        "what is in vm-tests/rendered and docs/options.md was made from other sources than those in nixos/ and vm-tests/hosts; {AGAIN}"
    );
    ensure!(
        of_outputs == digest(outputs()?)?,
        "what is in vm-tests/rendered and docs/options.md is not what was rendered: change nixos/ or vm-tests/hosts instead, and {AGAIN}"
    );
    Ok(())
}

/// The option reference.
fn options() -> PathBuf {
    root().join("docs/options.md")
}

/// The hash of what the files are made from, and on the next line that of the files.
fn hashes() -> PathBuf {
    directory().join("hashes")
}

/// What a Nix file evaluates to, as JSON.
pub(crate) fn evaluate(file: &str) -> Result<String> {
    ensure_program("evaluating the NixOS module", &[("nix-instantiate", "nix-bin")])?;
    let mut nix = Command::new("nix-instantiate");
    let output = nix.current_dir(root()).args(["--eval", "--strict", "--json", file]).output()?;
    if !output.status.success() {
        bail!("{file} does not evaluate:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Everything that decides what is rendered, but for nixpkgs.
fn inputs() -> Result<Vec<PathBuf>> {
    let mut files = [
        "vm-tests/common.nix",
        "opencode-egress/src/policy/presets.json",
        "dist/opencode-keys-load",
        "dist/opencode-keys-count",
    ]
    .map(|file| root().join(file))
    .to_vec();
    collect(&root().join("nixos"), &mut files)?;
    collect(&root().join("vm-tests/hosts"), &mut files)?;
    files.retain(|file| !file.starts_with(root().join("nixos/tests")));
    Ok(files)
}

/// Everything that is rendered.
fn outputs() -> Result<Vec<PathBuf>> {
    let mut files = vec![options()];
    collect(&directory(), &mut files)?;
    files.retain(|file| *file != hashes());
    Ok(files)
}

/// A hash of files' names and what is in them.
pub(crate) fn digest(mut files: Vec<PathBuf>) -> Result<String> {
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root())?.to_string_lossy().into_owned();
        hash.update(format!("{name}\n{}\n", content.len()));
        hash.update(content);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds the files below a directory.
pub(crate) fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), files)?,
            false => files.push(entry.path()),
        }
    }
    Ok(())
}
