//! What talks to the kernel: programs, links, maps, the ring buffer, open connections.

pub mod confine;
pub mod connections;
pub mod features;
pub mod links;
pub mod loader;
pub mod maps;
pub mod pins;
pub mod registry;
pub mod ring;
mod tries;
