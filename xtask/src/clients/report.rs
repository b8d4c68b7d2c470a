//! The table in docs/names.md.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context as _, Result};

use super::table::{Client, LISTED, RUNS, Tries, UNLISTED};
use crate::process::root;

const PAGE: &str = "docs/names.md";

/// A client's row.
pub(super) struct Row {
    title: String,
    tries: Tries,
    words: &'static str,
    /// The line in which it says that the name does not exist.
    said: String,
    /// For each `resolv.conf`, what it takes where the name is listed, and where it is not.
    took: Vec<(Duration, Duration)>,
    /// Other names that it asked for, whose refusal let it go on.
    pub(super) besides: Vec<String>,
    /// How long it tries of its own.
    pub(super) without_knob: Option<Duration>,
}

impl Row {
    pub(super) fn new(client: &Client, version: &str) -> Self {
        let title = titled(client.title, version);
        let (said, took, besides) = (String::new(), vec![], vec![]);
        Self { title, tries: client.tries, words: client.words, said, took, besides, without_knob: None }
    }

    /// Adds what it did with one `resolv.conf`.
    pub(super) fn add(&mut self, took: (Duration, Duration), said: &str, refused: Vec<String>) {
        if self.said.is_empty() {
            let from = said.lines().find_map(|line| line.find(self.words).map(|at| &line[at..]));
            self.said = from.unwrap_or_default().trim().chars().take(100).collect();
        }
        // Else each would be there with each search domain.
        let refused = if self.took.is_empty() { refused } else { vec![] };
        self.took.push(took);
        let others = refused.into_iter().filter(|name| !name.starts_with(UNLISTED));
        self.besides.extend(others);
        self.besides.sort();
        self.besides.dedup();
    }

    /// As the table has it, and whoever runs it reads it.
    pub(super) fn text(&self) -> String {
        let [(listed, plain), .., (_, search)] = self.took[..] else { return self.title.clone() };
        let tries = match (self.tries, self.without_knob) {
            (Tries::Unless(knob), Some(without)) => format!("{}, but for `{knob}`", shown(without)),
            (Tries::Always, _) => "always; tried once".to_owned(),
            _ => String::new(),
        };
        format!(
            "| {} | `{}` | {} | {} | {} | {tries} |",
            self.title,
            self.said,
            shown(plain),
            shown(search),
            shown(listed)
        )
    }
}

/// A client with its version.
pub(super) fn titled(title: &str, version: &str) -> String {
    match title.split_once(": ") {
        Some((name, rest)) => format!("{name} {version}: {rest}"),
        None => format!("{title} {version}"),
    }
}

/// The version in what a program says of it.
pub(super) fn number(said: &str) -> Result<String> {
    let mut words = said.split(|c: char| c.is_whitespace() || ",_-~".contains(c));
    let number = words.find_map(|word| {
        let word = word.trim_start_matches(['v', 'g', 'o', '(']);
        (word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')).then_some(word)
    });
    Ok(number.with_context(|| format!("no version in {said}"))?.trim_end_matches(')').to_owned())
}

/// Writes the table.
pub(super) fn write(rows: &[Row]) -> Result<()> {
    put("clients", &table(rows))
}

/// Writes the table of those that speak QUIC.
pub(super) fn write_quic(rows: &[String]) -> Result<()> {
    let head = format!(
        "Written by `cargo xtask clients http/3`: which version brought the page, how long it took, and how many datagrams reached the \
         server's UDP port 443; in the last two columns in {RUNS} attempts, the median.\n\n\
         | client | no policy, by QUIC alone | no policy | `--allow {LISTED}` |\n\
         |---|---|---|---|\n"
    );
    put("quic", &(head + &rows.join("\n") + "\n"))
}

/// Writes what stands between a page's two marks, and leaves the rest as it is.
fn put(mark: &str, content: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- {mark} -->\n"), format!("<!-- end of {mark} -->\n"));
    let path = root().join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let marked = || format!("{PAGE} has not the lines {begin} and {end}");
    let (before, rest) = page.split_once(&begin).with_context(marked)?;
    let (_, after) = rest.split_once(&end).with_context(marked)?;
    fs::write(&path, format!("{before}{begin}{content}{end}{after}"))
        .with_context(|| format!("cannot write {PAGE}"))?;
    println!("{PAGE} is written");
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "Written by `cargo xtask clients`: medians of {RUNS} runs under `exec`, from a program's start to its end.\n\n\
         | client | says, of `{UNLISTED}` | after | with `search` of two domains and `ndots:5` | a listed name takes | tries again of its own |\n\
         |---|---|---|---|---|---|\n"
    );
    rows.iter().for_each(|row| table += &(row.text() + "\n"));
    for row in rows.iter().filter(|row| !row.besides.is_empty()) {
        let besides: Vec<_> = row.besides.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(table, "\nAlso asked for by {}, and refused: {}.", row.title, besides.join(", "));
    }
    table
}

/// As people read it.
pub(super) fn shown(time: Duration) -> String {
    match time.as_millis() {
        0..10 => format!("{:.1} ms", time.as_secs_f32() * 1000.0),
        10..1000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f32()),
    }
}
