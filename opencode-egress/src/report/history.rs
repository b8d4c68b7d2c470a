//! An instance's denials as the journal has them.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Read as _},
    net::IpAddr,
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::{
    policy::{
        InstanceName, Mode,
        destination::{Destination, protocol_named},
        explain::NAME_NOT_ALLOWED,
        mode_name,
        suggest::Program,
    },
    report::tried::{DeniedLines, TriedLine},
};

/// What the journal has of an instance's denials.
#[derive(Debug, Default)]
pub struct History {
    /// What the lines say.
    pub lines: DeniedLines,
    /// Listed names that were asked for.
    pub allowed: BTreeSet<String>,
    /// Denials that the log's limits, or a full ring buffer, kept out of the journal.
    pub left_out: u64,
}

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// journalctl cannot be run, or what it prints not be read.
    #[error("cannot run journalctl, which reads the journal")]
    Run(#[source] io::Error),
    /// journalctl does not know this time.
    #[error("`{0}` is no time; write it as in -1h, yesterday or \"2026-11-21 20:00\"")]
    Since(String),
    /// journalctl failed, and said this.
    #[error("journalctl: {0}")]
    Journalctl(String),
}

/// The fields of an entry that matter here. Whoever can write to the journal can write these, too.
#[derive(Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct Entry {
    egress_proto: Option<String>,
    egress_dst: Option<IpAddr>,
    egress_dport: Option<String>,
    egress_reason: Option<String>,
    egress_name: Option<String>,
    egress_query: Option<String>,
    egress_allowed: Option<String>,
    egress_comm: Option<String>,
    egress_via: Option<String>,
    egress_mode: Option<String>,
    egress_suppressed: Option<String>,
    egress_limited: Option<String>,
    egress_lost: Option<String>,
    /// When journald took it; microseconds since 1970.
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Option<String>,
}

const FIELDS: &str = "EGRESS_PROTO,EGRESS_DST,EGRESS_DPORT,EGRESS_REASON,EGRESS_NAME,EGRESS_QUERY,EGRESS_ALLOWED,EGRESS_COMM,EGRESS_VIA,EGRESS_MODE,EGRESS_SUPPRESSED,EGRESS_LIMITED,EGRESS_LOST";

/// Reads an instance's denials; `since` is anything that `journalctl --since` takes.
///
/// # Errors
///
/// When journalctl cannot be run or refuses `since`.
pub fn read(instance: &InstanceName, since: &str) -> Result<History, HistoryError> {
    let mut journalctl = Command::new("journalctl")
        .args(["--quiet", "--no-pager", "--output=json", &format!("--output-fields={FIELDS}")])
        .arg(format!("--since={since}"))
        .arg(format!("OPENCODE_INSTANCE={instance}"))
        // An instance can write to the journal under the daemon's name, but not as root: the journal sets this
        // field itself (systemd.journal-fields(7)).
        .arg("_UID=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(HistoryError::Run)?;
    let (mut collected, mut complaint) = (Collected::default(), String::new());
    if let Some(stdout) = journalctl.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            collected.add(&line.map_err(HistoryError::Run)?);
        }
    }
    if let Some(mut stderr) = journalctl.stderr.take() {
        stderr.read_to_string(&mut complaint).map_err(HistoryError::Run)?;
    }
    if !journalctl.wait().map_err(HistoryError::Run)?.success() {
        return Err(match complaint.contains("Failed to parse timestamp") {
            true => HistoryError::Since(since.to_owned()),
            false => HistoryError::Journalctl(complaint.trim().to_owned()),
        });
    }
    let Collected { lines, allowed, left_out } = collected;
    Ok(History { lines, allowed, left_out })
}

/// The journal's lines of an instance, as far as they are read.
#[derive(Default)]
struct Collected {
    lines: DeniedLines,
    allowed: BTreeSet<String>,
    left_out: u64,
}

impl Collected {
    /// Adds an entry of the journal, a line of JSON. One that is not of a denial is passed over.
    fn add(&mut self, line: &str) {
        let Ok(entry) = serde_json::from_str::<Entry>(line) else { return };
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        self.left_out += number(entry.egress_limited) + number(entry.egress_lost);
        self.allowed.extend(entry.egress_allowed);
        let at = number(entry.time) / 1_000_000;
        let via: Vec<_> = entry.egress_via.iter().flat_map(|via| via.split(',')).map(str::to_owned).collect();
        let line = TriedLine {
            at,
            who: Program::of(&entry.egress_comm.unwrap_or_default(), &via),
            process: None,
            // The line itself stands for one.
            denials: 1 + number(entry.egress_suppressed),
            passed: entry.egress_mode.as_deref() == Some(mode_name(Mode::Audit)),
        };
        if let Some(name) = entry.egress_query {
            if entry.egress_reason.as_deref() == Some(NAME_NOT_ALLOWED) {
                self.lines.add_question(name, line.of_question(&via));
            }
            return;
        }
        let protocol = entry.egress_proto.as_deref().and_then(protocol_named);
        let port = entry.egress_dport.and_then(|port| port.parse().ok());
        let (Some(protocol), Some(address), Some(port), Some(reason)) =
            (protocol, entry.egress_dst, port, entry.egress_reason)
        else {
            return;
        };
        let destination = Destination { address, port, protocol: protocol.0 };
        self.lines.add_flow((destination, reason, entry.egress_name), line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journalctl_is_asked_whether_a_time_is_one() {
        let instance = "a".parse().expect("a name");
        let error = read(&instance, "nonsense").expect_err("no time").to_string();
        assert_eq!(error, "`nonsense` is no time; write it as in -1h, yesterday or \"2026-11-21 20:00\"");
        read(&instance, "-1h").expect("a time");
    }

    #[test]
    fn entries_of_a_destination_and_reason_are_added_up() {
        let mut collected = Collected::default();
        for line in [
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_SUPPRESSED":"0","EGRESS_COMM":"curl","EGRESS_VIA":"curl,bash,opencode","__REALTIME_TIMESTAMP":"1700000000000001","__CURSOR":"s=1"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_SUPPRESSED":"7","EGRESS_COMM":"node","__REALTIME_TIMESTAMP":"1700000100000000"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"bind-not-listed"}"#,
            r#"{"EGRESS_LIMITED":"5","EGRESS_LOST":"1"}"#,
            r#"{"EGRESS_ALLOWED":"listed.example.org"}"#,
            r#"{"MESSAGE":"of something else"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"nowhere","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed"}"#,
        ] {
            collected.add(line);
        }
        for line in [
            r#"{"EGRESS_QUERY":"api.example.org","EGRESS_REASON":"name-not-allowed","EGRESS_SUPPRESSED":"3","EGRESS_COMM":"curl"}"#,
            r#"{"EGRESS_QUERY":"api.example.org","EGRESS_REASON":"type-not-allowed"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_NAME":"a.example.org"}"#,
        ] {
            collected.add(line);
        }
        let (destinations, names) = (collected.lines.destinations(), collected.lines.names());
        let shown: Vec<_> = destinations
            .iter()
            .map(|denied| (denied.reason.as_str(), denied.attempts, denied.name.as_deref()))
            .collect();
        let expect = [
            ("bind-not-listed", 1, None),
            ("not-allowed", 9, None),
            ("not-allowed", 1, Some("a.example.org")),
        ];
        assert_eq!(shown, expect);
        let tried = &destinations[1].tried;
        assert_eq!((tried.first, tried.last, tried.times), (Some(1_700_000_000), Some(1_700_000_100), 2));
        assert_eq!(tried.programs().as_deref(), Some("curl of bash, node"));
        assert_eq!((names[0].name.as_str(), names[0].attempts, names.len()), ("api.example.org", 4, 1));
        assert_eq!(names[0].tried.who, [].into(), "of a shell, perhaps");
        assert_eq!(names[0].tried.programs().as_deref(), Some("curl"));
        assert_eq!(collected.left_out, 6);
        assert_eq!(collected.allowed, ["listed.example.org".to_owned()].into());
    }
}
