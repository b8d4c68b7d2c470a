//! Where the copy of the policy file is that was last applied, for a start with one that has an error.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use tracing::info;

use crate::{
    kernel::{pins::Pins, registry::InstanceNumbers},
    policy::{compile::compile, file},
};

/// The file's name when there was one for all daemons of a directory.
const FOR_ALL: &str = "last-applied.json";

/// The copy of the daemon with these pins: two daemons may have their sockets, and so their copies, in one directory, but
/// never their pins. A copy of before the name said whose it is is taken over if it is this daemon's.
pub(super) fn place(directory: &Path, pins: &Pins) -> PathBuf {
    let place = directory.join(format!("last-applied-{}.json", escaped(pins.base())));
    let for_all = directory.join(FOR_ALL);
    if !place.exists()
        && is_own(&for_all)
        && is_in_force(&for_all, pins)
        && fs::rename(&for_all, &place).is_ok()
    {
        info!("{} is {} now", for_all.display(), place.display());
    }
    place
}

/// Whether this user made a file: nobody else's word is a policy.
pub(super) fn is_own(path: &Path) -> bool {
    let own = |metadata: fs::Metadata| metadata.uid() == rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(own)
}

/// proc_sys_kernel(5): another one at each boot.
pub(super) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Whether the policies in a file are those that are in force by what is pinned, as far as can be seen from outside their
/// rules.
fn is_in_force(path: &Path, pins: &Pins) -> bool {
    let Ok(set) = file::load(path) else { return false };
    let mut policies = BTreeMap::new();
    for (name, policy) in &set.instances {
        let Ok(compiled) = compile(policy) else { return false };
        policies.insert(name.clone(), compiled.header);
    }
    let versions = pins.of_other_versions().unwrap_or_default().into_iter().chain([pins.clone()]);
    versions.into_iter().any(|version| {
        InstanceNumbers::in_force(version.maps())
            .is_ok_and(|in_force| !in_force.is_empty() && in_force == policies)
    })
}

/// A path as part of a file's name, as systemd-escape(1) writes it.
fn escaped(path: &Path) -> String {
    let mut escaped = String::new();
    for byte in path.as_os_str().as_bytes().iter().skip_while(|byte| **byte == b'/') {
        match byte {
            b'/' => escaped.push('-'),
            b'_' | b'.' | b':' => escaped.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => escaped.push(char::from(*byte)),
            // Writing to a string cannot fail.
            byte => drop(write!(escaped, "\\x{byte:02x}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_have_two_names() {
        assert_eq!(escaped(Path::new("/sys/fs/bpf/opencode-egress")), "sys-fs-bpf-opencode\\x2degress");
        assert_ne!(escaped(Path::new("/a/b-c")), escaped(Path::new("/a/b/c")));
    }
}
