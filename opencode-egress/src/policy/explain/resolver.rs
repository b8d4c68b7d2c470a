//! What becomes of flows to where instances' resolvers listen, and of questions, which go to the instance's own wherever they are addressed.

use opencode_egress_common::{
    abi::{PolicyHeader, RESOLVER_PORTS},
    decide::{Decision, Verdict},
    flow::{Class, Flow},
    reason::DropReason,
};

use crate::policy::Policy;

/// The port of every resolver that could be asked in the clear.
const DOMAIN: u16 = 53;

/// The port of a resolver that a policy will have once it is in force: nobody knows it yet, and no flow has it.
const NOT_KNOWN_YET: u32 = u32::MAX;

/// A flow that is no matter of rules: why it is denied, if it is, and what there is to say of it. `None`: rules judge it, whose `decision` this
/// is; `leased`: a lease of a network lets it pass.
pub(super) fn to_resolver(
    flow: &Flow,
    decision: Decision,
    leased: bool,
    header: &PolicyHeader,
) -> Option<(Option<DropReason>, String)> {
    match header.judge_resolver(flow) {
        Some(Verdict::Allow) => {
            let said = "the instance's own resolver answers there: explain the name that is asked for";
            return Some((None, said.to_owned()));
        }
        Some(Verdict::Deny(reason)) => {
            let (first, last) = RESOLVER_PORTS;
            let said = format!(
                "the ports {first} to {last} of loopback are instances' resolvers', and an instance reaches none but its own, whatever its rules say"
            );
            return Some((Some(reason), said));
        }
        None => {}
    }
    // As the kernel redirects it: `question::redirect` in opencode-egress-ebpf.
    let is_question = flow.port == DOMAIN && matches!(flow.class(), Class::Tcp | Class::Udp);
    let passes = leased || decision.settle(|| false) == Verdict::Allow;
    (is_question && header.resolver_port != 0 && !passes).then(|| {
        let said = "no network on the list has this server, so questions to it go to the instance's own resolver: explain the name that is asked for";
        (None, said.to_owned())
    })
}

/// The header of a policy that is not in force, as it will be there: with the resolver of the one in force, where it has names.
pub(super) fn with_resolver(header: &PolicyHeader, policy: &Policy, in_force: u32) -> PolicyHeader {
    let resolver_port = match (policy.all_names().next().is_some(), in_force) {
        (false, _) => 0,
        (true, 0) => NOT_KNOWN_YET,
        (true, port) => port,
    };
    PolicyHeader { resolver_port, ..*header }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        compile::{compile, tests::rule},
        explain::{Judgement, PolicyFile, explain},
        lease::{Leased, LeasedRule},
        target::Target,
    };

    /// Of the instance's own resolver.
    const OWN: u16 = RESOLVER_PORTS.0 + 7;

    fn with_names(allow: &[&str], deny: &[&str]) -> Policy {
        let mut policy = Policy { deny: deny.iter().map(|text| rule(text)).collect(), ..Policy::default() };
        allow.iter().for_each(|text| policy.allow(text.parse().expect("a rule")));
        policy
    }

    fn judge(policy: &Policy, target: &str) -> Judgement {
        let compiled = compile(policy).expect("it fits");
        let header = with_resolver(&compiled.header, policy, OWN.into());
        let target: Target = target.parse().expect("a target");
        explain(&target, &header, &compiled.rules(), policy, &[], &[])
    }

    #[test]
    fn questions_go_to_the_instances_own_resolver_unless_a_network_lets_them_pass() {
        let policy = with_names(&["api.example.org", "192.0.2.53/32:53"], &["9.9.9.9/32"]);
        for question in
            ["8.8.8.8:53", "8.8.8.8:53/udp", "9.9.9.9:53/udp", "[2001:db8::53]:53", "127.0.0.53:53/udp"]
        {
            let judgement = judge(&policy, question);
            assert!(judgement.allowed && judgement.reason.is_none(), "{question}: {judgement}");
            let said = "allowed\n  no network on the list has this server, so questions to it go to the instance's own resolver: explain the name that is asked for";
            assert!(judgement.to_string().starts_with(said), "{question}: {judgement}");
        }
        assert_eq!(judge(&policy, "192.0.2.53:53").to_string(), "allowed\n  allow 192.0.2.53/32:53");
        assert!(!judge(&policy, "8.8.8.8:853").allowed);
        assert!(!judge(&policy, "8.8.8.8/sctp").allowed);
        let leased = LeasedRule { rule: "8.8.8.8/32:53/udp".parse().expect("a rule"), until: 50 };
        let leased = policy.leased(Leased { rules: [leased].into(), ..Leased::default() });
        assert_eq!(judge(&leased, "8.8.8.8:53/udp").to_string(), "allowed\n  lease 8.8.8.8/32:53/udp");
        let networks = with_names(&["192.0.2.53/32:53"], &[]);
        let judgement = judge(&networks, "8.8.8.8:53/udp");
        assert_eq!(judgement.to_string(), "denied (not-allowed)\n  no rule covers the address", "no names");
    }

    #[test]
    fn an_instance_reaches_its_own_resolver_and_no_other_whatever_is_listed() {
        let policy = with_names(&["api.example.org", "127.0.0.0/8", "::1/128"], &[]);
        let other = OWN + 1;
        for own in [format!("127.0.0.1:{OWN}"), format!("127.0.0.1:{OWN}/udp"), format!("[::1]:{OWN}")] {
            let judgement = judge(&policy, &own);
            let said = "allowed\n  the instance's own resolver answers there: explain the name";
            assert!(judgement.to_string().starts_with(said), "{judgement}");
        }
        let networks = with_names(&["127.0.0.0/8", "::1/128"], &[]);
        for (policy, port) in [(&policy, other), (&networks, other), (&networks, OWN)] {
            for at in [format!("127.0.0.1:{port}"), format!("[::1]:{port}/udp")] {
                let judgement = judge(policy, &at);
                let said = "denied (other-resolver)\n  the ports 22528 to 24575 of loopback are instances' resolvers'";
                assert!(judgement.to_string().starts_with(said), "{at}: {judgement}");
            }
        }
        assert!(judge(&policy, &format!("127.0.0.2:{other}")).allowed, "no resolver listens there");
    }

    #[test]
    fn a_file_is_judged_with_the_resolver_that_its_policy_will_have() {
        let names = with_names(&["api.example.org"], &[]);
        let more = with_names(&["api.example.org", "example.org"], &[]);
        let networks = with_names(&["192.0.2.0/24"], &[]);
        let compare = |file: &Policy, in_force: &Policy, target: &str| {
            let compiled = compile(file).expect("it fits");
            let port = if in_force.names.is_empty() { 0 } else { OWN.into() };
            let parsed = target.parse().expect("a target");
            let judgement = judge(in_force, target);
            PolicyFile::compare(Some((file, &compiled)), (in_force, port), &parsed, &judgement, &[])
        };
        let own = format!("127.0.0.1:{OWN}");
        for target in ["8.8.8.8:53/udp", &own] {
            assert_eq!(compare(&more, &names, target), PolicyFile::OtherPolicy, "{target}");
            let other = compare(&networks, &names, target);
            assert!(matches!(&other, PolicyFile::OtherVerdict(other) if !other.allowed), "{other:?}");
        }
        let other = compare(&names, &networks, "8.8.8.8:53/udp");
        assert!(matches!(&other, PolicyFile::OtherVerdict(other) if other.allowed), "{other:?}");
    }
}
