//! Cgroup links: the bpf(2) calls that aya has no type for.
//!
//! aya attaches these programs too, but cannot pin the link of every one of their types, take a pinned one
//! back, or say whose it is.

use crate::kernel::{
    hooks::attach_type,
    syscall::{bpf, number, owned},
};
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use opencode_egress_common::reason::Hook;

/// A live attachment of a program to a cgroup. It ends when no descriptor and no pin holds it, or with
/// the cgroup.
#[derive(Debug)]
pub struct CgroupLink(OwnedFd);

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLinkInfo {
    /// The program's id.
    pub program: u32,
    /// The cgroup's id; 0 once the kernel has let go of it, which is when it is removed and its last socket is closed.
    pub cgroup: u64,
    /// The kernel's number of the attach type.
    pub attach_type: u32,
}

// Commands of bpf(2).
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_UPDATE: i32 = 29;

/// Others may be attached beside it and below.
pub(super) const BPF_F_ALLOW_MULTI: u32 = 2;

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Attaches a program to a cgroup until the cgroup is removed: no descriptor holds it, so nothing that
/// happens to this process ends it.
///
/// # Errors
///
/// What the kernel says.
pub fn attach_for_good(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        target: u32,
        program: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = Attr {
        target: number(cgroup),
        program: number(program),
        attach_type: attach_type(hook),
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the layout of BPF_PROG_ATTACH, which points to nothing.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr)? };
    Ok(())
}

impl CgroupLink {
    /// Attaches a program to a cgroup. Others may be attached beside it and below.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attr = Attr {
            program: number(program),
            target: number(cgroup),
            attach_type: attach_type(hook),
            flags: 0,
        };
        // SAFETY: the layout of BPF_LINK_CREATE, which points to nothing and returns a new descriptor.
        Ok(Self(unsafe { owned(bpf(BPF_LINK_CREATE, &mut attr)?)? }))
    }

    /// Puts another program in the place of the link's, in one step: a packet meets the one or the other.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link: u32,
            program: u32,
            flags: u32,
            old_program: u32,
        }
        let mut attr =
            Attr { link: number(self.0.as_fd()), program: number(program), flags: 0, old_program: 0 };
        // SAFETY: the layout of BPF_LINK_UPDATE, which points to nothing.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr)? };
        Ok(())
    }

    /// Pins the link on a bpffs.
    ///
    /// # Errors
    ///
    /// What the kernel says: a name is taken, or has a dot in it.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = c_path(path)?;
        let mut attr =
            ObjAttr { path: path.as_ptr().expose_provenance() as u64, fd: number(self.0.as_fd()), flags: 0 };
        // SAFETY: the layout of BPF_OBJ_PIN; the path is NUL-terminated and outlives the call.
        unsafe { bpf(BPF_OBJ_PIN, &mut attr)? };
        Ok(())
    }

    /// Opens a pinned link.
    ///
    /// # Errors
    ///
    /// What the kernel says; `InvalidData` when the pin is no cgroup link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let c_path = c_path(path)?;
        let mut attr = ObjAttr { path: c_path.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
        // SAFETY: the layout of BPF_OBJ_GET; the path is NUL-terminated and outlives the call, which
        // returns a new descriptor.
        let link = Self(unsafe { owned(bpf(BPF_OBJ_GET, &mut attr)?)? });
        link.info()?;
        Ok(link)
    }

    /// What the kernel says of the link.
    ///
    /// # Errors
    ///
    /// What the kernel says; `InvalidData` when this is no cgroup link.
    pub fn info(&self) -> io::Result<CgroupLinkInfo> {
        #[repr(C)]
        struct Attr {
            fd: u32,
            len: u32,
            info: u64,
        }
        /// The beginning of `struct bpf_link_info` and its `cgroup` part.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            link_type: u32,
            id: u32,
            program: u32,
            padding: u32,
            cgroup: u64,
            attach_type: u32,
            more_padding: u32,
        }
        let mut info = Info::default();
        let mut attr = Attr {
            fd: number(self.0.as_fd()),
            #[expect(clippy::cast_possible_truncation, reason = "32 bytes")]
            len: size_of::<Info>() as u32,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: the layout of BPF_OBJ_GET_INFO_BY_FD; `info` is as long as `len` says and outlives the call.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
        if info.link_type != LINK_TYPE_CGROUP {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no cgroup link"));
        }
        Ok(CgroupLinkInfo { program: info.program, cgroup: info.cgroup, attach_type: info.attach_type })
    }
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}
