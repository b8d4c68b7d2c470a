//! `suggest`: what to add to a policy so that it would have let pass what was denied.

mod forms;

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result};
use opencode_egress_common::abi::DESTINATIONS_SHARE;

use crate::{
    command::{
        args::{RESOLV_CONF, SuggestArgs},
        client::{ask, unexpected},
    },
    control::request::{RememberedDenials, Reply, Request},
    policy::{
        AnyRule, InstanceName, Policy,
        destination::Destination,
        file,
        lease::LeaseStatus,
        name::DnsName,
        suggest::{self, Denials, DeniedDestination, DeniedName, SuggestedRule, Suggestion, Widest},
    },
    report::history::{self, History, HistoryError},
};

/// A rule that would have let pass so many denials, as an option of the NixOS module.
pub(super) fn nix_option(name: &InstanceName, rule: AnyRule, attempts: u64) -> String {
    let denials = Denials { attempts, ..Denials::default() };
    let rules = vec![SuggestedRule { rule, denials }];
    forms::nix(name, &Suggestion { rules, ..Suggestion::default() }, &[])
}

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
    // Where it cannot be read, there are none.
    let search = search_domains(&fs::read(RESOLV_CONF).unwrap_or_default());
    let others = set.ports_of_others(&args.name);
    let suggestion = suggest::suggest(policy, &others, &denied, &names, &search, widest)
        .with_context(|| format!("instance `{}` of {}", args.name, args.config.display()))?;
    let text = if args.nix {
        forms::nix(&args.name, &suggestion, &leases(args)?)
    } else if args.policy {
        forms::policy(&suggestion)?
    } else if args.read.json {
        forms::json(&suggestion)?
    } else {
        forms::lines(&suggestion)?
    };
    std::io::stdout().write_all(text.as_bytes())?;
    for note in notes(args, policy, denied.len() + names.len(), &suggestion) {
        eprintln!("opencode-egress: {note}");
    }
    Ok(())
}

/// The search domains of a `resolv.conf`: of its last line that has any (resolv.conf(5)).
fn search_domains(text: &[u8]) -> Vec<DnsName> {
    // A line that cannot be read is none, as in the C library.
    let (config, _) = resolv_conf::Config::parse_with_errors(text);
    let domains = config.get_last_search_or_domain();
    domains.filter_map(|domain| domain.parse().ok()).collect()
}

/// Destinations that were denied, and names.
type Denied = (Vec<DeniedDestination>, Vec<DeniedName>);

fn from_journal(name: &InstanceName, since: &str) -> Result<Denied> {
    let History { lines, left_out, .. } = history::read(name, since).map_err(|error| {
        let hint = !matches!(error, HistoryError::Since(_));
        let error = anyhow::Error::new(error);
        if hint { error.context("without --since, the daemon is asked instead") } else { error }
    })?;
    if left_out > 0 {
        eprintln!(
            "opencode-egress: {left_out} denials since then are not in the journal, for its limits; without --since, all that the kernel remembers counts"
        );
    }
    Ok((lines.destinations(), lines.names()))
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
    let Suggestion {
        presets,
        rules,
        once,
        no_names,
        searched,
        by_deny_rule,
        binds,
        beyond_rules,
        allowed_by_now,
    } = suggestion;
    let name = &args.name;
    let of_presets = presets.iter().flat_map(|preset| &preset.instead_of);
    let attempts =
        of_presets.chain(rules).chain(once).map(|suggested| suggested.denials.attempts).sum::<u64>();
    let mut notes = vec![match (rules.len() + presets.len() + once.len(), denied, &args.since) {
        (0, 0, None) => format!("{name}: nothing to add; the kernel remembers no denial"),
        (0, 0, Some(since)) => format!("{name}: nothing to add; the journal has no denial since {since}"),
        (0, ..) if *allowed_by_now > 0 => {
            format!("{name}: nothing to add; {} has every rule that was missing", args.config.display())
        }
        (0, ..) => format!("{name}: no rule to add"),
        _ => {
            let presets = match presets.len() {
                0 => String::new(),
                presets => format!("presets: {presets}, "),
            };
            let apart = match once.len() {
                0 => String::new(),
                once => format!(", {once} of them for what a shell's program asked for once"),
            };
            let rules = rules.len() + once.len();
            format!(
                "{name}: {presets}rules: {rules}{apart}; for denials: {attempts}; add those that should be"
            )
        }
    }];
    for preset in presets.iter().filter(|preset| !preset.unasked.is_empty()) {
        let unasked = list(&preset.unasked, ToString::to_string);
        notes.push(format!("the preset `{}` also has what nobody asked for: {unasked}", preset.preset.name));
    }
    if args.policy && !once.is_empty() {
        let once = list(once, |suggested| format!("\"{}\"", suggested.rule));
        notes.push(format!("left out, a shell's program asked for it once: {once}"));
    }
    if !no_names.is_empty() {
        let names: Vec<_> = no_names.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
        notes.push(format!("left out, there is no rule for such names: {}", list(&names, Clone::clone)));
    }
    if !searched.is_empty() {
        let names: Vec<_> = searched.iter().collect();
        notes.push(format!(
            "left out: {}, which a search domain of {RESOLV_CONF} made of names that are listed or were asked for: {}",
            searched.len(),
            list(&names, ToString::to_string)
        ));
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        command::args::{Cli, Command},
        policy::Listen,
    };

    #[test]
    fn the_last_line_with_search_domains_counts() {
        let domains = |text: &str| search_domains(text.as_bytes()).iter().map(ToString::to_string).collect();
        let check = |text: &str, expect: &[&str]| {
            let domains: Vec<String> = domains(text);
            assert_eq!(domains, expect, "{text}");
        };
        check(
            "nameserver 192.0.2.53\nsearch Corp.Test lan.test.\noptions ndots:5\n",
            &["corp.test", "lan.test"],
        );
        check("search corp.test\nnameserver nowhere\ndomain lan.test\n", &["lan.test"]);
        check("domain lan.test\nsearch .\n", &[]);
        check("# search corp.test\n", &[]);
        check("", &[]);
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
        let searched = ["api.example.org.corp.test", "api.example.org.lan.test"];
        let searched = searched.map(|name| name.parse().expect("a name")).into();
        let suggestion = Suggestion { searched, ..Suggestion::default() };
        let left_out = "left out: 2, which a search domain of /etc/resolv.conf made of names that are listed or were asked for: api.example.org.corp.test; api.example.org.lan.test";
        assert_eq!(notes(&args, &policy, 1, &suggestion), ["a: no rule to add", left_out]);
        let suggestion = Suggestion { allowed_by_now: 1, ..Suggestion::default() };
        let had = "a: nothing to add; /etc/opencode-egress/policy.json has every rule that was missing";
        assert_eq!(notes(&args, &policy, 1, &suggestion), [had]);
    }
}
