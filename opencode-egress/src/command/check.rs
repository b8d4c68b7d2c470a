//! `check`: validates a policy file and prints what it compiles to.

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    command::{args::CheckArgs, print::print_line},
    policy::{compile::compile, file, mode_name},
};

#[derive(Serialize)]
struct Checked {
    instance: String,
    units: Vec<String>,
    mode: &'static str,
    allow: Vec<String>,
    deny: Vec<String>,
    listen: Vec<String>,
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
            entries: compiled.entries.len(),
            port_sets: compiled.port_sets,
        });
    }
    if args.json {
        return print_line(serde_json::to_string_pretty(&instances)?);
    }
    for Checked { instance, units, mode, allow, deny, listen, entries, port_sets } in &instances {
        print_line(format_args!("{instance}  mode {mode}; {entries} map entries, {port_sets} port sets"))?;
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

/// Rules shown of a long list.
const SHOWN: usize = 8;
