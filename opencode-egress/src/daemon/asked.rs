//! How often instances ask what they may reach.

use std::time::{Duration, Instant};

/// How often an instance is answered at most, over time: an answer is made while others wait.
const EACH: Duration = Duration::from_millis(200);
/// How many answers it may have at once.
const BURST: u32 = 10;

/// How often an instance has asked lately: the time at which it may have asked for all of [`BURST`] at once again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked(Option<Instant>);

impl Asked {
    /// Takes one of what it may ask. Returns whether there was one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let full = self.0.filter(|full| *full > now).unwrap_or(now) + EACH;
        if full > now + EACH * BURST {
            return false;
        }
        self.0 = Some(full);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_answered_so_often_and_again_after_a_while() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let at_once = (0..100).filter(|_| asked.take(now)).count();
        assert_eq!(at_once, BURST as usize);
        assert!(!asked.take(now + EACH / 2));
        assert!(asked.take(now + EACH));
        assert!(!asked.take(now + EACH));
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| asked.take(later)).count(), BURST as usize);
    }
}
