//! Denials: taken out of the ring buffer, logged, and kept for clients that ask for `events`.

mod seen;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use opencode_egress_common::{abi::DestinationKey, event::DecodeError, reason::DropReason};
use tracing::{error, warn};

use crate::{
    cgroups::{Hierarchy, process, unit_of},
    control::learned::{Counts, QueryReason},
    daemon::{
        error::DaemonError,
        names::{Names, Question},
        predecessor::Predecessor,
        state::{Daemon, Denials, InstanceState, RECENT_EVENTS},
    },
    kernel::{instance::InstanceIndex, registry::InstanceNumbers, ring::Reported},
    policy::{InstanceName, name::DnsName},
    report::{
        caller::Caller,
        denial::{Asker, DenialLine, Line, LoggedDenial, QuestionLine},
        human::{error_chain, now},
        journal::{JournalState, LeftOut},
        status::CountersStatus,
    },
};

/// Events that are taken out of the ring at a time. What is left waits for the next turn, so that whoever asks meanwhile is
/// answered.
const TURN: usize = 512;
/// A line that takes longer than this to be written is worth telling.
const STALLED: Duration = Duration::from_secs(5);

impl Daemon {
    /// Has the kernel forget the oldest denials of instances that soon have no room for new ones; a step of it.
    pub fn forget_oldest(&mut self) {
        let Self { loaded, instances, .. } = self;
        if let Err(error) = loaded.maps.make_room(instances.values().map(|instance| instance.index)) {
            warn!("what the kernel remembers of denials stays: {}", error_chain(&error));
        }
    }

    /// The last denied flows, the oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub fn recent(&self, name: Option<&str>) -> Result<Vec<LoggedDenial>, DaemonError> {
        let mut events: Vec<_> = match name {
            Some(name) => self.instance(&self.known(name)?)?.recent.iter().cloned().collect(),
            None => self.instances.values().flat_map(|instance| instance.recent.iter().cloned()).collect(),
        };
        events.sort_by_key(|event| event.time);
        Ok(events)
    }

    /// Takes events that are there, and logs and returns them; also those for which the daemons of other versions left no
    /// reader. The second value says whether it left some.
    pub fn take_events(&mut self) -> (Vec<LoggedDenial>, bool) {
        let Self { loaded, numbers, instances, confinement, policies, denials, names, .. } = self;
        let Denials { folds, journal, .. } = denials;
        let (predecessors, hierarchy) = (&mut confinement.predecessors, &confinement.hierarchy);
        let programs_look = loaded.callers.is_ok();
        let interval = policies.log.interval;
        let mut logged = vec![];
        let mut take = |reported: Result<Reported, DecodeError>| match reported {
            Ok(mut reported) => {
                let (instance, pid) = (reported.denial.event.instance, reported.denial.event.pid);
                if let (false, Some(index)) = (programs_look, InstanceIndex::new(instance)) {
                    reported.caller = find_caller(numbers, instances, hierarchy, (index, pid));
                }
                let suppressed = folds.event(&reported, Instant::now(), interval);
                let Reported { denial, .. } = &reported;
                if let Some((name, line)) = line(numbers, instances, names, &reported, suppressed) {
                    let event = logged_now(name, Line::Flow(line.clone()));
                    journal.log_denial(denial.event.instance, &event, &line);
                    remember(instances, name, &event);
                    logged.push(event);
                }
            }
            Err(error) => error!("{error}"),
        };
        for predecessor in predecessors.iter_mut() {
            predecessor.take(numbers, TURN, &mut take);
        }
        let more = loaded.events.take(TURN, &mut take);
        predecessors.retain(Predecessor::is_there);
        (logged, more)
    }

    /// Passes on the programs' debug messages, where the object has them.
    pub fn flush_debug_log(&mut self) {
        self.loaded.debug_log.flush();
    }

    /// Logs what was folded and has no event of its own.
    pub fn take_folded(&mut self) -> Vec<LoggedDenial> {
        self.log_folded(None);
        self.log_folded_questions();
        std::mem::take(&mut self.denials.unpublished)
    }

    /// Logs what was folded into an instance's lines until now: what comes next is of another mode.
    pub(in crate::daemon) fn end_folds(&mut self, index: InstanceIndex) {
        self.log_folded(Some(index));
    }

    /// Logs what was folded: of an instance, or of all of them what is due.
    fn log_folded(&mut self, of: Option<InstanceIndex>) {
        let Self { loaded, numbers, instances, denials, names, .. } = self;
        let Denials { folds, journal, unpublished, .. } = denials;
        let attempts = |key: &DestinationKey| loaded.maps.attempts(key);
        let tell = |of: &Reported, folded: u64| {
            // The line itself stands for one of them.
            let Some((name, line)) = line(numbers, instances, names, of, folded - 1) else { return true };
            let event = logged_now(name, Line::Flow(line.clone()));
            let told = journal.log_folded(of.denial.event.instance, &event, &line);
            if told {
                remember(instances, name, &event);
                unpublished.push(event);
            }
            told
        };
        match of {
            Some(index) => folds.of(index, attempts, tell),
            None => folds.due(Instant::now(), attempts, tell),
        }
    }

    /// Takes note of a question that the resolver refused to an instance, and logs it where it is to have a line. The resolver is not
    /// believed to be brief, or to keep to what is printed.
    pub(in crate::daemon) fn refuse_question(
        &mut self,
        number: u32,
        (name, qtype, reason): (&str, &str, QueryReason),
        source: SocketAddr,
        now: Instant,
    ) -> Option<LoggedDenial> {
        let index = InstanceIndex::new(number)?;
        let (name, qtype) = (shown(name, LONGEST_NAME), shown(qtype, LONGEST_TYPE));
        self.refuse(index, Question { name, qtype, reason, address: None }, source, now)
    }

    /// Takes note of an answer for a listed name that had addresses which no name may bring, and logs it.
    pub(in crate::daemon) fn refuse_addresses(
        &mut self,
        index: InstanceIndex,
        name: &DnsName,
        addresses: &[IpAddr],
        source: SocketAddr,
    ) {
        let Some(question) = Question::forbidden(name, addresses) else { return };
        let event = self.refuse(index, question, source, Instant::now());
        self.denials.unpublished.extend(event);
    }

    fn refuse(
        &mut self,
        index: InstanceIndex,
        question: Question,
        source: SocketAddr,
        now: Instant,
    ) -> Option<LoggedDenial> {
        let Self { names, policies, connections, loaded, numbers, instances, confinement, .. } = self;
        let hierarchy = &confinement.hierarchy;
        let instance = names.of.get_mut(&index)?;
        let port = instance.sockets.port();
        let asker = || match loaded.maps.asker(index, source) {
            Some(asker) => {
                Some(Asker::of(&asker, |pid| find_caller(numbers, instances, hierarchy, (index, pid))))
            }
            None => connections.user_of(source, port).map(|uid| Asker { uid: Some(uid), ..Asker::default() }),
        };
        let limits = (&policies.log, instance.mode, now);
        let line = instance.questions.refuse(question, asker, limits)?;
        self.log_question(index, line)
    }

    fn log_question(&mut self, index: InstanceIndex, line: QuestionLine) -> Option<LoggedDenial> {
        let name = &self.names.of.get(&index)?.name;
        let event = logged_now(name, Line::Question(line.clone()));
        if self.denials.journal.log_question(index.number(), &event, &line) {
            remember(&mut self.instances, name, &event);
        } else if let Some(instance) = self.names.of.get_mut(&index) {
            instance.questions.lose();
        }
        Some(event)
    }

    fn log_folded_questions(&mut self) {
        let (log, now) = (self.policies.log, Instant::now());
        let of = self.names.of.iter_mut();
        let due: Vec<_> = of
            .flat_map(|(index, instance)| {
                let lines = instance.questions.due(&log, instance.mode, now);
                lines.into_iter().map(|line| (*index, line))
            })
            .collect();
        for (index, line) in due {
            let event = self.log_question(index, line);
            self.denials.unpublished.extend(event);
        }
    }

    /// Adds questions that the resolver counted.
    pub(in crate::daemon) fn count_questions(&mut self, counts: &Counts) {
        let index = InstanceIndex::new(counts.instance);
        if let Some(instance) = index.and_then(|index| self.names.of.get_mut(&index)) {
            instance.questions.add(counts);
        }
    }

    /// An instance's counters, with what became of its lines.
    pub(in crate::daemon) fn counters(&self, index: InstanceIndex) -> Result<CountersStatus, DaemonError> {
        let lines = self.denials.journal.counts(index.number());
        Ok(CountersStatus::new(self.loaded.maps.counters(index)?, &lines))
    }

    /// Logs how many denied flows and refused questions had no line, of the instances where that is more than last time, and the daemon's own lines
    /// that had none. Notes which instances were denied sockets, or addresses whose time was over, since then.
    pub fn log_left_out(&mut self) {
        let indices: Vec<_> = self.instances.values().map(|instance| instance.index).collect();
        let counters: Vec<_> = indices.into_iter().map(|index| self.counters(index)).collect();
        let Self { instances, names, denials: Denials { journal, own_lost_told, .. }, .. } = self;
        for ((name, instance), counters) in instances.iter_mut().zip(counters) {
            let Ok(counters) = counters else { continue };
            instance.sockets_denied.see(counters.denied_for(DropReason::TooManySockets));
            instance.names_expired.see(counters.denied_for(DropReason::NameExpired));
            let CountersStatus { limited, lost, .. } = counters;
            let left_out = LeftOut { limited, lost };
            let flows = left_out.since(instance.left_out);
            let mut questions = names.of.get_mut(&instance.index).map(|names| &mut names.questions);
            let of_questions = questions.as_ref().map(|questions| questions.left_out()).unwrap_or_default();
            if [flows, of_questions] == [LeftOut::default(); 2] {
                continue;
            }
            if flows.lost > 0 {
                instance.lost_at = Some(Instant::now());
            }
            let (index, mode) = (instance.index.number(), instance.mode());
            if journal.log_left_out(index, name, mode, flows, of_questions) {
                instance.left_out = left_out;
                if let Some(questions) = &mut questions {
                    questions.tell_left_out();
                }
            }
        }
        let own_lost = journal.writing().own_lost;
        if own_lost > *own_lost_told {
            warn!(
                "lines of the daemon's own that found no room, for journald took none: {}",
                own_lost - *own_lost_told
            );
            *own_lost_told = own_lost;
        }
    }
}

/// The line of a denial, and whose it is.
fn line<'a>(
    numbers: &'a InstanceNumbers,
    instances: &BTreeMap<InstanceName, InstanceState>,
    names: &mut Names,
    Reported { denial, caller }: &Reported,
    suppressed: u64,
) -> Option<(&'a InstanceName, DenialLine)> {
    let line = DenialLine::of(denial, suppressed).with_caller(caller.clone());
    // Also one that the policy file does not have any more.
    let index = InstanceIndex::new(denial.event.instance);
    let Some(name) = index.and_then(|index| numbers.name_of(index)) else {
        warn!("denied to a cgroup of nobody: {line}");
        return None;
    };
    let line = match instances.get(name).and_then(|instance| instance.policy.as_ref()) {
        Some(policy) => line.with_hint(policy),
        None => line,
    };
    let by_name = index.and_then(|index| names.deny(index, line.dst));
    let line = line.with_name(by_name);
    if let (Some(index), DropReason::TlsNameNotAllowed, Some(server)) = (index, denial.reason, &line.name) {
        names.deny_server(index, &denial.flow, denial.destination_key().server, server);
    }
    Some((name, line))
}

/// Looks in `/proc` for a process of an instance, of which the programs could not say more than its number.
fn find_caller(
    numbers: &InstanceNumbers,
    instances: &BTreeMap<InstanceName, InstanceState>,
    hierarchy: &Hierarchy,
    (index, pid): (InstanceIndex, u32),
) -> Caller {
    match numbers.name_of(index).and_then(|name| instances.get(name)) {
        Some(instance) if pid != 0 => process::caller(hierarchy, pid, |path| {
            let (unit, cgroup) = unit_of(path)?;
            instance.units().any(|known| *known == unit).then_some(cgroup)
        }),
        _ => Caller::default(),
    }
}

/// A line with its instance, and the time that it is.
fn logged_now(instance: &InstanceName, line: Line) -> LoggedDenial {
    LoggedDenial { time: now(), instance: instance.to_string(), line }
}

/// The longest name of a refused question that is remembered: every byte of the longest name there is, escaped.
const LONGEST_NAME: usize = 4 * 255;
/// The longest of a type's.
const LONGEST_TYPE: usize = 16;

/// A text of whoever asked, as it may be printed: it cannot end its line, nor look like another field.
fn shown(text: &str, longest: usize) -> String {
    let printable = |c: char| if c.is_ascii_graphic() && c != '=' { c } else { '?' };
    text.chars().take(longest).map(printable).collect()
}

/// Keeps it for `events`.
fn remember(
    instances: &mut BTreeMap<InstanceName, InstanceState>,
    name: &InstanceName,
    event: &LoggedDenial,
) {
    if let Some(InstanceState { recent, denied, .. }) = instances.get_mut(name) {
        denied.add(event);
        if recent.len() == RECENT_EVENTS {
            recent.pop_front();
        }
        recent.push_back(event.clone());
    }
}

impl Denials {
    /// What `status` says of a log that takes no lines.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        let JournalState { waiting, stalled, own_lost } = self.journal.writing();
        if stalled < STALLED {
            return None;
        }
        let seconds = stalled.as_secs();
        Some(format!(
            "the log has taken no line for {seconds} s, and {waiting} wait; see systemctl status systemd-journald. Lines of the daemon's own that were lost: {own_lost}"
        ))
    }
}
