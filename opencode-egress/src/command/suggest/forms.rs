//! A suggestion as text: for people, for the policy file, as NixOS options, as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Result, to_string as quoted, to_string_pretty};

use crate::{
    policy::{
        AnyRule, InstanceName, PortRange, RuleProtocol,
        lease::{LeaseKind, LeaseStatus},
        suggest::{Denials, SuggestedPreset, SuggestedRule, Suggestion, Tried},
    },
    report::human::local_time,
};

/// An entry a line, as the policy file has them, with how often it was denied, by whom and when.
pub(super) fn lines(suggestion: &Suggestion) -> Result<String> {
    let Suggestion { presets, rules, once, .. } = suggestion;
    let mut needed = vec![];
    for preset in presets {
        let instead = names_of(preset);
        needed.push((preset_entry(preset)?, format!("{}; for {instead}", said_of(&preset.denials()))));
    }
    let entry =
        |SuggestedRule { rule, denials }: &SuggestedRule| Ok((quoted(&rule.to_string())?, said_of(denials)));
    for rule in rules {
        needed.push(entry(rule)?);
    }
    let mut text = String::new();
    table(&mut text, &needed);
    if !once.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text += "Asked for once, by a program that a shell started:\n";
        table(&mut text, &once.iter().map(entry).collect::<Result<Vec<_>>>()?);
    }
    Ok(text)
}

fn table(text: &mut String, entries: &[(String, String)]) {
    let width = entries.iter().map(|(entry, _)| entry.chars().count()).max().unwrap_or(0);
    for (entry, said) in entries {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{entry:width$}  {said}");
    }
}

/// The entries of `allow` that are missing, as an array. What is set apart is not among them.
pub(super) fn policy(Suggestion { presets, rules, .. }: &Suggestion) -> Result<String> {
    let presets = presets.iter().map(preset_entry);
    let entries = presets.chain(rules.iter().map(|suggested| quoted(&suggested.rule.to_string())));
    let entries = entries.collect::<Result<Vec<_>>>()?;
    Ok(if entries.is_empty() { "[]\n".to_owned() } else { format!("[\n  {}\n]\n", entries.join(",\n  ")) })
}

/// As `allow` has it.
fn preset_entry(preset: &SuggestedPreset) -> Result<String> {
    Ok(format!("{{ \"preset\": {} }}", quoted(&preset.preset.name)?))
}

fn names_of(preset: &SuggestedPreset) -> String {
    preset.instead_of.iter().map(|suggested| suggested.rule.to_string()).collect::<Vec<_>>().join(" ")
}

/// How often, by whom, when: `denials: 12, by npm of bash, from 2026-11-26T12:00:00+00:00 to 2026-11-26T13:00:00+00:00`.
fn said_of(Denials { attempts, tried }: &Denials) -> String {
    let mut said = format!("denials: {attempts}");
    if let Some(programs) = tried.programs() {
        said += &format!(", by {programs}");
    }
    if let (Some(first), Some(last)) = (tried.first, tried.last) {
        said += &match first == last {
            true => format!(", at {}", local_time(first)),
            false => format!(", from {} to {}", local_time(first), local_time(last)),
        };
    }
    said
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<&'a str>,
    attempts: u64,
    /// When, and who.
    #[serde(flatten)]
    tried: Tried,
    /// It was tried at one time only, by programs that a shell started.
    once: bool,
    /// Of a preset: the rules that it stands for, and those that nobody asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instead_of: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unasked: Vec<String>,
}

pub(super) fn json(Suggestion { presets, rules, once, .. }: &Suggestion) -> Result<String> {
    let texts = |rules: &[AnyRule]| rules.iter().map(ToString::to_string).collect();
    let of_preset = |suggested: &SuggestedPreset| {
        let Denials { attempts, tried } = suggested.denials();
        Entry {
            rule: None,
            preset: Some(&suggested.preset.name),
            attempts,
            tried,
            once: false,
            instead_of: suggested.instead_of.iter().map(|suggested| suggested.rule.to_string()).collect(),
            unasked: texts(&suggested.unasked),
        }
    };
    let of_rule = |once: bool| {
        move |SuggestedRule { rule, denials: Denials { attempts, tried } }: &SuggestedRule| Entry {
            rule: Some(rule.to_string()),
            preset: None,
            attempts: *attempts,
            tried: tried.clone(),
            once,
            instead_of: vec![],
            unasked: vec![],
        }
    };
    let entries = presets.iter().map(of_preset).chain(rules.iter().map(of_rule(false)));
    let entries: Vec<_> = entries.chain(once.iter().map(of_rule(true))).collect();
    Ok(to_string_pretty(&entries)? + "\n")
}

/// The NixOS module's options, with what is leased, which is marked. What is set apart stands in comments.
pub(super) fn nix(
    name: &InstanceName,
    Suggestion { presets, rules, once, .. }: &Suggestion,
    leases: &[LeaseStatus],
) -> String {
    let (mut cidrs, mut names, mut detailed, mut named) =
        (String::new(), String::new(), String::new(), String::new());
    for preset in presets {
        // Writing to a string cannot fail.
        let _ = writeln!(
            named,
            "  \"{}\" # {}; for {}",
            preset.preset.name,
            said_briefly(&preset.denials()),
            names_of(preset)
        );
    }
    let leased: Vec<_> = leases
        .iter()
        .filter_map(|LeaseStatus { lease, until, .. }| match &lease.kind {
            LeaseKind::Rule(rule) => {
                let why = lease.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
                Some((rule.rule(), format!("leased until {}{why}", local_time(*until)), false))
            }
            LeaseKind::Audit => None,
        })
        .collect();
    let needed = rules.iter().map(|suggested| (&suggested.rule, said_briefly(&suggested.denials), false));
    let apart = once
        .iter()
        .map(|suggested| (&suggested.rule, format!("once, {}", said_briefly(&suggested.denials)), true));
    let suggested = needed.chain(apart).filter(|(rule, ..)| leased.iter().all(|(leased, ..)| leased != rule));
    for (rule, said, once) in suggested.chain(leased.iter().cloned()) {
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
                    &format!(
                        "name = \"{}\"{}{}",
                        rule.pattern(),
                        if rule.has_usual_tls() { String::new() } else { format!("; tls = {}", rule.tls()) },
                        if rule.private() { "; private = true" } else { "" }
                    ),
                    rule.protocol(),
                    rule.ports(),
                ),
            ),
        };
        let comment = if once { "# " } else { "" };
        let _ = writeln!(list, "  {comment}{entry} # {said}");
    }
    let option = |option: &str, list: String| match list.is_empty() {
        true => String::new(),
        false => {
            let name = nix_attribute(name);
            format!("services.opencode.instances.{name}.networkIsolation.{option} = [\n{list}];\n")
        }
    };
    option("presets", named)
        + &option("outboundAllowNames", names)
        + &option("outboundAllow", detailed)
        + &option("outboundAllowCidrs", cidrs)
}

/// How often and by whom, behind an option.
fn said_briefly(Denials { attempts, tried }: &Denials) -> String {
    let by = tried.programs().map(|programs| format!(", by {programs}"));
    format!("denials: {attempts}{}", by.unwrap_or_default())
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

    use super::*;
    use crate::{
        policy::{Policy, file, preset::preset, suggest::Program},
        report::view::tests::lease,
    };

    fn denials(via: &str) -> Denials {
        let mut tried = Tried::default();
        tried.add(0, Program::of("", &via.split(',').map(str::to_owned).collect::<Vec<_>>()));
        Denials { attempts: 12, tried }
    }

    fn suggested(text: &str, via: &str) -> SuggestedRule {
        SuggestedRule { rule: text.parse().expect("a rule"), denials: denials(via) }
    }

    fn suggestion() -> Suggestion {
        let rules = [
            "192.0.2.0/24",
            "203.0.113.9/32:443,8000-8100/tcp",
            "2001:db8::/64/icmp",
            "api.example.org",
            "github.com:22,443",
            "*.example.net:443/udp",
            "git.corp.example:22/tls/private",
        ];
        let npm = SuggestedPreset {
            preset: preset("npm").expect("a preset"),
            instead_of: vec![suggested("registry.npmjs.org", "npm,opencode")],
            unasked: vec![],
        };
        Suggestion {
            presets: vec![npm],
            rules: rules.map(|rule| suggested(rule, "opencode")).into(),
            once: vec![suggested("evil.example", "curl,bash,opencode")],
            ..Suggestion::default()
        }
    }

    #[test]
    fn the_array_is_what_the_policy_file_takes() {
        let text = policy(&suggestion()).expect("JSON");
        assert!(text.starts_with("[\n  { \"preset\": \"npm\" },\n  \"192.0.2.0/24\",\n"), "{text}");
        let file = format!(
            r#"{{ "version": 1, "instances": {{ "a": {{ "units": ["a.service"], "allow": {text} }} }} }}"#
        );
        let set = file::parse(Path::new("policy.json"), &file).expect("a policy file");
        let read = set.instances.values().next().expect("an instance");
        let mut policy_of = Policy { units: read.units.clone(), ..Policy::default() };
        policy_of.allow("registry.npmjs.org".parse().expect("a rule"));
        suggestion().rules.into_iter().for_each(|suggested| policy_of.allow(suggested.rule));
        assert_eq!(*read, policy_of, "all of it, and nothing that was asked for once");
        assert_eq!(policy(&Suggestion::default()).expect("JSON"), "[]\n");
        assert_eq!(json(&Suggestion::default()).expect("JSON"), "[]\n");
        assert_eq!(lines(&Suggestion::default()).expect("JSON"), "");
    }

    #[test]
    fn lines_say_how_often_who_and_when_and_set_apart_what_was_asked_for_once() {
        let text = lines(&suggestion()).expect("JSON");
        let at = local_time(0);
        let npm = "{ \"preset\": \"npm\" }";
        for expected in [
            format!("{npm:34}  denials: 12, by npm, at {at}; for registry.npmjs.org\n"),
            format!("{:34}  denials: 12, by opencode, at {at}\n", "\"api.example.org\""),
            format!(
                "\n\nAsked for once, by a program that a shell started:\n\"evil.example\"  denials: 12, by curl of bash, at {at}\n"
            ),
        ] {
            assert!(text.contains(&expected), "no `{expected}` in {text}");
        }
        let json: serde_json::Value =
            serde_json::from_str(&json(&suggestion()).expect("JSON")).expect("JSON");
        assert_eq!(
            (&json[0]["preset"], &json[0]["instead_of"][0]),
            (&"npm".into(), &"registry.npmjs.org".into())
        );
        assert_eq!((&json[1]["rule"], &json[1]["once"]), (&"192.0.2.0/24".into(), &false.into()));
        assert_eq!((&json[8]["rule"], &json[8]["once"]), (&"evil.example".into(), &true.into()));
        let curl = serde_json::json!([{ "name": "curl", "shell": "bash" }]);
        assert_eq!((&json[8]["who"], &json[8]["attempts"]), (&curl, &12.into()));
    }

    #[test]
    fn nix_options_say_what_they_stand_for() {
        let lease = LeaseStatus { until: 1_764_176_400, ..lease() };
        let text = nix(&"my-project".parse().expect("a name"), &suggestion(), &[lease]);
        let until = local_time(1_764_176_400);
        let expect = r#"services.opencode.instances.my-project.networkIsolation.presets = [
  "npm" # denials: 12, by npm; for registry.npmjs.org
];
services.opencode.instances.my-project.networkIsolation.outboundAllowNames = [
  "api.example.org" # denials: 12, by opencode
  # "evil.example" # once, denials: 12, by curl of bash
];
services.opencode.instances.my-project.networkIsolation.outboundAllow = [
  { cidr = "203.0.113.9/32"; protocol = "tcp"; ports = [ "443" "8000-8100" ]; } # denials: 12, by opencode
  { cidr = "2001:db8::/64"; protocol = "icmp"; } # denials: 12, by opencode
  { name = "github.com"; protocol = "tcp"; ports = [ "22" "443" ]; } # denials: 12, by opencode
  { name = "*.example.net"; protocol = "udp"; ports = [ "443" ]; } # denials: 12, by opencode
  { name = "git.corp.example"; tls = true; private = true; protocol = "tcp"; ports = [ "22" ]; } # denials: 12, by opencode
  { cidr = "192.0.2.0/24"; protocol = "tcp"; ports = [ "443" ]; } # leased until UNTIL
];
services.opencode.instances.my-project.networkIsolation.outboundAllowCidrs = [
  "192.0.2.0/24" # denials: 12, by opencode
];
"#;
        assert_eq!(text, expect.replace("UNTIL", &until));
    }

    #[test]
    fn attributes_are_quoted_where_they_must_be() {
        let shown = ["my-project", "_a", "2nd", "-a", "with", "in", "inn"]
            .map(|name| nix_attribute(&name.parse().expect("a name")));
        assert_eq!(shown, ["my-project", "_a", "\"2nd\"", "\"-a\"", "\"with\"", "\"in\"", "inn"]);
    }
}
