//! Where the daemon's sockets are.

use std::path::{Path, PathBuf};

/// A socket beside a daemon's control socket: `WHAT.sock` beside `control.sock`, and otherwise a name of its own, for two daemons may have their sockets
/// in one directory.
pub(super) fn beside(control: &Path, what: &str) -> PathBuf {
    match control.file_stem().filter(|stem| *stem != "control") {
        None => control.with_file_name(format!("{what}.sock")),
        Some(stem) => {
            let mut name = stem.to_owned();
            name.push(format!("-{what}.sock"));
            control.with_file_name(name)
        }
    }
}
