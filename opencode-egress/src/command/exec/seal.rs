//! Mounts that the command may not write to: a root user without capabilities could leave its cgroup, remove pins, or have
//! the kernel run a program for it outside of the cgroup (`core_pattern`, `modprobe`, `uevent_helper`, `release_agent`
//! and the like).

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{AtFlags, CWD, StatxFlags, statx},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount_bind_recursive, mount_change, mount_remount},
    thread::{UnshareFlags, unshare_unsafe},
};

/// File systems by which the kernel is steered, besides `proc`, in which processes have files of their own.
const STEERING: [&[u8]; 18] = [
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"debugfs",
    b"efivarfs",
    b"fusectl",
    b"nfsd",
    b"pstore",
    b"resctrl",
    b"rpc_pipefs",
    b"securityfs",
    b"selinuxfs",
    b"smackfs",
    b"sysfs",
    b"tracefs",
    b"xenfs",
];

/// Moves the calling thread into a mount namespace of its own, in which these are read-only. What it starts from then on
/// cannot change that, for it has no `CAP_SYS_ADMIN` in the namespace's user namespace; in one of its own it sees the same
/// mounts, which are locked there (mount_namespaces(7)).
///
/// # Errors
///
/// When a mount cannot be sealed.
pub(super) fn seal_this_thread() -> Result<()> {
    let own = "cannot make a mount namespace for the command";
    // SAFETY: of what threads share, this unshares the working directory and the like, on which no other one counts.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.context(own)?;
    mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).context(own)?;
    let sealed = |path: &Path| format!("cannot make {} read-only for the command", path.display());
    let mounts = mounts()?;
    let mut places: Vec<PathBuf> = vec![];
    for mount in mounts.iter().filter(|mount| mount.file_system == b"proc") {
        let entries =
            if mount.root == Path::new("/") { steering_entries(&mount.place)? } else { mount.part_of_proc() };
        for entry in entries {
            // With what is mounted in it, such as binfmt_misc.
            mount_bind_recursive(&entry, &entry).with_context(|| sealed(&entry))?;
            places.push(entry);
        }
    }
    let steering = mounts.into_iter().filter(|mount| STEERING.contains(&&mount.file_system[..]));
    places.extend(steering.map(|mount| mount.place));
    let read_only =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for place in &places {
        mount_remount(place, read_only, c"").with_context(|| sealed(place))?;
    }
    // Where it is was entered below the bound mounts.
    if let Ok(here) = std::env::current_dir()
        && places.iter().any(|place| here.starts_with(place))
    {
        std::env::set_current_dir(&here).with_context(|| format!("cannot enter {} again", here.display()))?;
    }
    Ok(())
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount {
    id: u64,
    /// What of the file system is mounted.
    root: PathBuf,
    place: PathBuf,
    file_system: Vec<u8>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let root = unescaped(fields.nth(2)?);
        let place = unescaped(fields.next()?);
        let file_system = fields.skip_while(|field| *field != b"-").nth(1)?.to_vec();
        Some(Self { id, root: root.into(), place: place.into(), file_system })
    }

    /// The mount to which its place leads; `None` where that is nowhere.
    fn found_there(&self) -> rustix::io::Result<Option<u64>> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statx(CWD, &self.place, flags, StatxFlags::MNT_ID) {
            Ok(found) => Ok(Some(found.stx_mnt_id)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// This mount of a part of `proc`, unless the part is a process'.
    fn part_of_proc(&self) -> Vec<PathBuf> {
        let first = self.root.iter().nth(1).unwrap_or_default();
        if is_of_process(first) { vec![] } else { vec![self.place.clone()] }
    }
}

/// The mounts that can be reached. Those below another one that was mounted over them cannot.
fn mounts() -> Result<Vec<Mount>> {
    // The process' other threads are in the namespace that this one has left.
    let path = "/proc/thread-self/mountinfo";
    let text = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mounts = lines
        .map(|line| {
            Mount::parse(line)
                .with_context(|| format!("cannot understand {path}: {}", String::from_utf8_lossy(line)))
        })
        .collect::<Result<Vec<_>>>()?;
    let known: HashSet<_> = mounts.iter().map(|mount| mount.id).collect();
    let mut reachable = vec![];
    for mount in mounts {
        let place = mount.place.display();
        match mount.found_there().with_context(|| format!("cannot see what is mounted at {place}"))? {
            Some(found) if found == mount.id => reachable.push(mount),
            Some(found) if !known.contains(&found) => {
                bail!("what is mounted at {place} changed meanwhile; run the command again")
            }
            _ => {}
        }
    }
    Ok(reachable)
}

/// A field of the table of mounts, where spaces and the like are written as `\` and three octal digits.
fn unescaped(field: &[u8]) -> OsString {
    let mut bytes = vec![];
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after))
            }
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    OsString::from_vec(bytes)
}

/// What somebody may write to in a `proc`, besides processes' files: its directories, and its files of that kind.
fn steering_entries(proc: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot see what is in {}", proc.display());
    let mut entries = vec![];
    for entry in fs::read_dir(proc).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        // Not of what a link leads to: that is a process'.
        let Ok(metadata) = entry.metadata() else { continue };
        let writable = metadata.is_file() && metadata.permissions().mode() & 0o222 != 0;
        if (metadata.is_dir() || writable) && !is_of_process(&entry.file_name()) {
            entries.push(entry.path());
        }
    }
    Ok(entries)
}

fn is_of_process(name: &OsStr) -> bool {
    name.as_bytes().iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let line =
            br"36 35 98:0 /sys /mnt/a\040b\134 rw,noatime master:1 - proc /dev/root rw,errors=continue";
        let mount = Mount::parse(line).expect("a mount");
        assert_eq!(mount.id, 36);
        assert_eq!(
            (mount.root.as_path(), mount.place.as_path()),
            (Path::new("/sys"), Path::new(r"/mnt/a b\"))
        );
        assert_eq!(mount.file_system, b"proc");
        let bare = Mount::parse(b"36 35 98:0 / / rw - sysfs sysfs rw").expect("a mount");
        assert_eq!(bare.file_system, b"sysfs");
        assert!(Mount::parse(b"36 35 98:0 / / rw").is_none());
    }
}
