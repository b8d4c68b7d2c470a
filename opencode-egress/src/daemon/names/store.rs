//! What answers brought, in a file, so that a daemon that starts again knows it: a line for each answer, written before the answer is
//! told. It is of this boot, as are the times in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::daemon::last_applied::{boot_id, is_own};

/// The file is written anew when it is so many times as long as then, and longer than [`SHORT`].
const TIMES: u64 = 4;
/// In bytes.
const SHORT: u64 = 1024 * 1024;

/// An answer. Names are short, for there are many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The instance.
    #[serde(rename = "i")]
    pub(super) instance: String,
    /// The name that was asked for.
    #[serde(rename = "n")]
    pub(super) name: String,
    /// The addresses that may be learned.
    #[serde(rename = "a")]
    pub(super) addresses: Vec<IpAddr>,
    /// When their time is over, in seconds since boot.
    #[serde(rename = "u")]
    pub(super) until: u64,
}

/// The file.
pub(super) struct NameStore {
    path: PathBuf,
    file: Option<File>,
    /// Its length now, and when it was written anew.
    length: u64,
    length_anew: u64,
    /// Why the last write failed, for `status`.
    pub(super) trouble: Option<String>,
}

impl NameStore {
    /// Reads the file of an earlier daemon, if there is one of this boot. What cannot be read of it is forgotten: clients ask again, and flows
    /// that began go on.
    pub(super) fn open(path: &Path) -> (Self, Vec<Record>) {
        let text = if is_own(path) { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
        let mut lines = text.lines();
        let records = match lines.next() {
            Some(boot) if boot == boot_id() => {
                // The last one may be cut: whoever waited for it was not told.
                lines.map_while(|line| serde_json::from_str(line).ok()).collect()
            }
            _ => vec![],
        };
        (Self { path: path.to_owned(), file: None, length: 0, length_anew: 0, trouble: None }, records)
    }

    /// Writes an answer behind the others. Where that fails, a daemon that starts again does not know it.
    pub(super) fn append(&mut self, record: &Record) {
        let written = serde_json::to_vec(record).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            // One write, so that no other line is cut by it.
            file.write_all(&line)?;
            self.length += line.len() as u64;
            Ok(())
        });
        self.note(written);
    }

    /// Whether so much of it is over that it is to be written anew.
    pub(super) fn is_long(&self) -> bool {
        self.file.is_none() || self.length > SHORT.max(self.length_anew.saturating_mul(TIMES))
    }

    /// Writes it anew.
    pub(super) fn rewrite(&mut self, records: impl Iterator<Item = Record>) {
        let written = self.try_rewrite(records);
        self.note(written);
    }

    fn try_rewrite(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let new = self.path.with_extension("names.new");
        fs::create_dir_all(new.parent().unwrap_or(&new))?;
        // Left by a daemon that ended while it wrote; or by somebody who wants it written elsewhere.
        let _ = fs::remove_file(&new);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
        let mut writer = io::BufWriter::new(&file);
        writeln!(writer, "{}", boot_id())?;
        for record in records {
            serde_json::to_writer(&mut writer, &record)?;
            writer.write_all(b"\n")?;
        }
        writer.flush()?;
        drop(writer);
        fs::rename(&new, &self.path)?;
        self.length = file.metadata()?.len();
        (self.length_anew, self.file) = (self.length, Some(file));
        Ok(())
    }

    fn note(&mut self, written: io::Result<()>) {
        self.trouble = written.err().map(|error| {
            format!(
                "cannot write to {}: {error}. A daemon that starts now knows none of the addresses that names brought, and clients have to ask again",
                self.path.display()
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record { instance: "a".into(), name: name.into(), addresses: vec![[192, 0, 2, 1].into()], until: 7 }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("v3.names");
        let (mut store, records) = NameStore::open(&path);
        assert_eq!(records, []);
        assert!(store.is_long(), "there is no file yet");
        store.rewrite([record("one.example")].into_iter());
        store.append(&record("two.example"));
        assert_eq!(store.trouble, None);
        assert!(!store.is_long());
        assert_eq!(NameStore::open(&path).1, [record("one.example"), record("two.example")]);
        // As a daemon leaves it that is killed while it writes.
        let text = fs::read_to_string(&path).expect("the file");
        fs::write(&path, &text[..text.len() - 5]).expect("a cut file");
        assert_eq!(NameStore::open(&path).1, [record("one.example")]);
        fs::write(&path, text.replacen(&boot_id(), "another boot", 1)).expect("another boot's file");
        assert_eq!(NameStore::open(&path).1, []);
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("a directory in its place");
        let (mut store, _) = NameStore::open(&path);
        store.rewrite([record("one.example")].into_iter());
        assert!(
            store.trouble.as_ref().is_some_and(|trouble| trouble.contains("taken")),
            "{:?}",
            store.trouble
        );
    }
}
