//! What the JSON of a policy file may look like.

use serde::{Deserialize, Deserializer, de};

use crate::policy::file::{
    form::{Count, ListenForm, Mark, Pairs, Text},
    rules::Rules,
};

/// The version of the file format.
pub const FILE_VERSION: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(deserialize_with = "version")]
    #[expect(dead_code, reason = "checked while it is read")]
    pub(super) version: u32,
    #[serde(default)]
    pub(super) log: Log,
    #[serde(default)]
    pub(super) resolver: ResolverForm,
    pub(super) instances: Pairs<Instance>,
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
pub(super) struct Log {
    pub(super) interval_secs: Option<Count>,
    pub(super) burst: Option<Count>,
    pub(super) per_sec: Option<Count>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct ResolverForm {
    #[serde(default)]
    pub(super) upstream: Vec<Text>,
    pub(super) mark: Option<Mark>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    pub(super) units: Vec<Text>,
    pub(super) mode: Option<Text>,
    #[serde(default)]
    pub(super) allow: Rules,
    #[serde(default)]
    pub(super) deny: Rules,
    #[serde(default)]
    pub(super) listen: Vec<ListenForm>,
    pub(super) loopback: Option<Text>,
    pub(super) loopback_mark: Option<Mark>,
    #[serde(default)]
    pub(super) limits: Limits,
    pub(super) errno: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Without the key, the default. It is not `null`, which would say that there is no limit.
    #[serde(default, deserialize_with = "some")]
    pub(super) sockets: Option<Count>,
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Count>, D::Error> {
    Count::deserialize(deserializer).map(Some)
}
