//! What becomes of flows by name: to a name, and to an address that a name brought.

use opencode_egress_common::reason::DropReason;

use crate::policy::{
    AnyRule, Invalid, NameRule, Policy,
    destination::Destination,
    explain::judgement::{Behind, Judgement, KnownAddress, NAME_EXPIRED, NAME_NOT_ALLOWED, NameJudgement},
    name::{DnsName, LearnedName},
    target::NamedDestination,
};

/// Judges a flow to a name by the policy's rules for names.
pub(super) fn explain_name(
    named: &NamedDestination,
    audit: bool,
    policy: &Policy,
    learned: &[LearnedName],
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
    let by = if allowing.is_empty() { listing.iter().collect() } else { allowing };
    let mut rules: Vec<_> = by.iter().map(|rule| behind(policy, rule)).collect();
    rules.extend(must_open_tls(reason.is_none(), by.into_iter().copied()));
    let of_name = learned.iter().filter(|learned| learned.name == named.name && learned.seconds > 0);
    let addresses =
        of_name.map(|learned| KnownAddress { address: learned.address, seconds: learned.seconds }).collect();
    let instead = reason.map(|_| match named.as_rule() {
        Ok(rule) if policy.all_names().next().is_none() => format!(
            "nor is any rule of the policy for a name, so questions go where its networks allow, and addresses are judged by them: explain one of its addresses, or add `{rule}` to `allow`"
        ),
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
        name: Some(NameJudgement { addresses, instead }),
    }
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
    /// The rule for this flow alone.
    fn as_rule(&self) -> Result<AnyRule, Invalid> {
        self.to_string().parse()
    }
}
