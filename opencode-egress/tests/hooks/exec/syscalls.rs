//! System calls that the command is refused, by each of the ways in which the kernel takes them.

use std::io;

use libc::{c_int, c_long};

use super::{exec_test, said};

const ALLOWED: [c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// One past the last address family that the kernel has, and some more.
const FAMILIES: c_int = 64;
/// The obsolete way to a packet socket (packet(7)).
const SOCK_PACKET: c_int = 10;
/// Marks a system call as one of x86-64's 32-bit pointers.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

/// # Safety
///
/// The kernel must not write through the arguments.
unsafe fn errno_of(number: c_long, arguments: [c_long; 4]) -> c_int {
    let [a, b, c, d] = arguments;
    // SAFETY: the caller's promise.
    match unsafe { libc::syscall(number, a, b, c, d) } {
        -1 => io::Error::last_os_error().raw_os_error().expect("an error of the kernel's"),
        _ => 0,
    }
}

fn socket(number: c_long, family: c_int, kind: c_int) -> c_int {
    // SAFETY: numbers alone; a descriptor that comes of it stays open until this process ends.
    unsafe { errno_of(number, [family.into(), kind.into(), 0, 0]) }
}

fn run_inside(name: &str) {
    let output = exec_test(&format!("exec::syscalls::{name}"));
    assert!(output.status.success(), "{}{}", said(&output.stdout), said(&output.stderr));
    assert!(said(&output.stdout).contains("1 passed"), "{}", said(&output.stdout));
}

#[test]
fn exec_lets_its_command_make_sockets_of_four_families() {
    run_inside("families_inside");
}

#[test]
#[ignore = "runs inside exec"]
fn families_inside() {
    for family in (-1..FAMILIES).filter(|family| !ALLOWED.contains(family)) {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
            assert_eq!(socket(libc::SYS_socket, family, kind), libc::EAFNOSUPPORT, "{family} {kind}");
            assert_eq!(socket(libc::SYS_socketpair, family, kind), libc::EAFNOSUPPORT, "{family} {kind}");
        }
    }
    for kind in [SOCK_PACKET, SOCK_PACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK] {
        assert_eq!(socket(libc::SYS_socket, libc::AF_INET, kind), libc::EAFNOSUPPORT, "a packet socket");
    }
    // The kernel takes the lower half of the argument.
    // SAFETY: numbers alone.
    let high = unsafe {
        errno_of(libc::SYS_socket, [1 << 32 | c_long::from(libc::AF_PACKET), libc::SOCK_RAW.into(), 0, 0])
    };
    assert_eq!(high, libc::EAFNOSUPPORT);
    assert_eq!(socket(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM), 0);
    assert_eq!(socket(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM), 0);
    assert_eq!(socket(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW), 0);
    // Where there is no IPv6, the kernel says the same.
    let inet6 = socket(libc::SYS_socket, libc::AF_INET6, libc::SOCK_DGRAM);
    assert!([0, libc::EAFNOSUPPORT].contains(&inet6), "{inet6}");
    #[cfg(target_arch = "x86_64")]
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        // A kernel without these calls says ENOSYS, and does so after the filter.
        let x32 = socket(number | X32, libc::AF_VSOCK, libc::SOCK_STREAM);
        assert_eq!(x32, libc::EAFNOSUPPORT, "by the numbers of x32");
    }
}

/// What makes sockets, or has another process make them, without the calls that are looked at.
#[test]
fn exec_refuses_its_command_what_leads_round_its_hooks() {
    run_inside("refused_inside");
}

#[test]
#[ignore = "runs inside exec"]
fn refused_inside() {
    let mut parameters = [0_u8; 120];
    let parameters: c_long = parameters.as_mut_ptr().addr().try_into().expect("an address");
    // Aligned as the call wants it, and zero.
    let mut context = 0_u64;
    let context: c_long = (&raw mut context).addr().try_into().expect("an address");
    let text = |text: &std::ffi::CStr| c_long::try_from(text.as_ptr().addr()).expect("an address");
    for (name, number, arguments) in [
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, parameters, 0, 0]),
        ("io_setup", libc::SYS_io_setup, [1, context, 0, 0]),
        ("request_key", libc::SYS_request_key, [text(c"user"), text(c"a"), text(c"b"), 0]),
        #[cfg(target_arch = "x86_64")]
        ("io_uring_setup by x32", libc::SYS_io_uring_setup | X32, [1, parameters, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("io_setup by x32", 543 | X32, [1, context, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("request_key by x32", libc::SYS_request_key | X32, [text(c"user"), text(c"a"), text(c"b"), 0]),
    ] {
        // SAFETY: what the kernel would write to is large enough, and lives until the end of this function.
        assert_eq!(unsafe { errno_of(number, arguments) }, libc::EPERM, "{name}");
    }
}

/// A call of the 32-bit architecture keeps its arguments in memory, where no filter sees them.
#[cfg(target_arch = "x86_64")]
#[test]
fn exec_ends_a_command_that_calls_as_a_32_bit_program() {
    let output = exec_test("exec::syscalls::int80_inside");
    let stderr = said(&output.stderr);
    if output.status.code() == Some(128 + libc::SIGSEGV) {
        eprintln!("skipped: this kernel takes no calls of 32-bit programs");
        return;
    }
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS), "{}{stderr}", said(&output.stdout));
    assert!(stderr.contains("another architecture"), "{stderr}");
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "runs inside exec"]
fn int80_inside() {
    // `socket` of i386, with the family of virtual machines' sockets.
    let (mut result, family, kind) = (359_i64, libc::AF_VSOCK, libc::SOCK_STREAM);
    // SAFETY: numbers alone. The kernel saves all registers but the result's; rbx is not for inline assembly to name.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {family:r}",
            "int 0x80",
            "xchg rbx, {family:r}",
            family = inout(reg) i64::from(family) => _,
            inlateout("rax") result,
            in("rcx") i64::from(kind),
            in("rdx") 0_i64,
        );
    }
    println!("int 0x80: {result}");
}
