//! What `top` knows, and what a key makes of it. It knows no daemon and no terminal.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::{
    command::top::{
        denied::{Denied, Row},
        texts,
    },
    policy::{lease::LeaseRule, target::Target},
    report::{
        denial::LoggedDenial,
        status::{CountersStatus, Status},
    },
};

/// What the daemon said last, what is chosen of it, and what lies over it.
#[derive(Debug, Default)]
pub(super) struct Top {
    pub(super) status: Option<(Instant, Status)>,
    /// By instance.
    pub(super) rates: BTreeMap<String, Rates>,
    pub(super) denied: Denied,
    /// Why the status is not of now.
    pub(super) trouble: Option<String>,
    pub(super) panel: Option<Panel>,
    /// What became of the last key, until the next one.
    pub(super) said: Option<String>,
}

/// A text that lies over the denials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) lines: Vec<String>,
    /// The first line that is shown.
    pub(super) from: usize,
    /// What `y` grants.
    pub(super) grant: Option<Grant>,
}

/// A rule that is to be granted for an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) instance: String,
    pub(super) rule: LeaseRule,
}

/// What a key asks of those who have a daemon and a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// To end.
    Leave,
    /// To ask the daemon why a flow is denied.
    Explain { instance: String, target: Target },
    /// To have the daemon grant a rule for an hour.
    Grant(Grant),
    /// To put a text on the terminal's clipboard.
    Copy(String),
}

/// By how much the counters grow in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) allowed_packets: u64,
    pub(super) allowed_bytes: u64,
    pub(super) denied_packets: u64,
    pub(super) denied_bytes: u64,
}

impl Rates {
    fn between(before: &CountersStatus, after: &CountersStatus, passed: Duration) -> Self {
        // Counters start again when the programs are of another version. Rounded up, so that little does not look
        // like nothing.
        let rate = |before: u64, after: u64| {
            let grown = u128::from(after.saturating_sub(before)) * 1000;
            u64::try_from(grown.div_ceil(passed.as_millis().max(1))).unwrap_or(u64::MAX)
        };
        Self {
            allowed_packets: rate(before.allowed_packets, after.allowed_packets),
            allowed_bytes: rate(before.allowed_bytes, after.allowed_bytes),
            denied_packets: rate(before.denied_packets, after.denied_packets),
            denied_bytes: rate(before.denied_bytes, after.denied_bytes),
        }
    }
}

impl Top {
    /// Takes the status that the daemon gave at the time `at`.
    pub(super) fn update(&mut self, at: Instant, status: Status) {
        self.trouble = None;
        self.rates.clear();
        if let Some((before, old)) = &self.status {
            for (name, instance) in &status.instances {
                if let Some(old) = old.instances.get(name) {
                    let passed = at.duration_since(*before);
                    let rates = Rates::between(&old.counters, &instance.counters, passed);
                    self.rates.insert(name.clone(), rates);
                }
            }
        }
        self.status = Some((at, status));
    }

    /// Takes note that the daemon did not answer, and why. What it said last stays on the screen.
    pub(super) fn lose(&mut self, trouble: String) {
        self.trouble = Some(trouble);
        self.rates.clear();
    }

    /// Takes a denial.
    pub(super) fn add_denial(&mut self, event: LoggedDenial) {
        self.denied.add(event);
    }

    /// Forgets the denials: a daemon that is asked anew sends the last ones again.
    pub(super) fn forget_denials(&mut self) {
        self.denied.forget();
    }

    /// Shows a text over the denials.
    pub(super) fn show(&mut self, title: impl Into<String>, text: &str) {
        let lines = text.lines().map(str::to_owned).collect();
        self.panel = Some(Panel { title: title.into(), lines, from: 0, grant: None });
    }

    /// Says what became of something, in a line.
    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.said = Some(text.into());
    }

    /// Takes what the terminal says. Returns what is to be done.
    pub(super) fn take(&mut self, event: &Event) -> Option<Action> {
        let Event::Key(KeyEvent {
            code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, ..
        }) = event
        else {
            return None;
        };
        self.said = None;
        if *code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Action::Leave);
        }
        match self.panel.take() {
            Some(panel) => self.take_on_panel(*code, panel),
            None => self.take_on_list(*code),
        }
    }

    /// Over a panel, keys that scroll it leave it there, `y` says yes to what it asks, and every other one closes it.
    fn take_on_panel(&mut self, code: KeyCode, mut panel: Panel) -> Option<Action> {
        let by = match code {
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::PageUp => -PAGE,
            KeyCode::PageDown => PAGE,
            KeyCode::Char('y') => return panel.grant.map(Action::Grant),
            _ => {
                if panel.grant.is_some() {
                    self.say("nothing was granted");
                }
                return None;
            }
        };
        panel.from = panel.from.saturating_add_signed(by).min(panel.lines.len().saturating_sub(1));
        self.panel = Some(panel);
        None
    }

    fn take_on_list(&mut self, code: KeyCode) -> Option<Action> {
        match code {
            KeyCode::Char('q') => return Some(Action::Leave),
            KeyCode::Char('?') => self.show("Keys", texts::HELP),
            KeyCode::Up | KeyCode::Char('k') => self.denied.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.denied.choose(1),
            KeyCode::PageUp => self.denied.choose(-PAGE),
            KeyCode::PageDown => self.denied.choose(PAGE),
            KeyCode::Esc => self.denied.leave(),
            KeyCode::Char(key @ ('a' | 'e' | 'w' | 'n')) => match self.denied.chosen().cloned() {
                Some(row) => return self.take_on_row(key, &row),
                None if self.denied.len() == 0 => self.say("nothing was denied lately"),
                None => self.say("choose a row first, with the arrows"),
            },
            _ => {}
        }
        None
    }

    fn take_on_row(&mut self, key: char, row: &Row) -> Option<Action> {
        let instance = &row.key.instance;
        match key {
            'e' => match row.key.what.parse() {
                Ok(target) => return Some(Action::Explain { instance: instance.clone(), target }),
                Err(invalid) => self.say(format!("it cannot be explained: {invalid}")),
            },
            'w' => self.show(format!("Who asked for {}", row.key.what), &texts::who(&row.last, row.times)),
            'a' => match row.lease() {
                Ok(rule) => {
                    self.show(format!("Let {instance} have it for an hour?"), &texts::grant(instance, &rule));
                    let grant = Grant { instance: instance.clone(), rule };
                    self.panel.iter_mut().for_each(|panel| panel.grant = Some(grant.clone()));
                }
                Err(why) => self.say(why),
            },
            _ => match row.rule().and_then(|rule| texts::option(instance, rule, row.times)) {
                Ok(option) => {
                    self.show(
                        "The option, on the terminal's clipboard where that lets programs write",
                        &option,
                    );
                    return Some(Action::Copy(option));
                }
                Err(why) => self.say(why),
            },
        }
        None
    }
}

/// How many lines a page key goes.
const PAGE: isize = 10;

#[cfg(test)]
mod tests;
