//! The daemon's own lines: what `tracing` is told, into the journal with priorities and fields, or to stderr.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    os::linux::fs::MetadataExt as _,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{MakeWriter, format},
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use super::{
    entry::{Entry, Priority},
    writer::Journal,
};

/// Under which the journal has the daemon's own lines.
const IDENTIFIER: &str = "opencode-egress";

impl Journal {
    /// Takes what the daemon says from now on: for the journal itself where stderr goes there, so that priorities and
    /// fields arrive; else for stderr.
    pub fn take_own_lines(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let registry = tracing_subscriber::registry().with(filter);
        if stderr_is_the_journal() {
            return registry.with(Own(self.clone())).init();
        }
        // The message says it all; the fields are the journal's.
        let message = format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        });
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let stderr = tracing_subscriber::fmt::layer()
            .fmt_fields(message)
            .with_writer(self.clone())
            .with_ansi(io::stderr().is_terminal() && !no_color)
            .with_target(false);
        registry.with(stderr).init();
    }
}

/// Whether it is the stream that `$JOURNAL_STREAM` names (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    // By its own name in /proc: stderr as a file is not std's to give.
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| named == format!("{}:{}", stderr.st_dev(), stderr.st_ino()))
}

/// To the journal.
struct Own(Journal);

impl<S: Subscriber> Layer<S> for Own {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let priority = match *metadata.level() {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Notice,
            Level::DEBUG => Priority::Info,
            Level::TRACE => Priority::Debug,
        };
        let mut said = Said::default();
        event.record(&mut said);
        let line = metadata.line().map(|line| line.to_string());
        let place = [("CODE_FILE", metadata.file()), ("CODE_LINE", line.as_deref())];
        let place = place.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let fields = said.fields.iter().map(|(name, value)| (*name, value.as_str()));
        let fields = place.chain([("TARGET", metadata.target())]).chain(fields);
        self.0.own(Entry::new(IDENTIFIER, priority, &said.message, fields));
    }
}

/// What an event says. Its fields have the journal's names where it is made, all but the message; those of the crate `log`,
/// such as `log.target`, do not, and go without.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name if is_field_name(name) => self.fields.push((name, value.to_owned())),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// As systemd.journal-fields(7) has them.
fn is_field_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = ToStderr;

    fn make_writer(&'a self) -> ToStderr {
        ToStderr { journal: self.clone(), line: vec![] }
    }
}

/// A line for stderr, which is written when it is whole.
pub struct ToStderr {
    journal: Journal,
    line: Vec<u8>,
}

impl io::Write for ToStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ToStderr {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.journal.own(Entry::text(String::from_utf8_lossy(&self.line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn an_event_is_an_entry_with_its_fields() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).expect("a socket");
        let journal = Journal::start_at(&path).expect("a journal");
        let registry = tracing_subscriber::registry().with(Own(journal));
        tracing::subscriber::with_default(registry, || {
            let unit = "opencode-a.service";
            tracing::warn!(MESSAGE_ID = "13e879", OBJECT_SYSTEMD_UNIT = %unit, lower = 1, "{unit} is not confined");
        });
        let mut buffer = [0; 4096];
        let len = journald.recv(&mut buffer).expect("an entry");
        let entry = String::from_utf8_lossy(&buffer[..len]).into_owned();
        for expected in [
            "MESSAGE=opencode-a.service is not confined\n",
            "PRIORITY=4\n",
            "SYSLOG_IDENTIFIER=opencode-egress\n",
            "MESSAGE_ID=13e879\n",
            "OBJECT_SYSTEMD_UNIT=opencode-a.service\n",
            "TARGET=opencode_egress::report::journal::own::tests\n",
        ] {
            assert!(entry.contains(expected), "no `{expected}` in {entry}");
        }
        assert!(!entry.contains("lower"), "{entry}");
    }
}
