//! Finds the eBPF object that the daemon carries, or says which command makes it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Packagers hand over a ready object with this.
const OBJECT_VARIABLE: &str = "OPENCODE_EGRESS_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match find(&root) {
        Ok(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            println!("cargo::rustc-env={OBJECT_VARIABLE}={}", object.display());
        }
        Err(message) => println!("cargo::error={message}"),
    }
}

fn find(root: &Path) -> Result<PathBuf, String> {
    if let Some(object) = env::var_os(OBJECT_VARIABLE) {
        let object = PathBuf::from(object);
        return object.canonicalize().map_err(|error| {
            format!("{OBJECT_VARIABLE} names {}, which cannot be read: {error}", object.display())
        });
    }
    let object = root.join("target/ebpf/opencode-egress-ebpf.o");
    let sources = [
        root.join("opencode-egress-ebpf/src"),
        root.join("opencode-egress-ebpf/Cargo.toml"),
        root.join("opencode-egress-common/src"),
    ];
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let Ok(built) = fs::metadata(&object).and_then(|metadata| metadata.modified()) else {
        return Err("the eBPF object is not built yet; run `cargo xtask build-ebpf` first".into());
    };
    match sources.iter().filter_map(|source| newest(source)).max() {
        Some(changed) if changed > built => {
            Err("the eBPF object is older than its sources; run `cargo xtask build-ebpf` again".into())
        }
        _ => object.canonicalize().map_err(|error| error.to_string()),
    }
}

fn newest(path: &Path) -> Option<SystemTime> {
    let own = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let inside = fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| newest(&entry.path()));
    // A directory's own time changes when an editor makes a backup; only files count.
    if path.is_dir() { inside.max() } else { own }
}
