//! The names that an instance may ask for.

use std::collections::HashSet;

use tracing::error;

use crate::policy::name::NamePattern;

/// A list of names and patterns.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: HashSet<String>,
    below: HashSet<String>,
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
    /// Of patterns as text. What is none, which no daemon says, is left out.
    pub(super) fn new(patterns: &[String]) -> Self {
        let mut names = Self::default();
        for pattern in patterns {
            match pattern.parse() {
                Ok(NamePattern::Exact(name)) => drop(names.exact.insert(name.to_string())),
                Ok(NamePattern::Below(name)) => drop(names.below.insert(name.to_string())),
                Err(error) => error!("not listing `{pattern}`: {error}"),
            }
        }
        names
    }

    /// Whether a name, in lower case and without a final dot, is listed.
    pub(super) fn find(&self, name: &str) -> Option<Listed> {
        if self.exact.contains(name) {
            return Some(Listed::Itself);
        }
        let mut zones = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        zones.any(|zone| self.below.contains(zone)).then_some(Listed::Below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_every_name_below_and_not_itself() {
        let names = Names::new(&["api.example.org".into(), "*.example.net".into(), "not.*.one".into()]);
        for (name, expected) in [
            ("api.example.org", Some(Listed::Itself)),
            ("a.api.example.org", None),
            ("example.org", None),
            ("example.net", None),
            ("a.example.net", Some(Listed::Below)),
            ("a.b.example.net", Some(Listed::Below)),
            ("aexample.net", None),
            ("a.example.net.lan", None),
            ("net", None),
            ("", None),
        ] {
            assert_eq!(names.find(name), expected, "{name}");
        }
    }
}
