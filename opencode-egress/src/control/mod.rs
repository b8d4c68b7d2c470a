//! The control socket: one JSON request a connection, one JSON reply a line.

pub mod request;
