//! Where the daemon of the tests' machines pins what outlives it.

/// The directory of all versions.
pub(crate) const PINS: &str = "/sys/fs/bpf/opencode-egress";

/// The version whose layout the present daemon has, as `kernel::pins` in `opencode-egress` has it.
pub(crate) const VERSION: &str = "v6";

/// A path among the present daemon's pins.
pub(crate) fn own(path: &str) -> String {
    format!("{PINS}/{VERSION}/{path}")
}
