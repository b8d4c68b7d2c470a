//! A BPF file system that goes with the test.

use std::ffi::CString;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

pub(crate) struct Bpffs(pub(crate) TempDir);

impl Bpffs {
    /// One that root alone may write to.
    pub(crate) fn mounted() -> Self {
        Self::with("mode=700")
    }

    /// One with these options.
    pub(crate) fn with(options: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        let options = CString::new(options).expect("no zero in it");
        mount("bpf", directory.path(), "bpf", MountFlags::empty(), Some(options.as_c_str()))
            .expect("a BPF file system");
        Self(directory)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}
