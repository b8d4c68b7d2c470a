//! An instance's denials as the journal has them.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _},
    net::IpAddr,
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::policy::{
    InstanceName,
    destination::{Destination, protocol_named},
    explain::NAME_NOT_ALLOWED,
    suggest::{DeniedDestination, DeniedName},
};

/// What the journal has of an instance's denials.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Every destination that was denied, why and how often.
    pub destinations: Vec<DeniedDestination>,
    /// Every name that was asked for in vain, and how often.
    pub names: Vec<DeniedName>,
    /// Denials that the log's limits, or a full ring buffer, kept out of the journal.
    pub left_out: u64,
}

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// journalctl cannot be run, or what it prints not be read.
    #[error("cannot run journalctl; leave out --since to ask the daemon")]
    Run(#[source] io::Error),
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
    egress_suppressed: Option<String>,
    egress_limited: Option<String>,
    egress_lost: Option<String>,
}

const FIELDS: &str = "EGRESS_PROTO,EGRESS_DST,EGRESS_DPORT,EGRESS_REASON,EGRESS_NAME,EGRESS_QUERY,EGRESS_SUPPRESSED,EGRESS_LIMITED,EGRESS_LOST";

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
        return Err(HistoryError::Journalctl(complaint.trim().to_owned()));
    }
    Ok(collected.history())
}

#[derive(Default)]
struct Collected {
    /// Another reason is another denial, and so is another name that brought the address.
    destinations: BTreeMap<(Destination, String, Option<String>), u64>,
    names: BTreeMap<String, u64>,
    left_out: u64,
}

impl Collected {
    /// Adds an entry of the journal, a line of JSON. One that is not of a denial is passed over.
    fn add(&mut self, line: &str) {
        let Ok(entry) = serde_json::from_str::<Entry>(line) else { return };
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        self.left_out += number(entry.egress_limited) + number(entry.egress_lost);
        // The line itself stands for one.
        let denials = 1 + number(entry.egress_suppressed);
        if let Some(name) = entry.egress_query {
            if entry.egress_reason.as_deref() == Some(NAME_NOT_ALLOWED) {
                *self.names.entry(name).or_default() += denials;
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
        *self.destinations.entry((destination, reason, entry.egress_name)).or_default() += denials;
    }

    fn history(self) -> History {
        let destinations = self
            .destinations
            .into_iter()
            .map(|((destination, reason, name), attempts)| DeniedDestination {
                destination,
                reason,
                attempts,
                name,
            })
            .collect();
        let names = self.names.into_iter();
        let names = names.map(|(name, attempts)| DeniedName { name, attempts }).collect();
        History { destinations, names, left_out: self.left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_destination_and_reason_are_added_up() {
        let mut collected = Collected::default();
        for line in [
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_SUPPRESSED":"0","__CURSOR":"s=1"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_SUPPRESSED":"7"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"bind-not-listed"}"#,
            r#"{"EGRESS_LIMITED":"5","EGRESS_LOST":"1"}"#,
            r#"{"MESSAGE":"of something else"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"nowhere","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed"}"#,
        ] {
            collected.add(line);
        }
        for line in [
            r#"{"EGRESS_QUERY":"api.example.org","EGRESS_REASON":"name-not-allowed","EGRESS_SUPPRESSED":"3"}"#,
            r#"{"EGRESS_QUERY":"api.example.org","EGRESS_REASON":"type-not-allowed"}"#,
            r#"{"EGRESS_PROTO":"tcp","EGRESS_DST":"203.0.113.9","EGRESS_DPORT":"443","EGRESS_REASON":"not-allowed","EGRESS_NAME":"a.example.org"}"#,
        ] {
            collected.add(line);
        }
        let destination = "203.0.113.9:443".parse().expect("a destination");
        let denied = |reason: &str, attempts, name: Option<&str>| DeniedDestination {
            destination,
            reason: reason.to_owned(),
            attempts,
            name: name.map(str::to_owned),
        };
        let destinations = vec![
            denied("bind-not-listed", 1, None),
            denied("not-allowed", 9, None),
            denied("not-allowed", 1, Some("a.example.org")),
        ];
        let names = vec![DeniedName { name: "api.example.org".to_owned(), attempts: 4 }];
        assert_eq!(collected.history(), History { destinations, names, left_out: 6 });
    }
}
