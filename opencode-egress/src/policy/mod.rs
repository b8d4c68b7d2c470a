//! What an operator wants for an instance. Values of these types are valid: they are made by
//! [`file`] or by `FromStr`, which refuse everything else and say what to write instead.

pub mod compile;
pub mod destination;
mod errno;
pub mod explain;
pub mod file;
pub mod known;
pub mod lease;
mod listen;
pub mod name;
pub mod preset;
mod resolver;
mod rule;
pub mod special;
pub mod suggest;
pub mod target;
mod text;

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, time::Duration};

pub use errno::Errno;
pub use lease::Leased;
pub use listen::{Listen, may_bind};
pub use name::NameRule;
pub use opencode_egress_common::abi::{DEFAULT_MAX_SOCKETS, Mode};
pub use resolver::Resolver;
pub use rule::{Cidr, PortRange, Rule, RuleProtocol};
pub use text::AnyRule;

/// The name of a mode in policies and reports.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

/// What an instance may say to itself over loopback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Whatever goes to a socket of its own needs no rule, and it may bind ports from 1024 on for itself.
    #[default]
    Own,
    /// What the rules and listeners list.
    Listed,
}

impl Loopback {
    /// The name in policies and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Listed => "listed",
        }
    }
}

impl FromStr for Loopback {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "own" => Ok(Self::Own),
            "listed" => Ok(Self::Listed),
            other => Err(Invalid(format!("`{other}` is not what loopback may be; write `own` or `listed`"))),
        }
    }
}

/// Why a text is not a value of one of this module's types, with what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Everything in one policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySet {
    /// How denied flows are logged.
    pub log: LogLimits,
    /// How listed names are looked up.
    pub resolver: Resolver,
    /// The instances' policies.
    pub instances: BTreeMap<InstanceName, Policy>,
}

impl PolicySet {
    /// The policy of an instance; `file` is for the message.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn instance(&self, name: &InstanceName, file: &Path) -> Result<&Policy, Invalid> {
        self.instances.get(name).ok_or_else(|| {
            let known: Vec<_> = self.instances.keys().map(InstanceName::as_str).collect();
            Invalid(format!("{} has no instance `{name}`; it has: {}", file.display(), known.join(", ")))
        })
    }
}

/// How denied flows are logged, the same for every instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Repeats of a destination within this time are folded into one line.
    pub interval: Duration,
    /// Lines an instance may log at once.
    pub burst: u32,
    /// Lines a second after that.
    pub per_sec: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), burst: 20, per_sec: 5 }
    }
}

/// One instance's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The units that it confines.
    pub units: Vec<UnitName>,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// The networks that may be reached.
    pub allow: Vec<Rule>,
    /// The names that may be reached; each is there once.
    pub names: Vec<NameRule>,
    /// What may not, whatever `allow` says.
    pub deny: Vec<Rule>,
    /// Where the instance listens.
    pub listen: Vec<Listen>,
    /// What it may say to itself over loopback.
    pub loopback: Loopback,
    /// The bit of a socket's mark by which a second lock knows what it says to itself; 0 for none.
    pub loopback_mark: u32,
    /// How many sockets it may have open, of those that it made.
    pub max_sockets: u32,
    /// The error that a denied call gets.
    pub errno: Errno,
    /// What is granted beside that for a time. The policy file has none.
    pub leased: Leased,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            units: vec![],
            mode: Mode::Enforce,
            allow: vec![],
            names: vec![],
            deny: vec![],
            listen: vec![],
            loopback: Loopback::Own,
            loopback_mark: 0,
            max_sockets: DEFAULT_MAX_SOCKETS,
            errno: Errno::default(),
            leased: Leased::default(),
        }
    }
}

impl Policy {
    /// Adds a rule to what may be reached; a name that is there already is not added again.
    pub fn allow(&mut self, rule: AnyRule) {
        match rule {
            AnyRule::Network(rule) => self.allow.push(rule),
            AnyRule::Name(rule) if self.names.contains(&rule) => {}
            AnyRule::Name(rule) => self.names.push(rule),
        }
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// An instance's name: letters, digits, `-` and `_`, at most 64, so that it fits into identifiers and paths.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);
text_type!(InstanceName);

impl FromStr for InstanceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            return Err(Invalid(format!(
                "`{text}` is no instance name; use 1 to 64 letters, digits, `-` or `_`"
            )));
        }
        Ok(Self(text.into()))
    }
}

/// The name of a systemd service unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);
text_type!(UnitName);

impl FromStr for UnitName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@\\".contains(c);
        match text.strip_suffix(".service") {
            Some(stem) if !stem.is_empty() && text.len() <= 255 && text.chars().all(good) => {
                Ok(Self(text.into()))
            }
            Some(_) => Err(Invalid(format!("`{text}` is no unit name; see systemd.unit(5)"))),
            None => Err(Invalid(format!(
                "`{text}` is no service unit; write its full name, as in `{text}.service`"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
