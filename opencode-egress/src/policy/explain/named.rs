//! What becomes of flows by name: to a name, and to an address that a name brought.

use std::net::IpAddr;

use opencode_egress_common::reason::DropReason;

use crate::policy::{
    AnyRule, Invalid, NameRule, Policy,
    destination::Destination,
    explain::judgement::{
        Behind, FORBIDDEN_ADDRESS, Judgement, KnownAddress, NAME_EXPIRED, NAME_NOT_ALLOWED, NameJudgement,
        RefusedAddress,
    },
    name::{DnsName, LearnedName, PRIVATE},
    special::AddressKind,
    target::NamedDestination,
};

/// Judges a flow to a name by the policy's rules for names. `refused` are addresses that answers had and that the policy lets no such name bring.
pub(super) fn explain_name(
    named: &NamedDestination,
    audit: bool,
    policy: &Policy,
    learned: &[LearnedName],
    refused: &[IpAddr],
) -> Judgement {
    let listing = listing(policy, &named.name);
    let allowing: Vec<_> = listing.iter().filter(|rule| named.is_spoken_of_by(rule)).collect();
    let reason = match (listing.is_empty(), allowing.is_empty()) {
        (true, _) => Some(NAME_NOT_ALLOWED),
        (false, true) if listing.iter().any(|rule| named.has_protocol_of(rule)) => {
            Some(DropReason::PortNotAllowed.name())
        }
        (false, true) => Some(DropReason::ProtocolNotAllowed.name()),
        (false, false) => None,
    };
    let of_name = learned.iter().filter(|learned| learned.name == named.name && learned.seconds > 0);
    let addresses: Vec<_> =
        of_name.map(|learned| KnownAddress { address: learned.address, seconds: learned.seconds }).collect();
    // A rule lets it pass, and there is nothing that it may go to.
    let reason =
        reason.or_else(|| (addresses.is_empty() && !refused.is_empty()).then_some(FORBIDDEN_ADDRESS));
    let by = if allowing.is_empty() { listing.iter().collect() } else { allowing };
    let mut rules: Vec<_> = by.iter().map(|rule| behind(policy, rule)).collect();
    rules.extend(must_open_tls(reason.is_none(), by.into_iter().copied()));
    let is_private = |address: &IpAddr| why_refused(*address, named, policy) == Why::Private;
    let private = refused.iter().any(is_private);
    let is_wanting = private || reason.is_some_and(|reason| reason != FORBIDDEN_ADDRESS);
    let instead = is_wanting.then(|| match named.as_rule(private) {
        Ok(rule) if policy.all_names().next().is_none() => format!(
            "nor is any rule of the policy for a name, so questions go where its networks allow, and addresses are judged by them: explain one of its addresses, or add `{rule}` to `allow`"
        ),
        Ok(rule) if private => {
            format!("to allow it, where that network is your own, add `{rule}` to `allow`")
        }
        Ok(rule) => format!("to allow it, add `{rule}` to `allow`"),
        Err(invalid) => invalid.to_string(),
    });
    Judgement {
        allowed: reason.is_none(),
        own_only: false,
        reason: reason.map(str::to_owned),
        rules,
        audit,
        bind: None,
        name: Some(NameJudgement { addresses, refused: told(refused, named, policy), instead }),
    }
}

/// Why no name may bring an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    DenyRule,
    Private,
    Special,
}

fn why_refused(address: IpAddr, named: &NamedDestination, policy: &Policy) -> Why {
    let address = address.to_canonical();
    let is_denied =
        policy.deny.iter().any(|rule| rule.cidr().net().contains(&address) && named.is_denied_by(rule));
    match (is_denied, AddressKind::of(address)) {
        (true, _) => Why::DenyRule,
        (false, AddressKind::Private) => Why::Private,
        // One that anybody may have is refused where the machine itself has it.
        (false, _) => Why::Special,
    }
}

fn told(refused: &[IpAddr], named: &NamedDestination, policy: &Policy) -> Vec<RefusedAddress> {
    let told = |address: &IpAddr| {
        let why = match why_refused(*address, named, policy) {
            Why::DenyRule => "a `deny` rule covers it".to_owned(),
            Why::Private => format!("it is one inside, which only a name with `{PRIVATE}` may bring"),
            Why::Special => "it is this machine's, its link's, a group's or nobody's, which no name may bring; a rule for its network lets that pass".to_owned(),
        };
        RefusedAddress { address: *address, why }
    };
    refused.iter().map(told).collect()
}

/// A judgement of a flow to an address by networks and leases of such, and what the names that brought the address change.
pub(super) fn by_name(
    judgement: Judgement,
    destination: Destination,
    policy: &Policy,
    learned: &[LearnedName],
) -> Judgement {
    let denied_by_rule = judgement.reason.as_deref() == Some(DropReason::DenyRule.name());
    let leased = judgement.rules.iter().any(|behind| behind.leased.is_some());
    if judgement.allowed && !leased || denied_by_rule {
        return judgement;
    }
    let flow = destination.flow();
    let of_address = learned.iter().filter(|learned| learned.address == destination.address);
    let (mut in_time, mut over, mut allowing) = (vec![], vec![], vec![]);
    for LearnedName { name, seconds, .. } in of_address {
        for rule in listing(policy, name).into_iter().filter(|rule| rule.speaks_of(&flow)) {
            match seconds {
                0 => over.push(behind(policy, rule).also(format!(
                    "{name} had this address, and the time for which that was told is over; who asks for the name again gets what it has now"
                ))),
                _ => {
                    in_time.push(
                        behind(policy, rule).also(format!("{name} has this address (for {seconds} s)")),
                    );
                    allowing.push(rule);
                }
            }
        }
    }
    if leased {
        // It is free to open what it likes.
        in_time.extend(judgement.rules);
        return Judgement { rules: in_time, ..judgement };
    }
    in_time.extend(must_open_tls(!in_time.is_empty(), allowing.into_iter()));
    match (in_time.is_empty(), over.is_empty()) {
        (false, _) => Judgement { allowed: true, reason: None, rules: in_time, ..judgement },
        (true, false) => Judgement { reason: Some(NAME_EXPIRED.to_owned()), rules: over, ..judgement },
        (true, true) => judgement,
    }
}

/// What is said of a flow that only rules with `tls` allow.
fn must_open_tls<'a>(allowed: bool, mut by: impl Iterator<Item = &'a NameRule>) -> Option<Behind> {
    (allowed && by.all(NameRule::tls)).then(|| {
        "what opens it must be a TLS hello to a server that a rule with `tls` lists; otherwise it is reset (tls-name-not-allowed, not-tls)".to_owned().into()
    })
}

/// The rules that list a name.
fn listing<'a>(policy: &'a Policy, name: &DnsName) -> Vec<&'a NameRule> {
    policy.all_names().map(|(rule, _)| rule).filter(|rule| rule.pattern().matches(name)).collect()
}

fn behind(policy: &Policy, rule: &NameRule) -> Behind {
    Behind::allowing(policy, AnyRule::Name(rule.clone()))
}

impl NamedDestination {
    /// The rule for this flow alone, and of `private` addresses.
    fn as_rule(&self, private: bool) -> Result<AnyRule, Invalid> {
        let rule = self.to_string();
        if private { format!("{rule}/{PRIVATE}").parse() } else { rule.parse() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        compile::{compile, tests::rule},
        explain::explain,
    };

    #[test]
    fn a_name_whose_addresses_were_refused_is_told_so() {
        let mut policy = Policy { deny: vec![rule("203.0.113.0/24")], ..Policy::default() };
        for text in ["*.other.test:80", "api.example.org"] {
            policy.allow(text.parse().expect("a rule"));
        }
        let told = |target: &str, learned: &[LearnedName], refused: &[&str]| {
            let compiled = compile(&policy).expect("it fits");
            let refused: Vec<_> = refused.iter().map(|text| text.parse().expect("an address")).collect();
            let target = target.parse().expect("a target");
            explain(&target, &compiled.header, &compiled.rules(), &policy, learned, &refused).to_string()
        };
        assert_eq!(
            told("priv.other.test:80", &[], &["10.0.0.7"]),
            "denied (forbidden-address)
  allow *.other.test:80
  an answer had 10.0.0.7, which was refused (forbidden-address): it is one inside, which only a name with `private` may bring
  to allow it, where that network is your own, add `priv.other.test:80/private` to `allow`"
        );
        let elsewhere = told("priv.other.test:81", &[], &["10.0.0.7"]);
        let listed = "denied (port-not-allowed)\n  the name is listed, but not this flow, by";
        assert!(elsewhere.starts_with(listed), "{elsewhere}");
        assert!(elsewhere.ends_with("add `priv.other.test:81/private` to `allow`"), "{elsewhere}");
        // Where no rule for a name helps.
        let others = told("api.example.org", &[], &["169.254.169.254", "203.0.113.9"]);
        let first =
            "denied (forbidden-address)\n  allow api.example.org\n  an answer had 169.254.169.254, which";
        assert!(others.starts_with(first), "{others}");
        let last = "had 203.0.113.9, which was refused (forbidden-address): a `deny` rule covers it";
        assert!(others.ends_with(last), "{others}");
        // Another address is known.
        let name = "priv.other.test".parse().expect("a name");
        let known = [LearnedName { name, address: [192, 0, 2, 7].into(), seconds: 60 }];
        let both = told("priv.other.test:80", &known, &["10.0.0.7"]);
        let known = "allowed\n  allow *.other.test:80\n  its addresses: 192.0.2.7 (for 60 s)\n  an answer had 10.0.0.7";
        assert!(both.starts_with(known), "{both}");
    }
}
