//! bpf(2), called by hand where aya has no type for it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Calls bpf(2).
///
/// # Safety
///
/// `Attr` has the layout of the command's part of `union bpf_attr`, and what it points to is valid for
/// what the command does with it.
pub(crate) unsafe fn bpf<Attr>(command: i32, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: the caller's promise; the kernel reads `size_of::<Attr>()` bytes and takes the rest of the
    // union as zeros.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a command returned.
///
/// # Safety
///
/// `result` is a new descriptor that nothing else owns.
pub(crate) unsafe fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as `union bpf_attr` has it.
#[expect(clippy::cast_sign_loss, reason = "open descriptors are not negative")]
pub(crate) fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}
