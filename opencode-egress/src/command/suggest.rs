//! `suggest`: what to add to a policy so that it would have let pass what was denied.

use std::{fmt::Write as _, io::Write as _};

use anyhow::{Context as _, Result};
use opencode_egress_common::abi::DESTINATIONS_SHARE;
use serde::Serialize;

use crate::{
    command::{
        args::SuggestArgs,
        client::{ask, unexpected},
    },
    control::request::{RememberedDenials, Reply, Request},
    policy::{
        AnyRule, InstanceName, Policy, PortRange, RuleProtocol,
        destination::Destination,
        file,
        lease::{LeaseKind, LeaseStatus},
        suggest::{self, DeniedDestination, DeniedName, SuggestedRule, Suggestion, Widest},
    },
    report::{
        history::{self, History},
        human::local_time,
    },
};

/// Prints the rules, and what to know about them to stderr.
///
/// # Errors
///
/// When the policy file, the daemon or the journal does not answer.
pub(super) fn suggest(args: &SuggestArgs) -> Result<()> {
    let set = file::load(&args.config)?;
    let policy = set.instance(&args.name, &args.config)?;
    let (denied, names) = match &args.since {
        Some(since) => from_journal(&args.name, since)?,
        None => from_daemon(args)?,
    };
    let widest = Widest { v4: args.max_prefix_v4, v6: args.max_prefix_v6, wildcards: args.wildcards };
    let suggestion = suggest::suggest(policy, &denied, &names, widest)
        .with_context(|| format!("instance `{}` of {}", args.name, args.config.display()))?;
    let text = if args.nix {
        nix(&args.name, &suggestion.rules, &leases(args)?)
    } else if args.read.json {
        json(&suggestion.rules)?
    } else {
        lines(&suggestion.rules)?
    };
    std::io::stdout().write_all(text.as_bytes())?;
    for note in notes(args, policy, denied.len() + names.len(), &suggestion) {
        eprintln!("opencode-egress: {note}");
    }
    Ok(())
}

/// Destinations that were denied, and names.
type Denied = (Vec<DeniedDestination>, Vec<DeniedName>);

fn from_journal(name: &InstanceName, since: &str) -> Result<Denied> {
    let History { destinations, names, left_out } = history::read(name, since)?;
    if left_out > 0 {
        eprintln!(
            "opencode-egress: {left_out} denials since then are not in the journal, for its limits; without --since, all that the kernel remembers counts"
        );
    }
    Ok((destinations, names))
}

fn from_daemon(args: &SuggestArgs) -> Result<Denied> {
    match ask(&args.read.control, &Request::RememberedDenials { instance: args.name.to_string() })? {
        Reply::RememberedDenials(RememberedDenials { destinations, names, remembered }) => {
            // The oldest are forgotten until there are half as many.
            if remembered as u64 >= DESTINATIONS_SHARE / 2 {
                eprintln!(
                    "opencode-egress: the kernel remembers {remembered} denials of `{}` and has room for {DESTINATIONS_SHARE}, so older ones may be forgotten; --since asks the journal",
                    args.name
                );
            }
            Ok((destinations, names))
        }
        other => Err(unexpected(&other)),
    }
}

/// The leases in force. The journal alone needs no daemon, and has them no more.
fn leases(args: &SuggestArgs) -> Result<Vec<LeaseStatus>> {
    if args.since.is_some() {
        return Ok(vec![]);
    }
    match ask(&args.read.control, &Request::Leases { instance: Some(args.name.to_string()) })? {
        Reply::Leases(leases) => Ok(leases.into_values().flatten().collect()),
        other => Err(unexpected(&other)),
    }
}

/// What to know beside the rules, a line each.
fn notes(args: &SuggestArgs, policy: &Policy, denied: usize, suggestion: &Suggestion) -> Vec<String> {
    let Suggestion { rules, no_names, by_deny_rule, binds, beyond_rules, allowed_by_now } = suggestion;
    let name = &args.name;
    let attempts: u64 = rules.iter().map(|suggested| suggested.attempts).sum();
    let mut notes = vec![match (rules.len(), denied, &args.since) {
        (0, 0, None) => format!("{name}: nothing to add; the kernel remembers no denial"),
        (0, 0, Some(since)) => format!("{name}: nothing to add; the journal has no denial since {since}"),
        (0, ..) if *allowed_by_now > 0 => {
            format!("{name}: nothing to add; {} has every rule that was missing", args.config.display())
        }
        (0, ..) => format!("{name}: no rule to add"),
        (rules, ..) => format!("{name}: rules: {rules}, for denials: {attempts}; add those that should be"),
    }];
    if !no_names.is_empty() {
        let names: Vec<_> = no_names.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
        notes.push(format!("left out, there is no rule for such names: {}", list(&names, Clone::clone)));
    }
    if !by_deny_rule.is_empty() {
        notes.push(format!("left out, a deny rule covers them: {}", list(by_deny_rule, ToString::to_string)));
    }
    if !binds.is_empty() {
        let shown = |(at, attempts): &(Destination, u64)| {
            format!("{at} ({attempts}), {}", policy.instead_of_bind(at.port))
        };
        notes.push(format!("left out, a bind takes a listener and no rule: {}", list(binds, shown)));
    }
    if !beyond_rules.is_empty() {
        let counts: Vec<_> = beyond_rules.iter().map(|(reason, n)| format!("{reason} ({n})")).collect();
        notes.push(format!("left out, no rule for a destination lets them pass: {}", counts.join(", ")));
    }
    notes
}

/// The first of many, and how many more there are.
fn list<T>(items: &[T], shown: impl Fn(&T) -> String) -> String {
    let first: Vec<_> = items.iter().take(SHOWN).map(shown).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => first.join("; "),
        more => format!("{}; and {more} more", first.join("; ")),
    }
}

/// Destinations named in a note.
const SHOWN: usize = 8;

/// A rule a line, as the policy file has them, with the commas of a list.
fn lines(rules: &[SuggestedRule]) -> Result<String> {
    let quoted = |suggested: &SuggestedRule| serde_json::to_string(&suggested.rule.to_string());
    let rules: Vec<_> = rules.iter().map(quoted).collect::<Result<_, _>>()?;
    Ok(if rules.is_empty() { String::new() } else { rules.join(",\n") + "\n" })
}

fn json(rules: &[SuggestedRule]) -> Result<String> {
    #[derive(Serialize)]
    struct Form {
        rule: String,
        attempts: u64,
    }
    let form =
        |suggested: &SuggestedRule| Form { rule: suggested.rule.to_string(), attempts: suggested.attempts };
    Ok(serde_json::to_string_pretty(&rules.iter().map(form).collect::<Vec<_>>())? + "\n")
}

/// The NixOS module's options, with what is leased, which is marked.
fn nix(name: &InstanceName, rules: &[SuggestedRule], leases: &[LeaseStatus]) -> String {
    let (mut cidrs, mut names, mut detailed) = (String::new(), String::new(), String::new());
    let leased: Vec<_> = leases
        .iter()
        .filter_map(|LeaseStatus { lease, until, .. }| match &lease.kind {
            LeaseKind::Rule(rule) => {
                let why = lease.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
                Some((rule.rule(), format!("leased until {}{why}", local_time(*until))))
            }
            LeaseKind::Audit => None,
        })
        .collect();
    let suggested = rules
        .iter()
        .map(|SuggestedRule { rule, attempts }| (rule, format!("denials: {attempts}")))
        .filter(|(rule, _)| leased.iter().all(|(leased, _)| leased != rule));
    for (rule, said) in suggested.chain(leased.iter().cloned()) {
        let (list, entry) = match rule {
            AnyRule::Network(rule) if rule.protocol() == RuleProtocol::Any && rule.ports().is_empty() => {
                (&mut cidrs, format!("\"{rule}\""))
            }
            AnyRule::Network(rule) => (
                &mut detailed,
                nix_rule(&format!("cidr = \"{}\"", rule.cidr()), rule.protocol(), rule.ports()),
            ),
            AnyRule::Name(rule) if rule.is_plain() => (&mut names, format!("\"{rule}\"")),
            AnyRule::Name(rule) => (
                &mut detailed,
                nix_rule(
                    &match rule.has_usual_tls() {
                        true => format!("name = \"{}\"", rule.pattern()),
                        false => format!("name = \"{}\"; tls = {}", rule.pattern(), rule.tls()),
                    },
                    rule.protocol(),
                    rule.ports(),
                ),
            ),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(list, "  {entry} # {said}");
    }
    let option = |option: &str, list: String| match list.is_empty() {
        true => String::new(),
        false => {
            let name = nix_attribute(name);
            format!("services.opencode.instances.{name}.networkIsolation.{option} = [\n{list}];\n")
        }
    };
    option("outboundAllowNames", names)
        + &option("outboundAllow", detailed)
        + &option("outboundAllowCidrs", cidrs)
}

/// A rule with its protocol and ports; `place` is its first attribute.
fn nix_rule(place: &str, protocol: RuleProtocol, ports: &[PortRange]) -> String {
    let ports: String = ports.iter().map(|port| format!(" \"{port}\"")).collect();
    let ports = if ports.is_empty() { ports } else { format!(" ports = [{ports} ];") };
    format!("{{ {place}; protocol = \"{}\";{ports} }}", protocol.name())
}

/// A name as an attribute, quoted unless it is an identifier.
/// <https://nix.dev/manual/nix/latest/language/identifiers>
fn nix_attribute(name: &InstanceName) -> String {
    const KEYWORDS: [&str; 10] =
        ["assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with"];
    let name = name.as_str();
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    // The rest of an instance's name is what an identifier may have.
    if starts && !KEYWORDS.contains(&name) { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;

    use super::*;
    use crate::{
        command::args::{Cli, Command},
        policy::Listen,
    };

    fn rules() -> Vec<SuggestedRule> {
        let rules = [
            "192.0.2.0/24",
            "203.0.113.9/32:443,8000-8100/tcp",
            "2001:db8::/64/icmp",
            "api.example.org",
            "github.com:22,443",
            "*.example.net:443/udp",
        ];
        let suggested = |text: &str| SuggestedRule { rule: text.parse().expect("a rule"), attempts: 12 };
        rules.map(suggested).into()
    }

    #[test]
    fn lines_are_what_the_policy_file_takes() {
        let text = lines(&rules()).expect("JSON");
        assert_eq!(text.lines().count(), rules().len(), "{text}");
        assert_eq!(text.lines().next(), Some(r#""192.0.2.0/24","#));
        let file = format!(
            r#"{{ "version": 1, "instances": {{ "a": {{ "units": ["a.service"], "allow": [{text}] }} }} }}"#
        );
        let set = file::parse(Path::new("policy.json"), &file).expect("a policy file");
        let read = set.instances.values().next().expect("an instance");
        let mut policy = Policy { units: read.units.clone(), ..Policy::default() };
        rules().into_iter().for_each(|suggested| policy.allow(suggested.rule));
        assert_eq!(*read, policy);
        assert_eq!(lines(&[]).expect("JSON"), "");
        assert_eq!(json(&[]).expect("JSON"), "[]\n");
    }

    #[test]
    fn nix_options_say_what_they_stand_for() {
        let lease = LeaseStatus { until: 1_764_176_400, ..crate::report::view::tests::lease() };
        let text = nix(&"my-project".parse().expect("a name"), &rules(), &[lease]);
        let until = local_time(1_764_176_400);
        let expect = r#"services.opencode.instances.my-project.networkIsolation.outboundAllowNames = [
  "api.example.org" # denials: 12
];
services.opencode.instances.my-project.networkIsolation.outboundAllow = [
  { cidr = "203.0.113.9/32"; protocol = "tcp"; ports = [ "443" "8000-8100" ]; } # denials: 12
  { cidr = "2001:db8::/64"; protocol = "icmp"; } # denials: 12
  { name = "github.com"; protocol = "tcp"; ports = [ "22" "443" ]; } # denials: 12
  { name = "*.example.net"; protocol = "udp"; ports = [ "443" ]; } # denials: 12
  { cidr = "192.0.2.0/24"; protocol = "tcp"; ports = [ "443" ]; } # leased until UNTIL
];
services.opencode.instances.my-project.networkIsolation.outboundAllowCidrs = [
  "192.0.2.0/24" # denials: 12
];
"#;
        assert_eq!(text, expect.replace("UNTIL", &until));
    }

    #[test]
    fn what_takes_no_rule_is_said() {
        let Ok(Cli { command: Command::Suggest(args), .. }) = Cli::try_parse_from(["", "suggest", "a"])
        else {
            panic!("arguments")
        };
        let listen = Listen { address: [127, 0, 0, 1].into(), port: 5173, open: false };
        let policy = Policy { listen: vec![listen], ..Policy::default() };
        let binds = vec![("0.0.0.0:5173".parse().expect("a destination"), 3)];
        let suggestion = Suggestion { binds, ..Suggestion::default() };
        assert_eq!(
            notes(&args, &policy, 1, &suggestion),
            [
                "a: no rule to add",
                "left out, a bind takes a listener and no rule: 0.0.0.0:5173/tcp (3), 127.0.0.1:5173 is listed; bind that"
            ]
        );
        let no_names = ["wpad", "\u{1b}[2K"].map(str::to_owned).into();
        let suggestion = Suggestion { no_names, ..Suggestion::default() };
        let left_out = r"left out, there is no rule for such names: `\u{1b}[2K`; `wpad`";
        assert_eq!(notes(&args, &policy, 1, &suggestion), ["a: no rule to add", left_out]);
        let suggestion = Suggestion { allowed_by_now: 1, ..Suggestion::default() };
        let had = "a: nothing to add; /etc/opencode-egress/policy.json has every rule that was missing";
        assert_eq!(notes(&args, &policy, 1, &suggestion), [had]);
    }

    #[test]
    fn attributes_are_quoted_where_they_must_be() {
        let shown = ["my-project", "_a", "2nd", "-a", "with", "in", "inn"]
            .map(|name| nix_attribute(&name.parse().expect("a name")));
        assert_eq!(shown, ["my-project", "_a", "\"2nd\"", "\"-a\"", "\"with\"", "\"in\"", "inn"]);
    }
}
