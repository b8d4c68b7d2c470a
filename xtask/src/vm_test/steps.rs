//! How many steps the programs take the verifier of each kernel: the table in docs/kernels.md.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};

use crate::process::root;

const BEGIN: &str = "<!-- `cargo xtask vm-test --kernel X verifier` writes from here on -->\n";
const END: &str = "<!-- to here -->\n";

/// The programs with a column of their own; they take the most.
const COLUMNS: [&str; 6] = ["egress", "ingress", "connect4", "connect6", "sendmsg4", "sendmsg6"];

/// Steps by program, as the hook test `verifier` prints them.
#[derive(Default)]
pub(super) struct Steps(BTreeMap<String, u32>);

impl Steps {
    /// Takes in a line of what the tests say.
    pub(super) fn hear(&mut self, line: &str) {
        let said = line.strip_prefix("verifier steps: ").and_then(|said| said.split_once(' '));
        if let Some((program, steps)) = said
            && let Ok(steps) = steps.parse()
        {
            self.0.insert(program.to_owned(), steps);
        }
    }

    /// The row of a kernel; `None` where it did not say.
    fn row(&self, kernel: &str) -> Option<String> {
        let others = self.0.iter().filter(|(program, _)| !COLUMNS.contains(&program.as_str()));
        let most = others.map(|(_, steps)| steps).max()?;
        // Without sendmsg where packets' programs know the process.
        let cell = |program| self.0.get(program).map_or_else(|| "-".to_owned(), ToString::to_string);
        let cells = COLUMNS.map(cell).join(" | ");
        Some(format!("| {kernel} | {cells} | {most} |"))
    }
}

/// Writes what was measured into docs/kernels.md; the rows of other kernels stay.
pub(super) fn write<'a>(measured: impl Iterator<Item = (&'a str, &'a Steps)>) -> Result<()> {
    let page = root().join("docs/kernels.md");
    let old = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let (head, rest) = old.split_once(BEGIN).with_context(|| format!("no {BEGIN} in {}", page.display()))?;
    let (table, tail) = rest.split_once(END).with_context(|| format!("no {END} in {}", page.display()))?;
    let mut rows: BTreeMap<_, _> =
        table.lines().filter_map(|row| Some((release(row.strip_prefix("| ")?)?, row.to_owned()))).collect();
    let before = rows.clone();
    for (kernel, steps) in measured {
        if let (Some(release), Some(row)) = (release(kernel), steps.row(kernel)) {
            rows.insert(release, row);
        }
    }
    if rows == before {
        return Ok(());
    }
    let rows: Vec<_> = rows.into_values().collect();
    let columns = COLUMNS.join(" | ");
    let lines = "|---".repeat(COLUMNS.len() + 2);
    let table = format!("\n| kernel | {columns} | most of the others |\n{lines}|\n{}\n\n", rows.join("\n"));
    fs::write(&page, format!("{head}{BEGIN}{table}{END}{tail}"))?;
    eprintln!("xtask: {} has the verifier's steps", page.display());
    Ok(())
}

/// The release that a kernel's version begins with, by which rows are told apart and sorted.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-', ' ']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_programs_that_take_the_most() {
        let mut steps = Steps::default();
        assert_eq!(steps.row("6.18.1"), None);
        for line in
            ["verifier steps: egress 48569", "verifier steps: bind4 12", "verifier steps: bind6 40", "else"]
        {
            steps.hear(line);
        }
        assert_eq!(steps.row("6.18.1").as_deref(), Some("| 6.18.1 | 48569 | - | - | - | - | - | 40 |"));
        assert_eq!(release("5.10.223-1"), Some((5, 10)));
        assert_eq!(release("kernel | egress"), None);
    }
}
