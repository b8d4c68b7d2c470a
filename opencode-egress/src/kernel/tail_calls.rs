//! Whether the kernel lets a program that has functions go on with another one.
//!
//! Its compilers do: that for x86-64 in every kernel that is supported
//! (<https://github.com/torvalds/linux/commit/e411901c0b77>), that for arm64 since Linux 6.0
//! (<https://github.com/torvalds/linux/commit/d4609a5d8c70>). Its interpreter does not. What says whether programs are compiled, `net.core.bpf_jit_enable`,
//! is there in the host's own network namespace alone, so the kernel is given a program that does both.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use crate::kernel::syscall::{bpf, number, owned};

// Commands of bpf(2), and the numbers of a type of maps and of programs (`enum bpf_map_type`, `enum bpf_prog_type`).
const BPF_MAP_CREATE: i32 = 0;
const BPF_PROG_LOAD: i32 = 5;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;

/// Whether this kernel takes such a program. One that this process may not load is one that it does not take.
pub(super) fn are_possible() -> bool {
    let load = || program_array().and_then(|programs| load(programs.as_fd()));
    // The kernel gives up where there is a signal for the thread, as in `programs::load_program`.
    let mut tries = std::iter::repeat_with(load).take(5);
    let tried = tries.find(|tried| !matches!(tried, Err(error) if error.kind() == io::ErrorKind::WouldBlock));
    tried.is_some_and(|tried| tried.is_ok())
}

fn program_array() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    let mut attr = Attr { map_type: BPF_MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: the command's first fields; the result is a new descriptor.
    unsafe { owned(bpf(BPF_MAP_CREATE, &mut attr)?) }
}

/// Loads a program that calls a function and then goes on with the first one of `programs`.
fn load(programs: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // struct bpf_insn: the operation, the registers (the source's in the upper half), an offset and a number.
    const fn instruction(operation: u8, registers: u8, immediate: u32) -> u64 {
        u64::from_ne_bytes({
            let [a, b, c, d] = immediate.to_ne_bytes();
            [operation, registers, 0, 0, a, b, c, d]
        })
    }
    const MOVE_REGISTER: u8 = 0xbf;
    const MOVE: u8 = 0xb7;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const LOAD_MAP: u8 = 0x18;
    const TAIL_CALL: u32 = 12;
    const COUNT: u32 = 11;
    let instructions: [u64; COUNT as usize] = [
        // r6 = r1, the context, which the function may spoil; the function is seven behind the call.
        instruction(MOVE_REGISTER, 0x16, 0),
        instruction(CALL, 0x10, 7),
        instruction(MOVE_REGISTER, 0x61, 0),
        instruction(LOAD_MAP, 0x12, number(programs)),
        0,
        instruction(MOVE, 3, 0),
        instruction(CALL, 0, TAIL_CALL),
        instruction(MOVE, 0, 1),
        instruction(EXIT, 0, 0),
        instruction(MOVE, 0, 0),
        instruction(EXIT, 0, 0),
    ];
    #[repr(C)]
    struct Attr {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
    }
    let mut attr = Attr {
        program_type: BPF_PROG_TYPE_CGROUP_SKB,
        count: COUNT,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the command's first fields; what they point to lives until it returns. The result is a new descriptor.
    unsafe { owned(bpf(BPF_PROG_LOAD, &mut attr)?) }
}
