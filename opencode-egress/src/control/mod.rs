//! The control socket: one JSON request a connection, one JSON reply a line.

pub mod caller;
pub mod client;
pub mod request;
