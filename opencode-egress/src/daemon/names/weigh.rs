//! What of an answer may be told and learned: the resolver is not believed.

use std::net::IpAddr;

use opencode_egress_common::{
    abi::{Entry, Grant, Learned, TrieKey},
    decide::{Rules, Verdict, decide_for_some_port},
    flow::{Class, Flow, Protocol},
};

use crate::{
    kernel::maps::LearnedAddress,
    policy::{NameRule, compile::CompiledName, name::DnsName, special::AddressKind},
};

/// For how long new flows may begin at least after an answer, in seconds: clients resolve, and then try one address after the other.
const AT_LEAST: u64 = 60;
/// How much longer than the client is told, in seconds.
const GRACE: u64 = 60;

/// Until when new flows to the addresses of an answer may begin, that its client is told to keep for `ttl` seconds.
pub(crate) fn until(now: u64, ttl: u32, longest: u32) -> u64 {
    now + u64::from(ttl.min(longest)).max(AT_LEAST) + GRACE
}

/// What becomes of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Weighed {
    /// Addresses that the client may be told.
    pub told: Vec<IpAddr>,
    /// Those of them that flows by name may go to.
    pub learned: Vec<LearnedAddress>,
    /// Addresses that no name may bring, or that are denied, as the answer has them.
    pub forbidden: Vec<IpAddr>,
}

/// Weighs an answer for a name by a policy's rules for names, which are not believed of addresses that no name may bring: `own` are the machine's. A
/// network that the operator listed brings its addresses itself, and a deny rule is above all.
pub fn weigh(
    name: &DnsName,
    addresses: &[IpAddr],
    until: u64,
    names: &[CompiledName],
    rules: &impl Rules,
    own: &[IpAddr],
) -> Weighed {
    let listed: Vec<_> = names.iter().filter(|compiled| compiled.rule.pattern().matches(name)).collect();
    let mut weighed = Weighed::default();
    if listed.is_empty() {
        return weighed;
    }
    for as_brought in addresses {
        let address = as_brought.to_canonical();
        if weighed.told.contains(&address) {
            continue;
        }
        let by_network = rules.entry(&TrieKey::address(&address.into()));
        let kind = if own.contains(&address) { AddressKind::Loopback } else { AddressKind::of(address) };
        let mut told = allows_some(rules, address);
        for CompiledName { rule, id, grant, until: end } in &listed {
            let may = match kind {
                AddressKind::Public => true,
                AddressKind::Private => rule.private(),
                _ => false,
            };
            if may && !by_network.is_some_and(|entry| denies_all(&entry, rule)) {
                told = true;
                let learned = Learned { until: until.min(end.unwrap_or(u64::MAX)), rule: *id };
                weighed.learned.push(LearnedAddress { address, grant: *grant, learned });
            }
        }
        if told { weighed.told.push(address) } else { weighed.forbidden.push(*as_brought) }
    }
    weighed
}

const CLASSES: [Class; 2] = [Class::Tcp, Class::Udp];

/// Whether rules for networks let some flow to the address pass. What the instance listens at is no such rule.
fn allows_some(rules: &impl Rules, address: IpAddr) -> bool {
    [Protocol::TCP, Protocol::UDP].into_iter().any(|protocol| {
        let flow = Flow { address: address.into(), protocol, port: 0 };
        decide_for_some_port(rules, &flow) == Verdict::Allow
    })
}

/// Whether rules for networks deny everything that a rule for a name speaks of.
fn denies_all(entry: &Entry, rule: &NameRule) -> bool {
    CLASSES
        .iter()
        .filter(|class| rule.speaks_of_class(**class))
        .all(|class| entry.grant(*class) == Grant::DENY)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::{Leased, Policy, PolicySet, compile::compile, file, lease::LeasedRule};

    #[test]
    fn what_the_instance_listens_at_is_brought_by_no_name() {
        let listen = r#""listen": [{"address": "127.0.0.1", "port": 80}], "#;
        let text = format!(
            r#"{{"version": 1, "instances": {{"a": {{"units": ["a.service"], {listen}"allow": ["api.example.org"]}}}}}}"#
        );
        let PolicySet { instances, .. } = file::parse("policy.json".as_ref(), &text).expect("a policy file");
        let compiled = compile(instances.values().next().expect("a policy")).expect("it compiles");
        let (name, address) = ("api.example.org".parse().expect("a name"), [127, 0, 0, 1].into());
        let weighed = weigh(&name, &[address], 100, &compiled.names, &compiled.rules(), &[]);
        assert_eq!((weighed.told, weighed.forbidden), (vec![], vec![address]));
    }

    /// What becomes of addresses for `asked`, under these rules: those that are told, and `address grant` of those that are learned.
    fn weighed(allow: &str, deny: &str, asked: &str, addresses: &[&str]) -> (Vec<String>, Vec<String>) {
        let text = format!(
            r#"{{"version": 1, "instances": {{"a": {{"units": ["a.service"], "allow": [{allow}], "deny": [{deny}]}}}}}}"#
        );
        let PolicySet { instances, .. } = file::parse("policy.json".as_ref(), &text).expect("a policy file");
        let policies: BTreeMap<_, _> = instances;
        let compiled = compile(policies.values().next().expect("a policy")).expect("it compiles");
        let parse = |text: &&str| text.parse::<IpAddr>().expect("an address");
        let addresses: Vec<_> = addresses.iter().map(parse).collect();
        let own = [parse(&"198.51.100.7")];
        let name = asked.parse().expect("a name");
        let weighed = weigh(&name, &addresses, 100, &compiled.names, &compiled.rules(), &own);
        assert_eq!(
            weighed.told.len() + weighed.forbidden.len(),
            if weighed == Weighed::default() { 0 } else { addresses.len() }
        );
        let learned = weighed.learned.iter().map(|learned| format!("{} {}", learned.address, learned.grant));
        (weighed.told.iter().map(ToString::to_string).collect(), learned.collect())
    }

    #[test]
    fn only_listed_names_bring_addresses() {
        let allow = r#""api.example.org", "*.example.net:22""#;
        assert_eq!(
            weighed(allow, "", "api.example.org", &["192.0.2.1"]),
            (vec!["192.0.2.1".into()], vec!["192.0.2.1 1".into()])
        );
        assert_eq!(weighed(allow, "", "a.b.example.net", &["::ffff:192.0.2.1"]).1, ["192.0.2.1 0"]);
        for other in ["example.org", "b.api.example.org", "example.net"] {
            assert_eq!(weighed(allow, "", other, &["192.0.2.1"]), (vec![], vec![]), "{other}");
        }
    }

    #[test]
    fn what_no_name_may_bring_is_not_told() {
        let allow = r#""api.example.org""#;
        for forbidden in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "10.0.0.1",
            "fd00::1",
            "198.51.100.7",
        ] {
            assert_eq!(weighed(allow, "", "api.example.org", &[forbidden]), (vec![], vec![]), "{forbidden}");
        }
        let private = r#"{"name": "api.example.org", "private": true}"#;
        assert_eq!(weighed(private, "", "api.example.org", &["10.0.0.1"]).1, ["10.0.0.1 0"]);
        assert_eq!(
            weighed(private, "", "api.example.org", &["127.0.0.1", "169.254.169.254"]),
            (vec![], vec![])
        );
    }

    #[test]
    fn a_deny_rule_is_above_and_a_listed_network_beside_it() {
        let allow = r#""api.example.org", "10.0.0.0/8:5432/tcp""#;
        let (told, learned) =
            weighed(allow, r#""192.0.2.0/24""#, "api.example.org", &["192.0.2.1", "203.0.113.1", "10.0.0.1"]);
        assert_eq!(
            (told, learned),
            (vec!["203.0.113.1".into(), "10.0.0.1".into()], vec!["203.0.113.1 0".into()])
        );
        // Another protocol or port is denied there, and not what the name is listed for.
        let (told, _) = weighed(allow, r#""192.0.2.0/24:80/tcp""#, "api.example.org", &["192.0.2.1"]);
        assert_eq!(told, ["192.0.2.1"]);
    }

    #[test]
    fn what_a_leased_name_brings_is_good_until_the_end_of_the_lease() {
        let leased = |rule: &str| LeasedRule { rule: rule.parse().expect("a rule"), until: 50 };
        let mut policy = Policy::default();
        policy.allow("both.example.org".parse().expect("a rule"));
        let rules = ["leased.example.org", "*.example.org"].map(leased);
        let policy = policy.leased(Leased { rules: rules.into(), ..Leased::default() });
        let compiled = compile(&policy).expect("it compiles");
        let until = |name: &str, answer| {
            let (name, address) = (name.parse().expect("a name"), [192, 0, 2, 1].into());
            let weighed = weigh(&name, &[address], answer, &compiled.names, &compiled.rules(), &[]);
            weighed.learned.iter().map(|learned| learned.learned.until).max()
        };
        assert_eq!(until("leased.example.org", 100), Some(50));
        assert_eq!(until("leased.example.org", 20), Some(20));
        assert_eq!(until("both.example.org", 100), Some(100), "the policy file has it for good");
    }

    #[test]
    fn the_time_is_longer_than_the_client_is_told() {
        assert_eq!(until(1000, 0, 3600), 1120);
        assert_eq!(until(1000, 300, 3600), 1360);
        assert_eq!(until(1000, u32::MAX, 3600), 1000 + 3600 + 60);
    }
}
