//! Printing to a reader that may stop reading, such as `head`.

use std::{fmt, io::Write as _};

use anyhow::Result;

/// Prints a line.
///
/// # Errors
///
/// [`std::io::Error`] as it is, for `main` to see whether nobody reads any more. (`println!` would panic.)
pub(super) fn print_line(line: impl fmt::Display) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
