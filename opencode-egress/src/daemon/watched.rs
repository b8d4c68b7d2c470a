//! Counters of which `status` says whether they grew lately.

use std::time::Instant;

use crate::report::status::NEWS;

/// A counter, as this daemon last saw it, and when it saw that grow. What was before its start may have been just then.
pub(in crate::daemon) struct Watched {
    seen: u64,
    grew: Option<Instant>,
}

impl Watched {
    pub(in crate::daemon) fn new(count: u64) -> Self {
        Self { seen: count, grew: (count > 0).then(Instant::now) }
    }

    /// Takes note of what it is now.
    pub(in crate::daemon) fn see(&mut self, count: u64) {
        if count > self.seen {
            *self = Self::new(count);
        }
    }

    /// Takes note that there are so many more.
    pub(in crate::daemon) fn add(&mut self, more: u64) {
        self.see(self.seen.saturating_add(more));
    }

    /// What it was last.
    pub(in crate::daemon) fn count(&self) -> u64 {
        self.seen
    }

    /// Whether `status` is to say so; `count` is what it is now.
    pub(in crate::daemon) fn is_news(&self, count: u64) -> bool {
        count > self.seen || self.grew.is_some_and(|grew| grew.elapsed() < NEWS)
    }
}
