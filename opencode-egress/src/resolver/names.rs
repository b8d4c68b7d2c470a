//! The names that an instance may ask for.

use std::collections::HashMap;

use tracing::error;

use crate::policy::name::{DnsName, NamePattern};

/// A list of names and patterns, each with the second since boot at which it is listed no more.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: HashMap<String, u64>,
    below: HashMap<String, u64>,
}

/// What of a list a name is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// It is listed itself.
    Itself,
    /// It is below one that is, with a wildcard.
    Below,
}

impl Names {
    /// Of patterns as text, for good and each for a time. What is none, which no daemon says, is left out.
    pub(super) fn new(patterns: &[String], leased: &[(String, u64)]) -> Self {
        let mut names = Self::default();
        let for_good = patterns.iter().map(|pattern| (pattern, u64::MAX));
        for (pattern, until) in for_good.chain(leased.iter().map(|(pattern, until)| (pattern, *until))) {
            let (of, name) = match pattern.parse() {
                Ok(NamePattern::Exact(name)) => (&mut names.exact, name),
                Ok(NamePattern::Below(name)) => (&mut names.below, name),
                Err(error) => {
                    error!("not listing `{pattern}`: {error}");
                    continue;
                }
            };
            // Several rules can list it.
            let last = of.entry(name.to_string()).or_default();
            *last = until.max(*last);
        }
        names
    }

    /// Whether a name, in lower case and without a final dot, is listed at this second since boot.
    pub(super) fn find(&self, name: &str, now: u64) -> Option<Listed> {
        let has = |of: &HashMap<String, u64>, name: &str| of.get(name).is_some_and(|until| now < *until);
        if has(&self.exact, name) {
            return Some(Listed::Itself);
        }
        let mut zones = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        // What the daemon would not take for a name brings nothing, so nobody is asked for it.
        let is_below = zones.any(|zone| has(&self.below, zone)) && name.parse::<DnsName>().is_ok();
        is_below.then_some(Listed::Below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_every_name_below_and_not_itself() {
        let patterns = ["api.example.org".into(), "*.example.net".into(), "not.*.one".into()];
        let names = Names::new(&patterns, &[]);
        for (name, expected) in [
            ("api.example.org", Some(Listed::Itself)),
            ("a.api.example.org", None),
            ("example.org", None),
            ("example.net", None),
            ("a.example.net", Some(Listed::Below)),
            ("a.b.example.net", Some(Listed::Below)),
            ("aexample.net", None),
            ("a.example.net.lan", None),
            ("xn--a.example.net", None),
            ("a b.example.net", None),
            ("net", None),
            ("", None),
        ] {
            assert_eq!(names.find(name, 1), expected, "{name}");
        }
    }

    #[test]
    fn a_leased_name_is_listed_until_its_time_and_one_that_the_list_has_for_good() {
        let leased =
            [("a.example", 7), ("*.example.net", 7), ("b.example", 7), ("a.example", 9), ("a.example", 8)];
        let names = Names::new(&["b.example".into()], &leased.map(|(name, until)| (name.to_owned(), until)));
        let listed =
            |now| ["a.example", "a.example.net", "b.example"].map(|name| names.find(name, now).is_some());
        assert_eq!(
            [6, 7, 8, 9].map(listed),
            [[true; 3], [true, false, true], [true, false, true], [false, false, true]]
        );
    }
}
