//! What `/proc` says of a process that asked, for kernels whose programs may not look themselves. A process that has ended by then is not
//! there any more. Nothing here waits: what takes the memory lock of the process, such as its arguments, is left alone.

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use opencode_egress_common::abi::VIA_NAMES;

use crate::{
    cgroups::Hierarchy,
    report::caller::{CUT, Caller, DELETED, shown_name, shown_path},
};

/// Who a process is. `unit` has the path of the unit's cgroup for that of the process, if it is one of those that are asked for.
pub fn caller(hierarchy: &Hierarchy, pid: u32, unit: impl Fn(&Path) -> Option<PathBuf>) -> Caller {
    let found = hierarchy.of_process(pid).ok();
    let Some((path, unit)) = found.and_then(|path| unit(&path).map(|unit| (path, unit))) else {
        return Caller::default();
    };
    let below = path.strip_prefix(&unit).ok().filter(|below| !below.as_os_str().is_empty());
    let cgroup = below.map(|below| shown_path(below.as_os_str().as_bytes()));
    Caller { exe: exe(pid), via: via(hierarchy, pid, &unit), cgroup }
}

/// The file that a process runs. Other users' takes CAP_SYS_PTRACE, which the daemon does not have.
fn exe(pid: u32) -> Option<String> {
    let link = format!("/proc/{pid}/exe");
    let path = fs::read_link(&link).ok()?;
    let path = path.as_os_str().as_bytes();
    // A file may be called so.
    let removed = fs::metadata(&link).is_ok_and(|file| file.nlink() == 0);
    Some(match path.strip_suffix(b" (deleted)") {
        Some(path) if removed => format!("{}{DELETED}", shown_path(path)),
        _ => shown_path(path),
    })
}

fn via(hierarchy: &Hierarchy, mut pid: u32, unit: &Path) -> Vec<String> {
    let mut via = vec![];
    while hierarchy.of_process(pid).is_ok_and(|path| path.starts_with(unit)) {
        if via.len() == VIA_NAMES {
            via.push(CUT.to_owned());
            break;
        }
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, parent)) = name_and_parent(&stat) else { break };
        via.push(shown_name(name));
        pid = parent;
    }
    via
}

/// The name of a process and the number of its parent, of `/proc/PID/stat` (proc_pid_stat(5)). A name may have anything in it, also what
/// looks like the end of one.
fn name_and_parent(stat: &[u8]) -> Option<(&[u8], u32)> {
    let start = stat.iter().position(|byte| *byte == b'(')? + 1;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((stat.get(start..end)?, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_more_is_a_name() {
        assert_eq!(name_and_parent(b"42 (node) S 7 42 42 0"), Some((&b"node"[..], 7)));
        assert_eq!(name_and_parent(b"42 (a) S 1 (b) R 7 42 42 0"), Some((&b"a) S 1 (b"[..], 7)));
        for wrong in [&b""[..], b"42 node S 7", b"42 (node)", b"42 )node( S 7", b"42 (node) S x"] {
            assert_eq!(name_and_parent(wrong), None);
        }
    }

    /// This process, as if all of the hierarchy were one unit.
    #[test]
    fn a_process_is_found() {
        let Ok(hierarchy) = Hierarchy::find() else {
            eprintln!("skipped: there is no cgroup2 hierarchy here");
            return;
        };
        let own = std::process::id();
        let whole = |_: &Path| Some(PathBuf::new());
        if let Err(error) = hierarchy.of_process(own) {
            eprintln!("skipped: this process is outside of the hierarchy that is visible here: {error}");
            return;
        }
        let found = caller(&hierarchy, own, whole);
        let exe = std::env::current_exe().expect("this program");
        assert_eq!(found.exe, Some(shown_path(exe.as_os_str().as_bytes())));
        assert!(found.via.len() > 1, "it has a parent: {found:?}");
        assert_eq!(caller(&hierarchy, own, |_| None), Caller::default(), "it is of another unit");
        assert_eq!(caller(&hierarchy, u32::MAX, whole), Caller::default(), "nobody is that");
    }
}
