//! `clients`: real clients under names. Each asks for a name that is listed and for one that is not; a second host, which has a resolver
//! where every name exists, tells what reached it.

mod hosts;
mod quic;
mod report;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    hosts::{Hosts, Seen, path},
    report::Row,
    table::{CLIENTS, Client, LISTED, Proof, RUNS, Tries, UNLISTED},
};
use crate::{
    daemon, opencode,
    process::{checked, ensure as ensure_programs, root, text},
};

/// How much longer a client may take to say that a name does not exist than for one that does: its own start is in both.
const LIMIT: Duration = Duration::from_secs(1);

/// Runs a command, a directory and a number of times: each with a home of its own in the directory, and the microseconds that it took and its
/// status in the file `took` there.
const TIMED: &str = r#"
for run in $(seq "$3"); do
    export HOME="$2/$run"
    mkdir "$HOME"
    begin=${EPOCHREALTIME/./}
    sh -c "$1"
    status=$?
    echo "$((${EPOCHREALTIME/./} - begin)) $status" >> "$2/took"
done
"#;

/// The variables by which clients are told whom to trust.
const AUTHORITIES: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
];

/// Which clients.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Those whose title has this in it; all, and docs/names.md is written, when none is given
    names: Vec<String>,
}

/// Runs them, and writes the table when it is whole.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |title: &str| {
        let title = title.to_lowercase();
        args.names.is_empty() || args.names.iter().any(|name| title.contains(&name.to_lowercase()))
    };
    let clients: Vec<_> = CLIENTS.iter().filter(|client| wanted(client.title)).collect();
    let of_quic: Vec<_> = quic::CLIENTS.iter().filter(|client| wanted(client.title)).collect();
    if clients.is_empty() && of_quic.is_empty() {
        let titles = CLIENTS.iter().map(|client| client.title);
        let titles: Vec<_> = titles.chain(quic::CLIENTS.iter().map(|client| client.title)).collect();
        bail!("no client is called so; there are: {}", titles.join("; "));
    }
    ensure_programs(
        "the clients",
        &[
            ("ip", "iproute2"),
            ("nsenter", "util-linux"),
            ("bash", "bash"),
            ("dnsmasq", "dnsmasq-base"),
            ("openssl", "openssl"),
            ("/usr/bin/python3", "python3"),
            ("git", "git"),
        ],
    )?;
    let mut place = Place::make(daemon::build()?)?;
    let (mut rows, mut skipped, mut failed) = (vec![], vec![], 0);
    for client in &clients {
        let version = match place.prepare(client) {
            Ok(version) => version,
            Err(why) => {
                println!("SKIPPED {}: {why:#}", client.title);
                skipped.push(client.title);
                continue;
            }
        };
        match place.try_out(client, version) {
            Ok(row) => {
                println!("ok     {}", row.text());
                rows.push(row);
            }
            Err(error) => {
                println!("FAILED {}: {error:#}", client.title);
                failed += 1;
            }
        }
    }
    let mut rows_of_quic = vec![];
    if !of_quic.is_empty() {
        let server = quic::Server::start(&place.hosts)?;
        for client in &of_quic {
            match server.try_out(client, &place.hosts, &place.egress) {
                Ok(row) => {
                    println!("ok     {row}");
                    rows_of_quic.push(row);
                }
                Err(error) => {
                    println!("FAILED {}: {error:#}", client.title);
                    failed += 1;
                }
            }
        }
    }
    let passed = rows.len() + rows_of_quic.len();
    println!("clients: {passed} passed, {failed} failed, {} skipped", skipped.len());
    if failed > 0 {
        bail!("{failed} of {} clients failed", clients.len() + of_quic.len());
    }
    if rows_of_quic.len() == quic::CLIENTS.len() {
        report::write_quic(&rows_of_quic)?;
    }
    if !skipped.is_empty() {
        println!("docs/names.md is left as it was, for these could not be installed: {}", skipped.join("; "));
    } else if args.names.is_empty() {
        report::write(&rows)?;
    }
    Ok(())
}

/// What clients run in.
struct Place {
    hosts: Hosts,
    egress: PathBuf,
    /// The file of their policy.
    policy: PathBuf,
    opencode: Option<PathBuf>,
    /// How many home directories there were.
    homes: usize,
}

/// The instance that a client is.
const INSTANCE: &str = "client";

/// What a client may reach. Every refusal has a line: some ask for a score of names of their own at once.
fn policy() -> serde_json::Value {
    serde_json::json!({
        "version": 1,
        "log": { "burst": 1000, "per_sec": 1000 },
        "instances": { INSTANCE: { "units": ["client.service"], "allow": [format!("{LISTED}:22,80,443")] } },
    })
}

/// How a client's runs went.
struct Outcome {
    /// The median.
    took: Duration,
    succeeded: bool,
    /// What it printed, in all runs.
    said: String,
    /// Which questions `exec` says it refused.
    refused: Vec<String>,
    seen: Seen,
}

impl Place {
    fn make(egress: PathBuf) -> Result<Self> {
        let directory = root().join("target/clients");
        fs::create_dir_all(directory.join("built"))?;
        let hosts = Hosts::make(directory.join("hosts"))?;
        let policy = directory.join("policy.json");
        fs::write(&policy, self::policy().to_string())?;
        Ok(Self { hosts, egress, policy, opencode: None, homes: 0 })
    }

    fn built(&self) -> PathBuf {
        root().join("target/clients/built")
    }

    /// A command of the table's, for a shell.
    fn filled(&self, command: &str, name: &str) -> String {
        let arch = if std::env::consts::ARCH == "aarch64" { "aarch64" } else { "x64" };
        let shown = |path: &Path| path.display().to_string();
        command
            .replace("{NAME}", name)
            .replace("{CA}", &shown(&self.hosts.directory().join("ca.pem")))
            .replace("{BUILT}", &shown(&self.built()))
            .replace("{PROGRAMS}", &shown(&root().join("xtask/src/clients/programs")))
            .replace("{OPENCODE}", &self.opencode.as_deref().map(shown).unwrap_or_default())
            .replace("{ARCH}", arch)
    }

    /// Installs what a client takes, and returns its version.
    fn prepare(&mut self, client: &Client) -> Result<String> {
        ensure_programs(client.title, client.install)?;
        if client.command.contains("{OPENCODE}") {
            self.opencode = Some(opencode::binary()?);
        }
        let shell = |script: &str| {
            let mut shell = Command::new("sh");
            shell.args(["-c", &self.filled(script, "")]).env("PATH", path());
            shell
        };
        checked(shell(client.prepare))?;
        report::number(&text(&shell(client.version).output()?))
    }

    /// Has a client ask for both names, with both `resolv.conf`.
    fn try_out(&mut self, client: &Client, version: String) -> Result<Row> {
        let (knob, runs) = match client.tries {
            Tries::Once => ("", RUNS),
            Tries::Unless(knob) => (knob, RUNS),
            Tries::Always => ("", 1),
        };
        let mut row = Row::new(client, &version);
        for resolv_conf in ["plain", "search"] {
            let listed = self.run(client, LISTED, resolv_conf, knob, runs)?;
            self.reached(client, &listed)
                .with_context(|| format!("{LISTED}, resolv.conf: {resolv_conf}\n{}", listed.said))?;
            let refused = self.run(client, UNLISTED, resolv_conf, knob, runs)?;
            let took = (listed.took, refused.took);
            let limited = !matches!(client.tries, Tries::Always);
            Self::refused(client, &refused, limited.then_some(listed.took))
                .with_context(|| format!("{UNLISTED}, resolv.conf: {resolv_conf}\n{}", refused.said))?;
            row.add(took, &refused.said, refused.refused);
        }
        if !knob.is_empty() {
            let patient = self.run(client, UNLISTED, "plain", "", 1)?;
            Self::refused(client, &patient, None)
                .with_context(|| format!("without {knob}\n{}", patient.said))?;
            row.without_knob = Some(patient.took);
        }
        Ok(row)
    }

    /// That a listed name worked.
    fn reached(&self, client: &Client, outcome: &Outcome) -> Result<()> {
        ensure!(!outcome.said.contains(client.words), "the listed name is refused");
        let reached = |line: &str| outcome.seen.reached.iter().any(|seen| seen.starts_with(line));
        match client.proof {
            Proof::Request(port) => {
                ensure!(
                    reached(&format!("{port} {LISTED}")),
                    "no request arrived at port {port}: {:?}",
                    outcome.seen.reached
                );
            }
            Proof::Connection(port) => {
                ensure!(reached(&port.to_string()), "no connection arrived at port {port}");
            }
            Proof::Answer => {}
        }
        ensure!(outcome.succeeded || matches!(client.proof, Proof::Connection(_)), "it failed");
        ensure!(outcome.seen.asked.iter().any(|name| name == LISTED), "nobody asked for the listed name");
        none_leaked(&outcome.seen)
    }

    /// That a name which is not listed failed: in the client's own words, in time, and without a trace.
    fn refused(client: &Client, outcome: &Outcome, listed: Option<Duration>) -> Result<()> {
        none_leaked(&outcome.seen)?;
        ensure!(outcome.seen.reached.is_empty(), "LEAK: {:?} reached the second host", outcome.seen.reached);
        ensure!(outcome.said.contains(client.words), "its words are not `{}`", client.words);
        ensure!(
            outcome.refused.iter().any(|name| name == UNLISTED),
            "no line says that it was refused, of those of {:?}",
            outcome.refused
        );
        if let Some(listed) = listed {
            ensure!(
                outcome.took <= listed + LIMIT,
                "it took {:?}, and {listed:?} where the name is listed",
                outcome.took
            );
        }
        Ok(())
    }

    /// Runs a client so many times under one policy, each in a home of its own.
    fn run(
        &mut self,
        client: &Client,
        name: &str,
        resolv_conf: &str,
        knob: &str,
        runs: usize,
    ) -> Result<Outcome> {
        self.homes += 1;
        let home = self.hosts.directory().join(format!("home-{}", self.homes));
        fs::create_dir(&home)?;
        let script = self.filled(client.command, name);
        let (egress, policy) = (self.egress.display().to_string(), self.policy.display().to_string());
        let (homes, count) = (home.display().to_string(), runs.to_string());
        let exec = [&egress, "exec", "--policy", &policy, "--instance", INSTANCE, "--"];
        let confined = [&exec[..], &["bash", "-c", TIMED, "bash", &script, &homes, &count]].concat();
        let mut command = self.hosts.command(resolv_conf, &confined);
        for variable in AUTHORITIES {
            command.env(variable, self.hosts.directory().join("ca.pem"));
        }
        if let Some((variable, value)) = knob.split_once('=') {
            command.env(variable, value);
        }
        let output = command.output().context("cannot run nsenter")?;
        let seen = self.hosts.seen(resolv_conf)?;
        let (of_exec, said): (Vec<_>, Vec<_>) =
            text(&output).lines().map(str::to_owned).partition(|line| line.starts_with("opencode-egress: "));
        let said = said.join("\n");
        let took = fs::read_to_string(home.join("took")).unwrap_or_default();
        let mut took: Vec<_> = took.lines().filter_map(timed).collect();
        ensure!(
            took.len() == runs,
            "it did not end, or could not be started ({}):\n{said}\n{}",
            output.status,
            of_exec.join("\n")
        );
        let succeeded = took.iter().all(|(_, succeeded)| *succeeded);
        took.sort_unstable();
        let took = took[runs / 2].0;
        let refused = of_exec.iter().filter_map(|line| line.split_once(" query=")?.1.split(' ').next());
        let refused = refused.map(str::to_owned).collect();
        Ok(Outcome { took, succeeded, said, refused, seen })
    }
}

/// How long a run took, and whether it ended well.
fn timed(line: &str) -> Option<(Duration, bool)> {
    let (took, status) = line.split_once(' ')?;
    Some((Duration::from_micros(took.parse().ok()?), status == "0"))
}

/// That the second host's resolver was asked for what is listed alone.
fn none_leaked(seen: &Seen) -> Result<()> {
    let leaked: Vec<_> = seen.asked.iter().filter(|name| !name.eq_ignore_ascii_case(LISTED)).collect();
    ensure!(leaked.is_empty(), "LEAK: the second host's resolver was asked for {leaked:?}");
    Ok(())
}
