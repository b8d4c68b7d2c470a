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

use opencode_egress_common::abi::MAX_LISTENERS;
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
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Parses the text of a policy file; `path` is for the messages.
///
/// # Errors
///
/// The first error, with its place.
pub fn parse(path: &Path, text: &str) -> Result<PolicySet, ConfigError> {
    let invalid =
        |line, column, message| ConfigError::Invalid { path: path.to_owned(), line, column, message };
    let file: File = serde_json::from_str(text).map_err(|error| {
        let (line, column, shown) = (error.line(), error.column(), error.to_string());
        let place = format!(" at line {line} column {column}");
        invalid(line, column, shown.strip_suffix(&place).unwrap_or(&shown).to_owned())
    })?;
    build(file).map_err(|Misplaced { at, message }| {
        let before = at.and_then(|at| text.get(..at.checked_sub(text.as_ptr().addr())?)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
        invalid(line, column, message)
    })
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
    /// Address of its first byte, inside the quotes.
    at: usize,
}

impl Text {
    fn wrong(&self, message: impl fmt::Display) -> Misplaced {
        // The quote before it.
        Misplaced { at: Some(self.at - 1), message: message.to_string() }
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
        Ok(Text { value: text.to_owned(), at: text.as_ptr().addr() })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Err(E::custom(format!("`{text}` is written with escapes; write it without")))
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
        let policy = instance(&name, form, &key, &mut owners)?;
        if instances.insert(name, policy).is_some() {
            return Err(key.wrong(format!("instance `{}` is there twice; merge the two", key.value)));
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
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "version": 1,
  "log": { "interval_secs": 10, "burst": 20, "per_sec": 5 },
  "instances": {
    "my-project": {
      "units": ["opencode-my-project.service", "opencode-my-project-setup.service"],
      "mode": "enforce",
      "allow": ["10.10.0.0/16", { "cidr": "203.0.113.0/24", "protocol": "tcp", "ports": ["443", "8000-8100"] }],
      "deny": ["10.10.9.0/24"],
      "listen": [{ "address": "127.0.0.1", "port": 8787, "open": false }] } } }"#;

    fn shown(text: &str) -> String {
        match parse(Path::new("p.json"), text) {
            Ok(set) => format!("{set:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_documented_file_is_taken() {
        let set = parse(Path::new("p.json"), GOOD).expect("a good file");
        let policy = &set.instances[&"my-project".parse().expect("a name")];
        assert_eq!(policy.units.len(), 2);
        assert_eq!(policy.allow[0].to_string(), "10.10.0.0/16");
        assert_eq!(policy.allow[1].to_string(), "203.0.113.0/24 tcp 443,8000-8100");
        assert_eq!(policy.listen[0].to_string(), "127.0.0.1:8787");
    }

    /// Each case replaces something in the good file; the message must begin with its place.
    #[test]
    fn errors_have_a_place_and_a_remedy() {
        let check = |from: &str, to: &str, expect: &str| {
            assert!(GOOD.contains(from), "{from}");
            let text = shown(&GOOD.replacen(from, to, 1));
            assert!(text.starts_with(expect), "{to}: {text}");
        };
        check(
            "10.10.0.0/16",
            "10.10.0.1/16",
            "p.json:7:17: `10.10.0.1/16` has host bits set; write `10.10.0.0/16`",
        );
        check("203.0.113.0/24", "203.0.113.0/44", "p.json:7:43: `203.0.113.0/44` is no network");
        check("\"443\"", "\"70000\"", "p.json:7:90: `70000` is no port");
        check("\"443\"", "443", "p.json:7:92: invalid type: integer `443`, expected a string");
        check("\"tcp\"", "\"icmp\"", "p.json:7:91: ICMP has no ports");
        check(
            "\"tcp\"",
            "\"sctp\"",
            "p.json:7:73: `sctp` is no protocol; write `tcp`, `udp`, `icmp` or `any`",
        );
        check("\"deny\"", "\"denny\"", "p.json:8:13: unknown field `denny`, expected one of");
        check("8787", "0", "p.json:9:52: 0 is no port");
        check("\"127.0.0.1\"", "\"localhost\"", "p.json:9:31: `localhost` is no address");
        check("\"enforce\"", "\"off\"", "p.json:6:15: `off` is no mode; write `enforce` or `audit`");
        check("my-project\":", "my project\":", "p.json:4:5: `my project` is no instance name");
        check(
            "-setup.service",
            ".service",
            "p.json:5:48: unit `opencode-my-project.service` is listed already",
        );
        check("\"burst\": 20", "\"burst\": -1", "p.json:2:43: -1 is out of range");
        check("\"version\": 1", "\"version\": 2", "p.json:1:14: version 2 is not known");
        check("10.10.9.0", "10.10.9\\u002e0", "p.json:8:34: `10.10.9.0/24` is written with escapes");
        check("] } } }", "] } }", "p.json:9:77: EOF while parsing an object");
    }

    #[test]
    fn an_instance_cannot_be_there_twice() {
        let twice = r#"{"version":1,"instances":{"a":{"units":["a.service"]},
"a":{"units":["b.service"]}}}"#;
        assert!(shown(twice).starts_with("p.json:2:1: instance `a` is there twice"), "{}", shown(twice));
        let none = r#"{"version":1,"instances":{"a":{"units":[]}}}"#;
        assert!(shown(none).starts_with("p.json:1:27: instance `a` has no units"), "{}", shown(none));
    }
}
