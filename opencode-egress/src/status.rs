//! What `status` shows, and how.

use std::{collections::BTreeMap, fmt};

use opencode_egress_common::{abi::Counter, reason::DropReason};
use serde::{Deserialize, Serialize};

use crate::{control::LoggedEvent, loader::ATTACH_ORDER, maps::Counters};

/// The daemon and everything that it confines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The policy file.
    pub config: String,
    /// Why the file's last reload was not applied, if it was not.
    pub reload_error: Option<String>,
    /// The instances.
    pub instances: BTreeMap<String, InstanceStatus>,
}

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// `enforce` or `audit`.
    pub mode: String,
    /// The number of the current policy.
    pub generation: u32,
    /// Rules of the policy: allow, deny, listen.
    pub rules: [usize; 3],
    /// Map entries that they became.
    pub entries: usize,
    /// The units.
    pub units: Vec<UnitStatus>,
    /// What passed and what did not.
    pub counters: CountersStatus,
    /// The last denied flow.
    pub last_denial: Option<LoggedEvent>,
}

/// One unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub unit: String,
    /// Whether it has processes.
    pub running: bool,
    /// How many hooks are attached to its cgroup.
    pub links: usize,
    /// It was running before it was confined.
    pub late: bool,
}

/// Counters, since the instance's first policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersStatus {
    /// Packets that passed.
    pub allowed_packets: u64,
    /// Their bytes.
    pub allowed_bytes: u64,
    /// Refused packets and operations.
    pub denied_packets: u64,
    /// Bytes of the refused packets.
    pub denied_bytes: u64,
    /// Refused packets and operations, by drop reason.
    pub denied_by_reason: BTreeMap<String, u64>,
    /// Events that found no room.
    pub lost: u64,
    /// Denials folded into the line of an earlier one.
    pub folded: u64,
    /// Denials that the rate limit left out of the log.
    pub limited: u64,
}

impl From<Counters> for CountersStatus {
    fn from(Counters { allowed, denied }: Counters) -> Self {
        let by_reason = DropReason::ALL.iter().map(|reason| (*reason, denied.reasons[*reason as usize]));
        let by_reason: Vec<(DropReason, Counter)> =
            by_reason.filter(|(_, counter)| counter.packets > 0).collect();
        Self {
            allowed_packets: allowed.packets,
            allowed_bytes: allowed.bytes,
            denied_packets: by_reason.iter().map(|(_, counter)| counter.packets).sum(),
            denied_bytes: by_reason.iter().map(|(_, counter)| counter.bytes).sum(),
            denied_by_reason: by_reason
                .into_iter()
                .map(|(reason, counter)| (reason.name().to_owned(), counter.packets))
                .collect(),
            lost: denied.lost,
            folded: denied.folded,
            limited: denied.limited,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, config, reload_error, instances } = self;
        writeln!(f, "opencode-egress {version}, policy {config}")?;
        if let Some(error) = reload_error {
            writeln!(f, "! the last reload was not applied: {error}")?;
        }
        let header =
            ["INSTANCE", "MODE", "GEN", "UNITS", "RULES", "ALLOWED", "DENIED", "LOST", "LAST DENIAL"];
        let mut rows = vec![header.map(str::to_owned)];
        for (name, instance) in instances {
            let counters = &instance.counters;
            let last = instance.last_denial.as_ref().map_or_else(
                || "-".to_owned(),
                |event| {
                    let flow = &event.flow;
                    let place = match flow.dport {
                        0 => flow.dst.to_string(),
                        port => std::net::SocketAddr::new(flow.dst, port).to_string(),
                    };
                    format!("{} {place} {}", flow.proto, flow.reason)
                },
            );
            rows.push([
                name.clone(),
                instance.mode.clone(),
                instance.generation.to_string(),
                units(&instance.units),
                instance.rules.iter().sum::<usize>().to_string(),
                counters.allowed_packets.to_string(),
                counters.denied_packets.to_string(),
                counters.lost.to_string(),
                last,
            ]);
        }
        let widths: Vec<_> = (0..header.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        for (name, instance) in instances {
            for unit in instance.units.iter().filter(|unit| unit.running) {
                let UnitStatus { unit, links, late, .. } = unit;
                if *links < ATTACH_ORDER.len() {
                    writeln!(f, "! {name}: {unit} runs with {links} of {} hooks", ATTACH_ORDER.len())?;
                } else if *late {
                    writeln!(f, "! {name}: {unit} was running before it was confined; restart it")?;
                }
            }
        }
        Ok(())
    }
}

fn units(units: &[UnitStatus]) -> String {
    let confined = units.iter().filter(|unit| unit.links == ATTACH_ORDER.len()).count();
    format!("{confined}/{} confined", units.len())
}
