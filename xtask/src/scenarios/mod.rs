//! What is tried on the machine, a file a subject. The demo tells the main job to a reader; the tests run all of it. A
//! step that does not show what it says fails with what was seen instead.

mod keeping;
mod lifecycle;
mod load;
mod main_job;
mod metrics;
mod outlived;
mod places;
mod policy_file;
mod refusals;
mod starts;

use anyhow::{Context as _, Result};

use crate::machine::Machine;

pub(crate) use main_job::MAIN_JOB;

/// One step.
pub(crate) struct Scenario {
    /// What it shows.
    pub(crate) title: &'static str,
    /// Shows it.
    pub(crate) run: fn(&mut Machine, Tell<'_>) -> Result<()>,
}

/// Where what the reader of the demo sees goes.
pub(crate) type Tell<'a> = &'a dyn Fn(&str);

/// All of them, in the order in which they run on one machine.
pub(crate) fn all() -> impl Iterator<Item = &'static Scenario> {
    let others = [
        refusals::REFUSALS,
        policy_file::POLICY_FILE,
        lifecycle::LIFECYCLE,
        keeping::KEEPING,
        metrics::METRICS,
        outlived::OUTLIVED,
        starts::STARTS,
        places::PLACES,
    ];
    std::iter::once(MAIN_JOB).chain(others).chain([load::LOAD]).flatten()
}

const A: &str = "192.0.2.1:8787";
const B: &str = "127.0.0.1:8788";
const POLICY: &str = "/etc/opencode-egress/policy.json";

/// Talks to the control socket as no client of ours does.
const TALK: &str = "import socket
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect('/run/opencode-egress/control.sock')
    return s
";

/// A request from the agent's shell; it prints the answer and `reached`, or curl's error and `refused`.
fn get(machine: &Machine, server: &str, url: &str) -> Result<String> {
    machine
        .opencode_shell(server, &format!("curl -sS -g -m 5 http://{url} && echo ' reached' || echo refused"))
}

/// A server that is just starting takes a request and never answers it, so curl's patience is short.
fn health_request(server: &str) -> [&str; 5] {
    match server {
        A => ["curl", "-sf", "-m", "1", "http://192.0.2.1:8787/global/health"],
        _ => ["curl", "-sf", "-m", "1", "http://127.0.0.1:8788/global/health"],
    }
}

fn healthy(reply: Result<String>) -> Option<String> {
    reply.ok().filter(|reply| reply.contains("\"healthy\":true"))
}

/// The cgroups of a unit that have links pinned.
fn pinned(machine: &Machine, unit: &str) -> Result<Vec<String>> {
    let directory = format!("/sys/fs/bpf/opencode-egress/v1/links/{}", unit.replace('.', ","));
    Ok(machine.run(&["ls", &directory])?.split_whitespace().map(str::to_owned).collect())
}

/// The daemon's own lines in the journal.
fn daemon_log(machine: &Machine) -> Result<String> {
    machine.succeed(&["journalctl", "-u", "opencode-egress", "--no-pager", "-o", "cat"])
}

/// `status --json`.
fn status(machine: &Machine) -> Result<serde_json::Value> {
    serde_json::from_str(&machine.succeed(&["opencode-egress", "status", "--json"])?).context("status")
}
