//! Denied flows in the journal, under `opencode-<name>-blocked`, with their facts as fields.

use libsystemd::logging::{Priority, journal_send};

use crate::{control::LoggedEvent, policy::InstanceName};

/// The identifier under which `journalctl -t` finds an instance's denials.
pub fn identifier(instance: &str) -> String {
    format!("opencode-{instance}-blocked")
}

/// Logs a denied flow.
pub fn log_denial(event: &LoggedEvent) {
    let flow = &event.flow;
    let fields = [
        ("EGRESS_PROTO", flow.proto.clone()),
        ("EGRESS_DST", flow.dst.to_string()),
        ("EGRESS_DPORT", flow.dport.to_string()),
        ("EGRESS_HOOK", flow.hook.clone()),
        ("EGRESS_REASON", flow.reason.clone()),
        ("EGRESS_PID", flow.pid.to_string()),
        ("EGRESS_COMM", flow.comm.clone()),
        ("EGRESS_UID", flow.uid.to_string()),
        ("EGRESS_SUPPRESSED", flow.suppressed.to_string()),
        ("EGRESS_GENERATION", flow.generation.to_string()),
        ("EGRESS_MODE", if flow.audit { "audit" } else { "enforce" }.to_owned()),
    ];
    send(&event.instance, &flow.to_string(), &fields);
}

/// Logs how many denials were left out of an instance's lines.
pub fn log_left_out(instance: &InstanceName, limited: u64, lost: u64) {
    let message = format!("not logged one by one: limited={limited} lost={lost}");
    let fields = [("EGRESS_LIMITED", limited.to_string()), ("EGRESS_LOST", lost.to_string())];
    send(instance.as_str(), &message, &fields);
}

fn send(instance: &str, message: &str, fields: &[(&str, String)]) {
    let identifier = identifier(instance);
    let own = [("SYSLOG_IDENTIFIER", identifier.as_str()), ("OPENCODE_INSTANCE", instance)];
    let fields = own.into_iter().chain(fields.iter().map(|(name, value)| (*name, value.as_str())));
    if journal_send(Priority::Warning, message, fields).is_err() {
        // No journal here: the line is better on stderr than nowhere.
        eprintln!("{identifier}: {message}");
    }
}
