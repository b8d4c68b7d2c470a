//! What is delivered beside the program, read by the programs that it is for. `cargo xtask test --tier host` gets
//! those; a missing one fails the test that wants it.

mod monitoring;
mod packaging;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        panic!("cannot run {}: {error}; `cargo xtask test` installs it", command.get_program().display())
    })
}

/// Runs a command that must succeed and complain about nothing, and returns what it prints.
fn succeed(command: &mut Command) -> String {
    let output = output(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "{command:?}\n{stdout}{stderr}");
    stdout.into_owned()
}
