//! Presets in the place of rules.

use std::collections::BTreeSet;

use crate::policy::{
    AnyRule, NameRule, Policy,
    name::NamePattern,
    preset::{Preset, presets},
    suggest::{
        SuggestedPreset, SuggestedRule, Suggestion,
        names::{is_allowed, is_listed_server},
    },
};

/// Puts presets in the place of the rules that they make needless. A preset fits where at least half of its names were asked for, or are
/// on the list already; the one of which the most was asked for comes first.
pub(super) fn stand_for(policy: &Policy, suggestion: &mut Suggestion) {
    let wanted = suggestion.rules.iter().filter_map(|suggested| match &suggested.rule {
        AnyRule::Name(rule) => Some(rule.pattern()),
        AnyRule::Network(_) => None,
    });
    let asked: BTreeSet<_> = wanted.chain(policy.names.iter().map(NameRule::pattern)).cloned().collect();
    let mut fitting: Vec<_> = presets()
        .iter()
        .map(|preset| (preset, Share::of(preset, &asked)))
        .filter(|(_, share)| share.fits())
        .collect();
    fitting.sort_by(|(_, a), (_, b)| b.compare(a));
    for (preset, _) in fitting {
        let alone = only(preset);
        let needless = |suggested: &SuggestedRule| match &suggested.rule {
            AnyRule::Name(rule) => allows(&alone, rule),
            AnyRule::Network(_) => false,
        };
        let mut instead_of: Vec<_> =
            suggestion.rules.extract_if(.., |suggested| needless(suggested)).collect();
        if !instead_of.is_empty() {
            instead_of.extend(suggestion.once.extract_if(.., |suggested| needless(suggested)));
            let asked_once = instead_of.iter().filter_map(|suggested| pattern(&suggested.rule));
            let asked = asked_once.chain(&asked).cloned().collect();
            let unasked = preset.allow.iter().filter(|rule| !names_one_of(rule, &asked)).cloned().collect();
            suggestion.presets.push(SuggestedPreset { preset, instead_of, unasked });
        }
    }
}

/// How many of a preset's names were asked for, of how many.
struct Share {
    asked: usize,
    names: usize,
}

impl Share {
    fn of(preset: &Preset, asked: &BTreeSet<NamePattern>) -> Self {
        let names: BTreeSet<_> = preset.allow.iter().filter_map(pattern).collect();
        Self { asked: names.iter().filter(|name| asked.contains(**name)).count(), names: names.len() }
    }

    fn fits(&self) -> bool {
        self.asked > 0 && self.asked * 2 >= self.names
    }

    /// By the part, then by the number.
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let parts = (self.asked * other.names).cmp(&(other.asked * self.names));
        parts.then(self.asked.cmp(&other.asked))
    }
}

fn pattern(rule: &AnyRule) -> Option<&NamePattern> {
    match rule {
        AnyRule::Name(rule) => Some(rule.pattern()),
        AnyRule::Network(_) => None,
    }
}

fn names_one_of(rule: &AnyRule, asked: &BTreeSet<NamePattern>) -> bool {
    pattern(rule).is_some_and(|pattern| asked.contains(pattern))
}

/// A policy of a preset and nothing else.
fn only(preset: &Preset) -> Policy {
    let mut policy = Policy::default();
    preset.allow.iter().for_each(|rule| policy.allow(rule.clone()));
    policy
}

/// Whether a policy lets everything pass that a rule for one name does.
fn allows(policy: &Policy, rule: &NameRule) -> bool {
    let NamePattern::Exact(name) = rule.pattern() else { return false };
    let mut ports = rule.ports().iter().flat_map(|range| range.ports()).peekable();
    ports.peek().is_some()
        && ports.all(|port| is_allowed(policy, name, rule.protocol(), port, rule.private()))
        && (!rule.tls() || is_listed_server(policy, name))
}
