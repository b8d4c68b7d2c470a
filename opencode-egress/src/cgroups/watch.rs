//! inotify on slices and pins: it wakes the daemon when a unit's cgroup comes or goes, or somebody removes a link.
//!
//! What has happened is never read from an event. The daemon looks at cgroups and pins themselves, from time to time also without
//! being woken, so an event that is lost makes it late and no more.

use std::{
    collections::BTreeSet,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init, remove_watch},
    io::Errno,
};

/// Watched directories. Where inotify cannot be had nothing rings, and every watch says why.
pub(crate) struct Watch {
    inotify: Result<OwnedFd, Errno>,
    /// The watches of slices. A watch goes with its directory, but not on cgroup2, whose directories never have
    /// a link count of 0 (`kernfs_iop_getattr`, `dentry_unlink_inode`).
    slices: BTreeSet<i32>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let inotify = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        Self { inotify, slices: BTreeSet::new() }
    }

    /// The bell, which can be read when it rings.
    pub(crate) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().ok().map(OwnedFd::as_fd)
    }

    /// Watches these slices, and no others, for cgroups that come and go.
    pub(crate) fn slices(&mut self, paths: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
        let mut watched = BTreeSet::new();
        for path in paths {
            watched.extend(self.add(&path, WatchFlags::CREATE | WatchFlags::DELETE)?);
        }
        for gone in self.slices.difference(&watched) {
            if let Some(inotify) = self.bell() {
                // It may have gone by itself, which is as good.
                let _ = remove_watch(inotify, *gone);
            }
        }
        self.slices = watched;
        Ok(())
    }

    /// Watches a directory of pins for those that go.
    pub(crate) fn pins(&self, path: &Path) -> io::Result<()> {
        self.add(path, WatchFlags::DELETE).map(drop)
    }

    /// A directory that is watched already keeps its watch.
    fn add(&self, path: &Path, flags: WatchFlags) -> io::Result<Option<i32>> {
        let inotify = self.inotify.as_ref().map_err(|errno| *errno)?;
        match add_watch(inotify, path, flags | WatchFlags::ONLYDIR) {
            Ok(watch) => Ok(Some(watch)),
            // It went between being found and being watched.
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the events that wait, so that the next one wakes again.
    pub(crate) fn drain(&self) {
        let Some(inotify) = self.bell() else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify, &mut buffer);
        // It ends with "would block", and another error would be met again at the next look.
        while reader.next().is_ok() {}
    }
}
