//! Clients that speak QUIC where they can: a name's rule is for TCP, so they are refused at once, and fall back. The second host answers
//! QUIC on UDP port 443, announces that by `Alt-Svc`, and counts the datagrams that come for that port.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    hosts::Hosts,
    report,
    table::{LISTED, RUNS},
};
use crate::{
    machine::{parts::Process, wait},
    process::{checked, ensure as ensure_programs, fresh, output, text},
    vm_test::roots::Root,
};

/// How much longer an answer may take than without a policy. A client that hears nothing by UDP waits longer before it tries TCP: curl
/// 100 ms, Chromium 300.
const AT_ONCE: Duration = Duration::from_millis(75);

/// A client. Its command prints which version of HTTP brought the page, and after how many seconds.
///
/// In it stand `{OPTION}` for one of the two options, `{HOST}` for the host of the page `https://{HOST}{PAGE}`, `{HOSTS}` for the directory
/// with certificates, `{NEWER}` for Debian 13's root behind what runs a program of that.
pub(super) struct Client {
    pub(super) title: &'static str,
    install: &'static [(&'static str, &'static str)],
    version: &'static str,
    command: &'static str,
    /// Has it speak QUIC where it can.
    freely: &'static str,
    /// Has it speak QUIC or nothing.
    alone: &'static str,
    /// Whether it freely takes a page by QUIC from a server whose authority was added. Chromium tries, and turns to TCP when it sees the
    /// certificate.
    trusts: bool,
}

pub(super) const CLIENTS: &[Client] = &[
    Client {
        title: "curl: HTTP/3",
        install: &[],
        version: "{NEWER}/usr/bin/curl --version",
        // By one family: what goes wrong with the first of two is tried by the other after 200 ms, when TCP begins as well.
        command: "{NEWER}/usr/bin/curl -4 {OPTION} --cacert {HOSTS}/ca.pem -sS -o /dev/null -w '%{http_version} %{time_total}\\n' \
                  https://{HOST}{PAGE}",
        freely: "--http3",
        alone: "--http3-only",
        trusts: true,
    },
    Client {
        title: "Chromium: HTTP/3",
        install: &[("chromium", "chromium")],
        version: "chromium --version",
        command: "key=$(openssl x509 -in {HOSTS}/leaf.pem -noout -pubkey | openssl pkey -pubin -outform der | \
                        openssl dgst -sha256 -binary | base64) && \
                  chromium --headless --no-sandbox --disable-gpu --disable-background-networking \
                           --ignore-certificate-errors-spki-list=$key {OPTION} --dump-dom https://{HOST}{PAGE} | \
                  sed -n 's/.*<body>\\(.*\\)<.body>.*/\\1/p'",
        freely: "",
        alone: "--origin-to-force-quic-on={HOST}:443",
        trusts: false,
    },
];

/// Asks for something more, and says what brought that.
const PAGE: &str = "/quic/index.html";

/// HTTP/3, as curl and Chromium call it.
const HTTP3: [&str; 2] = ["3", "h3"];

/// Counts what comes for the second host's port.
const COUNTER: &str = "
table inet quic {
    counter datagrams { }
    chain arriving {
        type filter hook prerouting priority 0;
        udp dport 443 counter name datagrams;
    }
}
";

/// What the second host has for such clients.
pub(super) struct Server {
    newer: String,
    _nginx: Process,
}

/// How attempts went.
struct Outcome {
    /// Which version of HTTP brought the page, in the client's words.
    version: String,
    /// The median.
    took: Duration,
    /// In all attempts.
    datagrams: u64,
    /// Whether `exec` says that one was denied.
    denied: bool,
}

impl Outcome {
    fn is_http3(&self) -> bool {
        HTTP3.contains(&&*self.version)
    }
}

impl Server {
    /// Has the second host answer QUIC, and count.
    pub(super) fn start(hosts: &Hosts) -> Result<Self> {
        ensure_programs("counting datagrams", &[("nft", "nftables")])?;
        let rules = hosts.directory().join("quic.nft");
        fs::write(&rules, COUNTER)?;
        let mut nft = hosts.second("nft");
        nft.arg("-f").arg(rules);
        checked(nft)?;
        let newer = newer()?;
        let server = Self { _nginx: nginx(hosts, &newer)?, newer };
        let answers =
            || server.attempt(hosts, &CLIENTS[0], CLIENTS[0].alone, None).ok().filter(Outcome::is_http3);
        wait("the second host to answer QUIC", answers)?;
        Ok(server)
    }

    /// Has a client get the page without a policy and under one. Returns its row of the table.
    pub(super) fn try_out(&self, client: &Client, hosts: &Hosts, egress: &Path) -> Result<String> {
        ensure_programs(client.title, client.install)?;
        let mut version = Command::new("sh");
        version.args(["-c", &client.version.replace("{NEWER}", &self.newer)]);
        let title = report::titled(client.title, &report::number(&text(&version.output()?))?);

        let alone = self.attempt(hosts, client, client.alone, None).context("by QUIC alone")?;
        ensure!(alone.is_http3(), "by QUIC alone, the page came by HTTP {}", alone.version);
        ensure!(alone.datagrams > 0, "by QUIC alone, no datagram reached the second host");
        let free = self.attempts(hosts, client, None).context("without a policy")?;
        ensure!(free.datagrams > 0, "without a policy, it does not try QUIC");
        ensure!(free.is_http3() == client.trusts, "without a policy, the page came by HTTP {}", free.version);
        let confined = self.attempts(hosts, client, Some(egress)).context("under a policy")?;
        ensure!(confined.datagrams == 0, "LEAK: {} datagrams reached the second host", confined.datagrams);
        ensure!(confined.denied, "no line says that QUIC was denied: it was not tried");
        let (took, without) = (confined.took, free.took);
        ensure!(took <= without + AT_ONCE, "it took {took:?}, and {without:?} without a policy");

        let told = |outcome: &Outcome| {
            let version = outcome.version.trim_start_matches("http/").trim_start_matches('h');
            format!("HTTP/{version}, {}, {} datagrams", report::shown(outcome.took), outcome.datagrams)
        };
        Ok(format!("| {title} | {} | {} | {} |", told(&alone), told(&free), told(&confined)))
    }

    fn attempts(&self, hosts: &Hosts, client: &Client, egress: Option<&Path>) -> Result<Outcome> {
        let mut outcomes = (0..RUNS)
            .map(|_| self.attempt(hosts, client, client.freely, egress))
            .collect::<Result<Vec<_>>>()?;
        outcomes.sort_by_key(|outcome| outcome.took);
        let datagrams = outcomes.iter().map(|outcome| outcome.datagrams).sum();
        let denied = outcomes.iter().all(|outcome| outcome.denied);
        let median = outcomes.swap_remove(RUNS / 2);
        let versions: Vec<_> = outcomes.iter().map(|outcome| &outcome.version).collect();
        ensure!(
            versions.iter().all(|version| **version == median.version),
            "by HTTP {versions:?}, {}",
            median.version
        );
        Ok(Outcome { datagrams, denied, ..median })
    }

    /// Has a client get the page, under a policy for its name where there is an `egress`.
    fn attempt(
        &self,
        hosts: &Hosts,
        client: &Client,
        option: &str,
        egress: Option<&Path>,
    ) -> Result<Outcome> {
        let script =
            client.command.replace("{OPTION}", option).replace("{HOST}", LISTED).replace("{PAGE}", PAGE);
        let script = script.replace("{HOSTS}", &hosts.directory().display().to_string());
        let script = script.replace("{NEWER}", &self.newer);
        let egress = egress.map(|egress| egress.display().to_string());
        let confined = egress.as_ref().map(|egress| [egress.as_str(), "exec", "--allow", LISTED, "--"]);
        let words = [confined.as_ref().map_or(&[][..], |words| &words[..]), &["sh", "-c", &script]].concat();
        // Of which it has not heard that the server speaks QUIC.
        let home = hosts.directory().join("quic-home");
        fresh(&home)?;
        let before = datagrams(hosts)?;
        let output = hosts.command("plain", &words).env("HOME", home).output()?;
        // What was sent before that has arrived.
        hosts.mark("plain")?;
        let datagrams = datagrams(hosts)? - before;
        let said = String::from_utf8_lossy(&output.stdout);
        let page =
            said.trim().split_once(' ').and_then(|(version, took)| Some((version, took.parse().ok()?)));
        let (version, took) = page.with_context(|| format!("there is no page: {}", text(&output)))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let denied =
            errors.lines().any(|line| line.contains("denied: proto=udp") && line.contains("dport=443"));
        Ok(Outcome { version: version.to_owned(), took: Duration::from_secs_f64(took), datagrams, denied })
    }
}

/// How many have come.
fn datagrams(hosts: &Hosts) -> Result<u64> {
    let listed = output(hosts.second("nft").args(["list", "counter", "inet", "quic", "datagrams"]));
    let listed = listed.context("nft does not list its counter")?;
    let packets = listed.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    packets.with_context(|| format!("no number of packets in {listed}"))
}

/// What goes before the path of a program of Debian 13, whose curl and nginx speak QUIC, to run it here: its own loader.
fn newer() -> Result<String> {
    let root = Root::Debian13.directory()?.context("Debian 13 has no root")?;
    let libraries = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let is_loader =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
    let mut paths = fs::read_dir(&libraries)?.filter_map(Result::ok).map(|entry| entry.path());
    let loader = paths.find(is_loader).with_context(|| format!("no loader in {}", libraries.display()))?;
    Ok(format!("{} --library-path {} {}", loader.display(), libraries.display(), root.display()))
}

/// Serves by QUIC what the second host serves by TCP.
fn nginx(hosts: &Hosts, newer: &str) -> Result<Process> {
    let directory = hosts.directory();
    let mut configuration =
        "daemon off; master_process off; user root; pid nginx.pid; error_log nginx.log;\n\
         events { }\n\
         http {\n\
         access_log off; types { text/html html; text/javascript js; }\n"
            .to_owned();
    for of in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        configuration += &format!("{of}_temp_path nginx-{of};\n");
    }
    configuration += "server { listen 443 quic; listen [::]:443 quic; root served;\n\
         ssl_certificate leaf.pem; ssl_certificate_key leaf.key; }\n\
         }\n";
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut nginx = hosts.second("setpriv");
    nginx.args(["--pdeathsig", "KILL", "sh", "-c"]);
    nginx.arg(format!(
        "exec {newer}/usr/sbin/nginx -e nginx.log -p {} -c {}",
        directory.display(),
        file.display()
    ));
    Ok(Process(nginx.spawn().context("cannot run nginx")?))
}
