//! Programs that only return 1, at every hook that ours are at: what attaching anything costs.

use std::{
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
};

use opencode_egress::{
    cgroups::Cgroup,
    kernel::{
        features::Features,
        hooks::{Needs, attach_type, to_attach},
        links::attach_for_good,
    },
};
use opencode_egress_common::reason::Hook;

/// Attaches such a program at every hook that a policy with these needs has, until the cgroup is removed.
pub(crate) fn confine(cgroup: &Cgroup, needs: Needs) -> io::Result<()> {
    for hook in to_attach(&Features::of_this_kernel(), needs) {
        attach_for_good(load(hook)?.as_fd(), cgroup.as_fd(), hook)?;
    }
    Ok(())
}

/// The beginning of the `BPF_PROG_LOAD` part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

fn load(hook: Hook) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    // r0 = 1; exit
    const CODE: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let prog_type = match hook {
        Hook::Egress | Hook::Ingress => 8,
        Hook::SockCreate | Hook::SockRelease => 9,
        Hook::Setsockopt => 25,
        _ => 18,
    };
    let mut attr = Attr {
        prog_type,
        instructions: 2,
        code: CODE.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        attach_type: attach_type(hook),
        ..Attr::default()
    };
    // SAFETY: the layout of BPF_PROG_LOAD; the code and the licence outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_mut(&mut attr), size_of::<Attr>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
