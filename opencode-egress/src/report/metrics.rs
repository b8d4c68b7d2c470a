//! The daemon's state in Prometheus' text format. docs/monitoring.md lists the metrics.

use opencode_egress_common::reason::DropReason;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, Result, TextEncoder};

use crate::{
    policy::explain::NAME_NOT_ALLOWED,
    report::status::{CountersStatus, InstanceStatus, NamesStatus, Status},
};

/// The media type of [`exposition`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names the instance. It is not `instance`, which is Prometheus' own label for the address that it scrapes.
const INSTANCE: &str = "opencode_instance";

/// The drop reasons that every instance has, at 0 if need be: `rate()` does not see the first increase of what
/// was not there before. These are the reasons of everyday denials. All reasons, each with two series for every one of up to
/// 2047 instances, would be too many.
const EVERYDAY: [DropReason; 4] = [
    DropReason::NotAllowed,
    DropReason::DenyRule,
    DropReason::ProtocolNotAllowed,
    DropReason::PortNotAllowed,
];

/// What the daemon knows, as metrics.
///
/// # Errors
///
/// When two metrics have the same name, or one has a name that Prometheus does not take: never because of the status.
pub fn exposition(status: &Status) -> Result<String> {
    let families = Families::register(Registry::new())?;
    let Status { version, reload_error, applied, instances, .. } = status;
    families.build_info.with_label_values(&[version]).set(1);
    families.reload_successful.with_label_values::<&str>(&[]).set(reload_error.is_none().into());
    families.reload_timestamp.with_label_values::<&str>(&[]).set(gauge(*applied));
    for (name, instance) in instances {
        families.set_instance(name, instance);
        families.set_counters(name, &instance.counters);
        if let Some(names) = &instance.names {
            families.set_names(name, names);
        }
    }
    TextEncoder::new().encode_to_string(&families.registry.gather())
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Every metric.
struct Families {
    registry: Registry,
    build_info: IntGaugeVec,
    reload_successful: IntGaugeVec,
    reload_timestamp: IntGaugeVec,
    audit_mode: IntGaugeVec,
    generation: IntGaugeVec,
    rules: IntGaugeVec,
    entries: IntGaugeVec,
    leases: IntGaugeVec,
    running: IntGaugeVec,
    links_missing: IntGaugeVec,
    late: IntGaugeVec,
    sockets: IntGaugeVec,
    sockets_limit: IntGaugeVec,
    limits_reached: IntCounterVec,
    open_files: IntGaugeVec,
    open_files_limit: IntGaugeVec,
    allowed_packets: IntCounterVec,
    allowed_bytes: IntCounterVec,
    denials: IntCounterVec,
    denied_bytes: IntCounterVec,
    lines: IntCounterVec,
    waiting: IntGaugeVec,
    suppressed: IntCounterVec,
    rate_limited: IntCounterVec,
    lost: IntCounterVec,
    known_names: IntGaugeVec,
    known_addresses: IntGaugeVec,
    questions: IntCounterVec,
    questions_refused: IntCounterVec,
    questions_rate_limited: IntCounterVec,
    questions_lost: IntCounterVec,
}

impl Families {
    #[rustfmt::skip]
    fn register(registry: Registry) -> Result<Self> {
        let gauge = |name, help, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let counter = |name, help, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone())).map(|()| family)
        };
        let (instance, unit, reason) = ([INSTANCE], [INSTANCE, "unit"], [INSTANCE, "reason"]);
        Ok(Self {
            build_info: gauge("opencode_egress_build_info", "The daemon's version; always 1.", &["version"])?,
            reload_successful: gauge("opencode_egress_config_last_reload_successful", "Whether the last reload of the policy file was applied.", &[])?,
            reload_timestamp: gauge("opencode_egress_config_last_reload_success_timestamp_seconds", "When the policy file was last applied.", &[])?,
            audit_mode: gauge("opencode_egress_audit_mode", "Whether the instance's denials are reported only, and pass.", &instance)?,
            generation: gauge("opencode_egress_policy_generation", "Number of the instance's policy in force.", &instance)?,
            rules: gauge("opencode_egress_policy_rules", "Rules of the instance's policy.", &[INSTANCE, "kind"])?,
            entries: gauge("opencode_egress_policy_map_entries", "Map entries that the instance's rules became.", &instance)?,
            leases: gauge("opencode_egress_leases", "Leases of the instance that are in force.", &instance)?,
            running: gauge("opencode_egress_unit_running", "Whether the unit has processes.", &unit)?,
            links_missing: gauge("opencode_egress_links_missing", "Hooks that are not attached to the running unit; 0 is confined.", &unit)?,
            late: gauge("opencode_egress_unit_late", "Whether the unit was running before it was confined.", &unit)?,
            sockets: gauge("opencode_egress_sockets", "Sockets of the instance that are open, of those that it made itself.", &instance)?,
            sockets_limit: gauge("opencode_egress_sockets_limit", "Sockets that the instance may have open.", &instance)?,
            limits_reached: counter("opencode_egress_unit_limits_reached_total", "How often the instance's units reached a limit that systemd holds them to.", &[INSTANCE, "limit"])?,
            open_files: gauge("opencode_egress_open_files", "Open files of the instance's process that may open the fewest more.", &instance)?,
            open_files_limit: gauge("opencode_egress_open_files_limit", "Files that this process may have open.", &instance)?,
            allowed_packets: counter("opencode_egress_allowed_packets_total", "IP packets that passed.", &instance)?,
            allowed_bytes: counter("opencode_egress_allowed_bytes_total", "IP bytes that passed.", &instance)?,
            denials: counter("opencode_egress_denials_total", "Packets and calls that the policy denied; in audit mode they passed.", &reason)?,
            denied_bytes: counter("opencode_egress_denied_bytes_total", "IP bytes of the denied packets; calls have none.", &reason)?,
            lines: counter("opencode_egress_log_lines_total", "Denials with a line of their own in the log.", &instance)?,
            waiting: gauge("opencode_egress_log_lines_waiting", "Lines of denials that are yet to be written to the log.", &instance)?,
            suppressed: counter("opencode_egress_suppressed_events_total", "Denials folded into an earlier line of the same destination.", &instance)?,
            rate_limited: counter("opencode_egress_rate_limited_events_total", "Denials that the rate limit left out of the log.", &instance)?,
            lost: counter("opencode_egress_lost_events_total", "Denials that found no room in the ring buffer, or whose line found none on its way to the log.", &instance)?,
            known_names: gauge("opencode_egress_known_names", "Listed names that answers are known of.", &instance)?,
            known_addresses: gauge("opencode_egress_known_addresses", "Addresses that these answers brought.", &instance)?,
            questions: counter("opencode_egress_questions_total", "Questions for names, by what became of them.", &[INSTANCE, "outcome"])?,
            questions_refused: counter("opencode_egress_questions_refused_total", "Refused questions; in audit mode they were answered.", &reason)?,
            questions_rate_limited: counter("opencode_egress_questions_rate_limited_total", "Refused questions that the rate limit left out of the log.", &instance)?,
            questions_lost: counter("opencode_egress_questions_lost_total", "Refused questions that found no room on their way to the log.", &instance)?,
            registry,
        })
    }

    fn set_instance(&self, name: &str, status: &InstanceStatus) {
        let InstanceStatus { mode, generation, rules, entries, units, sockets, limits, leases, .. } = status;
        self.audit_mode.with_label_values(&[name]).set((mode == "audit").into());
        self.generation.with_label_values(&[name]).set((*generation).into());
        self.entries.with_label_values(&[name]).set(gauge(*entries));
        self.leases.with_label_values(&[name]).set(gauge(leases.len()));
        self.sockets.with_label_values(&[name]).set(sockets.open.into());
        self.sockets_limit.with_label_values(&[name]).set(sockets.limit.into());
        for (limit, reached) in &limits.reached {
            self.limits_reached.with_label_values(&[name, limit.name()]).inc_by(reached.count);
        }
        if let Some(files) = limits.files {
            self.open_files.with_label_values(&[name]).set(gauge(files.open));
            self.open_files_limit.with_label_values(&[name]).set(gauge(files.limit));
        }
        for (kind, rules) in ["allow", "deny", "listen"].into_iter().zip(rules) {
            self.rules.with_label_values(&[name, kind]).set(gauge(*rules));
        }
        for unit in units {
            let labels = [name, &unit.unit];
            let missing = if unit.running { unit.hooks.saturating_sub(unit.links) } else { 0 };
            self.running.with_label_values(&labels).set(unit.running.into());
            self.links_missing.with_label_values(&labels).set(gauge(missing));
            self.late.with_label_values(&labels).set(unit.late.into());
        }
    }

    fn set_counters(&self, name: &str, counters: &CountersStatus) {
        self.allowed_packets.with_label_values(&[name]).inc_by(counters.allowed_packets);
        self.allowed_bytes.with_label_values(&[name]).inc_by(counters.allowed_bytes);
        self.lines.with_label_values(&[name]).inc_by(counters.lines);
        self.waiting.with_label_values(&[name]).set(gauge(counters.waiting));
        self.suppressed.with_label_values(&[name]).inc_by(counters.folded);
        self.rate_limited.with_label_values(&[name]).inc_by(counters.limited);
        self.lost.with_label_values(&[name]).inc_by(counters.lost);
        for (family, by_reason) in [
            (&self.denials, &counters.denied_by_reason),
            (&self.denied_bytes, &counters.denied_bytes_by_reason),
        ] {
            for reason in EVERYDAY {
                family.with_label_values(&[name, reason.name()]);
            }
            for (reason, value) in by_reason {
                family.with_label_values(&[name, reason]).inc_by(*value);
            }
        }
    }

    fn set_names(&self, name: &str, NamesStatus { known, addresses, questions, .. }: &NamesStatus) {
        self.known_names.with_label_values(&[name]).set(gauge(*known));
        self.known_addresses.with_label_values(&[name]).set(gauge(*addresses));
        for (outcome, value) in [
            ("cached", questions.cached),
            ("answered", questions.answered),
            ("refused", questions.refused),
            ("failed", questions.failed),
        ] {
            self.questions.with_label_values(&[name, outcome]).inc_by(value);
        }
        // What was asked for is in the journal alone: an agent chooses it, and each would be a series.
        self.questions_refused.with_label_values(&[name, NAME_NOT_ALLOWED]);
        for (reason, value) in &questions.refused_by_reason {
            self.questions_refused.with_label_values(&[name, reason]).inc_by(*value);
        }
        self.questions_rate_limited.with_label_values(&[name]).inc_by(questions.limited);
        self.questions_lost.with_label_values(&[name]).inc_by(questions.lost);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        cgroups::limits::{Limit, OpenFiles},
        report::status::{LimitsStatus, QuestionsStatus, ReachedLimit, SocketsStatus, UnitStatus},
        report::view::tests::lease,
    };

    fn unit(name: &str, running: bool, links: usize, late: bool) -> UnitStatus {
        UnitStatus {
            unit: format!("opencode-{name}.service"),
            running,
            unlisted: false,
            links,
            hooks: 10,
            late,
            users: vec![],
        }
    }

    fn status() -> Status {
        let by_reason = |values: &[(&str, u64)]| {
            values.iter().map(|(reason, value)| ((*reason).to_owned(), *value)).collect()
        };
        let instance = InstanceStatus {
            mode: "audit".into(),
            mode_of_file: "enforce".to_owned(),
            generation: 3,
            rules: [2, 1, 1],
            entries: 5,
            units: vec![
                unit("a", true, 10, false),
                unit("a-late", true, 7, true),
                unit("a-setup", false, 0, false),
            ],
            counters: CountersStatus {
                allowed_packets: 11,
                allowed_bytes: 4096,
                denied_packets: 9,
                denied_bytes: 120,
                denied_by_reason: by_reason(&[("not-allowed", 7), ("fragment", 2)]),
                denied_bytes_by_reason: by_reason(&[("not-allowed", 0), ("fragment", 120)]),
                lines: 2,
                waiting: 3,
                lost: 1,
                folded: 4,
                limited: 2,
            },
            names: Some(NamesStatus {
                rules: 2,
                known: 3,
                addresses: 7,
                questions: QuestionsStatus {
                    questions: 19,
                    cached: 8,
                    answered: 5,
                    refused: 4,
                    failed: 2,
                    lost: 1,
                    limited: 6,
                    refused_by_reason: by_reason(&[("forbidden-address", 3)]),
                    ..QuestionsStatus::default()
                },
                ..NamesStatus::default()
            }),
            steady: vec![],
            leases: vec![lease()],
            last_denial: None,
            removed: false,
            detached: false,
            lost_lately: false,
            sockets: SocketsStatus { open: 12, limit: 64, denied_lately: false },
            limits: LimitsStatus {
                reached: [(Limit::Tasks, ReachedLimit { count: 5, lately: false })].into(),
                files: Some(OpenFiles { pid: 42, open: 17, limit: 1024 }),
            },
            outlived: 0,
            outlived_denials: 0,
            failed_attach: None,
        };
        Status {
            version: "1.2.3".into(),
            config: "/etc/opencode-egress/policy.json".into(),
            reload_error: Some("line 3".into()),
            applied: 1_700_000_000,
            not_reset: vec![],
            troubles: vec![],
            instances: BTreeMap::from([("a".into(), instance)]),
        }
    }

    #[test]
    fn every_fact_is_a_sample() {
        let text = exposition(&status()).expect("an exposition");
        for sample in [
            "opencode_egress_build_info{version=\"1.2.3\"} 1",
            "opencode_egress_config_last_reload_successful 0",
            "opencode_egress_config_last_reload_success_timestamp_seconds 1700000000",
            "opencode_egress_audit_mode{opencode_instance=\"a\"} 1",
            "opencode_egress_policy_generation{opencode_instance=\"a\"} 3",
            "opencode_egress_policy_rules{kind=\"allow\",opencode_instance=\"a\"} 2",
            "opencode_egress_policy_map_entries{opencode_instance=\"a\"} 5",
            "opencode_egress_leases{opencode_instance=\"a\"} 1",
            "opencode_egress_unit_running{opencode_instance=\"a\",unit=\"opencode-a-setup.service\"} 0",
            "opencode_egress_links_missing{opencode_instance=\"a\",unit=\"opencode-a.service\"} 0",
            "opencode_egress_links_missing{opencode_instance=\"a\",unit=\"opencode-a-late.service\"} 3",
            "opencode_egress_unit_late{opencode_instance=\"a\",unit=\"opencode-a-late.service\"} 1",
            "opencode_egress_sockets{opencode_instance=\"a\"} 12",
            "opencode_egress_sockets_limit{opencode_instance=\"a\"} 64",
            "opencode_egress_unit_limits_reached_total{limit=\"tasks\",opencode_instance=\"a\"} 5",
            "opencode_egress_open_files{opencode_instance=\"a\"} 17",
            "opencode_egress_open_files_limit{opencode_instance=\"a\"} 1024",
            "opencode_egress_allowed_packets_total{opencode_instance=\"a\"} 11",
            "opencode_egress_allowed_bytes_total{opencode_instance=\"a\"} 4096",
            "opencode_egress_denials_total{opencode_instance=\"a\",reason=\"not-allowed\"} 7",
            "opencode_egress_denied_bytes_total{opencode_instance=\"a\",reason=\"fragment\"} 120",
            "opencode_egress_log_lines_total{opencode_instance=\"a\"} 2",
            "opencode_egress_log_lines_waiting{opencode_instance=\"a\"} 3",
            "opencode_egress_suppressed_events_total{opencode_instance=\"a\"} 4",
            "opencode_egress_rate_limited_events_total{opencode_instance=\"a\"} 2",
            "opencode_egress_lost_events_total{opencode_instance=\"a\"} 1",
            "opencode_egress_known_names{opencode_instance=\"a\"} 3",
            "opencode_egress_known_addresses{opencode_instance=\"a\"} 7",
            "opencode_egress_questions_total{opencode_instance=\"a\",outcome=\"cached\"} 8",
            "opencode_egress_questions_total{opencode_instance=\"a\",outcome=\"answered\"} 5",
            "opencode_egress_questions_total{opencode_instance=\"a\",outcome=\"refused\"} 4",
            "opencode_egress_questions_total{opencode_instance=\"a\",outcome=\"failed\"} 2",
            "opencode_egress_questions_refused_total{opencode_instance=\"a\",reason=\"name-not-allowed\"} 0",
            "opencode_egress_questions_refused_total{opencode_instance=\"a\",reason=\"forbidden-address\"} 3",
            "opencode_egress_questions_rate_limited_total{opencode_instance=\"a\"} 6",
            "opencode_egress_questions_lost_total{opencode_instance=\"a\"} 1",
        ] {
            assert!(text.lines().any(|line| line == sample), "no `{sample}` in\n{text}");
        }
    }

    #[test]
    fn a_unit_that_is_not_running_misses_no_link() {
        let text = exposition(&status()).expect("an exposition");
        let sample =
            "opencode_egress_links_missing{opencode_instance=\"a\",unit=\"opencode-a-setup.service\"} 0";
        assert!(text.contains(sample), "{text}");
    }

    #[test]
    fn only_everyday_reasons_are_there_without_an_occurrence() {
        let text = exposition(&status()).expect("an exposition");
        let denials = text.lines().filter(|line| line.starts_with("opencode_egress_denials_total"));
        assert_eq!(denials.count(), EVERYDAY.len() + 1, "{text}");
        assert!(text.contains("reason=\"deny-rule\"} 0"), "{text}");
    }
}
