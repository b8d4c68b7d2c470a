//! When something was tried, and by which programs.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

/// Tries within so many seconds are one time: a client asks for two kinds of addresses, and tries again.
const ONE_TIME: u64 = 60;
/// What is denied at so many times,
const STEADY_TIMES: u64 = 5;
/// over so many seconds or more,
const STEADY_FOR: u64 = 10 * 60;
/// and within so many seconds before now, is denied steadily.
const LATELY: u64 = 60 * 60;
/// Programs that are remembered of one thing that was tried.
const MOST_PROGRAMS: usize = 8;
/// What runs what an agent or a user types.
const SHELLS: [&str; 9] = ["ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "sh", "zsh"];

/// A program that tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    /// The name of its process.
    pub name: String,
    /// The shell that started it, or what started it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
}

impl Program {
    /// The program of a line: `comm` is the thread's name, `via` has the process, its parent and so on, up to the first one of the unit, as far as
    /// that is known. `None`: nothing is.
    pub fn of(comm: &str, via: &[String]) -> Option<Self> {
        let name = via.first().map_or(comm, String::as_str);
        // The unit's first process may be a script that starts the server.
        let below_first = via.split_last().map_or(&[][..], |(_, below)| below);
        let shell = below_first.iter().find(|name| SHELLS.contains(&name.as_str())).cloned();
        (!name.is_empty() && name != "-").then(|| Self { name: name.to_owned(), shell })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shell {
            Some(shell) if *shell != self.name => write!(f, "{} of {shell}", self.name),
            _ => f.write_str(&self.name),
        }
    }
}

/// When something was tried, and by whom, as far as the log's lines tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// When it was tried first, in seconds since 1970; `None`: no line tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// When it was tried last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// How many times: those of a minute are one.
    #[serde(default)]
    pub times: u64,
    /// The programs that tried, the first few of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub who: BTreeSet<Program>,
    /// Names of processes that tried, the first few of those of which nobody knows who started them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub processes: BTreeSet<String>,
    /// When the last of the times began.
    #[serde(skip)]
    began: Option<u64>,
}

impl Tried {
    /// Takes note of a line. Lines come in the order of their times, but for clocks that are set.
    pub fn add(&mut self, at: u64, who: Option<Program>) {
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.last = self.last.max(Some(at));
        if self.began.is_none_or(|began| began.abs_diff(at) >= ONE_TIME) {
            self.began = Some(at);
            self.times += 1;
        }
        self.add_programs(who);
    }

    /// Takes note of a process that tried, and of which nobody knows who started it.
    pub fn add_process(&mut self, name: &str) {
        if self.processes.len() < MOST_PROGRAMS {
            self.processes.insert(name.to_owned());
        }
    }

    /// Adds what is known of something else, which becomes one with it.
    pub fn join(&mut self, other: &Self) {
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
        // They may have been the same ones.
        self.times = self.times.max(other.times);
        self.add_programs(other.who.iter().cloned());
        other.processes.iter().for_each(|name| self.add_process(name));
    }

    fn add_programs(&mut self, who: impl IntoIterator<Item = Program>) {
        for program in who {
            if self.who.len() < MOST_PROGRAMS {
                self.who.insert(program);
            }
        }
    }

    /// Whether it was tried at one time only, by programs that a shell started and by no others, as far as lines tell.
    pub fn is_once_of_a_shell(&self) -> bool {
        let (Some(first), Some(last)) = (self.first, self.last) else { return false };
        let of_shell = |program: &Program| program.shell.is_some();
        last - first < ONE_TIME && !self.who.is_empty() && self.who.iter().all(of_shell)
    }

    /// Whether it is denied steadily: at five times or more, over ten minutes or more, the last of them within the last hour. A client that tries
    /// again for a minute is not, nor is what a scan tries, of which each place has its turn once.
    pub fn is_steady(&self, now: u64) -> bool {
        let (Some(first), Some(last)) = (self.first, self.last) else { return false };
        self.times >= STEADY_TIMES && last - first >= STEADY_FOR && now.saturating_sub(last) < LATELY
    }

    /// Who tried, in words: `curl of bash, opencode`.
    pub fn programs(&self) -> Option<String> {
        let others =
            self.processes.iter().filter(|name| self.who.iter().all(|program| program.name != **name));
        let names: Vec<_> = self.who.iter().map(ToString::to_string).chain(others.cloned()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn program(via: &str) -> Option<Program> {
        Program::of("", &via.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_shell_between_a_program_and_the_units_first_process_started_it() {
        let shown = |via: &str| program(via).map(|program| program.to_string());
        assert_eq!(shown("curl,bash,opencode").as_deref(), Some("curl of bash"));
        assert_eq!(shown("bash,opencode").as_deref(), Some("bash"));
        assert!(
            program("bash,opencode").expect("a program").shell.is_some(),
            "/dev/tcp of the agent's shell"
        );
        assert_eq!(shown("gopls,opencode").as_deref(), Some("gopls"));
        assert_eq!(shown("opencode").as_deref(), Some("opencode"));
        // The unit runs a script that runs the server.
        assert_eq!(shown("opencode,sh").as_deref(), Some("opencode"));
        assert_eq!(shown("sh").as_deref(), Some("sh"));
        assert_eq!(program("sh").expect("a program").shell, None);
        assert_eq!(shown("curl,bash,...").as_deref(), Some("curl of bash"));
        assert_eq!(Program::of("node", &[]).map(|program| program.to_string()).as_deref(), Some("node"));
        assert_eq!(Program::of("-", &[]), None);
    }

    #[test]
    fn once_is_one_minute_of_programs_of_a_shell() {
        let tried = |lines: &[(u64, &str)]| {
            let mut tried = Tried::default();
            lines.iter().for_each(|(at, via)| tried.add(*at, program(via)));
            tried
        };
        assert!(tried(&[(1000, "curl,bash,opencode"), (1059, "curl,bash,opencode")]).is_once_of_a_shell());
        let twice = tried(&[(1000, "curl,bash,opencode"), (1060, "curl,bash,opencode")]);
        assert!(!twice.is_once_of_a_shell());
        assert_eq!((twice.first, twice.last, twice.times), (Some(1000), Some(1060), 2));
        assert!(!tried(&[(1000, "curl,bash,opencode"), (1001, "opencode")]).is_once_of_a_shell());
        assert!(!tried(&[(1000, "")]).is_once_of_a_shell(), "nobody knows who");
        assert!(!Tried::default().is_once_of_a_shell());
        let at = |count: u64, apart: u64| -> Vec<(u64, &str)> {
            (0..count).map(|time| (1000 + time * apart, "opencode")).collect()
        };
        let five = tried(&at(5, 150));
        assert!(five.is_steady(1600) && five.is_steady(1600 + 3599));
        assert!(!five.is_steady(1600 + 3600), "it was long ago");
        assert!(!tried(&at(4, 1000)).is_steady(4000), "so few");
        assert!(!tried(&at(9, 60)).is_steady(1600), "tried again and again, once");
        assert!(tried(&at(90, 10)).is_steady(1900), "all the time");
        let mut both = tried(&[(1000, "curl,bash,opencode")]);
        both.join(&tried(&[(2000, "curl,bash,opencode")]));
        assert!(!both.is_once_of_a_shell());
    }
}
