//! The leases in a file, so that a daemon that starts again knows them. It is of this boot, as are the times in it.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    daemon::last_applied::{boot_id, is_own},
    policy::{
        InstanceName,
        lease::{Grantor, Lease, LeaseKind, MAX_ENDED},
    },
};

/// The version of the file's form.
const VERSION: u32 = 1;

/// The leases of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct InstanceLeases {
    /// Those in force.
    pub(super) active: Vec<Lease>,
    /// Those that ended, and under which something may go on; the oldest first.
    pub(super) ended: Vec<Lease>,
    /// Those that are being taken out of force: none of them comes back.
    pub(super) ending: Vec<Ending>,
}

/// A lease that is being taken out of force, with what began under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct Ending {
    #[serde(flatten)]
    pub(super) lease: Lease,
    /// Who revoked it; `None`: its time is over.
    #[serde(default)]
    pub(super) revoked_by: Option<Grantor>,
}

impl Ending {
    /// What became of it, and by whom.
    pub(super) fn told(self) -> Told {
        match self.revoked_by {
            Some(by) => (self.lease, "revoked", by),
            None => by_itself(self.lease, "ended"),
        }
    }
}

/// A lease, what became of it, and by whom.
pub(super) type Told = (Lease, &'static str, Grantor);

/// What became of a lease without anybody's doing: then the line has who granted it.
pub(super) fn by_itself(lease: Lease, what: &'static str) -> Told {
    let by = lease.by.clone();
    (lease, what, by)
}

impl InstanceLeases {
    /// Ends the leases that are over at a second since boot, and returns them.
    pub(super) fn end(&mut self, now: u64) -> Vec<Lease> {
        let (over, active) = self.active.drain(..).partition(|lease| lease.is_over(now));
        self.active = active;
        for lease in &over {
            let Lease { kind, hard, .. } = lease;
            if !hard && *kind != LeaseKind::Audit {
                self.ended.retain(|ended| ended.kind != *kind);
                self.ended.push(lease.clone());
            }
        }
        let more = self.ended.len().saturating_sub(MAX_ENDED);
        self.ended.drain(..more);
        over
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    boot: String,
    instances: BTreeMap<String, InstanceLeases>,
}

/// The file.
pub(super) struct LeaseStore {
    path: PathBuf,
    /// Why the last write failed, for `status`.
    pub(super) trouble: Option<String>,
}

impl LeaseStore {
    /// Reads the file of an earlier daemon, if there is one of this boot. Where it cannot be read, nothing is leased.
    pub(super) fn open(path: &Path) -> (Self, BTreeMap<InstanceName, InstanceLeases>) {
        let store = Self { path: path.to_owned(), trouble: None };
        if !is_own(path) {
            return (store, BTreeMap::new());
        }
        let file = fs::read(path).and_then(|text| Ok(serde_json::from_slice::<File>(&text)?));
        let instances = match file {
            Ok(file) if file.boot != boot_id() => BTreeMap::new(),
            Ok(file) if file.version == VERSION => file.instances,
            Ok(file) => {
                warn!(
                    "{} is of version {}, which this daemon does not know: no lease is in force",
                    path.display(),
                    file.version
                );
                BTreeMap::new()
            }
            Err(error) => {
                warn!("{} cannot be read, so no lease is in force: {error}", path.display());
                BTreeMap::new()
            }
        };
        let named = instances.into_iter().filter_map(|(name, leases)| Some((name.parse().ok()?, leases)));
        (store, named.collect())
    }

    /// Writes all leases, in one step.
    ///
    /// # Errors
    ///
    /// When the system says so; then the file is as it was.
    pub(super) fn write(&mut self, of: &BTreeMap<InstanceName, InstanceLeases>) -> io::Result<()> {
        let instances = of.iter().map(|(name, leases)| (name.to_string(), leases.clone())).collect();
        let written = self.replace(&File { version: VERSION, boot: boot_id(), instances });
        let before = self.trouble.take();
        self.trouble = written.as_ref().err().map(|error| {
            format!(
                "cannot write to {}: {error}. No lease can be granted, and a daemon that starts before that is possible has leases in force again that were revoked since",
                self.path.display()
            )
        });
        if before.is_none() {
            self.trouble.iter().for_each(|trouble| warn!("{trouble}"));
        }
        written
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn replace(&self, file: &File) -> io::Result<()> {
        let new = self.path.with_extension("leases.new");
        fs::create_dir_all(new.parent().unwrap_or(&new))?;
        // Left by a daemon that ended while it wrote; or by somebody who wants it written elsewhere.
        let _ = fs::remove_file(&new);
        let mut writer = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        writer.write_all(&serde_json::to_vec(file)?)?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(rule: &str, hard: bool, deadline: u64) -> Lease {
        let kind = LeaseKind::Rule(rule.parse().expect("a rule"));
        Lease { kind, hard, reason: None, by: Grantor::default(), from: 7, deadline }
    }

    #[test]
    fn what_was_written_is_read_again_in_this_boot_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("v6.leases");
        let (mut store, of) = LeaseStore::open(&path);
        assert_eq!(of, BTreeMap::new());
        let leases =
            InstanceLeases { active: vec![lease("10.0.0.0/8", true, 100)], ..InstanceLeases::default() };
        let of = BTreeMap::from([("a".parse().expect("a name"), leases)]);
        store.write(&of).expect("written");
        assert_eq!(LeaseStore::open(&path).1, of);
        let text = fs::read_to_string(&path).expect("the file");
        for bad in [
            text.replacen(&boot_id(), "another boot", 1),
            text.replacen("\"version\":1", "\"version\":2", 1),
            text[..text.len() - 5].to_owned(),
            text.replacen("10.0.0.0/8", "10.0.0.1/8", 1),
        ] {
            assert_ne!(bad, text);
            fs::write(&path, bad).expect("a bad file");
            assert_eq!(LeaseStore::open(&path).1, BTreeMap::new());
        }
        fs::write(&path, text).expect("the file");
        std::os::unix::fs::chown(&path, Some(1), None).expect("another owner");
        assert_eq!(LeaseStore::open(&path).1, BTreeMap::new());
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("a directory in its place");
        let (mut store, _) = LeaseStore::open(&path);
        store.write(&BTreeMap::new()).expect_err("an error");
        assert!(store.trouble.is_some_and(|trouble| trouble.contains("taken")));
    }

    #[test]
    fn what_ended_is_remembered_unless_its_end_is_hard() {
        let active = vec![
            lease("10.0.0.0/8", false, 5),
            lease("10.1.0.0/16", true, 5),
            lease("10.2.0.0/16", false, 6),
        ];
        let mut leases = InstanceLeases { active, ..InstanceLeases::default() };
        assert_eq!(leases.end(5).len(), 2);
        assert_eq!(leases.active, [lease("10.2.0.0/16", false, 6)]);
        assert_eq!(leases.ended, [lease("10.0.0.0/8", false, 5)]);
        for index in 0..2 * MAX_ENDED {
            leases.active = vec![lease(&format!("10.{}.{}.0/24", index / 256, index % 256), false, 7)];
            leases.end(7);
        }
        assert_eq!(leases.ended.len(), MAX_ENDED);
    }
}
