//! Questions of one instance: how many there were, and those that were refused, which are told like denied flows: the first at once,
//! repeats folded into a line an interval, and no more lines than the limits let through.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    control::learned::{Counts, QueryReason},
    policy::{LogLimits, Mode, name::DnsName},
    report::{
        denial::{Asker, QuestionLine},
        journal::LeftOut,
        status::{NEWS, QuestionsStatus},
    },
};

/// How many different refused questions are remembered: so many that no rule lists, of which `suggest` makes rules, and so many others. Whoever
/// has a listed zone answers as he likes, and must not have the former forgotten.
const MOST: usize = 1024;

/// A refused question; what is the same in two of them is told once an interval.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// The name that was asked for.
    pub(crate) name: String,
    /// The type, as in `AAAA`.
    pub(crate) qtype: String,
    /// Why it was refused.
    pub(crate) reason: QueryReason,
    /// The address that no name may bring, where that is why.
    pub(crate) address: Option<IpAddr>,
}

impl Question {
    /// That for a listed name, whose answer had these addresses that no name may bring, if it had any. It is one question, however many they
    /// are, and has the lowest of them: servers have them take turns, and that is the same question.
    pub(crate) fn forbidden(name: &DnsName, addresses: &[IpAddr]) -> Option<Self> {
        let address = *addresses.iter().min()?;
        let qtype = if address.is_ipv4() { "A" } else { "AAAA" };
        Some(Self {
            name: name.to_string(),
            qtype: qtype.to_owned(),
            reason: QueryReason::ForbiddenAddress,
            address: Some(address),
        })
    }
}

/// How many denials there were, and how many of them had no line of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) total: u64,
    /// Those that were folded into another's line.
    pub(crate) folded: u64,
    /// Those over the rate.
    pub(crate) limited: u64,
    /// Those for which there was no room.
    pub(crate) lost: u64,
}

/// How often one was refused.
#[derive(Clone, Debug)]
struct Repeats {
    attempts: u64,
    /// Those without a line yet.
    suppressed: u64,
    /// When there was a line last, or would have been within the rate.
    told: Instant,
    /// Whether that was over the rate: so are its repeats.
    limited: bool,
    asker: Asker,
}

/// The questions of one instance.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    counts: Counts,
    /// Those that no rule lists.
    unlisted: HashMap<Question, Repeats>,
    /// Those that were refused for other reasons.
    others: HashMap<Question, Repeats>,
    /// When one failed last.
    failed: Option<Instant>,
    by_reason: BTreeMap<QueryReason, u64>,
    /// Refused questions over the rate, which have no line.
    limited: u64,
    /// Those that were folded into another's line.
    folded: u64,
    /// What the log was told of those that have no line.
    told: LeftOut,
    /// The time at which the rate's bucket is full again.
    bucket: Option<Instant>,
}

impl Questions {
    /// Adds what happened since the last time.
    pub(crate) fn add(&mut self, counts: &Counts) {
        if counts.failed > 0 {
            self.failed = Some(Instant::now());
        }
        let sum = &mut self.counts;
        for (sum, more) in [
            (&mut sum.questions, counts.questions),
            (&mut sum.cached, counts.cached),
            (&mut sum.answered, counts.answered),
            (&mut sum.refused, counts.refused),
            (&mut sum.failed, counts.failed),
            (&mut sum.lost, counts.lost),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Takes note of a refused question. Returns its line, if it is to have one now.
    pub(crate) fn refuse(
        &mut self,
        question: Question,
        asker: impl FnOnce() -> Option<Asker>,
        (limits, mode, now): (&LogLimits, Mode, Instant),
    ) -> Option<QuestionLine> {
        *self.by_reason.entry(question.reason).or_default() += 1;
        let is_unlisted = question.reason == QueryReason::NameNotAllowed;
        let refused = if is_unlisted { &mut self.unlisted } else { &mut self.others };
        if let Some(repeats) = refused.get_mut(&question) {
            repeats.attempts += 1;
            if now.saturating_duration_since(repeats.told) < limits.interval {
                if repeats.limited {
                    self.limited += 1;
                } else {
                    repeats.suppressed += 1;
                    self.folded += 1;
                }
                return None;
            }
        } else {
            if refused.len() >= MOST {
                let oldest = refused.iter().min_by_key(|(_, repeats)| repeats.told);
                let oldest = oldest.map(|(question, _)| question.clone());
                if let Some(gone) = oldest.and_then(|question| refused.remove(&question)) {
                    // No line will tell of them any more.
                    self.folded -= gone.suppressed;
                    self.limited += gone.suppressed;
                }
            }
            let first =
                Repeats { attempts: 1, suppressed: 0, told: now, limited: false, asker: Asker::default() };
            refused.insert(question.clone(), first);
        }
        let limited = !within_rate(&mut self.bucket, limits, now);
        let repeats = refused.get_mut(&question)?;
        repeats.limited = limited;
        if limited {
            self.limited += 1;
            repeats.told = now;
            return None;
        }
        if let Some(asker) = asker() {
            repeats.asker = asker;
        }
        let suppressed = std::mem::take(&mut repeats.suppressed);
        repeats.told = now;
        Some(line(&question, &repeats.asker, suppressed, mode))
    }

    /// Takes note of a line that found no room in the log.
    pub(crate) fn lose(&mut self) {
        self.counts.lost = self.counts.lost.saturating_add(1);
    }

    /// The lines of repeats whose interval is over and that were followed by none, as far as the limits let them through.
    pub(crate) fn due(&mut self, limits: &LogLimits, mode: Mode, now: Instant) -> Vec<QuestionLine> {
        let refused = self.unlisted.iter_mut().chain(&mut self.others);
        let due = refused.filter(|(_, repeats)| {
            repeats.suppressed > 0 && now.saturating_duration_since(repeats.told) >= limits.interval
        });
        let mut lines = vec![];
        for (question, repeats) in due {
            repeats.told = now;
            repeats.limited = !within_rate(&mut self.bucket, limits, now);
            let suppressed = std::mem::take(&mut repeats.suppressed);
            if repeats.limited {
                self.folded -= suppressed;
                self.limited += suppressed;
            } else {
                // The line itself stands for one of them.
                self.folded -= 1;
                lines.push(line(question, &repeats.asker, suppressed - 1, mode));
            }
        }
        lines
    }

    /// What has no line of its own, and of which no line of the log tells yet.
    pub(crate) fn left_out(&self) -> LeftOut {
        LeftOut { limited: self.limited, lost: self.counts.lost }.since(self.told)
    }

    /// Takes note that a line tells of these.
    pub(crate) fn tell_left_out(&mut self) {
        self.told = LeftOut { limited: self.limited, lost: self.counts.lost };
    }

    /// How many were refused in all, and what of them has no line.
    pub(crate) fn shown(&self) -> Shown {
        let Self { folded, limited, counts: Counts { lost, .. }, .. } = *self;
        Shown { total: self.by_reason.values().sum::<u64>() + lost, folded, limited, lost }
    }

    /// Addresses that answers for a listed name had, and that it may not bring, or might not when they were refused: of each answer one.
    pub(crate) fn forbidden(&self, name: &DnsName) -> Vec<IpAddr> {
        let of_name = self.others.keys().filter(|question| {
            question.reason == QueryReason::ForbiddenAddress && question.name == name.as_str()
        });
        let addresses: BTreeSet<_> = of_name.filter_map(|question| question.address).collect();
        addresses.into_iter().collect()
    }

    /// What `suggest` makes rules of: names that were refused because no rule lists them, and how often.
    pub(crate) fn unlisted(&self) -> BTreeMap<String, u64> {
        let mut names: BTreeMap<String, u64> = BTreeMap::new();
        for (question, repeats) in &self.unlisted {
            *names.entry(question.name.clone()).or_default() += repeats.attempts;
        }
        names
    }

    /// What `status` and metrics show.
    pub(crate) fn status(&self) -> QuestionsStatus {
        let Counts { questions, cached, answered, refused, failed, lost, .. } = self.counts;
        QuestionsStatus {
            questions,
            cached,
            answered,
            refused,
            failed,
            failed_lately: self.failed.is_some_and(|failed| failed.elapsed() < NEWS),
            lost,
            limited: self.limited,
            refused_by_reason: self
                .by_reason
                .iter()
                .map(|(reason, count)| (reason.as_str().to_owned(), *count))
                .collect(),
        }
    }
}

/// The token bucket, as the time at which it will be full again. Whether it has one, which is taken.
fn within_rate(bucket: &mut Option<Instant>, limits: &LogLimits, now: Instant) -> bool {
    let each = Duration::from_secs(1) / limits.per_sec.max(1);
    let full = bucket.filter(|full| *full > now).unwrap_or(now);
    if full + each > now + each * limits.burst {
        return false;
    }
    *bucket = Some(full + each);
    true
}

fn line(
    Question { name, qtype, reason, address }: &Question,
    asker: &Asker,
    suppressed: u64,
    mode: Mode,
) -> QuestionLine {
    QuestionLine {
        query: name.clone(),
        qtype: qtype.clone(),
        reason: reason.as_str().to_owned(),
        address: *address,
        asker: asker.clone(),
        suppressed,
        audit: mode == Mode::Audit,
    }
}

#[cfg(test)]
mod tests;
