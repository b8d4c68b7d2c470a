//! What the JSON of a policy file may look like.

use serde::{Deserialize, Deserializer, de};

use crate::policy::file::{
    form::{Count, Example, ListenForm, Mark, Object, Pairs, Text, list, number},
    rules::Rules,
};

/// The version of the file format.
pub const FILE_VERSION: u32 = 1;

/// The least that a file has.
pub(super) const LEAST: &str = r#"{"version": 1, "instances": {}}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(deserialize_with = "version")]
    #[expect(dead_code, reason = "checked while it is read")]
    pub(super) version: (),
    #[serde(default)]
    pub(super) log: Object<Log>,
    #[serde(default)]
    pub(super) resolver: Object<ResolverForm>,
    pub(super) instances: Pairs<Object<Instance>>,
}

impl Example for File {
    const EXPECTED: &'static str = r#"an object, as in {"version": 1, "instances": {}}"#;
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let expected = format_args!("the number {FILE_VERSION}; write `\"version\": {FILE_VERSION}`");
    match number(deserializer, expected)? {
        known if known == FILE_VERSION.into() => Ok(()),
        other => Err(de::Error::custom(format!(
            "version {other} is not known to this opencode-egress; write `\"version\": {FILE_VERSION}`"
        ))),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) interval_secs: Option<Count>,
    pub(super) burst: Option<Count>,
    pub(super) per_sec: Option<Count>,
}

impl Example for Log {
    const EXPECTED: &'static str = r#"an object, as in {"interval_secs": 10, "burst": 20, "per_sec": 5}"#;
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ResolverForm {
    #[serde(default, deserialize_with = "upstream")]
    pub(super) upstream: Vec<Text>,
    pub(super) mark: Option<Mark>,
}

impl Example for ResolverForm {
    const EXPECTED: &'static str = r#"an object, as in {"upstream": ["192.0.2.53"]}"#;
}

fn upstream<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text>, D::Error> {
    list(deserializer, r#"a list of servers, as in ["192.0.2.53"]"#)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    #[serde(deserialize_with = "units")]
    pub(super) units: Vec<Text>,
    pub(super) mode: Option<Text>,
    #[serde(default)]
    pub(super) allow: Rules,
    #[serde(default)]
    pub(super) deny: Rules,
    #[serde(default, deserialize_with = "listen")]
    pub(super) listen: Vec<Object<ListenForm>>,
    pub(super) loopback: Option<Text>,
    pub(super) loopback_mark: Option<Mark>,
    #[serde(default)]
    pub(super) limits: Object<Limits>,
    pub(super) errno: Option<Text>,
}

impl Example for Instance {
    const EXPECTED: &'static str = r#"an instance, as in {"units": ["opencode-a.service"], "allow": []}"#;
}

fn units<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text>, D::Error> {
    list(deserializer, r#"a list of units, as in ["opencode-a.service"]"#)
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Object<ListenForm>>, D::Error> {
    list(deserializer, r#"a list of listeners, as in [{"address": "127.0.0.1", "port": 8787}]"#)
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Without the key, the default. It is not `null`, which would say that there is no limit.
    #[serde(default, deserialize_with = "some")]
    pub(super) sockets: Option<Count>,
}

impl Example for Limits {
    const EXPECTED: &'static str = r#"an object, as in {"sockets": 4096}"#;
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Count>, D::Error> {
    Count::deserialize(deserializer).map(Some)
}
