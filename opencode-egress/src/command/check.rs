//! `check`: validates a policy file and prints what it compiles to.

use std::{
    io,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    command::{args::CheckArgs, print::print_line},
    policy::{PolicySet, compile::compile, file, mode_name},
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
    deny: Vec<String>,
    listen: Vec<String>,
    limits: Limits,
    entries: usize,
    port_sets: usize,
}

/// Prints what each policy compiles to.
///
/// # Errors
///
/// The file's first error.
pub(super) fn check(args: &CheckArgs) -> Result<()> {
    let set = file::load(&args.file)?;
    let mut instances = vec![];
    for (name, policy) in &set.instances {
        let compiled = compile(policy).with_context(|| format!("instance `{name}`"))?;
        instances.push(Checked {
            instance: name.to_string(),
            units: policy.units.iter().map(ToString::to_string).collect(),
            mode: mode_name(policy.mode),
            allow: policy.allow.iter().map(ToString::to_string).collect(),
            deny: policy.deny.iter().map(ToString::to_string).collect(),
            listen: policy.listen.iter().map(ToString::to_string).collect(),
            limits: Limits { sockets: policy.max_sockets },
            entries: compiled.entries.len(),
            port_sets: compiled.port_sets,
        });
    }
    for warning in warnings(&set, is_address_of_this_machine) {
        eprintln!("opencode-egress: {warning}");
    }
    if args.json {
        return print_line(serde_json::to_string_pretty(&instances)?);
    }
    for Checked { instance, units, mode, allow, deny, listen, limits, entries, port_sets } in &instances {
        print_line(format_args!(
            "{instance}  mode {mode}; at most {} sockets; {entries} map entries, {port_sets} port sets",
            limits.sockets
        ))?;
        for (label, lines) in [("units", units), ("allow", allow), ("deny", deny), ("listen", listen)] {
            let shown: Vec<_> = lines.iter().take(SHOWN).map(String::as_str).collect();
            let more = lines.len().saturating_sub(SHOWN);
            match (lines.is_empty(), more) {
                (true, _) => print_line(format_args!("  {label:6} nothing"))?,
                (_, 0) => print_line(format_args!("  {label:6} {}", shown.join("; ")))?,
                _ => print_line(format_args!("  {label:6} {}; and {more} more", shown.join("; ")))?,
            }
        }
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
    elsewhere
        .map(|(name, at)| {
            format!(
                "instance `{name}` listens at {at}, and {} is no address that this machine has here; its server cannot listen there, unless the address is its unit's own or comes later. To reach that address takes a rule under `allow`",
                at.ip()
            )
        })
        .collect()
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
}
