//! System calls that the command is refused: those that lead round what a cgroup sees.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The families of which sockets may be made: what is not IP goes round the policy (to a hypervisor by `AF_VSOCK`, by
/// Bluetooth, TIPC or RDS), but for what stays on the machine.
const FAMILIES: [c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The obsolete way to an `AF_PACKET` socket: of this type in the family `AF_INET` (packet(7)).
const SOCK_PACKET: c_int = 10;
/// What of a socket's type is the type (`SOCK_TYPE_MASK`); the rest is flags.
const SOCK_TYPE_MASK: u64 = 0xf;

/// `io_uring` makes sockets (`IORING_OP_SOCKET`) by no system call that a filter sees, and aio goes with it;
/// request_key(2) has the kernel run a program of root's outside of the cgroup.
const REFUSED: [c_long; 3] = [libc::SYS_io_uring_setup, libc::SYS_io_setup, libc::SYS_request_key];

/// Compiles the filters.
///
/// On the way they check the architecture: a call of another one, as a 32-bit program makes it on x86-64, ends the
/// process by SIGSYS. Its `socketcall` has the family in memory, where no filter can look.
///
/// # Errors
///
/// On an architecture for which there are none.
pub(super) fn filters() -> Result<[BpfProgram; 2]> {
    let condition = |argument, operator, value: c_int| {
        SeccompCondition::new(argument, Dword, operator, u64::from(value.cast_unsigned()))
    };
    let other_family = FAMILIES.map(|family| condition(0, SeccompCmpOp::Ne, family));
    let other_family = SeccompRule::new(other_family.into_iter().collect::<Result<_, _>>()?)?;
    let packet = SeccompRule::new(vec![
        condition(0, SeccompCmpOp::Eq, libc::AF_INET)?,
        condition(1, SeccompCmpOp::MaskedEq(SOCK_TYPE_MASK), SOCK_PACKET)?,
    ])?;
    let makes_sockets = [libc::SYS_socket, libc::SYS_socketpair];
    Ok([
        filter(&makes_sockets, &[other_family, packet], libc::EAFNOSUPPORT)?,
        filter(&REFUSED, &[], libc::EPERM)?,
    ])
}

/// A filter that refuses these calls, where one of the rules is met, or where there are none.
fn filter(calls: &[c_long], rules: &[SeccompRule], errno: c_int) -> Result<BpfProgram> {
    let calls = calls.iter().flat_map(|call| numbers(*call));
    let rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|number| (number, rules.to_vec())).collect();
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let architecture = std::env::consts::ARCH
        .try_into()
        .context("exec cannot keep its command from sockets that are not IP on this architecture")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    Ok(filter.try_into()?)
}

/// The numbers of a call: on x86-64 also that of x32, which the kernel counts to the same architecture.
#[cfg(target_arch = "x86_64")]
fn numbers(call: c_long) -> Vec<c_long> {
    /// `__X32_SYSCALL_BIT`
    const X32: c_long = 0x4000_0000;
    /// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl#L417>
    const X32_IO_SETUP: c_long = 543;
    let of_x32 = if call == libc::SYS_io_setup { X32_IO_SETUP } else { call };
    vec![call, X32 | of_x32]
}

#[cfg(not(target_arch = "x86_64"))]
fn numbers(call: c_long) -> Vec<c_long> {
    vec![call]
}
