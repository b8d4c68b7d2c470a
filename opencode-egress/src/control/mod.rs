//! The control socket: one JSON request a connection, one JSON reply a line. And what crosses the resolver's socket: `learned`.

pub mod caller;
pub mod client;
pub mod learned;
pub mod lines;
mod places;
pub mod request;
