//! Who asked: the running process' file, its parents' names, and its cgroup below the confined one.
//!
//! Read from the kernel's own structures at the moment of the denial, so that a process that ends at once is known too, and no number
//! can be another's by then. Where their members are, user space tells ([`maps::CALLER_LAYOUT`]); whatever is read from a wrong place is a wrong
//! text and nothing else: reads that fault fail, and nothing is decided here. Programs run under RCU, which keeps what is followed here
//! from being freed: <https://docs.kernel.org/filesystems/path-lookup.html>.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use opencode_egress_common::abi::{
    CGROUP_BYTES, CalledEvent, Caller, EXE_BYTES, Event, LONGEST_FILE_NAME, VIA_NAMES,
};

use crate::maps;

/// Does something eight times: so many cgroups there may be from a process' own up to the confined one, so many processes are named, and
/// four times as many names and mount points a file's path may have. Written out: of a loop's turns the verifier forgets the early
/// ones, and follows each way through them again.
macro_rules! eight_times {
    ($turn:expr) => {{
        $turn;
        $turn;
        $turn;
        $turn;
        $turn;
        $turn;
        $turn;
        $turn;
    }};
}

/// The kernel's address of a structure; 0 is none.
type Address = u64;

/// What [`maps::CALLER_LAYOUT`] says of a member.
macro_rules! offset {
    ($member:ident) => {
        maps::offset(&raw const maps::CALLER_LAYOUT.$member)
    };
}

/// The process that is being told of.
///
/// What is followed is kept in the record itself ([`Caller::work`]): what the verifier knows of a word there is nothing, so that it need
/// not follow each way through what comes for each of the ways before. For the same reason nothing is left early: what is done is
/// noted, and the rest of the turns do nothing.
#[derive(Clone, Copy)]
struct Told(*mut Caller);

/// Places in [`Caller::work`].
const WORD: usize = 0;
const DENTRY: usize = 1;
const MOUNT: usize = 2;
const ROOT: usize = 3;
const ROOT_MOUNT: usize = 4;
const CGROUP: usize = 1;
const UNIT: usize = 2;
const PROCESS: usize = 3;
const MORE: usize = 4;

/// The bits that either has. The compiler does not see what this does, or it would make two comparisons of one.
#[inline(always)]
fn either(mut one: u64, other: u64) -> u64 {
    // SAFETY: one instruction on the named registers.
    unsafe { core::arch::asm!("{one} |= {other}", one = inout(reg) one, other = in(reg) other) };
    one
}

impl Told {
    /// The caller of a record.
    ///
    /// # Safety
    ///
    /// `event` begins a [`CalledEvent`] in the ring buffer, which the value does not outlive.
    #[inline(always)]
    unsafe fn by(event: *mut Event) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { &raw mut (*event.cast::<CalledEvent>()).caller })
    }

    #[inline(always)]
    fn place(self, place: usize) -> *mut u64 {
        // SAFETY: the record is there (`by`), and the place one of those above.
        unsafe { (&raw mut (*self.0).work).cast::<u64>().add(place) }
    }

    #[inline(always)]
    fn get(self, place: usize) -> u64 {
        // SAFETY: an aligned word of the record.
        unsafe { self.place(place).read_volatile() }
    }

    #[inline(always)]
    fn set(self, place: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.place(place).write_volatile(value) };
    }

    /// The word at an offset from an address; 0 where it cannot be read, as for an address that was 0: the helper clears what it cannot fill
    /// (`bpf_probe_read_kernel_common`, <https://github.com/torvalds/linux/blob/v6.12/kernel/trace/bpf_trace.c>).
    #[inline(always)]
    fn word(self, address: Address, offset: u32) -> u64 {
        let from = address.wrapping_add(u64::from(offset));
        // SAFETY: the destination is a word of the record; a source that cannot be read is an error.
        unsafe { bpf_probe_read_kernel(self.place(WORD).cast(), 8, from as *const _) };
        self.get(WORD)
    }

    #[inline(always)]
    fn flag(self, flag: u32) {
        // SAFETY: an aligned word of the record.
        unsafe {
            let flags = &raw mut (*self.0).flags;
            flags.write_volatile(flags.read_volatile() | flag);
        }
    }

    /// Writes the path of the process' file: up the tree as the kernel's own `d_path` goes, from the file to the process' root, and over
    /// the mount points in between.
    #[inline(never)]
    fn tell_exe(self, task: Address) {
        let file = self.word(self.word(task, offset!(task_mm)), offset!(mm_exe_file));
        self.set(MOUNT, self.word(file, offset!(file_path_mnt)));
        let dentry = self.word(file, offset!(file_path_dentry));
        if dentry == 0 {
            return;
        }
        self.set(DENTRY, dentry);
        self.flag(Caller::HAS_EXE);
        if self.word(dentry, offset!(dentry_hash_pprev)) == 0 {
            self.flag(Caller::DELETED);
        }
        let fs = self.word(task, offset!(task_fs));
        self.set(ROOT_MOUNT, self.word(fs, offset!(fs_root_mnt)));
        self.set(ROOT, self.word(fs, offset!(fs_root_dentry)));
        eight_times!(self.step_up());
        eight_times!(self.step_up());
        eight_times!(self.step_up());
        eight_times!(self.step_up());
        // The root of all mounts is above nothing.
        if self.is_below_root() && self.word(self.get(MOUNT), offset!(vfsmount_root)) != self.get(DENTRY) {
            self.flag(Caller::EXE_CUT);
        }
    }

    /// Whether what is followed is not the process' root yet. One comparison: the verifier follows either way of each.
    #[inline(always)]
    fn is_below_root(self) -> bool {
        let (dentry, mount) = (self.get(DENTRY) ^ self.get(ROOT), self.get(MOUNT) ^ self.get(ROOT_MOUNT));
        either(dentry, mount) != 0
    }

    /// Ends the path where it is.
    #[inline(always)]
    fn end_path(self) {
        self.set(DENTRY, self.get(ROOT));
        self.set(MOUNT, self.get(ROOT_MOUNT));
    }

    /// Adds a name to the path, or goes over a mount point.
    #[inline(always)]
    fn step_up(self) {
        if !self.is_below_root() {
            return;
        }
        if self.word(self.get(MOUNT), offset!(vfsmount_root)) == self.get(DENTRY) {
            let inner = self.get(MOUNT).wrapping_sub(u64::from(offset!(mount_mnt)));
            let outer = self.word(inner, offset!(mount_parent));
            self.set(MOUNT, outer.wrapping_add(u64::from(offset!(mount_mnt))));
            return self.set(DENTRY, self.word(inner, offset!(mount_mountpoint)));
        }
        let dentry = self.get(DENTRY);
        let parent = self.word(dentry, offset!(dentry_parent));
        self.set(DENTRY, parent);
        self.add_exe_name(dentry);
        // A file that is in no directory, as one of memfd_create(2).
        if parent == dentry {
            self.end_path();
        }
    }

    /// Adds the name of a directory entry. Where there is no room the path ends here.
    #[inline(always)]
    fn add_exe_name(self, dentry: Address) {
        let name = self.word(dentry, offset!(dentry_name));
        // SAFETY: the longest name fits behind any byte of `exe`, and what it is written over is written later.
        unsafe {
            let len = &raw mut (*self.0).exe_len;
            let at = len.read_volatile() & (EXE_BYTES as u32 - 1);
            let to = (&raw mut (*self.0).exe).cast::<u8>().add(at as usize);
            let added = bpf_probe_read_kernel_str(to.cast(), LONGEST_FILE_NAME as u32, name as *const _);
            // An error is a number below zero, and this then a large one.
            let end = u64::from(at).wrapping_add(added as u64);
            if end >= EXE_BYTES as u64 {
                self.flag(Caller::EXE_CUT);
                self.end_path();
            } else {
                len.write_volatile(end as u32);
            }
        }
    }

    /// Writes the process' cgroup below the confined one, and finds that one.
    #[inline(never)]
    fn tell_cgroup(self, task: Address) {
        self.set(CGROUP, self.cgroup_of(task));
        self.set(UNIT, 0);
        eight_times!(self.step_out());
        // A process of elsewhere, to which the socket was handed.
        if self.get(UNIT) == 0 {
            // SAFETY: aligned words of the record.
            unsafe {
                (&raw mut (*self.0).cgroup_len).write_volatile(0);
                let flags = &raw mut (*self.0).flags;
                flags.write_volatile(flags.read_volatile() & !Caller::CGROUP_CUT);
            }
        }
    }

    /// Finds the confined cgroup, or adds the name of another one and goes on above it.
    #[inline(always)]
    fn step_out(self) {
        if self.get(UNIT) != 0 {
            return;
        }
        let node = self.word(self.get(CGROUP), offset!(cgroup_kn));
        let id = self.word(node, offset!(kn_id));
        // SAFETY: the value is only looked at for being there.
        if unsafe { maps::CONFINED.get(&id) }.is_some() {
            return self.set(UNIT, self.get(CGROUP));
        }
        self.add_cgroup_name();
        self.set(CGROUP, self.above(self.get(CGROUP)));
    }

    /// Adds the name of the cgroup that is followed. Where there is no room the path ends there.
    #[inline(always)]
    fn add_cgroup_name(self) {
        let name = self.word(self.word(self.get(CGROUP), offset!(cgroup_kn)), offset!(kn_name));
        // SAFETY: a name of this length fits behind any byte of `cgroup`, and what it is written over is written later.
        unsafe {
            if (&raw const (*self.0).flags).read_volatile() & Caller::CGROUP_CUT != 0 {
                return;
            }
            let len = &raw mut (*self.0).cgroup_len;
            let at = len.read_volatile() & (CGROUP_BYTES as u32 - 1);
            let to = (&raw mut (*self.0).cgroup).cast::<u8>().add(at as usize);
            let added = bpf_probe_read_kernel_str(to.cast(), CGROUP_BYTES as u32, name as *const _);
            let end = u64::from(at).wrapping_add(added as u64);
            if end >= CGROUP_BYTES as u64 {
                self.flag(Caller::CGROUP_CUT);
            } else {
                len.write_volatile(end as u32);
            }
        }
    }

    /// Writes the names of the process and of those that it comes from, as long as these are in the unit.
    #[inline(never)]
    fn tell_via(self, task: Address) {
        self.set(PROCESS, self.word(task, offset!(task_group_leader)));
        self.set(MORE, 1);
        let mut number = 0;
        const { assert!(VIA_NAMES == 8) };
        eight_times!({
            self.add_process(number);
            number += 1;
        });
        if self.get(MORE) != 0 {
            self.flag(Caller::VIA_CUT);
        }
    }

    /// Writes the name of the process that is followed, and goes on to its parent.
    #[inline(always)]
    fn add_process(self, number: usize) {
        if self.get(MORE) == 0 {
            return;
        }
        // SAFETY: each name has its place.
        unsafe {
            let name = (&raw mut (*self.0).via).cast::<[u8; 16]>().add(number);
            let from = self.get(PROCESS).wrapping_add(u64::from(offset!(task_comm)));
            bpf_probe_read_kernel(name.cast(), 16, from as *const _);
            (&raw mut (*self.0).via_len).write_volatile(number as u32 + 1);
        }
        let parent = self.word(self.get(PROCESS), offset!(task_real_parent));
        self.set(PROCESS, self.word(parent, offset!(task_group_leader)));
        if self.get(UNIT) != 0 {
            self.look_for_unit();
        }
    }

    /// Notes whether the process that is followed is in the unit.
    #[inline(always)]
    fn look_for_unit(self) {
        self.set(CGROUP, self.cgroup_of(self.get(PROCESS)));
        self.set(MORE, 0);
        eight_times!({
            let cgroup = self.get(CGROUP);
            if cgroup == self.get(UNIT) {
                self.set(MORE, 1);
            }
            self.set(CGROUP, self.above(cgroup));
        });
    }

    /// The cgroup that a thread is in.
    #[inline(always)]
    fn cgroup_of(self, task: Address) -> Address {
        self.word(self.word(task, offset!(task_cgroups)), offset!(css_set_dfl_cgrp))
    }

    /// The cgroup above one. That of the root is no cgroup, and there is none above.
    #[inline(always)]
    fn above(self, cgroup: Address) -> Address {
        self.word(cgroup, offset!(cgroup_self_parent)).wrapping_sub(u64::from(offset!(cgroup_self)))
    }
}

/// Writes that it is not known who asked.
///
/// # Safety
///
/// `event` begins a [`CalledEvent`] in the ring buffer.
#[inline(always)]
pub(crate) unsafe fn unknown(event: *mut Event) {
    // SAFETY: the caller's promise.
    unsafe {
        let caller = Told::by(event).0;
        (&raw mut (*caller).exe_len).write_volatile(0);
        (&raw mut (*caller).cgroup_len).write_volatile(0);
        (&raw mut (*caller).via_len).write_volatile(0);
        (&raw mut (*caller).flags).write_volatile(0);
    }
}

/// Writes which process is running, for programs in its own system call.
///
/// # Safety
///
/// As of [`unknown`].
#[inline(never)]
pub(crate) unsafe fn tell(event: *mut Event) {
    // SAFETY: the caller's promise, for both.
    let told = unsafe {
        unknown(event);
        Told::by(event)
    };
    if offset!(known) != 0 {
        // SAFETY: the helper has no arguments and cannot fail.
        let task = unsafe { bpf_get_current_task() };
        // In this order: each writes into the room of the next.
        told.tell_exe(task);
        told.tell_cgroup(task);
        told.tell_via(task);
    }
}
