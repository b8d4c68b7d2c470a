//! What is remembered of an instance's answers.

use std::{net::IpAddr, rc::Rc};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use lru::LruCache;
use tokio::time::Instant;

use crate::resolver::answer::Answer;

/// A name, in lower case, and the type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// As [`crate::resolver::question::text`] has it, or escaped.
    pub(super) name: String,
    /// A or AAAA; in audit mode any.
    pub(super) qtype: RecordType,
}

impl Key {
    /// The same name's addresses of the other family, where this is for some.
    pub(super) fn sibling(&self) -> Option<Self> {
        let qtype = match self.qtype {
            RecordType::A => RecordType::AAAA,
            RecordType::AAAA => RecordType::A,
            _ => return None,
        };
        Some(Self { name: self.name.clone(), qtype })
    }
}

/// What is known of a name.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// Its addresses, which were learned.
    Addresses(Rc<[IpAddr]>),
    /// There are none of the type; or there is not even the name.
    Nothing {
        /// The name.
        exists: bool,
    },
}

impl Known {
    /// As an answer, to be kept for so many seconds.
    pub(super) fn answer(&self, ttl: u32) -> Answer<'_> {
        match self {
            Self::Addresses(addresses) => Answer { addresses, ttl, ..Answer::default() },
            Self::Nothing { exists } => {
                let code = if *exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
                Answer { code, none_ttl: Some(ttl), ..Answer::default() }
            }
        }
    }
}

struct Entry {
    known: Known,
    until: Instant,
}

/// How many answers are remembered, and how many bytes they take about: an instance with a wildcard can ask for names without end.
const MOST: usize = 4096;
const MOST_BYTES: usize = 512 * 1024;

/// The answers, by when they were last asked for.
pub(super) struct Cache {
    entries: LruCache<Key, Entry>,
    bytes: usize,
}

impl Cache {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }

    /// What is known, and for how many seconds more, counted up.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<(Known, u32)> {
        let entry = self.entries.get(key)?;
        let left = entry.until.saturating_duration_since(now);
        if left.is_zero() {
            self.forget(key);
            return None;
        }
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some((entry.known.clone(), u32::try_from(seconds).unwrap_or(u32::MAX)))
    }

    /// Remembers it, and forgets what was not asked for the longest where there is no room.
    pub(super) fn put(&mut self, key: Key, known: Known, until: Instant) {
        self.forget(&key);
        self.bytes += size(&key, &known);
        self.entries.put(key, Entry { known, until });
        while self.entries.len() > MOST || self.bytes > MOST_BYTES {
            let Some((key, entry)) = self.entries.pop_lru() else { break };
            self.bytes -= size(&key, &entry.known);
        }
    }

    /// Keeps those whose names stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        let go = self.entries.iter().map(|(key, _)| key).filter(|key| !stays(&key.name));
        for key in go.cloned().collect::<Vec<_>>() {
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some((key, entry)) = self.entries.pop_entry(key) {
            self.bytes -= size(&key, &entry.known);
        }
    }
}

/// About how much memory it takes, with what holds it.
fn size(key: &Key, known: &Known) -> usize {
    let addresses = match known {
        Known::Addresses(addresses) => size_of_val(&addresses[..]),
        Known::Nothing { .. } => 0,
    };
    160 + key.name.len() + addresses
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    fn key(name: &str) -> Key {
        Key { name: name.to_owned(), qtype: RecordType::A }
    }

    #[test]
    fn what_is_over_is_not_told() {
        let mut cache = Cache::new();
        let addresses = Known::Addresses([IpAddr::from(Ipv4Addr::LOCALHOST)].into());
        let begin = Instant::now();
        cache.put(key("a.example"), addresses, begin + Duration::from_secs(2));
        assert!(cache.get(&Key { qtype: RecordType::AAAA, ..key("a.example") }, begin).is_none());
        for (millis, left) in [(0, 2), (1, 2), (1000, 1), (1999, 1)] {
            let now = begin + Duration::from_millis(millis);
            assert_eq!(cache.get(&key("a.example"), now).expect("it").1, left, "after {millis}");
        }
        assert!(cache.get(&key("a.example"), begin + Duration::from_secs(2)).is_none());
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }

    #[test]
    fn names_without_end_take_no_more_room_and_push_none_out_that_is_in_use() {
        let mut cache = Cache::new();
        let now = Instant::now();
        let until = now + Duration::from_secs(3600);
        let many = Known::Addresses(vec![IpAddr::from(Ipv4Addr::LOCALHOST); 200].into());
        cache.put(key("used.example"), many.clone(), until);
        for number in 0..20_000 {
            cache.put(key(&format!("{number}.example")), Known::Nothing { exists: false }, until);
            assert!(cache.get(&key("used.example"), now).is_some(), "after {number}");
            assert!(cache.entries.len() <= MOST && cache.bytes <= MOST_BYTES);
        }
        for number in 0..2000 {
            cache.put(key(&format!("{number}.many.example")), many.clone(), until);
        }
        assert!(cache.bytes <= MOST_BYTES && cache.entries.len() > 100);
        cache.retain(|name| name == "1999.many.example");
        assert!(cache.get(&key("1999.many.example"), now).is_some());
        cache.retain(|_| false);
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }
}
