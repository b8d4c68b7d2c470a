//! What the test harness says of the hook tests, counted: also what they could not try on this kernel.

use std::collections::BTreeMap;

/// Read line by line, from a run with `--show-output`: a test that passes is otherwise not heard.
#[derive(Default)]
pub(crate) struct Results {
    passed: usize,
    failed: usize,
    /// Why techniques were skipped, and how many for each reason.
    skipped: BTreeMap<String, usize>,
    ended: bool,
}

impl Results {
    pub(crate) fn hear(&mut self, line: &str) {
        if let Some(why) = line.strip_prefix("skipped: ") {
            *self.skipped.entry(why.to_owned()).or_default() += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
            let count = |word| {
                let mut counts = counts.split("; ").filter_map(|count| count.strip_suffix(word));
                counts.find_map(|count| count.trim().parse().ok()).unwrap_or(0)
            };
            (self.passed, self.failed, self.ended) = (count("passed"), count("failed"), true);
        }
    }

    /// Whether the harness came to its end.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether tests were run, and all passed.
    pub(crate) fn all_passed(&self) -> bool {
        self.ended && self.passed > 0 && self.failed == 0
    }

    pub(crate) fn passed(&self) -> usize {
        self.passed
    }

    pub(crate) fn run(&self) -> usize {
        self.passed + self.failed
    }

    pub(crate) fn skipped(&self) -> usize {
        self.skipped.values().sum()
    }

    /// The run in one line.
    pub(crate) fn closing_line(&self) -> String {
        let Self { passed, failed, skipped, .. } = self;
        let times = |(why, times): (&String, &usize)| match times {
            1 => why.clone(),
            _ => format!("{why}, {times} times"),
        };
        let why = skipped.iter().map(times).collect::<Vec<_>>().join("; ");
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        format!("hook tests: {passed} passed, {failed} failed, techniques skipped: {}{why}", self.skipped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Results {
        let mut results = Results::default();
        lines.lines().for_each(|line| results.hear(line));
        results
    }

    #[test]
    fn what_was_skipped_is_in_the_closing_line() {
        let whole = heard("running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n");
        assert_eq!(whole.closing_line(), "hook tests: 2 passed, 0 failed, techniques skipped: 0");
        let part = "---- tcp::a stdout ----\nskipped: no MPTCP in this kernel\n\nskipped: no SCTP in this kernel\n\
                    skipped: no MPTCP in this kernel\ntest result: FAILED. 61 passed; 2 failed; 0 ignored\n";
        assert_eq!(
            heard(part).closing_line(),
            "hook tests: 61 passed, 2 failed, techniques skipped: 3 (no MPTCP in this kernel, 2 times; no SCTP in this kernel)"
        );
    }

    #[test]
    fn a_run_that_ran_nothing_or_did_not_end_has_not_passed() {
        assert!(heard("test result: ok. 2 passed; 0 failed").all_passed());
        assert!(!heard("test result: ok. 0 passed; 0 failed; 3 filtered out").all_passed());
        assert!(!heard("test result: FAILED. 2 passed; 1 failed").all_passed());
        assert!(!heard("test tcp::a ... ok").all_passed());
    }
}
