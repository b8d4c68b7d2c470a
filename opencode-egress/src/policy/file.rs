//! The policy file: JSON in, [`PolicySet`] out, or an error with file, line, column and what to write.
//!
//! Nothing is applied from a file that has an error anywhere.

mod document;
mod form;
mod rules;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use document::{File, Instance, LEAST, ResolverForm};
use form::{ListenForm, Misplaced, Object, Text};
use opencode_egress_common::abi::{MAX_INSTANCES, MAX_LISTENERS};
use rules::Listed;

use crate::policy::{
    DEFAULT_MAX_SOCKETS, InstanceName, Listen, LogLimits, Mode, Policy, PolicySet, Resolver, UnitName,
    lease::Leased,
    resolver::{DEFAULT_MARK, MAX_UPSTREAM},
};

pub use document::FILE_VERSION;

/// Why a policy file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("cannot read the policy file {path}; check that it exists and is readable")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a directory.
    #[error("{path} is a directory; name the policy file in it")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// It is no text, or in another encoding.
    #[error("{path} is not UTF-8 text; save it as that")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// It has an error.
    #[error("{path}:{line}:{column}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What is wrong and what to write instead.
        message: String,
    },
}

/// Reads a policy file.
///
/// # Errors
///
/// When it cannot be read, or has any error.
pub fn load(path: &Path) -> Result<PolicySet, ConfigError> {
    parse(path, &read(path)?)
}

/// The text of a policy file.
///
/// # Errors
///
/// When it cannot be read.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let path = path.to_owned();
    std::fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::IsADirectory => ConfigError::Directory { path },
        io::ErrorKind::InvalidData => ConfigError::NotText { path },
        _ => ConfigError::Read { path, source },
    })
}

/// Parses the text of a policy file; `path` is for the messages.
///
/// # Errors
///
/// The first error, with its place.
pub fn parse(path: &Path, text: &str) -> Result<PolicySet, ConfigError> {
    let invalid = |line: usize, column: usize, message: String| ConfigError::Invalid {
        path: path.to_owned(),
        line: line.max(1),
        // serde_json counts what it has read of the line, which may be nothing.
        column: column.max(1),
        message: on_one_line(&message),
    };
    if text.starts_with('\u{feff}') {
        return Err(invalid(1, 1, "the file begins with a byte order mark; save it without one".to_owned()));
    }
    if text.trim().is_empty() {
        return Err(invalid(1, 1, format!("the file is empty; write at least `{LEAST}`")));
    }
    let Object(file) = serde_json::from_str::<Object<File>>(text).map_err(|error| {
        let (line, column, shown) = (error.line(), error.column(), error.to_string());
        let place = format!(" at line {line} column {column}");
        let message = shown.strip_suffix(&place).unwrap_or(&shown);
        let hint = if message == "invalid escape" { r"; JSON has `\\` for each `\` of a name" } else { "" };
        invalid(line, column, format!("{}{hint}", in_words_of_json(message)))
    })?;
    build(file).map_err(|Misplaced { at, message }| {
        let before = at.and_then(|at| text.get(..at.checked_sub(text.as_ptr().addr())?)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
        invalid(line, column, message)
    })
}

/// A message of serde's, which has names of its own for two of JSON's types.
fn in_words_of_json(message: &str) -> String {
    message.replacen("type: map,", "type: object,", 1).replacen("type: sequence,", "type: array,", 1)
}

/// A message that quotes the file, whose text may have anything in it, with control characters as escapes.
fn on_one_line(message: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    message.chars().map(shown).collect()
}

fn build(file: File) -> Result<PolicySet, Misplaced> {
    let resolver = resolver(&file.resolver.0)?;
    let mut instances = BTreeMap::new();
    let mut taken = Taken::default();
    for (key, Object(form)) in file.instances.0 {
        let name: InstanceName = key.parse()?;
        let policy = instance(&name, form, &key, &mut taken);
        // What has escapes in it is found in its instance.
        let policy =
            policy.map_err(|Misplaced { at, message }| Misplaced { at: at.or(key.wrong("").at), message })?;
        if policy.loopback_mark == resolver.mark {
            return Err(key.wrong(format!(
                "instance `{name}` has {} for its `loopback_mark`, by which flows to names are known; give it another bit",
                resolver.mark
            )));
        }
        if instances.insert(name, policy).is_some() {
            return Err(key.wrong(format!("instance `{}` is there twice; merge the two", key.value)));
        }
        if instances.len() >= MAX_INSTANCES as usize {
            return Err(key.wrong(format!(
                "instance `{}` is one too many: there is room for {}",
                key.value,
                MAX_INSTANCES - 1
            )));
        }
    }
    let default = LogLimits::default();
    let Object(log) = file.log;
    let log = LogLimits {
        interval: log.interval_secs.map_or(default.interval, |n| Duration::from_secs(n.0.into())),
        burst: log.burst.map_or(default.burst, |n| n.0),
        per_sec: log.per_sec.map_or(default.per_sec, |n| n.0),
    };
    Ok(PolicySet { log, resolver, instances })
}

fn resolver(form: &ResolverForm) -> Result<Resolver, Misplaced> {
    if let Some(text) = form.upstream.get(MAX_UPSTREAM) {
        return Err(text.wrong(format!(
            "`{}` is one upstream server too many; at most {MAX_UPSTREAM} are asked",
            text.value
        )));
    }
    let server = |text: &Text| Resolver::parse_upstream(&text.value).map_err(|invalid| text.wrong(invalid));
    let upstream = form.upstream.iter().map(server).collect::<Result<_, _>>()?;
    let mark = form.mark.as_ref().map_or(DEFAULT_MARK, |mark| mark.0);
    Ok(Resolver { upstream, mark })
}

/// What only one instance can have.
#[derive(Default)]
struct Taken {
    units: BTreeMap<UnitName, InstanceName>,
    /// By port.
    listeners: BTreeMap<u16, Vec<(Listen, InstanceName)>>,
}

impl Taken {
    /// Clients of one instance's listener must not find another instance's server there; nor may an instance, whose
    /// connections to its own listener take no rule.
    fn listener(&mut self, name: &InstanceName, form: &ListenForm) -> Result<Listen, Misplaced> {
        let listen = listener(form)?;
        let others = self.listeners.entry(listen.port).or_default();
        let overlaps = |(other, owner): &&(Listen, InstanceName)| owner != name && listen.overlaps(other);
        if let Some((other, owner)) = others.iter().find(overlaps) {
            let (here, there) = (listen.socket_address(), other.socket_address());
            return Err(form.address.wrong(format!(
                "listener {here} of instance `{name}` overlaps with {there} of instance `{owner}`; give one of them another port"
            )));
        }
        others.push((listen, name.clone()));
        Ok(listen)
    }
}

fn instance(name: &InstanceName, form: Instance, key: &Text, taken: &mut Taken) -> Result<Policy, Misplaced> {
    let mut units = vec![];
    for text in &form.units {
        let unit: UnitName = text.parse()?;
        if let Some(owner) = taken.units.insert(unit.clone(), name.clone()) {
            return Err(text.wrong(format!(
                "unit `{unit}` is listed already, under instance `{owner}`; a unit has one policy, so remove one of them"
            )));
        }
        units.push(unit);
    }
    if units.is_empty() {
        return Err(key.wrong(format!(
            "instance `{name}` has no units; write `\"units\": [\"opencode-{name}.service\"]`"
        )));
    }
    let mode = match &form.mode {
        None => Mode::Enforce,
        Some(text) => match text.value.as_str() {
            "enforce" => Mode::Enforce,
            "audit" => Mode::Audit,
            other => return Err(text.wrong(format!("`{other}` is no mode; write `enforce` or `audit`"))),
        },
    };
    let loopback = form.loopback.as_ref().map(Text::parse).transpose()?.unwrap_or_default();
    let loopback_mark = form.loopback_mark.map_or(0, |mark| mark.0);
    if form.listen.len() > MAX_LISTENERS {
        return Err(key.wrong(format!(
            "instance `{name}` has {} listeners; at most {MAX_LISTENERS} are possible",
            form.listen.len()
        )));
    }
    let listen =
        form.listen.iter().map(|Object(form)| taken.listener(name, form)).collect::<Result<_, _>>()?;
    let Listed { networks: allow, names, .. } = form.allow.0?;
    let deny = form.deny.0?;
    let errno = form.errno.as_ref().map(Text::parse).transpose()?.unwrap_or_default();
    let max_sockets = form.limits.0.sockets.map_or(DEFAULT_MAX_SOCKETS, |count| count.0);
    match deny.first_name {
        Some(misplaced) => Err(misplaced),
        None => Ok(Policy {
            units,
            mode,
            allow,
            names,
            deny: deny.networks,
            listen,
            loopback,
            loopback_mark,
            max_sockets,
            errno,
            leased: Leased::default(),
        }),
    }
}

fn listener(form: &ListenForm) -> Result<Listen, Misplaced> {
    let address: IpAddr = form.address.value.parse().map_err(|_| {
        form.address.wrong(format!(
            "`{}` is no address; write one as in `127.0.0.1` or `::1`, without a prefix length",
            form.address.value
        ))
    })?;
    Ok(Listen { address: address.to_canonical(), port: form.port.0, open: form.open })
}

#[cfg(test)]
mod tests;
