//! The pinned links of one cgroup of a unit, and what is noted beside them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use opencode_egress_common::reason::Hook;

use super::{PinError, io_error, make_directory};
use crate::{
    kernel::{
        hooks::{ATTACH_ORDER, attach_type},
        links::{CgroupLink, CgroupLinkInfo},
    },
    policy::UnitName,
};

/// The mark of a cgroup whose processes ran before it was confined.
const LATE: &str = "late";
/// The mark of a cgroup whose unit attached in a network namespace of its own.
const OTHER_NETWORK: &str = "other-network";

/// The pinned links of one cgroup of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkDirectory {
    /// The unit.
    pub unit: UnitName,
    /// The cgroup's id.
    pub cgroup: u64,
    pub(super) path: PathBuf,
}

impl LinkDirectory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are of the same cgroup of the same unit.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        self.unit == other.unit && self.cgroup == other.cgroup
    }

    /// A hook's link, if it is pinned here.
    ///
    /// # Errors
    ///
    /// When something else is.
    pub fn link(&self, hook: Hook) -> Result<Option<CgroupLink>, PinError> {
        let path = self.path.join(hook.name());
        let foreign = || PinError::Foreign { path: path.clone(), hook };
        let opened = CgroupLink::open(&path).and_then(|link| Ok((link.info()?, link)));
        let (info, link) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(foreign()),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        // Somebody took the link off its cgroup and left the pin.
        if info.attach_type == attach_type(hook) && info.cgroup == 0 {
            return Ok(None);
        }
        if info.attach_type != attach_type(hook) || info.cgroup != self.cgroup {
            return Err(foreign());
        }
        Ok(Some(link))
    }

    /// Whether the kernel has let go of the cgroup, so that no link is attached any more. It does when the cgroup is removed and
    /// the last socket of it, or of a cgroup that was below it, is gone (`cgroup_sk_alloc` and `cgroup_bpf_release`,
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/cgroup.c#L305>).
    ///
    /// # Errors
    ///
    /// When a pin cannot be opened.
    pub fn is_over(&self) -> Result<bool, PinError> {
        for hook in ATTACH_ORDER {
            let path = self.path.join(hook.name());
            match CgroupLink::open(&path).and_then(|link| link.info()) {
                Ok(info) if info.cgroup == self.cgroup => return Ok(false),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {}
                Err(error) => return Err(io_error("open", &path)(error)),
            }
        }
        Ok(true)
    }

    /// How many hooks' links are pinned here, of those with a program that `is_ours`.
    pub fn count(&self, is_ours: impl Fn(Hook, &CgroupLinkInfo) -> bool) -> usize {
        let ours = |hook| {
            let link = self.link(hook).ok().flatten();
            link.and_then(|link| link.info().ok()).is_some_and(|info| is_ours(hook, &info))
        };
        ATTACH_ORDER.into_iter().filter(|hook| ours(*hook)).count()
    }

    /// Notes that the cgroup's processes ran before they were confined. It stays until the links go.
    ///
    /// # Errors
    ///
    /// When the note cannot be made.
    pub fn mark_late(&self) -> Result<(), PinError> {
        self.mark(LATE)
    }

    /// Notes that the unit attached in a network namespace of its own, for later daemons, which cannot find that out. It
    /// stays until the links go.
    ///
    /// # Errors
    ///
    /// When the note cannot be made.
    pub fn mark_other_network(&self) -> Result<(), PinError> {
        self.mark(OTHER_NETWORK)
    }

    /// Whether the unit attached in a network namespace of its own.
    pub fn is_in_other_network(&self) -> bool {
        self.path.join(OTHER_NETWORK).exists()
    }

    fn mark(&self, mark: &str) -> Result<(), PinError> {
        let path = self.path.join(mark);
        make_directory(&path).map_err(io_error("make", &path))
    }

    fn unmark(&self, mark: &str) -> Result<(), PinError> {
        let path = self.path.join(mark);
        gone(fs::remove_dir(&path)).map_err(io_error("remove", &path))
    }

    /// Removes that note, once the unit asked to be confined after all.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn unmark_late(&self) -> Result<(), PinError> {
        self.unmark(LATE)
    }

    /// Whether the cgroup's processes ran before they were confined.
    pub fn is_late(&self) -> bool {
        self.path.join(LATE).exists()
    }

    /// Pins a link, in the place of one that is attached no more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin(&self, hook: Hook, link: &CgroupLink) -> Result<(), PinError> {
        self.unpin(hook)?;
        let path = self.path.join(hook.name());
        link.pin(&path).map_err(io_error("make", &path))
    }

    /// Removes the link of one hook, if there is one.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn unpin(&self, hook: Hook) -> Result<(), PinError> {
        let path = self.path.join(hook.name());
        gone(fs::remove_file(&path)).map_err(io_error("remove", &path))
    }

    /// Removes the links, the last one first, which detaches them. The unit's directory goes with its last
    /// cgroup.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        for hook in ATTACH_ORDER.iter().rev() {
            self.unpin(*hook)?;
        }
        // What is left are marks, and links of hooks that another version has.
        let entries = fs::read_dir(&self.path).map_err(io_error("list", &self.path))?;
        for path in entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>() {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            gone(removed).map_err(io_error("remove", &path))?;
        }
        fs::remove_dir(&self.path).map_err(io_error("remove", &self.path))?;
        if let Some(unit_directory) = self.path.parent() {
            // Not empty: another cgroup of the unit is confined.
            let _ = fs::remove_dir(unit_directory);
        }
        Ok(())
    }
}

/// What was not there is as good as removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
