//! The policy file: JSON in, [`PolicySet`] out, or an error with file, line, column and what to write.
//!
//! Nothing is applied from a file that has an error anywhere.

use std::{
    collections::BTreeMap,
    fmt, io,
    marker::PhantomData,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use opencode_egress_common::abi::{MAX_INSTANCES, MAX_LISTENERS};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use crate::policy::{
    Cidr, InstanceName, Invalid, Listen, LogLimits, Mode, Policy, PolicySet, PortRange, Rule, RuleProtocol,
    UnitName,
};

/// The version of the file format.
pub const FILE_VERSION: u32 = 1;

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
    /// It says something that cannot be.
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
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
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
    let file: File = serde_json::from_str(text).map_err(|error| {
        let (line, column, shown) = (error.line(), error.column(), error.to_string());
        let place = format!(" at line {line} column {column}");
        let message = shown.strip_suffix(&place).unwrap_or(&shown);
        let hint = if message == "invalid escape" { r"; JSON has `\\` for each `\` of a name" } else { "" };
        invalid(line, column, format!("{message}{hint}"))
    })?;
    build(file).map_err(|Misplaced { at, message }| {
        let before = at.and_then(|at| text.get(..at.checked_sub(text.as_ptr().addr())?)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
        invalid(line, column, message)
    })
}

/// A message that quotes the file, whose text may have anything in it, with control characters as escapes.
fn on_one_line(message: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    message.chars().map(shown).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(deserialize_with = "version")]
    #[expect(dead_code, reason = "checked while it is read")]
    version: u32,
    #[serde(default)]
    log: Log,
    instances: Pairs<Instance>,
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        FILE_VERSION => Ok(FILE_VERSION),
        other => Err(de::Error::custom(format!(
            "version {other} is not known to this opencode-egress; write `\"version\": {FILE_VERSION}`"
        ))),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Log {
    interval_secs: Option<Count>,
    burst: Option<Count>,
    per_sec: Option<Count>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Instance {
    units: Vec<Text>,
    mode: Option<Text>,
    #[serde(default)]
    allow: Vec<RuleForm>,
    #[serde(default)]
    deny: Vec<RuleForm>,
    #[serde(default)]
    listen: Vec<ListenForm>,
}

enum RuleForm {
    Plain(Text),
    Detailed(DetailedRule),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DetailedRule {
    cidr: Text,
    protocol: Option<Text>,
    #[serde(default)]
    ports: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenForm {
    address: Text,
    port: Port,
    #[serde(default)]
    open: bool,
}

/// An error about the text that starts at this address of the source.
struct Misplaced {
    at: Option<usize>,
    message: String,
}

/// A string of the source, with where it stands.
struct Text {
    value: String,
    /// Address of its first byte, inside the quotes. `None`: it has escapes in it, so that it was copied.
    at: Option<usize>,
}

impl Text {
    fn wrong(&self, message: impl fmt::Display) -> Misplaced {
        // The quote before it.
        Misplaced { at: self.at.map(|at| at - 1), message: message.to_string() }
    }

    fn parse<T: FromStr<Err = Invalid>>(&self) -> Result<T, Misplaced> {
        self.value.parse().map_err(|invalid: Invalid| self.wrong(invalid))
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text, E> {
        Ok(Text { value: text.to_owned(), at: Some(text.as_ptr().addr()) })
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text { value: text.to_owned(), at: None })
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for RuleForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RuleVisitor;

        impl<'de> Visitor<'de> for RuleVisitor {
            type Value = RuleForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a network such as \"10.10.0.0/16\", or {\"cidr\": …, \"protocol\": …, \"ports\": […]}",
                )
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<RuleForm, E> {
                TextVisitor.visit_borrowed_str(text).map(RuleForm::Plain)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RuleForm, E> {
                TextVisitor.visit_str(text).map(RuleForm::Plain)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RuleForm, A::Error> {
                DetailedRule::deserialize(de::value::MapAccessDeserializer::new(map)).map(RuleForm::Detailed)
            }
        }

        deserializer.deserialize_any(RuleVisitor)
    }
}

/// A number from 1 to 65535.
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(Self(port)),
            _ => Err(de::Error::custom(format!("{number} is no port; write one from 1 to 65535"))),
        }
    }
}

/// A number from 1 to a million.
struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u32::try_from(number) {
            Ok(count @ 1..=1_000_000) => Ok(Self(count)),
            _ => Err(de::Error::custom(format!("{number} is out of range; write one from 1 to 1000000"))),
        }
    }
}

/// A JSON object in the order of the file, keys that come twice included.
struct Pairs<T>(Vec<(Text, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = vec![];
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

fn build(file: File) -> Result<PolicySet, Misplaced> {
    let mut instances = BTreeMap::new();
    let mut owners: BTreeMap<UnitName, InstanceName> = BTreeMap::new();
    for (key, form) in file.instances.0 {
        let name: InstanceName = key.parse()?;
        let policy = instance(&name, form, &key, &mut owners);
        // What has escapes in it is found in its instance.
        let policy =
            policy.map_err(|Misplaced { at, message }| Misplaced { at: at.or(key.wrong("").at), message })?;
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
    let log = LogLimits {
        interval: file.log.interval_secs.map_or(default.interval, |n| Duration::from_secs(n.0.into())),
        burst: file.log.burst.map_or(default.burst, |n| n.0),
        per_sec: file.log.per_sec.map_or(default.per_sec, |n| n.0),
    };
    Ok(PolicySet { log, instances })
}

fn instance(
    name: &InstanceName,
    form: Instance,
    key: &Text,
    owners: &mut BTreeMap<UnitName, InstanceName>,
) -> Result<Policy, Misplaced> {
    let mut units = vec![];
    for text in &form.units {
        let unit: UnitName = text.parse()?;
        if let Some(owner) = owners.insert(unit.clone(), name.clone()) {
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
    if form.listen.len() > MAX_LISTENERS {
        return Err(key.wrong(format!(
            "instance `{name}` has {} listeners; at most {MAX_LISTENERS} are possible",
            form.listen.len()
        )));
    }
    let listen = form.listen.iter().map(listener).collect::<Result<_, _>>()?;
    let rules = |forms: &[RuleForm]| forms.iter().map(rule).collect::<Result<Vec<_>, _>>();
    Ok(Policy { units, mode, allow: rules(&form.allow)?, deny: rules(&form.deny)?, listen })
}

fn rule(form: &RuleForm) -> Result<Rule, Misplaced> {
    match form {
        RuleForm::Plain(cidr) => Ok(Rule::any(cidr.parse::<Cidr>()?)),
        RuleForm::Detailed(DetailedRule { cidr, protocol, ports }) => {
            let protocol_value = match protocol {
                Some(text) => text.parse()?,
                None => RuleProtocol::Any,
            };
            let ports_value = ports.iter().map(Text::parse::<PortRange>).collect::<Result<_, _>>()?;
            Rule::new(cidr.parse()?, protocol_value, ports_value)
                .map_err(|invalid| ports.first().unwrap_or(cidr).wrong(invalid))
        }
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
