//! Random rules for names.

use proptest::prelude::*;

use super::strategies::{ports, rules};
use crate::policy::{AnyRule, NameRule, RuleProtocol};

/// Rules for names.
pub(crate) fn name_rules() -> impl Strategy<Value = NameRule> {
    let pattern = prop_oneof![
        Just("api.example.org"),
        Just("*.example.org"),
        Just("*.a.example.org"),
        Just("_b.xn--bcher-kva.example")
    ];
    let protocol = prop_oneof![
        Just(None),
        Just(Some(RuleProtocol::Tcp)),
        Just(Some(RuleProtocol::Udp)),
        Just(Some(RuleProtocol::Any))
    ];
    let said = (any::<Option<bool>>(), any::<bool>());
    (pattern, protocol, ports(), said).prop_map(|(pattern, protocol, ports, (tls, private))| {
        let may_have_tls = matches!(protocol, None | Some(RuleProtocol::Tcp));
        let tls = tls.filter(|tls| may_have_tls || !tls);
        NameRule::new(pattern.parse().expect("a pattern"), protocol, ports, tls, private).expect("a rule")
    })
}

/// Rules of both kinds.
pub(crate) fn any_rules() -> impl Strategy<Value = AnyRule> {
    prop_oneof![rules().prop_map(AnyRule::Network), name_rules().prop_map(AnyRule::Name)]
}
