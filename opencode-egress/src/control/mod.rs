//! The control socket: one JSON request a connection, one JSON reply a line. And what crosses the resolver's socket: `learned`.

pub mod caller;
pub mod client;
pub mod learned;
pub mod lines;
pub mod request;

use std::path::{Path, PathBuf};

/// A socket beside a daemon's control socket: `WHAT.sock` beside `control.sock`, and otherwise a name of its own, for two daemons may have their sockets
/// in one directory.
fn beside(control: &Path, what: &str) -> PathBuf {
    match control.file_stem().filter(|stem| *stem != "control") {
        None => control.with_file_name(format!("{what}.sock")),
        Some(stem) => {
            let mut name = stem.to_owned();
            name.push(format!("-{what}.sock"));
            control.with_file_name(name)
        }
    }
}
