//! What differs between two policy files, as `reload` prints it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::Arc,
};

use crate::policy::{InstanceName, LogLimits, Policy, Resolver, mode_name};

/// Instances and their policies.
pub(in crate::daemon) type InstancePolicies = BTreeMap<InstanceName, Arc<Policy>>;

/// Lines for one instance's rules of one kind; who changes more of them has the file to compare.
const MOST: usize = 200;

/// What differs, a line each.
pub(super) fn changes(
    (old_log, old_resolver, old): (&LogLimits, &Resolver, &InstancePolicies),
    (new_log, new_resolver, new): (&LogLimits, &Resolver, &InstancePolicies),
) -> Vec<String> {
    let mut changes = vec![];
    if old_log != new_log {
        changes.extend(
            [('-', old_log), ('+', new_log)].map(|(sign, log)| format!("{sign} log: {}", limits(log))),
        );
    }
    if old_resolver != new_resolver {
        changes.extend(
            [('-', old_resolver), ('+', new_resolver)]
                .map(|(sign, resolver)| format!("{sign} resolver: {resolver}")),
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
            let mut add = |kind: &str, text: &dyn Display| {
                changes.push(format!("{sign} {name}: {kind} {text}"));
            };
            add_missing(&mut add, "allow", &policy.allow, &other.allow);
            add_missing(&mut add, "allow", &policy.names, &other.names);
            add_missing(&mut add, "deny", &policy.deny, &other.deny);
            policy
                .listen
                .iter()
                .filter(|listen| !other.listen.contains(listen))
                .for_each(|l| add("listen", l));
            if without || policy.mode_of_file() != other.mode_of_file() {
                add("mode", &mode_name(policy.mode_of_file()));
            }
            if policy.loopback != other.loopback {
                add("loopback", &policy.loopback.name());
            }
            if policy.loopback_mark != other.loopback_mark && policy.loopback_mark != 0 {
                add("loopback_mark", &policy.loopback_mark);
            }
            if policy.max_sockets != other.max_sockets {
                add("sockets at most", &policy.max_sockets);
            }
            if policy.errno != other.errno {
                add("denied calls get", &policy.errno);
            }
            policy.units.iter().filter(|unit| !other.units.contains(unit)).for_each(|unit| add("unit", unit));
        };
        differ('-', before, after);
        differ('+', after, before);
    }
    changes
}

/// Adds the rules that others do not have: the first of them, and how many more there are.
fn add_missing<T: Ord + Display>(
    add: &mut impl FnMut(&str, &dyn Display),
    kind: &str,
    rules: &[T],
    others: &[T],
) {
    let (some, more) = missing(rules, others);
    some.iter().for_each(|rule| add(kind, rule));
    if more > 0 {
        add(kind, &format_args!("… and {more} more rules"));
    }
}

/// The first rules that others do not have, in their order, and how many more there are.
fn missing<'a, T: Ord>(rules: &'a [T], others: &[T]) -> (Vec<&'a T>, usize) {
    fn sorted<T: Ord>(rules: &[T]) -> Vec<&T> {
        let mut sorted: Vec<_> = rules.iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    }
    let others = sorted(others);
    let (mut some, mut more, mut next) = (vec![], 0, 0);
    for rule in sorted(rules) {
        while others.get(next).is_some_and(|other| *other < rule) {
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

/// Limits of the log as the policy file has them.
fn limits(log: &LogLimits) -> String {
    let LogLimits { interval, burst, per_sec } = log;
    format!("interval_secs {}, burst {burst}, per_sec {per_sec}", interval.as_secs())
}

#[cfg(test)]
mod tests {
    use crate::policy::{Mode, compile::tests::rule, file, lease::Leased};

    use super::*;

    fn policies(text: &str) -> (LogLimits, Resolver, InstancePolicies) {
        let set = file::parse("policy.json".as_ref(), text).expect("a policy file");
        let instances = set.instances.into_iter().map(|(name, policy)| (name, Arc::new(policy)));
        (set.log, set.resolver, instances.collect())
    }

    #[test]
    fn each_difference_is_a_line() {
        let old = policies(
            r#"{"version": 1, "instances": {
                "a": {"units": ["a.service"], "allow": ["10.0.0.0/8", "10.0.0.0/8", "192.0.2.0/24", "api.example.org", "b.example.org"]},
                "b": {"units": ["b.service"]}, "c": {"units": ["c.service"]}}}"#,
        );
        let new = policies(
            r#"{"version": 1, "log": {"burst": 7}, "resolver": {"upstream": ["192.0.2.53", "[2001:db8::53]:5353"]}, "instances": {
                "a": {"units": ["a.service", "a2.service"], "mode": "audit", "allow": ["192.0.2.0/24", {"cidr": "10.0.0.0/8", "protocol": "tcp"}, {"name": "api.example.org", "ports": [22, 443]}, "b.example.org"]},
                "b": {"units": ["b.service"], "limits": {"sockets": 64}, "errno": "ECONNREFUSED", "listen": [{"address": "127.0.0.1", "port": 80}]},
                "d": {"units": ["c.service"]}}}"#,
        );
        let expect = [
            "- log: interval_secs 10, burst 20, per_sec 5",
            "+ log: interval_secs 10, burst 7, per_sec 5",
            "- resolver: upstream from the host's resolv.conf",
            "+ resolver: upstream 192.0.2.53:53, [2001:db8::53]:5353",
            "- a: allow 10.0.0.0/8",
            "- a: allow api.example.org",
            "- a: mode enforce",
            "+ a: allow 10.0.0.0/8/tcp",
            "+ a: allow api.example.org:22,443",
            "+ a: mode audit",
            "+ a: unit a2.service",
            "- b: sockets at most 4096",
            "- b: denied calls get EPERM",
            "+ b: listen 127.0.0.1:80",
            "+ b: sockets at most 64",
            "+ b: denied calls get ECONNREFUSED",
            "- c: mode enforce",
            "- c: unit c.service",
            "+ d: mode enforce",
            "+ d: unit c.service",
        ];
        assert_eq!(changes((&old.0, &old.1, &old.2), (&new.0, &new.1, &new.2)), expect);
        assert_eq!(changes((&old.0, &old.1, &old.2), (&old.0, &old.1, &old.2)), [""; 0]);
    }

    #[test]
    fn the_mode_of_the_file_is_compared_whatever_is_leased() {
        let learns = Leased { audit: Some(7), ..Leased::default() };
        let policies = |mode| {
            let policy = Policy { mode, ..Policy::default() }.leased(learns.clone());
            InstancePolicies::from([("b".parse().expect("a name"), Arc::new(policy))])
        };
        let (log, resolver) = (LogLimits::default(), Resolver::default());
        let changed = |old: Mode, new: Mode| {
            changes((&log, &resolver, &policies(old)), (&log, &resolver, &policies(new)))
        };
        assert_eq!(changed(Mode::Enforce, Mode::Audit), ["- b: mode enforce", "+ b: mode audit"]);
        assert_eq!(changed(Mode::Audit, Mode::Enforce), ["- b: mode audit", "+ b: mode enforce"]);
        assert_eq!(changed(Mode::Enforce, Mode::Enforce), [""; 0]);
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
