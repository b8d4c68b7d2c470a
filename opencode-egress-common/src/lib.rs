//! What the kernel side and the user side of opencode-egress share.
//!
//! - [`flow`]: what is judged, and [`reason`]: why it was denied;
//! - [`packet`]: from the bytes of an IP packet to a flow, denying what cannot be read safely;
//! - [`decide`]: the one decision function, a pure function over [`decide::Rules`];
//! - [`loopback`]: what an instance may say to itself;
//! - [`hello`]: following a TLS stream until its hello has named a server;
//! - [`segment`]: where in its stream a TCP segment belongs;
//! - [`cache`]: the tags that remember an `Allow`;
//! - [`abi`]: the layouts that cross the kernel boundary in maps and in the ring buffer.
//!
//! Nothing here touches the kernel: all of it is tested on the host.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod cache;
pub mod decide;
#[cfg(feature = "user")]
pub mod event;
pub mod flow;
pub mod hello;
pub mod loopback;
pub mod names;
pub mod packet;
#[cfg(feature = "user")]
mod pod;
pub mod reason;
pub mod segment;
