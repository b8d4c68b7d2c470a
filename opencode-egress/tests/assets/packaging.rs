//! The journal's catalog, completions, manual pages.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use clap::CommandFactory as _;
use opencode_egress::{command::args::Cli, report::journal};

use crate::{root, succeed};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_opencode-egress"))
}

/// Compiled below a directory, so this machine's own catalog stays as it is.
#[test]
fn journalctl_compiles_the_catalog() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sources, database) = ("usr/lib/systemd/catalog", "var/lib/systemd/catalog");
    for path in [sources, database] {
        fs::create_dir_all(directory.path().join(path)).expect("a directory");
    }
    let name = "opencode-egress.catalog";
    fs::copy(root().join("dist").join(name), directory.path().join(sources).join(name)).expect("a copy");
    let journalctl = || {
        let mut command = Command::new("journalctl");
        command.arg("--root").arg(directory.path());
        command
    };
    succeed(journalctl().arg("--update-catalog"));
    let listed = succeed(journalctl().args(["--list-catalog", journal::DENIED_ID]));
    assert_eq!(
        listed.trim_end(),
        format!("{} opencode-egress: @OPENCODE_INSTANCE@ may not reach @EGRESS_DST@", journal::DENIED_ID)
    );
    assert_eq!(succeed(journalctl().arg("--list-catalog")).lines().count(), 11);
}

#[test]
fn bash_reads_the_completions() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("opencode-egress");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let completions = succeed(program().args(["completions", shell]));
        for subcommand in Cli::command().get_subcommands() {
            assert!(completions.contains(subcommand.get_name()), "{shell}: {}", subcommand.get_name());
        }
        fs::write(&script, completions).expect("the script");
        if shell == "bash" {
            succeed(Command::new("bash").arg("-n").arg(&script));
        }
    }
}

#[test]
fn every_subcommand_has_a_manual_page_that_groff_renders() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("not/there/yet");
    succeed(program().arg("man").arg(&pages));
    let subcommands = Cli::command();
    let mut expected: BTreeSet<_> = subcommands
        .get_subcommands()
        .map(|subcommand| format!("opencode-egress-{}.1", subcommand.get_name()))
        .collect();
    expected.insert("opencode-egress.1".into());
    assert_eq!(names(&pages), expected);
    for name in expected {
        // Without overstrikes.
        let rendered =
            succeed(Command::new("groff").args(["-man", "-ww", "-Tutf8", "-P-cbou"]).arg(pages.join(&name)));
        assert!(rendered.contains("NAME") && rendered.contains("SYNOPSIS"), "{name}: {rendered}");
    }
}

/// `status | head`: whoever read has enough.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = directory.path().join("policy.json");
    fs::write(&policy, r#"{ "version": 1, "instances": { "a": { "units": ["a.service"] } } }"#)
        .expect("a file");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let check = || {
        let mut command = program();
        command.arg("check").arg(&policy);
        command
    };
    assert!(succeed(&mut check()).contains("good; 1 instances"));
    drop(reader);
    succeed(check().stdout(writer));
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
