//! Who else's program keeps a hook to itself, so that none of ours can be attached.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::loaded_programs;
use opencode_egress_common::reason::Hook;

use crate::kernel::{
    hooks::attach_type,
    links::BPF_F_ALLOW_MULTI,
    syscall::{bpf, number},
};

/// A program that is attached to a cgroup, or to one above it, and lets no other be attached for the same hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    hook: Hook,
    /// Where it is attached.
    cgroup: PathBuf,
    /// The kernel's number of it.
    program: u32,
    /// Its name. `None`: it has none, or this process lacks CAP_SYS_ADMIN, without which the kernel does not tell.
    name: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, cgroup, program, name } = self;
        let (hook, cgroup) = (hook.name(), cgroup.display());
        write!(f, "program {program}")?;
        if let Some(name) = name {
            write!(f, " (`{name}`)")?;
        }
        write!(
            f,
            " is attached to {cgroup} for {hook} and lets nobody else be. Find out whose it is (bpftool prog show id \
             {program}), and have it attached with `multi`: bpftool cgroup detach {cgroup} {hook} id {program}; bpftool \
             cgroup attach {cgroup} {hook} id {program} multi"
        )
    }
}

/// The program because of which the kernel refuses another one of a hook at a cgroup, if that is why. This follows
/// `hierarchy_allows_attach` and what comes behind it
/// (<https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/cgroup.c#L437>).
pub fn find(hook: Hook, cgroup: &Path) -> Option<Holder> {
    const BPF_F_ALLOW_OVERRIDE: u32 = 1;
    for (above, path) in cgroup.ancestors().enumerate() {
        // It ends above the hierarchy, where there is nothing to ask.
        let (flags, programs) = attached(hook, path).ok()?;
        if above > 0 && flags & BPF_F_ALLOW_MULTI != 0 {
            return None;
        }
        let in_the_way = match above {
            0 => flags & BPF_F_ALLOW_MULTI == 0,
            _ => flags & BPF_F_ALLOW_OVERRIDE == 0,
        };
        match programs.first() {
            Some(program) if in_the_way => {
                let (cgroup, program) = (path.to_owned(), *program);
                return Some(Holder { hook, cgroup, program, name: name_of(program) });
            }
            Some(_) if above > 0 => return None,
            _ => {}
        }
    }
    None
}

fn name_of(program: u32) -> Option<String> {
    let info = loaded_programs().flatten().find(|info| info.id() == program)?;
    info.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// With which flags programs of a hook are attached to a cgroup, and which they are.
fn attached(hook: Hook, cgroup: &Path) -> io::Result<(u32, Vec<u32>)> {
    const BPF_PROG_QUERY: i32 = 16;
    #[repr(C)]
    struct Attr {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }
    // As many as a cgroup takes (`BPF_CGROUP_MAX_PROGS`).
    let mut ids = [0_u32; 64];
    let directory = File::open(cgroup)?;
    let mut attr = Attr {
        target: number(directory.as_fd()),
        attach_type: attach_type(hook),
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: 64,
        padding: 0,
    };
    // SAFETY: the layout of BPF_PROG_QUERY; `ids` has room for `count` numbers and outlives the call.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    let count = attr.count.min(64) as usize;
    Ok((attr.attach_flags, ids[..count].to_vec()))
}
