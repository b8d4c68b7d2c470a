//! What was denied to an instance, put together from its lines: the journal's, or those that the daemon writes.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    policy::{
        destination::{Destination, protocol_named},
        explain::NAME_NOT_ALLOWED,
        suggest::{DeniedDestination, DeniedName, Program, Tried},
    },
    report::denial::{Line, LoggedDenial},
};

/// Destinations, and names, that the daemon remembers of an instance.
const MOST: usize = 1024;
/// Whoever is steadily denied more than this searches for something, and lacks no rules.
const MOST_STEADY: usize = 16;

/// What lines say of one thing that was denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// How often.
    pub attempts: u64,
    /// How many of them passed, because the instance was in audit mode.
    pub passed: u64,
    /// When, and by whom.
    pub tried: Tried,
}

/// A line, beside what it is about.
pub struct TriedLine {
    /// When; seconds since 1970.
    pub at: u64,
    /// Which program, if that is known.
    pub who: Option<Program>,
    /// The name of its process, where nobody knows who started it.
    pub process: Option<String>,
    /// How many denials it stands for.
    pub denials: u64,
    /// Whether they passed.
    pub passed: bool,
}

impl TriedLine {
    /// That of a question: of a process that had ended when it was looked for, or whose parents had, nobody knows whether a shell started it.
    #[must_use]
    pub fn of_question(self, via: &[String]) -> Self {
        match via.is_empty() {
            true => Self { process: self.who.map(|program| program.name), who: None, ..self },
            false => self,
        }
    }
}

/// A denied flow: where to, why, and by which name. Another reason is another denial, and so is another name that brought the address.
pub type DeniedFlow = (Destination, String, Option<String>);

/// What an instance's lines say was denied.
#[derive(Clone, Debug, Default)]
pub struct DeniedLines {
    flows: BTreeMap<DeniedFlow, Said>,
    /// Names that were asked for in vain.
    questions: BTreeMap<String, Said>,
    /// When flows by a name, wherever its addresses were, and questions for it were denied.
    names: BTreeMap<String, Said>,
}

impl DeniedLines {
    /// Adds a line that the daemon writes, and forgets what was longest ago where that is too much.
    pub fn add(&mut self, event: &LoggedDenial) {
        let at = event.time;
        let denials = 1 + event.line.suppressed();
        let (_, comm, caller) = event.line.process();
        let who = Program::of(comm, &caller.via);
        match &event.line {
            Line::Flow(line) => {
                let Some(protocol) = protocol_named(&line.proto) else { return };
                let destination = Destination { address: line.dst, port: line.dport, protocol: protocol.0 };
                let line_of = TriedLine { at, who, process: None, denials, passed: line.audit };
                self.add_flow((destination, line.reason.clone(), line.name.clone()), line_of);
            }
            Line::Question(line) if line.reason == NAME_NOT_ALLOWED => {
                let line_of = TriedLine { at, who, process: None, denials, passed: line.audit };
                self.add_question(line.query.clone(), line_of.of_question(&caller.via));
            }
            Line::Question(_) => {}
        }
        make_room(&mut self.flows);
        make_room(&mut self.questions);
        make_room(&mut self.names);
    }

    /// Adds a line of a denied flow.
    pub fn add_flow(&mut self, flow: DeniedFlow, line: TriedLine) {
        if let Some(name) = &flow.2 {
            self.names.entry(name.clone()).or_default().add(&line);
        }
        self.flows.entry(flow).or_default().add(&line);
    }

    /// Adds a line of a question that was refused because no rule lists the name.
    pub fn add_question(&mut self, name: String, line: TriedLine) {
        self.names.entry(name.clone()).or_default().add(&line);
        self.questions.entry(name).or_default().add(&line);
    }

    /// The denied flows.
    pub fn flows(&self) -> impl Iterator<Item = (&DeniedFlow, &Said)> {
        self.flows.iter()
    }

    /// The names that were asked for in vain.
    pub fn questions(&self) -> impl Iterator<Item = (&str, &Said)> {
        self.questions.iter().map(|(name, said)| (name.as_str(), said))
    }

    /// What is known of a destination that was denied so often for a reason, whatever brought its address.
    pub fn of_destination(&self, destination: Destination, reason: &str, attempts: u64) -> Tried {
        let first = (destination, reason.to_owned(), None);
        let same =
            self.flows.range(first..).take_while(|((of, why, _), _)| *of == destination && why == reason);
        let mut all = Said::default();
        for (_, said) in same {
            all.attempts += said.attempts;
            all.tried.join(&said.tried);
        }
        all.of_all(attempts)
    }

    /// What is known of a name that was asked for in vain so often.
    pub fn of_question(&self, name: &str, attempts: u64) -> Tried {
        self.questions.get(name).cloned().unwrap_or_default().of_all(attempts)
    }

    /// The denied flows as a suggestion is made of them.
    pub fn destinations(&self) -> Vec<DeniedDestination> {
        self.flows.iter().map(destination).collect()
    }

    /// The names as a suggestion is made of them.
    pub fn names(&self) -> Vec<DeniedName> {
        let denied = |(name, said): (&String, &Said)| DeniedName {
            name: name.clone(),
            attempts: said.attempts,
            tried: said.tried.clone(),
        };
        self.questions.iter().map(denied).collect()
    }

    /// What is denied steadily, and was lately: of a name the flows to all its addresses, and the questions. Nothing where that is more than
    /// a few missing rules explain.
    pub fn steady(&self, now: u64) -> (Vec<DeniedDestination>, Vec<DeniedName>) {
        // Of what has a name the times are those of the name, and not those of one address.
        let times = |name: Option<&String>, said: &Said| {
            let of_name = name.and_then(|name| self.names.get(name));
            Some(of_name.unwrap_or(said).tried.clone()).filter(|tried| tried.is_steady(now))
        };
        let destinations = self.flows.iter().filter_map(|(flow, said)| {
            let tried = times(flow.2.as_ref(), said)?;
            Some(DeniedDestination { tried, ..destination((flow, said)) })
        });
        let names = self.questions.iter().filter_map(|(name, said)| {
            let tried = times(Some(name), said)?;
            Some(DeniedName { name: name.clone(), attempts: said.attempts, tried })
        });
        let (destinations, names): (Vec<_>, Vec<_>) = (destinations.collect(), names.collect());
        let of_names = destinations.iter().filter_map(|denied| denied.name.as_ref());
        let of_names: BTreeSet<_> = of_names.chain(names.iter().map(|denied| &denied.name)).collect();
        let nameless = destinations.iter().filter(|denied| denied.name.is_none()).count();
        if of_names.len() + nameless > MOST_STEADY { (vec![], vec![]) } else { (destinations, names) }
    }
}

fn destination(((destination, reason, name), said): (&DeniedFlow, &Said)) -> DeniedDestination {
    DeniedDestination {
        destination: *destination,
        reason: reason.clone(),
        attempts: said.attempts,
        name: name.clone(),
        tried: said.tried.clone(),
    }
}

impl Said {
    /// What is known where there were so many: when lines do not tell of all of them, the first may have been long before.
    fn of_all(mut self, attempts: u64) -> Tried {
        self.tried.first = self.tried.first.filter(|_| self.attempts >= attempts);
        self.tried
    }

    /// Whether it passed at some time, and whether it was refused at some.
    pub fn both(&self) -> (bool, bool) {
        (self.passed > 0, self.passed < self.attempts)
    }

    fn add(&mut self, line: &TriedLine) {
        self.attempts += line.denials;
        self.passed += if line.passed { line.denials } else { 0 };
        self.tried.add(line.at, line.who.clone());
        line.process.iter().for_each(|name| self.tried.add_process(name));
    }
}

/// Forgets what was tried last the longest ago.
fn make_room<K: Clone + Ord>(of: &mut BTreeMap<K, Said>) {
    if of.len() > MOST {
        let oldest = of.iter().min_by_key(|(_, said)| said.tried.last).map(|(key, _)| key.clone());
        oldest.map(|key| of.remove(&key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        denial::{Asker, QuestionLine},
        view::tests::event,
    };

    /// A line of a flow to this address, by this name, at a second.
    fn flow(at: u64, to: [u8; 4], name: Option<&str>) -> LoggedDenial {
        let LoggedDenial { line: Line::Flow(line), .. } = event(at) else { panic!("it is of a flow") };
        let name = name.map(str::to_owned);
        let line =
            Line::Flow(crate::report::denial::DenialLine { dst: to.into(), name, suppressed: 2, ..line });
        LoggedDenial { time: at, instance: "a".to_owned(), line }
    }

    fn question(at: u64, query: &str) -> LoggedDenial {
        let (query, reason) = (query.to_owned(), NAME_NOT_ALLOWED.to_owned());
        let line = QuestionLine {
            query,
            qtype: "A".into(),
            reason,
            address: None,
            asker: Asker::default(),
            suppressed: 0,
            audit: false,
        };
        LoggedDenial { time: at, instance: "a".to_owned(), line: Line::Question(line) }
    }

    fn lines(events: impl IntoIterator<Item = LoggedDenial>) -> DeniedLines {
        let mut lines = DeniedLines::default();
        events.into_iter().for_each(|event| lines.add(&event));
        lines
    }

    #[test]
    fn a_provider_that_is_missing_is_denied_steadily_wherever_its_addresses_are() {
        // Its name has another address each time.
        let by_name = (0..6_u8)
            .map(|time| flow(1000 + u64::from(time) * 150, [203, 0, 113, time], Some("cdn.example.org")));
        let (destinations, names) = lines(by_name).steady(2000);
        assert_eq!((destinations.len(), names.len()), (6, 0));
        assert_eq!((destinations[0].attempts, destinations[0].tried.times), (3, 6));
        let asked = (0..6).map(|time| question(1000 + time * 150, "api.example.org"));
        let (destinations, names) = lines(asked).steady(2000);
        assert_eq!((destinations.len(), names[0].attempts, names[0].tried.first), (0, 6, Some(1000)));
    }

    #[test]
    fn what_lines_do_not_tell_of_may_have_been_long_before() {
        let lines = lines([flow(1000, [203, 0, 113, 9], None), question(1000, "api.example.org")]);
        let to = "203.0.113.9:443".parse().expect("a destination");
        let first = |attempts| lines.of_destination(to, "not-allowed", attempts).first;
        assert_eq!((first(3), first(4)), (Some(1000), None));
        let first = |attempts| lines.of_question("api.example.org", attempts).first;
        assert_eq!((first(1), first(2)), (Some(1000), None));
        assert_eq!(lines.of_destination(to, "deny-rule", 0), Tried::default());
    }

    #[test]
    fn a_scan_is_not_and_neither_is_what_was_tried_for_a_minute() {
        let scan = (0..2000_u32).map(|at| flow(1000 + u64::from(at), (0xc633_0000 + at).to_be_bytes(), None));
        let scanned = lines(scan);
        assert_eq!(scanned.steady(3000), (vec![], vec![]));
        assert_eq!(scanned.flows.len(), MOST, "there is an end to what is remembered");
        let again = (0..60).map(|at| question(1000 + at, "api.example.org"));
        assert_eq!(lines(again).steady(1100), (vec![], vec![]));
        // One that goes on and on.
        let again_and_again = (0..6).flat_map(|time| (0..20).map(move |host| (1000 + time * 150, host)));
        let again_and_again = again_and_again.map(|(at, host)| flow(at, [198, 51, 100, host], None));
        assert_eq!(lines(again_and_again).steady(2000), (vec![], vec![]));
    }
}
