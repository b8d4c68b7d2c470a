//! The kernel side of opencode-egress: the programs attached to a confined cgroup.
//!
//! One thin file a hook family turns its context into a flow; [`judge`] decides, [`report`] counts and
//! tells user space. The decision itself is `opencode_egress_common::decide`.
//!
//! | file | hooks |
//! |---|---|
//! | `address` | `cgroup/connect4`, `connect6`, `sendmsg4`, `sendmsg6`, `bind4`, `bind6`: before a socket call does anything |
//! | `question` | `cgroup/recvmsg4`, `recvmsg6`, `getpeername4`, `getpeername6`: whose answer a caller is told it has |
//! | `packet` | `cgroup_skb/egress`, `cgroup_skb/ingress`: every IP packet of the cgroup's sockets |
//! | `tls` | none of its own: `cgroup_skb/egress` goes on with it for the beginning of connections that must open TLS to a listed server |
//! | `loopback` | none of its own: what the others ask of flows that stay on loopback |
//! | `socket` | `cgroup/sock_create`, `cgroup/sock_release`, `cgroup/setsockopt`: sockets and options that nothing later could judge, and how many sockets there are |
//!
//! Every path that ends in an error, a missing map entry or an unreadable header ends in a denial.

#![no_std]
#![no_main]
// For the atomic addition; core has none for this target.
#![feature(asm_experimental_arch)]

mod address;
mod asked;
mod caller;
mod judge;
mod loopback;
mod maps;
mod named;
mod opaque;
mod own;
mod packet;
mod peer;
mod question;
mod report;
mod reset;
mod shortcut;
mod sk;
mod skb;
mod socket;
mod sockets;
mod storage;
mod tls;
mod uapi;

/// The licence that the kernel asks for. Only GPL-compatible programs may use some of the helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

/// A panic that could be reached is a program that the verifier rejects: it sees an endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    #[expect(clippy::empty_loop, reason = "the verifier refuses a program that can get here")]
    loop {}
}
