//! `presets`: lists of names that go together.

use anyhow::Result;

use crate::{
    command::{args::PresetsArgs, print::print_line},
    policy::preset,
};

/// Prints all presets, or one.
pub(super) fn presets(args: &PresetsArgs) -> Result<()> {
    let shown: Vec<_> = match args.name {
        Some(preset) => vec![preset],
        None => preset::presets().iter().collect(),
    };
    if args.json {
        return print_line(serde_json::to_string_pretty(&shown)?);
    }
    shown.iter().try_for_each(print_line)
}
