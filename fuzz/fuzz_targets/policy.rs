//! What becomes of a policy file: it is refused with a place in it and a line that says why, or it is a policy that
//! compiles to what its rules say, and that is the same when it is written out and read again. So is each of its rules.

#![no_main]

#[path = "../../opencode-egress/src/policy/compile/tests/reference.rs"]
mod reference;

use std::{collections::HashSet, net::IpAddr, path::Path};

// `reference` finds it in its crate.
use opencode_egress::policy;
use opencode_egress::policy::{
    compile::{CompileError, CompiledName, compile},
    file::{ConfigError, parse},
};
use opencode_egress_common::{
    abi::TrieKey,
    decide::decide,
    flow::{Flow, Protocol},
    names::{NamedFlow, covers},
};
use policy::{AnyRule, Listen, NameRule, Policy, PolicySet, Rule, mode_name};
use serde_json::{Value, json};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match parse(Path::new("policy.json"), text) {
        Ok(set) => {
            let again = written(&set).to_string();
            assert_eq!(parse(Path::new("again.json"), &again).expect("what is written can be read"), set);
            set.instances.values().for_each(check_text);
            set.instances.values().for_each(check_compiled);
        }
        Err(ConfigError::Invalid { line, column, message, .. }) => {
            let place = text.split('\n').nth(line.wrapping_sub(1)).map(str::len);
            let inside = place.is_some_and(|len| (1..=len + 1).contains(&column));
            assert!(inside, "{line}:{column} of {text:?}: {message}");
            assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?}");
        }
        Err(error) => panic!("{error}"),
    }
});

fn written(set: &PolicySet) -> Value {
    let instances = set.instances.iter().map(|(name, policy)| {
        let mut form = json!({
            "units": policy.units.iter().map(|unit| unit.as_str()).collect::<Vec<_>>(),
            "mode": mode_name(policy.mode),
            "allow": policy.allow.iter().map(rule).chain(policy.names.iter().map(name_rule)).collect::<Vec<_>>(),
            "deny": policy.deny.iter().map(rule).collect::<Vec<_>>(),
            "listen": policy.listen.iter().map(listen).collect::<Vec<_>>(),
            "loopback": policy.loopback.name(),
            "limits": { "sockets": policy.max_sockets },
            "errno": policy.errno.name(),
        });
        if policy.loopback_mark != 0 {
            form["loopback_mark"] = policy.loopback_mark.into();
        }
        (name.to_string(), form)
    });
    let instances: serde_json::Map<_, _> = instances.collect();
    let (interval, burst, per_sec) = (set.log.interval.as_secs(), set.log.burst, set.log.per_sec);
    let log = json!({ "interval_secs": interval, "burst": burst, "per_sec": per_sec });
    let upstream: Vec<_> = set.resolver.upstream.iter().map(ToString::to_string).collect();
    json!({ "version": 1, "log": log, "resolver": { "upstream": upstream }, "instances": instances })
}

fn rule(rule: &Rule) -> Value {
    let ports: Vec<_> = rule.ports().iter().map(ToString::to_string).collect();
    json!({ "cidr": rule.cidr().to_string(), "protocol": rule.protocol().name(), "ports": ports })
}

fn name_rule(rule: &NameRule) -> Value {
    let ports: Vec<_> = rule.ports().iter().map(ToString::to_string).collect();
    let (name, protocol) = (rule.pattern().to_string(), rule.protocol().name());
    json!({ "name": name, "protocol": protocol, "ports": ports, "tls": rule.tls(), "private": rule.private() })
}

/// A rule's text means the rule, and a rule for a name is none for `deny`.
fn check_text(policy: &Policy) {
    for rule in policy.allow.iter().chain(&policy.deny).take(64) {
        assert_eq!(rule.to_string().parse(), Ok(rule.clone()), "{rule}");
        assert_eq!(rule.to_string().parse(), Ok(AnyRule::Network(rule.clone())), "{rule}");
    }
    for rule in policy.names.iter().take(64) {
        assert_eq!(rule.to_string().parse(), Ok(AnyRule::Name(rule.clone())), "{rule}");
        assert!(rule.to_string().parse::<Rule>().is_err(), "{rule}");
    }
}

fn listen(listen: &Listen) -> Value {
    json!({ "address": listen.address.to_string(), "port": listen.port, "open": listen.open })
}

/// No key comes twice, and the verdicts at the edges of what is said are those of the rules.
fn check_compiled(policy: &Policy) {
    let compiled = match compile(policy) {
        Err(CompileError::NameGrants) => return,
        compiled => compiled.expect("such a short one fits the maps"),
    };
    let keys: HashSet<_> = compiled.entries.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), compiled.entries.len());
    let names = compiled.names.clone();
    let compiled = compiled.rules();
    for CompiledName { rule, id, grant, .. } in names.iter().take(8) {
        let ports =
            rule.ports().iter().take(4).flat_map(|range| {
                [range.first() - 1, range.first(), range.last(), range.last().wrapping_add(1)]
            });
        for port in ports.chain([0]) {
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol(132)] {
                let flow = Flow { address: IpAddr::from([0, 0, 0, 0]).into(), protocol, port };
                for key in [TrieKey::name_rule(*id), TrieKey::name_grant(*grant)] {
                    let passes = NamedFlow::of(&flow).is_some_and(|flow| covers(&compiled, &key, &flow));
                    assert_eq!(passes, reference::passes_by_name(rule, &flow), "{flow:?} by {rule}");
                }
            }
        }
    }
    let rules = || policy.allow.iter().chain(&policy.deny).take(8);
    let mut addresses: Vec<IpAddr> = policy.listen.iter().map(|listen| listen.address).collect();
    let mut ports: Vec<u16> = policy.listen.iter().map(|listen| listen.port).collect();
    for rule in rules() {
        addresses.extend([rule.cidr().net().network(), rule.cidr().net().broadcast()]);
        ports.extend(rule.ports().iter().take(4).flat_map(|range| {
            [range.first() - 1, range.first(), range.last(), range.last().wrapping_add(1)]
        }));
    }
    ports.push(0);
    for address in addresses {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol::ICMPV6, Protocol(132)] {
            for &port in &ports {
                let flow = Flow { address: address.into(), protocol, port };
                let verdict = decide(&compiled, &flow);
                assert_eq!(verdict, reference::judge(policy, &flow), "{flow:?} under {policy:?}");
            }
        }
    }
}
