//! Which of the limits that systemd has the kernel hold a unit to were reached.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};

use super::Cgroup;

/// A limit of a cgroup that the kernel counts reaching of:
/// <https://docs.kernel.org/admin-guide/cgroup-v2.html>, `memory.events` and `pids.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// `MemoryHigh=`: it was slowed down.
    MemoryHigh,
    /// `MemoryMax=`: cache was taken back, or what asked for memory had an error or was killed.
    MemoryMax,
    /// A process was killed for want of memory, the cgroup's or the machine's.
    OomKill,
    /// `TasksMax=`: a process or thread was refused, with `EAGAIN`.
    Tasks,
}

impl Limit {
    /// All, with the file that each is in and what it is called there.
    const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::MemoryHigh, "memory.events", "high"),
        (Self::MemoryMax, "memory.events", "max"),
        (Self::OomKill, "memory.events", "oom_kill"),
        (Self::Tasks, "pids.events", "max"),
    ];

    /// What metrics call it, and the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryHigh => "memory-high",
            Self::MemoryMax => "memory-max",
            Self::OomKill => "oom-kill",
            Self::Tasks => "tasks",
        }
    }
}

/// How often each limit was reached. One that is not there is not known: its controller is not in this hierarchy.
pub type Reached = BTreeMap<Limit, u64>;

/// The open files of a process. The kernel counts no refusal for want of one, so only what is now can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// The process.
    pub pid: u32,
    /// How many it has open.
    pub open: u64,
    /// How many it may have: its soft `RLIMIT_NOFILE` (getrlimit(2)).
    pub limit: u64,
}

impl OpenFiles {
    /// Those of a process; `None`: it is gone, or the kernel does not say how many there are.
    fn of(pid: u32) -> Option<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        // Since Linux 6.2, to whoever may see the process: <https://git.kernel.org/torvalds/c/f1f1f2569901>. Before, it is 0.
        let open = fs::metadata(process.join("fd")).ok()?.size();
        let limit = soft_limit(&fs::read_to_string(process.join("limits")).ok()?)?;
        (open > 0).then_some(Self { pid, open, limit })
    }

    /// How many more it may open.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.open)
    }
}

impl Cgroup {
    /// How often it reached limits, since it was made.
    pub fn reached(&self) -> Reached {
        let read = |file| fs::read_to_string(self.path().join(file)).ok();
        let files = BTreeMap::from(["memory.events", "pids.events"].map(|file| (file, read(file))));
        let known = Limit::ALL.iter().filter_map(|(limit, file, key)| {
            files[file].as_deref().and_then(|text| counted(text, key)).map(|count| (*limit, count))
        });
        known.collect()
    }

    /// The process in it that may open the fewest more files.
    pub fn fullest(&self) -> Option<OpenFiles> {
        self.processes().into_iter().filter_map(OpenFiles::of).min_by_key(OpenFiles::left)
    }
}

/// A number in a file of lines of a key and a number each.
fn counted(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// The soft limit of open files in `/proc/<pid>/limits`.
fn soft_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn each_key_is_read_for_itself() {
        let text = "low 0\nhigh 7\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n";
        let of = |key| counted(text, key);
        assert_eq!(
            [of("high"), of("max"), of("oom_kill"), of("maximum")],
            [Some(7), Some(12), Some(3), None]
        );
    }

    #[test]
    fn open_files_are_counted_without_a_look_at_them() {
        let own = || OpenFiles::of(std::process::id());
        if fs::metadata("/proc/self/fd").expect("own files").len() == 0 {
            return eprintln!("skipped: this kernel is older than 6.2");
        }
        // Other tests open files meanwhile.
        let before = own().expect("a count");
        let files: Vec<_> = (0..200).map(|_| File::open("/dev/null").expect("a file")).collect();
        let with = own().expect("a count");
        assert!(
            with.open >= 200 && with.open + 100 > before.open + 200,
            "{before:?} {with:?} {}",
            files.len()
        );
        assert_eq!(
            with.limit,
            rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(0)
        );
    }
}
