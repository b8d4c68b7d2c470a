//! What differs between two policy files, as `reload` prints it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::policy::{InstanceName, LogLimits, Policy, Rule, mode_name};

/// Instances and their policies.
pub(in crate::daemon) type InstancePolicies = BTreeMap<InstanceName, Arc<Policy>>;

/// Lines for one instance's rules of one kind; who changes more of them has the file to compare.
const MOST: usize = 200;

/// What differs, a line each.
pub(super) fn changes(
    (old_log, old): (&LogLimits, &InstancePolicies),
    (new_log, new): (&LogLimits, &InstancePolicies),
) -> Vec<String> {
    let mut changes = vec![];
    if old_log != new_log {
        changes.extend(
            [('-', old_log), ('+', new_log)].map(|(sign, log)| format!("{sign} log: {}", limits(log))),
        );
    }
    let nothing = Policy { units: vec![], ..Policy::default() };
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (old.get(name), new.get(name));
        if before.zip(after).is_some_and(|(before, after)| Arc::ptr_eq(before, after)) {
            continue;
        }
        let mut differ = |sign: char, of: Option<&Arc<Policy>>, other: Option<&Arc<Policy>>| {
            let Some(policy) = of else { return };
            let without = other.is_none();
            let other = other.map_or(&nothing, |other| other);
            let mut add = |kind: &str, text: &dyn std::fmt::Display| {
                changes.push(format!("{sign} {name}: {kind} {text}"));
            };
            for (kind, rules, others) in
                [("allow", &policy.allow, &other.allow), ("deny", &policy.deny, &other.deny)]
            {
                let (some, more) = missing(rules, others);
                some.iter().for_each(|rule| add(kind, rule));
                if more > 0 {
                    add(kind, &format_args!("… and {more} more rules"));
                }
            }
            policy
                .listen
                .iter()
                .filter(|listen| !other.listen.contains(listen))
                .for_each(|l| add("listen", l));
            if without || policy.mode != other.mode {
                add("mode", &mode_name(policy.mode));
            }
            if policy.max_sockets != other.max_sockets {
                add("sockets at most", &policy.max_sockets);
            }
            policy.units.iter().filter(|unit| !other.units.contains(unit)).for_each(|unit| add("unit", unit));
        };
        differ('-', before, after);
        differ('+', after, before);
    }
    changes
}

/// The first rules that others do not have, in the order of their networks, and how many more there are.
fn missing<'a>(rules: &'a [Rule], others: &[Rule]) -> (Vec<&'a Rule>, usize) {
    fn sorted(rules: &[Rule]) -> Vec<&Rule> {
        let mut sorted: Vec<_> = rules.iter().collect();
        sorted.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        sorted.dedup();
        sorted
    }
    let others = sorted(others);
    let (mut some, mut more, mut next) = (vec![], 0, 0);
    for rule in sorted(rules) {
        while others.get(next).is_some_and(|other| key(other) < key(rule)) {
            next += 1;
        }
        match others.get(next) {
            Some(other) if *other == rule => {}
            _ if some.len() < MOST => some.push(rule),
            _ => more += 1,
        }
    }
    (some, more)
}

fn key(rule: &Rule) -> impl Ord + '_ {
    (rule.cidr(), rule.protocol(), rule.ports())
}

/// Limits of the log as the policy file has them.
fn limits(log: &LogLimits) -> String {
    let LogLimits { interval, burst, per_sec } = log;
    format!("interval_secs {}, burst {burst}, per_sec {per_sec}", interval.as_secs())
}

#[cfg(test)]
mod tests {
    use crate::policy::{compile::tests::rule, file};

    use super::*;

    fn policies(text: &str) -> (LogLimits, InstancePolicies) {
        let set = file::parse("policy.json".as_ref(), text).expect("a policy file");
        let instances = set.instances.into_iter().map(|(name, policy)| (name, Arc::new(policy)));
        (set.log, instances.collect())
    }

    #[test]
    fn each_difference_is_a_line() {
        let old = policies(
            r#"{"version": 1, "instances": {
                "a": {"units": ["a.service"], "allow": ["10.0.0.0/8", "10.0.0.0/8", "192.0.2.0/24"]},
                "b": {"units": ["b.service"]}, "c": {"units": ["c.service"]}}}"#,
        );
        let new = policies(
            r#"{"version": 1, "log": {"burst": 7}, "instances": {
                "a": {"units": ["a.service", "a2.service"], "mode": "audit", "allow": ["192.0.2.0/24", {"cidr": "10.0.0.0/8", "protocol": "tcp"}]},
                "b": {"units": ["b.service"], "limits": {"sockets": 64}, "listen": [{"address": "127.0.0.1", "port": 80}]},
                "d": {"units": ["c.service"]}}}"#,
        );
        let expect = [
            "- log: interval_secs 10, burst 20, per_sec 5",
            "+ log: interval_secs 10, burst 7, per_sec 5",
            "- a: allow 10.0.0.0/8",
            "- a: mode enforce",
            "+ a: allow 10.0.0.0/8 tcp",
            "+ a: mode audit",
            "+ a: unit a2.service",
            "- b: sockets at most 4096",
            "+ b: listen 127.0.0.1:80",
            "+ b: sockets at most 64",
            "- c: mode enforce",
            "- c: unit c.service",
            "+ d: mode enforce",
            "+ d: unit c.service",
        ];
        assert_eq!(changes((&old.0, &old.1), (&new.0, &new.1)), expect);
        assert_eq!(changes((&old.0, &old.1), (&old.0, &old.1)), [""; 0]);
    }

    #[test]
    fn of_many_rules_the_first_are_told_and_the_rest_is_counted() {
        let rules: Vec<_> = (0..=255).map(|net| rule(&format!("10.{net}.0.0/16"))).collect();
        let (some, more) = missing(&rules, &rules[..10]);
        assert_eq!((some.len(), more), (MOST, 256 - 10 - MOST));
        assert_eq!(some[0], &rules[10]);
        assert_eq!(missing(&rules, &rules).0.len(), 0);
    }
}
