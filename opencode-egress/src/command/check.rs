//! `check`: validates a policy file and prints what it compiles to, or what it changes.

mod against;

use std::{
    io,
    net::{IpAddr, UdpSocket},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use opencode_egress_common::{
    abi::MAX_NAME_GRANTS,
    flow::{Flow, Protocol},
};
use serde::Serialize;

use crate::{
    command::{args::CheckArgs, print::print_line},
    policy::{Policy, PolicySet, Rule, compile::compile, file, mode_name},
};

/// As the policy file has them.
#[derive(Serialize)]
struct Limits {
    sockets: u32,
}

#[derive(Serialize)]
struct Checked {
    instance: String,
    units: Vec<String>,
    mode: &'static str,
    allow: Vec<String>,
    names: Vec<String>,
    deny: Vec<String>,
    listen: Vec<String>,
    loopback: &'static str,
    limits: Limits,
    /// What a denied call gets.
    errno: &'static str,
    entries: usize,
    port_sets: usize,
    /// Combinations of protocol, ports and `tls` that rules for names have.
    name_grants: u32,
    /// Who is asked for names; nobody here: the servers of the host's `resolv.conf`.
    upstream: Vec<String>,
}

/// Prints what each policy compiles to.
///
/// # Errors
///
/// The file's first error; with `--against`, that the journal cannot be read.
pub(super) fn check(args: &CheckArgs) -> Result<ExitCode> {
    let set = file::load(&args.file)?;
    if let Some(name) = &args.against {
        return against::check(args, name, &set);
    }
    print_compiled(args, &set)?;
    Ok(ExitCode::SUCCESS)
}

fn print_compiled(args: &CheckArgs, set: &PolicySet) -> Result<()> {
    let mut instances = vec![];
    for (name, policy) in &set.instances {
        let compiled = compile(policy).with_context(|| format!("instance `{name}`"))?;
        instances.push(Checked {
            instance: name.to_string(),
            units: policy.units.iter().map(ToString::to_string).collect(),
            mode: mode_name(policy.mode),
            allow: policy.allow.iter().map(ToString::to_string).collect(),
            names: policy.names.iter().map(ToString::to_string).collect(),
            deny: policy.deny.iter().map(ToString::to_string).collect(),
            listen: policy.listen.iter().map(ToString::to_string).collect(),
            loopback: policy.loopback.name(),
            limits: Limits { sockets: policy.max_sockets },
            errno: policy.errno.name(),
            entries: compiled.entries.len(),
            port_sets: compiled.port_sets,
            name_grants: compiled.header.name_grants,
            upstream: set.resolver.upstream.iter().map(ToString::to_string).collect(),
        });
    }
    for warning in warnings(set, is_address_of_this_machine) {
        eprintln!("opencode-egress: {warning}");
    }
    if args.json {
        return print_line(serde_json::to_string_pretty(&instances)?);
    }
    for checked in &instances {
        let Checked {
            instance,
            units,
            mode,
            allow,
            names,
            deny,
            listen,
            loopback,
            limits,
            errno,
            entries,
            port_sets,
            ..
        } = checked;
        let grants = match checked.name_grants {
            0 => String::new(),
            grants => {
                format!(", {grants} of {MAX_NAME_GRANTS} combinations of protocol, ports and TLS for names")
            }
        };
        print_line(format_args!(
            "{instance}  mode {mode}; loopback {loopback}; at most {} sockets; denied calls get {errno}; {entries} map entries, {port_sets} port sets{grants}",
            limits.sockets
        ))?;
        let lists =
            [("units", units), ("allow", allow), ("names", names), ("deny", deny), ("listen", listen)];
        for (label, lines) in lists {
            let shown: Vec<_> = lines.iter().take(SHOWN).map(String::as_str).collect();
            let more = lines.len().saturating_sub(SHOWN);
            match (lines.is_empty(), more) {
                (true, _) => print_line(format_args!("  {label:6} nothing"))?,
                (_, 0) => print_line(format_args!("  {label:6} {}", shown.join("; ")))?,
                _ => print_line(format_args!("  {label:6} {}; and {more} more", shown.join("; ")))?,
            }
        }
    }
    if instances.iter().any(|checked| checked.name_grants > 0) {
        print_line(format_args!("resolver  {}", set.resolver))?;
    }
    print_line(format_args!("{}: good; {} instances", args.file.display(), instances.len()))
}

/// What is no error and may still be a mistake.
fn warnings(set: &PolicySet, is_local: impl Fn(IpAddr) -> bool) -> Vec<String> {
    let listeners = set
        .instances
        .iter()
        .flat_map(|(name, policy)| policy.listen.iter().map(move |listen| (name, listen.socket_address())));
    let elsewhere = listeners.filter(|(_, at)| !is_local(at.ip()));
    let elsewhere = elsewhere.map(|(name, at)| {
            format!(
                "instance `{name}` listens at {at}, and {} is no address that this machine has here; its server cannot listen there, unless the address is its unit's own or comes later. To reach that address takes a rule under `allow`",
                at.ip()
            )
        });
    let questions = set.instances.iter().filter_map(|(name, policy)| {
        let open = open_to_questions(policy);
        let first = open.first()?;
        let more = match open.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Some(format!(
            "instance `{name}` has rules for names, and its rule {first}{more} lets questions (port 53) pass to any resolver there: they pass round the names, and data leaves in them. List that network's ports without 53, or add `\"{}:53\"` to `deny`",
            written(first)
        ))
    });
    elsewhere.chain(questions).collect()
}

/// The rules for networks by which an instance with rules for names may ask somebody else for names.
fn open_to_questions(policy: &Policy) -> Vec<&Rule> {
    if policy.names.is_empty() {
        return vec![];
    }
    let is_open = |rule: &&Rule| {
        let network = rule.cidr().net();
        [Protocol::UDP, Protocol::TCP].into_iter().any(|protocol| {
            let question = Flow { address: network.addr().into(), protocol, port: 53 };
            let denied = |deny: &Rule| deny.cidr().net().contains(&network) && deny.speaks_of(&question);
            rule.speaks_of(&question) && !policy.deny.iter().any(denied)
        })
    };
    policy.allow.iter().filter(is_open).collect()
}

/// A rule's network as it stands before ports.
fn written(rule: &Rule) -> String {
    match rule.cidr().net() {
        IpNet::V4(network) => network.to_string(),
        IpNet::V6(network) => format!("[{network}]"),
    }
}

/// Whether sockets of this network namespace can have this address.
fn is_address_of_this_machine(address: IpAddr) -> bool {
    // An ephemeral port, of a socket that is gone at once.
    let refusal = UdpSocket::bind((address, 0)).err().map(|error| error.kind());
    refusal != Some(io::ErrorKind::AddrNotAvailable)
}

/// Rules shown of a long list.
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_listener_at_no_address_of_the_machine_is_doubted() {
        let file = r#"{ "version": 1, "instances": { "a": { "units": ["a.service"], "listen": [
            { "address": "203.0.113.2", "port": 80 }, { "address": "127.0.0.1", "port": 80 },
            { "address": "::", "port": 81 } ] } } }"#;
        let set = file::parse(Path::new("policy.json"), file).expect("a policy file");
        let warnings = warnings(&set, is_address_of_this_machine);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("instance `a` listens at 203.0.113.2:80, and"), "{warnings:?}");
    }

    #[test]
    fn a_network_with_a_resolver_beside_names_is_doubted() {
        let warned = |allow: &str, deny: &str| {
            let file = format!(
                r#"{{ "version": 1, "instances": {{ "a": {{ "units": ["a.service"], "allow": [{allow}], "deny": [{deny}] }} }} }}"#
            );
            let set = file::parse(Path::new("policy.json"), &file).expect("a policy file");
            warnings(&set, |_| true)
        };
        let name = r#""api.example.org", "#;
        let warnings =
            warned(&format!(r#"{name} "10.0.0.0/8", "[2001:db8::/32]:53/udp", "192.0.2.0/24:443""#), "");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let expect = "instance `a` has rules for names, and its rule 10.0.0.0/8 (and 1 more) lets questions (port 53) pass";
        assert!(warnings[0].starts_with(expect), "{warnings:?}");
        assert!(warnings[0].ends_with(r#"add `"10.0.0.0/8:53"` to `deny`"#), "{warnings:?}");
        assert_eq!(warned(r#""10.0.0.0/8""#, ""), [""; 0]);
        assert_eq!(warned(&format!(r#"{name} "10.0.0.0/8""#), r#""10.0.0.0/8:53""#), [""; 0]);
        assert_eq!(warned(&format!(r#"{name} "10.0.0.0/8:443", "10.0.0.0/8/icmp""#), ""), [""; 0]);
        assert_eq!(
            warned(&format!(r#"{name} "10.0.0.0/8""#), r#""10.0.0.0/8:53/udp""#).len(),
            1,
            "TCP is open"
        );
    }
}
