//! Waiting for what the machine is about to do.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything on the machine may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `fact` gives something.
pub(crate) fn wait<T>(what: &str, fact: impl Fn() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = fact() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
