//! What talks to the kernel: programs, links, maps, the ring buffer, open connections.

pub mod addresses;
pub mod confine;
pub mod connections;
mod elements;
pub mod features;
pub mod holders;
pub mod hooks;
pub mod instance;
pub mod layout;
pub mod lines;
pub mod links;
pub mod loader;
pub mod maps;
pub mod pins;
pub mod programs;
pub mod registry;
pub mod ring;
pub(crate) mod shapes;
mod syscall;
mod tail_calls;
mod tries;
