//! An entry as journald takes it: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::fmt::Write as _;

/// The longest value of a field, in bytes. An entry of a dozen fields stays well below what a datagram holds
/// (`net.core.wmem_default`, 208 KiB), and the queue within a few megabytes.
const LONGEST: usize = 8 * 1024;

/// Priorities of syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
    Debug = 7,
}

/// An entry: its fields, and what of it goes to a terminal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The datagram for journald; `None`: it is for stderr.
    pub(super) datagram: Option<Vec<u8>>,
    /// The line for stderr, its end included.
    pub(super) text: String,
}

impl Entry {
    /// An entry of these fields. A name has capital letters, digits and `_` alone; a value may be anything.
    pub(super) fn new<'a>(
        identifier: &str,
        priority: Priority,
        message: &str,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut datagram = vec![];
        let priority = (priority as u8).to_string();
        let own = [("MESSAGE", message), ("PRIORITY", &priority), ("SYSLOG_IDENTIFIER", identifier)];
        for (name, value) in own {
            field(&mut datagram, name, value);
        }
        for (name, value) in fields {
            field(&mut datagram, name, value);
        }
        Self { datagram: Some(datagram), text: format!("{identifier}: {}\n", shortened(message)) }
    }

    /// A line for stderr and nothing else.
    pub(super) fn text(text: String) -> Self {
        Self { datagram: None, text }
    }
}

fn field(datagram: &mut Vec<u8>, name: &str, value: &str) {
    let value = shortened(value);
    datagram.extend(name.as_bytes());
    // A value with a line's end in it has its length before it, so that nothing in it is taken for a field.
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend((value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend(value.as_bytes());
    datagram.push(b'\n');
}

fn shortened(value: &str) -> std::borrow::Cow<'_, str> {
    if value.len() <= LONGEST {
        return value.into();
    }
    let mut short = value[..value.floor_char_boundary(LONGEST)].to_owned();
    // Writing to a string cannot fail.
    let _ = write!(short, "… ({} bytes in all)", value.len());
    short.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_as_the_protocol_has_them() {
        let entry = Entry::new("opencode-a-blocked", Priority::Warning, "hello", [("EGRESS_DPORT", "443")]);
        assert_eq!(
            entry.datagram.as_deref(),
            Some(&b"MESSAGE=hello\nPRIORITY=4\nSYSLOG_IDENTIFIER=opencode-a-blocked\nEGRESS_DPORT=443\n"[..])
        );
        assert_eq!(entry.text, "opencode-a-blocked: hello\n");
    }

    #[test]
    fn a_value_cannot_forge_a_field() {
        let entry = Entry::new("x", Priority::Error, "two\n_UID=0", []);
        let datagram = entry.datagram.expect("an entry for the journal");
        assert!(
            datagram.starts_with(b"MESSAGE\n\x0a\0\0\0\0\0\0\0two\n_UID=0\nPRIORITY=3\n"),
            "{datagram:?}"
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let message = "é".repeat(LONGEST);
        let entry = Entry::new("x", Priority::Error, &message, [("WHY", &*message)]);
        assert!(entry.datagram.expect("an entry for the journal").len() < 2 * LONGEST + 200);
        assert!(
            entry.text.ends_with(&format!("é… ({} bytes in all)\n", 2 * LONGEST)),
            "{}",
            entry.text.len()
        );
    }
}
