//! A step, and what the steps have in common.

use anyhow::{Context as _, Result};

use crate::{machine::Machine, pins};

/// One step.
pub(crate) struct Scenario {
    /// What it shows, in a sentence for the reader of the demo and of the tests.
    pub(crate) title: &'static str,
    /// Does what shows it. An error says what was seen instead.
    pub(crate) run: fn(&mut Machine, Tell<'_>) -> Result<()>,
}

/// Takes the lines that the reader of the demo is to see.
pub(crate) type Tell<'a> = &'a dyn Fn(&str);

pub(crate) const A: &str = "192.0.2.1:8787";
pub(crate) const B: &str = "127.0.0.1:8788";
pub(crate) const POLICY: &str = "/etc/opencode-egress/policy.json";

/// The beginning of Python scripts that talk to the control socket as no client of ours does.
pub(crate) const TALK: &str = "import socket
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect('/run/opencode-egress/control.sock')
    return s
";

/// A request from the agent's shell; it prints the answer and `reached`, or curl's error and `refused`.
pub(crate) fn get(machine: &Machine, server: &str, url: &str) -> Result<String> {
    machine
        .opencode_shell(server, &format!("curl -sS -g -m 5 http://{url} && echo ' reached' || echo refused"))
}

/// A server that is just starting takes a request and never answers it, so curl's patience is short.
pub(crate) fn health_request(server: &str) -> [&str; 5] {
    match server {
        A => ["curl", "-sf", "-m", "1", "http://192.0.2.1:8787/global/health"],
        _ => ["curl", "-sf", "-m", "1", "http://127.0.0.1:8788/global/health"],
    }
}

pub(crate) fn healthy(reply: Result<String>) -> Option<String> {
    reply.ok().filter(|reply| reply.contains("\"healthy\":true"))
}

/// The cgroups of a unit that have links pinned.
pub(crate) fn pinned(machine: &Machine, unit: &str) -> Result<Vec<String>> {
    let directory = pins::own(&format!("links/{}", unit.replace('.', ",")));
    Ok(machine.run(&["ls", &directory])?.split_whitespace().map(str::to_owned).collect())
}

/// The daemon's own lines in the journal.
pub(crate) fn daemon_log(machine: &Machine) -> Result<String> {
    machine.succeed(&["journalctl", "-u", "opencode-egress", "--no-pager", "-o", "cat"])
}

/// `status --json`.
pub(crate) fn status(machine: &Machine) -> Result<serde_json::Value> {
    serde_json::from_str(&machine.succeed(&["opencode-egress", "status", "--json"])?).context("status")
}
