//! Lists of names that go together, by what needs them. The NixOS module reads the same file.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use crate::policy::{AnyRule, Invalid};

/// What one service or tool needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Where that is written down: a page of those who run the service, where they have one.
    pub source: String,
    /// When it was looked up there, as `YYYY-MM-DD`.
    pub looked_up: String,
    /// The rules.
    pub allow: Vec<AnyRule>,
}

/// A preset as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    source: String,
    looked_up: String,
    allow: Vec<String>,
}

static PRESETS: LazyLock<BTreeMap<String, Preset>> = LazyLock::new(|| {
    let forms: BTreeMap<String, Form> =
        serde_json::from_str(include_str!("presets.json")).expect("a test reads it");
    let preset = |Form { source, looked_up, allow }| Preset {
        source,
        looked_up,
        allow: allow.iter().map(|text: &String| text.parse().expect("a test reads it")).collect(),
    };
    forms.into_iter().map(|(name, form)| (name, preset(form))).collect()
});

/// All of them, by name.
pub fn presets() -> &'static BTreeMap<String, Preset> {
    &PRESETS
}

/// The preset of this name.
///
/// # Errors
///
/// When there is none.
pub fn preset(name: &str) -> Result<&'static Preset, Invalid> {
    PRESETS.get(name).ok_or_else(|| {
        let known: Vec<_> = PRESETS.keys().map(String::as_str).collect();
        Invalid(format!("`{name}` is no preset; there are: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_read_and_says_where_it_is_from() {
        for (name, Preset { source, looked_up, allow }) in presets() {
            assert!(source.starts_with("https://") || source.starts_with("docs/"), "{name}: {source}");
            assert!(looked_up.parse::<jiff::civil::Date>().is_ok(), "{name}: {looked_up}");
            assert!(!allow.is_empty(), "{name}");
        }
        let invalid = preset("nmp").expect_err("no preset").to_string();
        assert!(invalid.starts_with("`nmp` is no preset; there are: anthropic, crates, "), "{invalid}");
    }
}
