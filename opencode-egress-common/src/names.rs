//! What name rules say of a flow, for the kernel and for user space.
//!
//! A rule speaks of names, a flow has an address: between them stands what answers brought, and until when. A flow is looked up under
//! each combination of protocol and ports that the policy's name rules have, because an address may have been learned under
//! several, each with a time of its own.

use crate::{
    abi::{Entry, Grant, Learned, MAX_NAME_GRANTS, NameRuleId, PolicyHeader, RESOLVER_PORTS, TrieKey},
    decide::{Rules, Verdict},
    flow::{Address, Class, Flow},
    reason::DropReason,
};

/// The addresses that names brought to a policy: the map in the kernel, or a copy of it.
pub trait LearnedAddresses {
    /// What is known of an address under a grant of the policy's name rules.
    fn learned(&self, grant: u32, address: &Address) -> Option<Learned>;
}

/// What name rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByName {
    /// No name that is listed for this protocol and port brought the address.
    Unknown,
    /// One did, and the time for new flows is over.
    Expired,
    /// A new flow may begin, by this rule.
    Allowed(NameRuleId),
}

/// A flow as name rules see it: of TCP or UDP, which are all that they speak of.
#[derive(Clone, Copy, Debug)]
pub struct NamedFlow {
    /// Where to.
    pub address: Address,
    /// The index of the flow's class among an entry's grants: TCP's or UDP's.
    pub class: u32,
    /// The destination port.
    pub port: u16,
}

impl NamedFlow {
    /// A flow; `None`: it is of another protocol.
    #[inline(always)]
    pub const fn of(flow: &Flow) -> Option<Self> {
        let class = match flow.class() {
            Class::Tcp => Class::Tcp as u32,
            Class::Udp => Class::Udp as u32,
            Class::Icmp | Class::Other => return None,
        };
        Some(Self { address: flow.address, class, port: flow.port })
    }
}

/// The grant for a flow's class.
#[inline(always)]
fn grant_of(entry: &Entry, flow: &NamedFlow) -> Grant {
    // Not by an index: the verifier would follow each.
    let grants = entry.grants.map(|grant| grant.0 as u64);
    let grants = grants[0] | grants[1] << 16 | grants[2] << 32 | grants[3] << 48;
    #[expect(clippy::cast_possible_truncation, reason = "the grant at the bottom")]
    Grant((grants >> (16 * (flow.class & 3))) as u16)
}

/// Whether what stands at a key allows a flow, whatever its address.
#[inline(always)]
pub fn covers(rules: &impl Rules, key: &TrieKey, flow: &NamedFlow) -> bool {
    let Some(entry) = rules.entry(key) else { return false };
    match grant_of(&entry, flow) {
        Grant::ALLOW => true,
        Grant::NONE | Grant::DENY => false,
        set => {
            rules.entry(&TrieKey::port(set, flow.port)).is_some_and(|ports| ports.grants[0] == Grant::ALLOW)
        }
    }
}

/// The lease of a network by which a new flow may begin. `now` is in seconds since boot (`CLOCK_BOOTTIME`).
#[inline(always)]
pub fn by_lease(rules: &impl Rules, flow: &NamedFlow, now: u64) -> Option<NameRuleId> {
    let networks = rules.entry(&TrieKey::lease(&flow.address))?;
    let set = match grant_of(&networks, flow) {
        Grant::NONE => return None,
        set => set,
    };
    let (until, number) = rules.entry(&TrieKey::port(set, flow.port))?.lease();
    (until as u64 > now).then_some(NameRuleId::of_lease(number))
}

/// Judges a new flow by the policy's name rules, of which there are `grants` combinations of protocol and ports. `now` is in seconds
/// of the clock of [`Learned::until`].
#[inline(always)]
pub fn by_name(
    rules: &impl Rules,
    addresses: &impl LearnedAddresses,
    grants: u32,
    flow: &NamedFlow,
    now: u64,
) -> ByName {
    let mut said = ByName::Unknown;
    let mut grant = 0;
    while grant < MAX_NAME_GRANTS {
        if grant >= grants {
            break;
        }
        if covers(rules, &TrieKey::name_grant(grant), flow) {
            match addresses.learned(grant, &flow.address) {
                Some(learned) if learned.until > now => return ByName::Allowed(learned.rule),
                Some(_) => said = ByName::Expired,
                None => {}
            }
        }
        grant += 1;
    }
    said
}

/// What name rules say of how a new flow that they allow must go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GoesOn {
    /// They do not know it.
    Unknown = 0,
    /// With TLS, to a listed server.
    AsTls = 1,
    /// As it likes.
    Freely = 2,
}

/// Whether a flow that no rule for networks allows must open TLS: where some name rule with `tls` knows its address, and none without
/// allows it. An address whose time is over counts for the former: time passes between two programs that look at one packet.
#[inline(always)]
pub fn goes_on(
    rules: &impl Rules,
    addresses: &impl LearnedAddresses,
    grants: u32,
    flow: &NamedFlow,
    now: u64,
) -> GoesOn {
    let mut said = GoesOn::Unknown;
    // Written out: of the turns of a loop the kernel's verifier forgets too soon what it saw.
    macro_rules! each {
        ($($grant:literal)*) => {
            $(
                if $grant >= grants {
                    return said;
                }
                match goes_on_by(rules, addresses, $grant, flow, now) {
                    GoesOn::Unknown => {}
                    GoesOn::AsTls => said = GoesOn::AsTls,
                    GoesOn::Freely => return GoesOn::Freely,
                }
            )*
        };
    }
    const { assert!(MAX_NAME_GRANTS == 8) };
    each!(0 1 2 3 4 5 6 7);
    said
}

/// What the rules of one grant say of that.
#[inline(never)]
fn goes_on_by(
    rules: &impl Rules,
    addresses: &impl LearnedAddresses,
    grant: u32,
    flow: &NamedFlow,
    now: u64,
) -> GoesOn {
    let key = TrieKey::name_grant(grant);
    if !covers(rules, &key, flow) {
        return GoesOn::Unknown;
    }
    let Some(learned) = addresses.learned(grant, &flow.address) else { return GoesOn::Unknown };
    if rules.entry(&key).is_some_and(|entry| entry.is_tls()) {
        GoesOn::AsTls
    } else if learned.until > now {
        GoesOn::Freely
    } else {
        GoesOn::Unknown
    }
}

/// Whether a denial by the network rules is one that a name may turn: no rule for networks speaks of the flow.
#[inline(always)]
pub const fn may_be_allowed_by_name(reason: DropReason) -> bool {
    matches!(reason, DropReason::NotAllowed | DropReason::ProtocolNotAllowed | DropReason::PortNotAllowed)
}

impl PolicyHeader {
    /// Whether the policy has name rules by which TLS is followed.
    #[inline(always)]
    pub const fn has_tls(&self) -> bool {
        self.tls != 0
    }

    /// Whether a flow that no rule for networks allows may pass: by a name rule, or by a lease.
    #[inline(always)]
    pub const fn has_names(&self) -> bool {
        self.name_grants | self.leased != 0
    }

    /// Whether the programs of datagrams' calls are needed, whatever those of packets know: questions get another address before they are
    /// packets, and a packet's program cannot choose the error that the caller gets.
    #[inline(always)]
    pub const fn takes_datagram_calls(&self) -> bool {
        self.has_names() || self.errno != 0
    }

    /// The verdict on a flow to where instances' resolvers listen, which is above all rules: an instance reaches its own, and no
    /// other's. `None`: it goes elsewhere.
    #[inline(always)]
    pub fn judge_resolver(&self, flow: &Flow) -> Option<Verdict> {
        let (first, last) = RESOLVER_PORTS;
        if flow.port < first || flow.port > last || !is_resolvers_address(&flow.address) {
            return None;
        }
        match flow.class() {
            Class::Tcp | Class::Udp if self.resolver_port == flow.port as u32 => Some(Verdict::Allow),
            Class::Tcp | Class::Udp => Some(Verdict::Deny(DropReason::OtherResolver)),
            Class::Icmp | Class::Other => None,
        }
    }
}

/// The loopback address of each family, where resolvers listen.
#[inline(always)]
fn is_resolvers_address(address: &Address) -> bool {
    let words = address.words();
    match address.family() {
        crate::flow::Family::V4 => words[0] == 0x7f00_0001_u32.to_be(),
        crate::flow::Family::V6 => {
            words[0] == 0 && words[1] == 0 && words[2] == 0 && words[3] == 1_u32.to_be()
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::{abi::Entry, flow::Protocol};

    fn flow(address: &str, protocol: Protocol, port: u16) -> Flow {
        Flow { address: address.parse::<IpAddr>().expect("an address").into(), protocol, port }
    }

    /// Grant 0 is TCP 443, grant 1 all of UDP.
    struct Fixed;

    impl Rules for Fixed {
        fn entry(&self, key: &TrieKey) -> Option<Entry> {
            let set = Grant(Grant::FIRST_SET);
            if *key == TrieKey::name_grant(0) {
                Some(Entry { grants: [set, Grant::NONE, Grant::NONE, Grant::NONE] })
            } else if *key == TrieKey::name_grant(1) {
                Some(Entry { grants: [Grant::NONE, Grant::ALLOW, Grant::NONE, Grant::NONE] })
            } else {
                (*key == TrieKey::port(set, 443)).then_some(Entry::uniform(Grant::ALLOW))
            }
        }
    }

    /// 192.0.2.1 until 100 by both grants, 192.0.2.2 until 50 by the second.
    struct Known;

    impl LearnedAddresses for Known {
        fn learned(&self, grant: u32, address: &Address) -> Option<Learned> {
            let is = |text: &str| *address == text.parse::<IpAddr>().expect("an address").into();
            let learned = |until| Some(Learned { until, rule: NameRuleId(u64::from(grant)) });
            match grant {
                _ if is("192.0.2.1") => learned(100),
                1 if is("192.0.2.2") => learned(50),
                _ => None,
            }
        }
    }

    #[test]
    fn a_flow_is_allowed_for_the_ports_of_the_rule_and_until_its_time() {
        let judge = |address, protocol, port, now| {
            let flow = NamedFlow::of(&flow(address, protocol, port)).expect("a flow of TCP or UDP");
            by_name(&Fixed, &Known, 2, &flow, now)
        };
        assert_eq!(judge("192.0.2.1", Protocol::TCP, 443, 99), ByName::Allowed(NameRuleId(0)));
        assert_eq!(judge("192.0.2.1", Protocol::TCP, 443, 100), ByName::Expired);
        assert_eq!(judge("192.0.2.1", Protocol::TCP, 80, 0), ByName::Unknown);
        assert_eq!(judge("192.0.2.1", Protocol::UDP, 9, 0), ByName::Allowed(NameRuleId(1)));
        assert_eq!(judge("192.0.2.2", Protocol::TCP, 443, 0), ByName::Unknown);
        assert_eq!(judge("192.0.2.3", Protocol::UDP, 9, 0), ByName::Unknown);
        let udp = NamedFlow::of(&flow("192.0.2.1", Protocol::UDP, 9)).expect("a flow of UDP");
        let fewer = by_name(&Fixed, &Known, 1, &udp, 0);
        assert_eq!(fewer, ByName::Unknown, "a grant that the policy does not have");
        assert!(NamedFlow::of(&flow("192.0.2.1", Protocol::ICMP, 0)).is_none());
    }

    #[test]
    fn a_rule_without_tls_frees_a_flow_and_one_with_it_binds_it() {
        /// Both are for TCP 443; the second has `tls`.
        struct Both;
        impl Rules for Both {
            fn entry(&self, key: &TrieKey) -> Option<Entry> {
                let entry = Fixed.entry(&TrieKey::name_grant(0))?;
                match key {
                    key if *key == TrieKey::name_grant(0) => Some(entry),
                    key if *key == TrieKey::name_grant(1) => Some(entry.with_tls()),
                    key => Fixed.entry(key),
                }
            }
        }
        /// The last byte's first bit: by the first rule; its second: by the second.
        struct Last;
        impl LearnedAddresses for Last {
            fn learned(&self, grant: u32, address: &Address) -> Option<Learned> {
                let last = address.words()[0].to_ne_bytes()[3];
                (last >> grant & 1 != 0).then_some(Learned { until: 100, rule: NameRuleId(0) })
            }
        }
        let said = |last: u8, port, now| {
            let mut flow = flow("192.0.2.0", Protocol::TCP, port);
            flow.address = IpAddr::from([192, 0, 2, last]).into();
            goes_on(&Both, &Last, 2, &NamedFlow::of(&flow).expect("TCP"), now)
        };
        assert_eq!(said(0, 443, 0), GoesOn::Unknown);
        assert_eq!(said(1, 443, 0), GoesOn::Freely);
        assert_eq!(said(1, 443, 100), GoesOn::Unknown);
        assert_eq!(said(2, 443, 0), GoesOn::AsTls);
        assert_eq!(said(2, 443, 100), GoesOn::AsTls, "its time ended a moment ago");
        assert_eq!(said(2, 80, 0), GoesOn::Unknown);
        assert_eq!(said(3, 443, 0), GoesOn::Freely);
        assert_eq!(said(3, 443, 100), GoesOn::AsTls);
        assert!(covers(
            &Both,
            &TrieKey::name_grant(1),
            &NamedFlow::of(&flow("192.0.2.2", Protocol::TCP, 443)).expect("TCP")
        ));
    }

    #[test]
    fn only_the_instances_own_resolver_is_reached() {
        let (first, last) = RESOLVER_PORTS;
        let header = PolicyHeader { resolver_port: u32::from(first), ..PolicyHeader::default() };
        let judge = |address, protocol, port| header.judge_resolver(&flow(address, protocol, port));
        let other = Some(Verdict::Deny(DropReason::OtherResolver));
        assert_eq!(judge("127.0.0.1", Protocol::UDP, first), Some(Verdict::Allow));
        assert_eq!(judge("::1", Protocol::TCP, first), Some(Verdict::Allow));
        assert_eq!(judge("::ffff:127.0.0.1", Protocol::TCP, first), Some(Verdict::Allow));
        assert_eq!(judge("127.0.0.1", Protocol::UDP, first + 1), other);
        assert_eq!(judge("::1", Protocol::TCP, last), other);
        assert_eq!(judge("127.0.0.1", Protocol::UDP, last + 1), None);
        assert_eq!(judge("127.0.0.2", Protocol::UDP, first), None);
        assert_eq!(judge("::2", Protocol::UDP, first), None);
        assert_eq!(judge("127.0.0.1", Protocol::ICMP, first), None);
        let without = PolicyHeader::default();
        assert_eq!(without.judge_resolver(&flow("127.0.0.1", Protocol::UDP, 0)), None);
        assert_eq!(without.judge_resolver(&flow("127.0.0.1", Protocol::UDP, first)), other);
    }
}
