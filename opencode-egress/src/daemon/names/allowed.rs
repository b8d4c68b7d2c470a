//! Listed names that were asked for, each told once: what a policy is used for, for whoever wants to make it narrower.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::policy::{LogLimits, name::DnsName};

/// Names of one instance. A wildcard's zone has as many as whoever asks can think of.
const MOST: usize = 1024;

/// The listed names of one instance that were asked for since the daemon knows of it.
#[derive(Debug, Default)]
pub(super) struct AllowedNames {
    told: BTreeSet<DnsName>,
    /// When the log may have the next one.
    next: Option<Instant>,
}

impl AllowedNames {
    /// Whether a name is to be told now: it is new, and there is room for it. One for which there is none is new the next time, too.
    pub(super) fn is_news(&mut self, name: &DnsName, limits: &LogLimits, now: Instant) -> bool {
        if self.told.len() >= MOST || self.next.is_some_and(|next| now < next) || self.told.contains(name) {
            return false;
        }
        // A burst as of other lines, and then as many a second.
        if self.told.len() >= limits.burst as usize {
            self.next = Some(now + Duration::from_secs(1) / limits.per_sec.max(1));
        }
        self.told.insert(name.clone())
    }

    /// Forgets names that are not `listed`.
    pub(super) fn retain(&mut self, listed: impl Fn(&DnsName) -> bool) {
        self.told.retain(listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_told_once_and_many_take_their_time() {
        let limits = LogLimits { interval: Duration::from_secs(10), burst: 2, per_sec: 1 };
        let (mut names, begin) = (AllowedNames::default(), Instant::now());
        let mut told = |name: &str, at: u64| {
            names.is_news(&name.parse().expect("a name"), &limits, begin + Duration::from_secs(at))
        };
        assert!(told("a.example", 0) && !told("a.example", 0));
        assert!(told("b.example", 0) && told("c.example", 0));
        assert!(!told("d.example", 0), "there is a limit");
        assert!(told("d.example", 1) && !told("d.example", 9));
        names.retain(|name| name.as_str() != "a.example");
        assert!(names.is_news(
            &"a.example".parse().expect("a name"),
            &limits,
            begin + Duration::from_secs(9)
        ));
        for number in 0..2 * MOST as u64 {
            let at = begin + Duration::from_secs(10 + number);
            names.is_news(&format!("n{number}.example").parse().expect("a name"), &limits, at);
        }
        assert_eq!(names.told.len(), MOST);
    }
}
