//! Lists of names that go together, by what needs them. The NixOS module reads the same file.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use serde::{Deserialize, Serialize, Serializer};

use crate::policy::{AnyRule, Invalid};

/// What one service or tool needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Preset {
    /// What it is called.
    pub name: String,
    /// Where that is written down: a page of those who run the service, where they have one.
    pub source: String,
    /// When it was looked up there, as `YYYY-MM-DD`.
    pub looked_up: String,
    /// What is not in it, and why; or when what is in it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The rules.
    #[serde(serialize_with = "as_texts")]
    pub allow: Vec<AnyRule>,
}

fn as_texts<S: Serializer>(rules: &[AnyRule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(ToString::to_string))
}

/// A preset as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    source: String,
    looked_up: String,
    note: Option<String>,
    allow: Vec<String>,
}

static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let forms: BTreeMap<String, Form> =
        serde_json::from_str(include_str!("presets.json")).expect("a test reads it");
    let preset = |(name, Form { source, looked_up, note, allow })| {
        let rule = |text: &String| text.parse().expect("a test reads it");
        Preset { name, source, looked_up, note, allow: allow.iter().map(rule).collect() }
    };
    forms.into_iter().map(preset).collect()
});

/// All of them, in the order of their names.
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

/// The preset of this name.
///
/// # Errors
///
/// When there is none.
pub fn preset(name: &str) -> Result<&'static Preset, Invalid> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let known: Vec<_> = PRESETS.iter().map(|preset| preset.name.as_str()).collect();
        Invalid(format!("`{name}` is no preset; there are: {}", known.join(", ")))
    })
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, source, looked_up, note, allow } = self;
        write!(f, "{name}  {source}, looked up {looked_up}")?;
        note.iter().try_for_each(|note| write!(f, "\n  ({note})"))?;
        allow.iter().try_for_each(|rule| write!(f, "\n  {rule}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_read_and_says_where_it_is_from() {
        for Preset { name, source, looked_up, note, allow } in presets() {
            assert!(source.starts_with("https://") || source.starts_with("docs/"), "{name}: {source}");
            assert!(looked_up.parse::<jiff::civil::Date>().is_ok(), "{name}: {looked_up}");
            assert!(note.as_ref().is_none_or(|note| !note.is_empty()), "{name}");
            assert!(!allow.is_empty(), "{name}");
        }
        assert_eq!(preset("npm").map(|npm| npm.allow[0].to_string()), Ok("registry.npmjs.org".to_owned()));
        let invalid = preset("nmp").expect_err("no preset").to_string();
        assert!(invalid.starts_with("`nmp` is no preset; there are: anthropic, crates, "), "{invalid}");
    }
}
