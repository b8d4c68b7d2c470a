//! Reading a policy file, and bringing what it changes into the kernel, up to the step that puts it in force. Nothing here
//! needs the daemon, which answers meanwhile: a million rules take seconds.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(in crate::daemon) use super::changes::InstancePolicies;
use super::changes::changes;
use crate::{
    daemon::{error::DaemonError, last_applied::is_own},
    kernel::{features::Features, maps::LoadedPolicy},
    policy::{
        InstanceName, LogLimits, Policy, Resolver,
        compile::{CompileError, CompiledName, CompiledPolicy, compile},
        file,
        lease::{AllLeased, Leased},
    },
    report::human::error_chain,
};

/// A policy file.
pub(in crate::daemon) struct Read {
    text: String,
    pub(in crate::daemon) log: LogLimits,
    pub(in crate::daemon) resolver: Resolver,
    /// Its policies. Those that are in force already are the same in memory, too.
    pub(in crate::daemon) policies: InstancePolicies,
    /// What the others compile to.
    pub(in crate::daemon) compiled: BTreeMap<InstanceName, CompiledPolicy>,
}

/// Reads a file, and compiles the policies in it that are not in force, or with another mark; with what is leased beside them.
pub(in crate::daemon) fn read(
    config: &Path,
    mark: u32,
    in_force: &InstancePolicies,
    leased: &AllLeased,
) -> Result<Read, DaemonError> {
    let text = file::read(config)?;
    let set = file::parse(config, &text)?;
    let features = Features::of_this_kernel();
    let (mut policies, mut compiled) = (BTreeMap::new(), BTreeMap::new());
    for (name, policy) in set.instances {
        let policy = policy.leased(leased.get(&name).cloned().unwrap_or_default());
        let possible = features.check(&policy);
        possible.map_err(|source| DaemonError::Kernel { name: name.clone(), source })?;
        // Sockets of flows by name, or by a lease, are marked as the policy says.
        let marked = (policy.names.is_empty() && policy.leased.is_empty()) || mark == set.resolver.mark;
        if let Some(same) = in_force.get(&name).filter(|in_force| marked && ***in_force == policy) {
            policies.insert(name, Arc::clone(same));
            continue;
        }
        let (policy, entries) =
            compile_leased(policy).map_err(|source| DaemonError::Compile { name: name.clone(), source })?;
        compiled.insert(name.clone(), entries);
        policies.insert(name, Arc::new(policy));
    }
    Ok(Read { text, log: set.log, resolver: set.resolver, policies, compiled })
}

/// Compiles a policy. Where it fits the maps alone, and not with its leases, it comes without.
fn compile_leased(policy: Policy) -> Result<(Policy, CompiledPolicy), CompileError> {
    match compile(&policy) {
        Err(_) if !policy.leased.is_empty() => {
            let policy = policy.leased(Leased::default());
            let compiled = compile(&policy)?;
            Ok((policy, compiled))
        }
        compiled => compiled.map(|compiled| (policy, compiled)),
    }
}

/// The policy file; or, when that has an error, what was last applied, and the error.
pub(in crate::daemon) fn read_or_last(
    config: &Path,
    last_applied: &Path,
    leased: &AllLeased,
) -> Result<(Read, Option<String>), DaemonError> {
    let nothing = InstancePolicies::new();
    let error = match read(config, 0, &nothing, leased) {
        Ok(read) => return Ok((read, None)),
        Err(error) => error,
    };
    if !is_own(last_applied) {
        return Err(error);
    }
    // The error to tell is the file's.
    let Ok(last) = read(last_applied, 0, &nothing, leased) else { return Err(error) };
    Ok((last, Some(error_chain(&error))))
}

/// A policy file that is ready to be put in force.
pub(in crate::daemon) struct Prepared {
    pub(in crate::daemon) log: LogLimits,
    pub(in crate::daemon) resolver: Resolver,
    pub(in crate::daemon) policies: InstancePolicies,
    /// Those that are not in force.
    pub(in crate::daemon) changed: BTreeMap<InstanceName, ChangedPolicy>,
    /// A copy of the file, to be put in the place of what was applied before.
    pub(in crate::daemon) copy: io::Result<PathBuf>,
}

/// A policy that is not in force, with its rules in the kernel.
pub(in crate::daemon) struct ChangedPolicy {
    pub(in crate::daemon) loaded: LoadedPolicy,
    pub(in crate::daemon) entries: usize,
    pub(in crate::daemon) names: Vec<CompiledName>,
}

impl ChangedPolicy {
    /// Brings a compiled policy's rules into the kernel.
    pub(in crate::daemon) fn load(compiled: CompiledPolicy) -> Result<Self, DaemonError> {
        let loaded = LoadedPolicy::load(&compiled)?;
        let CompiledPolicy { entries, names, .. } = compiled;
        Ok(Self { loaded, entries: entries.len(), names })
    }
}

impl Read {
    /// Brings what changes into the kernel, and writes a copy of the file beside what was applied last. One such copy at a
    /// time.
    pub(in crate::daemon) fn prepare(self, last_applied: &Path) -> Result<Prepared, DaemonError> {
        let Self { text, log, resolver, policies, compiled } = self;
        let copy = copy(&text, last_applied);
        drop(text);
        let load = |(name, compiled)| Ok((name, ChangedPolicy::load(compiled)?));
        let changed = compiled.into_iter().map(load).collect::<Result<_, DaemonError>>()?;
        Ok(Prepared { log, resolver, policies, changed, copy })
    }
}

fn copy(text: &str, last_applied: &Path) -> io::Result<PathBuf> {
    let new = last_applied.with_extension("new");
    fs::create_dir_all(new.parent().unwrap_or(&new))?;
    // Left by a daemon that ended while it wrote; or by somebody who wants it written elsewhere.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    Ok(new)
}

/// What a reload takes of the daemon: to be done elsewhere, while the daemon answers.
pub(in crate::daemon) struct ReloadTask {
    pub(in crate::daemon) config: PathBuf,
    pub(in crate::daemon) last_applied: PathBuf,
    pub(in crate::daemon) log: LogLimits,
    pub(in crate::daemon) resolver: Resolver,
    pub(in crate::daemon) in_force: InstancePolicies,
    pub(in crate::daemon) leased: AllLeased,
}

impl ReloadTask {
    /// Prepares the policy file, and says what it changes, a line each.
    pub(in crate::daemon) fn run(self) -> Result<(Prepared, Vec<String>), DaemonError> {
        let Self { config, last_applied, log, resolver, in_force, leased } = self;
        let prepared = read(&config, resolver.mark, &in_force, &leased)?.prepare(&last_applied)?;
        let changes =
            changes((&log, &resolver, &in_force), (&prepared.log, &prepared.resolver, &prepared.policies));
        Ok((prepared, changes))
    }
}
