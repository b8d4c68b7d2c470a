use opencode_egress_common::{
    decide::{Rules, Verdict, decide},
    flow::{Family, Flow, Protocol},
    reason::DropReason,
};
use proptest::prelude::*;

use super::*;

/// The compiled entries with a lookup that is slow and plain: the longest entry whose bits agree.
struct Plain<'a>(&'a [(TrieKey, Entry)]);

fn bits(key: &TrieKey) -> Vec<bool> {
    let words = [key.space, key.data[0], key.data[1], key.data[2], key.data[3]];
    let all = words.iter().flat_map(|word| {
        let word = u32::from_be(*word);
        (0..32).rev().map(move |bit| word >> bit & 1 == 1)
    });
    all.take(key.prefix_len as usize).collect()
}

impl Rules for Plain<'_> {
    fn entry(&self, key: &TrieKey) -> Option<Entry> {
        let wanted = bits(key);
        let matching = self.0.iter().filter(|(entry_key, _)| wanted.starts_with(&bits(entry_key)));
        matching.max_by_key(|(entry_key, _)| entry_key.prefix_len).map(|(_, entry)| *entry)
    }
}

/// What the design says, rule by rule, without tries or merging.
fn reference(policy: &Policy, flow: &Flow) -> bool {
    let address = IpAddr::from(flow.address);
    let covers = |rule: &Rule| {
        let protocol = match (rule.protocol(), flow.class()) {
            (RuleProtocol::Tcp, Class::Tcp) | (RuleProtocol::Udp, Class::Udp) => true,
            (RuleProtocol::Icmp, Class::Icmp) => true,
            (RuleProtocol::Any, Class::Tcp | Class::Udp) => true,
            (RuleProtocol::Any, _) => rule.ports().is_empty(),
            _ => false,
        };
        let in_ports = |range: &PortRange| (range.first()..=range.last()).contains(&flow.port);
        let port = rule.ports().is_empty() || rule.ports().iter().any(in_ports);
        rule.cidr().net().contains(&address) && protocol && port
    };
    let own = policy.listen.iter().any(|listen| {
        flow.class() == Class::Tcp
            && listen.port == flow.port
            && own_networks(listen).iter().any(|net| net.contains(&address))
    });
    own || (!policy.deny.iter().any(covers) && policy.allow.iter().any(covers))
}

fn cidrs() -> impl Strategy<Value = Cidr> {
    // A narrow space, so that prefixes cover one another and flows hit them.
    let v4 = (0..4_u8, 0..4_u8, 0..=32_u8).prop_map(|(a, b, len)| {
        let net = Ipv4Net::new_assert([10, a, b, b << 6].into(), len);
        IpNet::V4(net.trunc())
    });
    let v6 = (0..3_u16, 0..=128_u8).prop_map(|(a, len)| {
        let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, a, 0, 0, 0, 0, a);
        IpNet::V6(ipnet::Ipv6Net::new_assert(address, len).trunc())
    });
    let wide = Just("::/0".parse().expect("a network"));
    prop_oneof![4 => v4, 2 => v6, 1 => wide].prop_map(|net| net.to_string().parse().expect("a network"))
}

fn rules() -> impl Strategy<Value = Rule> {
    let port = (1..12_u16, 0..6_u16)
        .prop_map(|(first, more)| format!("{first}-{}", first + more).parse::<PortRange>().expect("a range"));
    let protocol = prop_oneof![
        Just(RuleProtocol::Any),
        Just(RuleProtocol::Tcp),
        Just(RuleProtocol::Udp),
        Just(RuleProtocol::Icmp)
    ];
    (cidrs(), protocol, prop::collection::vec(port, 0..3)).prop_map(|(cidr, protocol, ports)| {
        let ports = if protocol == RuleProtocol::Icmp { vec![] } else { ports };
        Rule::new(cidr, protocol, ports).expect("a rule")
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let listener = prop_oneof![Just("10.1.1.64"), Just("0.0.0.0"), Just("::"), Just("2001:db8:1::1")];
    let listen = (listener, 1..12_u16).prop_map(|(at, port)| Listen {
        address: at.parse().expect("an address"),
        port,
        open: false,
    });
    (
        prop::collection::vec(rules(), 0..12),
        prop::collection::vec(rules(), 0..6),
        prop::collection::vec(listen, 0..3),
    )
        .prop_map(|(allow, deny, listen)| Policy { allow, deny, listen, ..Policy::default() })
}

fn flows() -> impl Strategy<Value = Flow> {
    let v4 = (0..4_u8, 0..4_u8, 0..=255_u8).prop_map(|(a, b, c)| IpAddr::from([10, a, b, c]));
    let v6 = (0..3_u16, 0..3_u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b]));
    let fixed = prop_oneof![Just("127.0.0.1"), Just("::1"), Just("10.1.1.64"), Just("::ffff:10.1.1.64")]
        .prop_map(|text| text.parse().expect("an address"));
    let protocol = prop_oneof![
        Just(Protocol::TCP),
        Just(Protocol::UDP),
        Just(Protocol::ICMP),
        Just(Protocol::ICMPV6),
        Just(Protocol(132))
    ];
    (prop_oneof![4 => v4, 2 => v6, 1 => fixed], protocol, 0..16_u16).prop_map(|(address, protocol, port)| {
        let port = if matches!(protocol, Protocol::TCP | Protocol::UDP) { port } else { 0 };
        Flow { address: address.into(), protocol, port }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn compiled_policies_decide_like_the_rules(policy in policies(), flows in prop::collection::vec(flows(), 32)) {
        let compiled = compile(&policy).expect("it fits");
        for flow in flows {
            let allowed = decide(&Plain(&compiled.entries), &flow) == Verdict::Allow;
            prop_assert_eq!(allowed, reference(&policy, &flow), "{:?}", flow);
        }
    }

    #[test]
    fn no_key_comes_twice(policy in policies()) {
        let entries = compile(&policy).expect("it fits").entries;
        let keys: std::collections::HashSet<_> = entries.iter().map(|(key, _)| *key).collect();
        prop_assert_eq!(keys.len(), entries.len());
    }

    #[test]
    fn prefixes_make_up_exactly_the_range(first: u16, last: u16) {
        let (first, last) = (first.min(last), first.max(last));
        let mut next = u32::from(first);
        for (port, len) in prefixes_of((first, last)) {
            prop_assert_eq!(u32::from(port), next);
            next += 1 << (16 - len);
        }
        prop_assert_eq!(next, u32::from(last) + 1);
    }
}

fn rule(text: &str) -> Rule {
    let mut words = text.split(' ');
    let cidr = words.next().expect("a network").parse().expect("a network");
    let protocol = words.next().map_or(RuleProtocol::Any, |word| word.parse().expect("a protocol"));
    let ports =
        words.next().map_or(vec![], |word| word.split(',').map(|p| p.parse().expect("a port")).collect());
    Rule::new(cidr, protocol, ports).expect("a rule")
}

fn verdict(allow: &[&str], deny: &[&str], flow: (&str, Protocol, u16)) -> Verdict {
    let policy = Policy {
        allow: allow.iter().map(|text| rule(text)).collect(),
        deny: deny.iter().map(|text| rule(text)).collect(),
        ..Policy::default()
    };
    let address = flow.0.parse::<IpAddr>().expect("an address").into();
    let compiled = compile(&policy).expect("it fits");
    decide(&Plain(&compiled.entries), &Flow { address, protocol: flow.1, port: flow.2 })
}

/// The reason says which step of the rules ended it.
#[test]
fn denials_have_their_reasons() {
    use DropReason as R;
    let allow = &["10.0.0.0/8 tcp 443", "10.1.0.0/16 udp", "192.0.2.0/24 icmp"];
    let deny = &["10.9.0.0/16", "10.8.0.0/16 tcp 440-450"];
    let check = |dst, protocol, port, expect| {
        assert_eq!(verdict(allow, deny, (dst, protocol, port)), expect, "{dst} {protocol:?} {port}");
    };
    check("10.2.3.4", Protocol::TCP, 443, Verdict::Allow);
    check("10.2.3.4", Protocol::TCP, 80, Verdict::Deny(R::PortNotAllowed));
    check("10.2.3.4", Protocol::UDP, 443, Verdict::Deny(R::ProtocolNotAllowed));
    // The ports of the covering prefix still count under the longer one.
    check("10.1.3.4", Protocol::TCP, 443, Verdict::Allow);
    check("10.1.3.4", Protocol::UDP, 53, Verdict::Allow);
    check("10.9.3.4", Protocol::TCP, 443, Verdict::Deny(R::DenyRule));
    check("10.8.3.4", Protocol::TCP, 443, Verdict::Deny(R::DenyRule));
    check("10.8.3.4", Protocol::TCP, 80, Verdict::Deny(R::PortNotAllowed));
    check("192.0.2.1", Protocol::ICMP, 0, Verdict::Allow);
    check("203.0.113.1", Protocol::TCP, 443, Verdict::Deny(R::NotAllowed));
}

#[test]
fn all_of_ipv6_is_not_ipv4() {
    let tcp = |dst| verdict(&["::/0"], &[], (dst, Protocol::TCP, 443));
    assert_eq!(tcp("2001:db8::1"), Verdict::Allow);
    assert_eq!(tcp("192.0.2.1"), Verdict::Deny(DropReason::NotAllowed));
    assert_eq!(tcp("::ffff:192.0.2.1"), Verdict::Deny(DropReason::NotAllowed));
}

#[test]
fn entries_that_add_nothing_are_left_out() {
    let policy = Policy {
        allow: vec![rule("10.0.0.0/8"), rule("10.1.0.0/16"), rule("10.1.2.0/24 tcp 443")],
        ..Policy::default()
    };
    assert_eq!(compile(&policy).expect("it fits").entries.len(), 1);
}

#[test]
fn sockets_that_could_never_speak_are_known() {
    let flags = |texts: &[&str]| {
        let allow = texts.iter().map(|text| rule(text)).collect();
        let head = compile(&Policy { allow, ..Policy::default() }).expect("it fits").head;
        (head.icmpv6_can_speak, head.other_can_speak)
    };
    assert_eq!(flags(&["10.0.0.0/8 tcp", "2001:db8::/32 tcp 443", "10.0.0.0/8 icmp"]), (0, 0));
    assert_eq!(flags(&["2001:db8::/32 icmp"]), (1, 0));
    assert_eq!(flags(&["10.0.0.0/8"]), (0, 1));
    assert_eq!(flags(&["2001:db8::/32"]), (1, 1));
}

#[test]
fn a_prefix_covers_its_own_family_only() {
    let all4 = Prefix::of("0.0.0.0/0".parse().expect("a network"));
    let all6 = Prefix::of("::/0".parse().expect("a network"));
    let host = Prefix::of("192.0.2.1/32".parse().expect("a network"));
    assert!(all4.covers(&host) && !all6.covers(&host) && !host.covers(&all4));
    assert_eq!(Address::from(IpAddr::from([192, 0, 2, 1])).family(), Family::V4);
}
