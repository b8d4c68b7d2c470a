//! The exposition, the alerts, the dashboard and their documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    process::Command,
};

use opencode_egress::{
    cgroups::limits::{Limit, OpenFiles},
    control::learned::QueryReason,
    report::{
        metrics::exposition,
        status::{
            CountersStatus, InstanceStatus, LimitsStatus, NamesStatus, QuestionsStatus, ReachedLimit,
            SocketsStatus, Status, UnitStatus,
        },
    },
};
use opencode_egress_common::reason::DropReason;

use crate::{read, root, succeed};

/// Prometheus' own tool, in `PROMTOOL` or the `PATH`.
fn promtool() -> Command {
    Command::new(env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into()))
}

/// Everything that there can be.
fn everything() -> String {
    let by_reason: BTreeMap<_, _> =
        DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), 1_u64 << 60)).collect();
    let instance = InstanceStatus {
        mode: "enforce".into(),
        mode_of_file: "enforce".to_owned(),
        generation: u32::MAX,
        rules: [1, 2, 3],
        entries: 4,
        units: vec![UnitStatus {
            unit: "opencode-a.service".into(),
            running: true,
            unlisted: false,
            links: 10,
            hooks: 10,
            late: false,
            users: vec![],
        }],
        counters: CountersStatus {
            denied_by_reason: by_reason.clone(),
            denied_bytes_by_reason: by_reason,
            ..CountersStatus::default()
        },
        names: Some(NamesStatus {
            questions: QuestionsStatus {
                refused_by_reason: QueryReason::ALL
                    .map(|reason| (reason.as_str().to_owned(), 1_u64 << 60))
                    .into(),
                ..QuestionsStatus::default()
            },
            ..NamesStatus::default()
        }),
        steady: vec![],
        leases: vec![],
        last_denial: None,
        removed: false,
        detached: false,
        lost_lately: false,
        sockets: SocketsStatus::default(),
        limits: LimitsStatus {
            reached: [(Limit::Tasks, ReachedLimit { count: 1 << 60, lately: true })].into(),
            files: Some(OpenFiles { pid: 1, open: 2, limit: 3 }),
        },
        outlived: 0,
        outlived_denials: 0,
        failed_attach: None,
    };
    let status = Status {
        version: "0.1.0".into(),
        config: "policy.json".into(),
        reload_error: None,
        applied: 1_700_000_000,
        not_reset: vec![],
        troubles: vec![],
        instances: BTreeMap::from([("a".into(), instance)]),
    };
    exposition(&status).expect("an exposition")
}

fn exported() -> BTreeSet<String> {
    let text = everything();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Every name in a text that is one of ours.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("opencode_egress_")).map(str::to_owned).collect()
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("metrics");
    fs::write(&path, everything()).expect("the metrics");
    succeed(promtool().args(["check", "metrics"]).stdin(fs::File::open(&path).expect("the metrics")));
}

#[test]
fn promtool_accepts_the_alerts_and_they_fire_when_they_should() {
    let docs = root().join("docs");
    succeed(promtool().args(["check", "rules"]).arg(docs.join("prometheus-alerts.yml")));
    succeed(promtool().args(["test", "rules"]).arg(docs.join("prometheus-alerts.test.yml")));
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("docs/grafana-dashboard.json")).expect("the dashboard is JSON");
    let exported = exported();
    for (what, text) in [("alerts", read("docs/prometheus-alerts.yml")), ("dashboard", dashboard.to_string())]
    {
        let named = named(&text);
        assert!(!named.is_empty(), "the {what} ask for nothing");
        let unknown: Vec<_> = named.difference(&exported).collect();
        assert!(unknown.is_empty(), "the {what} ask for {unknown:?}");
    }
}

#[test]
fn every_panel_can_be_pointed_at_a_data_source_and_an_instance() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("docs/grafana-dashboard.json")).expect("the dashboard is JSON");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "opencode_instance"]);
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
            let expression = target["expr"].as_str().expect("an expression");
            let of_all = expression.contains("opencode_egress_config_");
            let of_chosen = expression.contains("{opencode_instance=~\"$opencode_instance\"}");
            assert!(of_all != of_chosen, "{expression}");
        }
    }
}

#[test]
fn the_documentation_lists_every_metric_and_no_other() {
    assert_eq!(named(&read("docs/monitoring.md")), exported());
}

/// Fails unless each of these reasons has a row, alone or with others, in a table of a document.
fn assert_explained<'a>(document: &str, reasons: impl Iterator<Item = &'a str>) {
    let text = read(document);
    let rows: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | ")).collect();
    for name in reasons.map(|reason| format!("`{reason}`")) {
        let explained = rows.iter().any(|(names, _)| format!("`{names}").split(", ").any(|one| one == name));
        assert!(explained, "{document} has no row for {name}");
    }
}

#[test]
fn every_reason_is_explained_to_operators() {
    assert_explained("docs/operating.md", DropReason::ALL.iter().map(|reason| reason.name()));
    assert_explained("docs/names.md", QueryReason::ALL.iter().map(|reason| reason.as_str()));
}
