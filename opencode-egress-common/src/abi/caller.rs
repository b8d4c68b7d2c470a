//! Layouts of what is told of the process that asked.

use super::Event;

/// Room for the path of a process' file.
pub const EXE_BYTES: usize = 512;
/// Room for the names of cgroups below a unit's.
pub const CGROUP_BYTES: usize = 128;
/// How many processes are named.
pub const VIA_NAMES: usize = 8;

/// Room for what the programs follow.
pub const WORK_WORDS: usize = 5;

/// Which program a process runs, and how it came to be. What lies behind the lengths says nothing: it is of an earlier record.
///
/// Paths are as the kernel finds them: names from the last to the first, each ended by a NUL.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Caller {
    /// The process' file. The first field: a name is read with room for the longest one behind it, and what follows is written later.
    pub exe: [u8; EXE_BYTES],
    /// The process' cgroup below the confined one.
    pub cgroup: [u8; CGROUP_BYTES],
    /// The names of the process, its parent and so on, up to the first one of the confined cgroup; NUL-padded.
    pub via: [[u8; 16]; VIA_NAMES],
    /// How much of `exe` is there.
    pub exe_len: u32,
    /// How much of `cgroup` is there.
    pub cgroup_len: u32,
    /// How many of `via` are there.
    pub via_len: u32,
    /// Of the flags here.
    pub flags: u32,
    /// What the programs follow. It says nothing.
    pub work: [u64; WORK_WORDS],
}

impl Caller {
    /// In `flags`: the process has a file, and its path is there.
    pub const HAS_EXE: u32 = 1;
    /// In `flags`: the file is removed, or never had a name.
    pub const DELETED: u32 = 2;
    /// In `flags`: the path has more names before those that are there.
    pub const EXE_CUT: u32 = 4;
    /// In `flags`: the cgroup has more names before those that are there.
    pub const CGROUP_CUT: u32 = 8;
    /// In `flags`: there are more processes behind those that are named, or who they are is unknown.
    pub const VIA_CUT: u32 = 16;
}

/// A ring-buffer record of a denial that a process met: an [`Event`] with the process.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CalledEvent {
    /// As of every denial.
    pub event: Event,
    /// Who asked.
    pub caller: Caller,
}

/// Where the running kernel has what says who asked: offsets in bytes. All zeros: nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "the kernel's own names of structures and their members")]
pub struct CallerLayout {
    /// The others say something: 1.
    pub known: u32,
    pub task_mm: u32,
    pub task_real_parent: u32,
    pub task_group_leader: u32,
    pub task_comm: u32,
    pub task_fs: u32,
    pub task_cgroups: u32,
    pub mm_exe_file: u32,
    pub file_path_mnt: u32,
    pub file_path_dentry: u32,
    pub fs_root_mnt: u32,
    pub fs_root_dentry: u32,
    pub vfsmount_root: u32,
    pub mount_mnt: u32,
    pub mount_parent: u32,
    pub mount_mountpoint: u32,
    pub dentry_parent: u32,
    pub dentry_name: u32,
    pub dentry_hash_pprev: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_self: u32,
    pub cgroup_self_parent: u32,
    pub cgroup_kn: u32,
    pub kn_id: u32,
    pub kn_name: u32,
}

/// The longest name of a file, with its NUL.
pub const LONGEST_FILE_NAME: usize = 256;

// A name that begins in the last byte ends in the record, whose lengths are written behind it.
const _: () = assert!(EXE_BYTES + LONGEST_FILE_NAME <= EXE_BYTES + CGROUP_BYTES + VIA_NAMES * 16);
const _: () = assert!(2 * CGROUP_BYTES <= CGROUP_BYTES + VIA_NAMES * 16);
const _: () = assert!(EXE_BYTES.is_power_of_two() && CGROUP_BYTES.is_power_of_two());
const _: () =
    assert!(size_of::<Caller>() == EXE_BYTES + CGROUP_BYTES + VIA_NAMES * 16 + 4 * 4 + WORK_WORDS * 8);
const _: () = assert!(size_of::<CalledEvent>() == size_of::<Event>() + size_of::<Caller>());
const _: () = assert!(size_of::<CallerLayout>() == 25 * 4);
