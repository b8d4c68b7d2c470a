//! Denied flows in the journal, under `opencode-<name>-blocked`, with their facts as fields; and the numbers by
//! which the journal's catalog, dist/opencode-egress.catalog, explains lines.

mod entry;
mod own;
mod queue;
mod writer;

use entry::{Entry, Priority};
pub use writer::{Journal, JournalState, KeepCounts, LineCounts};

use crate::{
    policy::{InstanceName, Mode, mode_name},
    report::{
        caller::Caller,
        denial::{Asker, DenialLine, LoggedDenial, QuestionLine},
    },
};

/// Denied flows, or refused questions, that had no line of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Those over the rate.
    pub limited: u64,
    /// Those that were lost on the way to the log.
    pub lost: u64,
}

impl LeftOut {
    /// Those of them that were not told yet.
    #[must_use]
    pub fn since(self, told: Self) -> Self {
        Self { limited: self.limited.saturating_sub(told.limited), lost: self.lost.saturating_sub(told.lost) }
    }
}

/// A flow was denied.
pub const DENIED_ID: &str = "2da292e8965a49f690f448fafc95f50a";
/// A question for a name was refused.
pub const QUESTION_REFUSED_ID: &str = "3953224c7595489886dbcfa6dc67478c";
/// A listed name was asked for, the first time.
pub const NAME_ALLOWED_ID: &str = "b1a6f3e27c0d4f6e9d5b8a1c42e7f093";
/// A bind to what the policy does not list was denied.
pub const BIND_DENIED_ID: &str = "4d2b720e6d544cc6194f0724d5b8ef66";
/// Denials had no line of their own.
pub const LEFT_OUT_ID: &str = "471259d7e4c94873b2977a6f2613f6a6";
/// A unit runs and cannot be confined.
pub const NOT_CONFINED_ID: &str = "13e879b47d564d06a1b451c2be57482a";
/// Links were taken away on request.
pub const DETACHED_ID: &str = "dccd20c76e5a45c28486eaf3ab20b3b8";
/// Links that somebody removed are back.
pub const LINKS_RESTORED_ID: &str = "df7acd0316b74e7cb1696a899ca658d6";
/// A unit ran before it was confined.
pub const CONFINED_LATE_ID: &str = "fdbb059e77674ccfa34fe8d87e02fb30";
/// A lease began or ended.
pub const LEASE_ID: &str = "2fce01b5c22a49a3b8fb37dd1a3fd38e";
/// A policy file was not applied.
pub const RELOAD_REFUSED_ID: &str = "9d564aa252204d34814c6f3c11e594f6";

/// The identifier under which `journalctl -t` finds an instance's denials.
pub fn identifier(instance: &str) -> String {
    format!("opencode-{instance}-blocked")
}

impl Journal {
    /// Logs a denied flow of the instance with this number.
    pub fn log_denial(&self, instance: u32, event: &LoggedDenial, line: &DenialLine) {
        self.denial(instance, denial(&event.instance, line));
    }

    /// Logs a refused question. `false`: there is no room for it.
    pub fn log_question(&self, instance: u32, event: &LoggedDenial, line: &QuestionLine) -> bool {
        let mode = if line.audit { Mode::Audit } else { Mode::Enforce };
        let mut fields = vec![
            ("EGRESS_QUERY", line.query.clone()),
            ("EGRESS_TYPE", line.qtype.clone()),
            ("EGRESS_REASON", line.reason.clone()),
            ("EGRESS_SUPPRESSED", line.suppressed.to_string()),
        ];
        let Asker { pid, comm, uid, caller } = &line.asker;
        fields.extend([("EGRESS_PID", pid.to_string()), ("EGRESS_COMM", comm.clone())]);
        fields.extend(uid.map(|uid| ("EGRESS_UID", uid.to_string())));
        fields.extend(fields_of(caller));
        fields.extend(line.address.map(|address| ("EGRESS_ADDRESS", address.to_string())));
        self.question(instance, entry(&event.instance, QUESTION_REFUSED_ID, mode, &line.to_string(), &fields))
    }

    /// Logs a denied flow that was folded into an earlier line. `false`: there is no room for it, and it counts as folded.
    pub fn log_folded(&self, instance: u32, event: &LoggedDenial, line: &DenialLine) -> bool {
        // Not made in vain where a noisy instance has many of them.
        self.has_room(instance) && self.folded(instance, denial(&event.instance, line))
    }

    /// Logs how many denied flows and refused questions were left out of an instance's lines. `false`: there is no room, and nobody was told.
    pub fn log_left_out(
        &self,
        number: u32,
        instance: &InstanceName,
        mode: Mode,
        flows: LeftOut,
        questions: LeftOut,
    ) -> bool {
        let (limited, lost) = (flows.limited + questions.limited, flows.lost + questions.lost);
        let fields = [("EGRESS_LIMITED", limited.to_string()), ("EGRESS_LOST", lost.to_string())];
        let entry = entry(instance.as_str(), LEFT_OUT_ID, mode, &left_out(mode, limited, lost), &fields);
        self.left_out(number, entry, flows)
    }
}

fn denial(instance: &str, line: &DenialLine) -> Entry {
    let mode = if line.audit { Mode::Audit } else { Mode::Enforce };
    let mut fields = vec![
        ("EGRESS_PROTO", line.proto.clone()),
        ("EGRESS_DST", line.dst.to_string()),
        ("EGRESS_DPORT", line.dport.to_string()),
        ("EGRESS_HOOK", line.hook.clone()),
        ("EGRESS_REASON", line.reason.clone()),
        ("EGRESS_PID", line.pid.to_string()),
        ("EGRESS_COMM", line.comm.clone()),
        ("EGRESS_UID", line.uid.to_string()),
        ("EGRESS_SUPPRESSED", line.suppressed.to_string()),
        ("EGRESS_GENERATION", line.generation.to_string()),
    ];
    fields.extend(line.asked.map(|asked| ("EGRESS_ASKED", asked.to_string())));
    fields.extend(line.lport.map(|port| ("EGRESS_LPORT", port.to_string())));
    fields.extend(line.name.clone().map(|name| ("EGRESS_NAME", name)));
    fields.extend(fields_of(&line.caller));
    fields.extend(line.hint.clone().map(|hint| ("EGRESS_HINT", hint)));
    let id = if line.is_of_bind() { BIND_DENIED_ID } else { DENIED_ID };
    entry(instance, id, mode, &line.to_string(), &fields)
}

fn fields_of(Caller { exe, via, cgroup }: &Caller) -> impl Iterator<Item = (&'static str, String)> {
    let via = (!via.is_empty()).then(|| via.join(","));
    let fields = [("EGRESS_EXE", exe.clone()), ("EGRESS_VIA", via), ("EGRESS_CGROUP", cgroup.clone())];
    fields.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// The line of [`Journal::log_left_out`]; like a denial's it says so where the mode let them pass.
fn left_out(mode: Mode, limited: u64, lost: u64) -> String {
    let audit = if mode == Mode::Audit { " mode=audit" } else { "" };
    format!("not logged one by one: limited={limited} lost={lost}{audit}")
}

fn entry(instance: &str, id: &str, mode: Mode, message: &str, fields: &[(&str, String)]) -> Entry {
    let own = [("MESSAGE_ID", id), ("OPENCODE_INSTANCE", instance), ("EGRESS_MODE", mode_name(mode))];
    let fields = own.into_iter().chain(fields.iter().map(|(name, value)| (*name, value.as_str())));
    Entry::new(&identifier(instance), Priority::Warning, message, fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_in_audit_mode_says_so() {
        assert_eq!(left_out(Mode::Enforce, 1, 2), "not logged one by one: limited=1 lost=2");
        assert_eq!(left_out(Mode::Audit, 1, 2), "not logged one by one: limited=1 lost=2 mode=audit");
    }

    /// The catalog's entries, and no other, are what is logged.
    #[test]
    fn the_catalog_explains_every_line() {
        let catalog = include_str!("../../../../dist/opencode-egress.catalog");
        let mut entries: Vec<_> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let mut ids = [
            DENIED_ID,
            QUESTION_REFUSED_ID,
            BIND_DENIED_ID,
            LEFT_OUT_ID,
            NOT_CONFINED_ID,
            DETACHED_ID,
            LINKS_RESTORED_ID,
            CONFINED_LATE_ID,
            RELOAD_REFUSED_ID,
            NAME_ALLOWED_ID,
            LEASE_ID,
        ];
        entries.sort_unstable();
        ids.sort_unstable();
        assert_eq!(entries, ids);
    }
}
