//! What `top` shows: the status with rates, and the last denials. Drawing knows no daemon and no terminal.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::Line,
    widgets::{Row, Table},
};

use crate::report::{
    denial::LoggedDenial,
    human::{bytes, count, local_time},
    status::{CountersStatus, Status},
    view::{COLUMNS, Notice, Severity, denial, widths},
};

/// Denials kept; more than a screen has lines.
const KEPT: usize = 256;

/// What the daemon said last, and what is drawn of it.
#[derive(Debug, Default)]
pub(super) struct Top {
    status: Option<(Instant, Status)>,
    /// By instance.
    rates: BTreeMap<String, Rates>,
    /// The oldest first.
    denials: VecDeque<LoggedDenial>,
    /// Why the status is not of now.
    trouble: Option<String>,
}

/// By how much the counters grow in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    allowed_packets: u64,
    allowed_bytes: u64,
    denied_packets: u64,
    denied_bytes: u64,
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
        if self.denials.len() == KEPT {
            self.denials.pop_front();
        }
        self.denials.push_back(event);
    }

    /// Forgets the denials: a daemon that is asked anew sends the last ones again.
    pub(super) fn forget_denials(&mut self) {
        self.denials.clear();
    }

    /// Draws it all.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let notices = self.notices();
        let rows = self.rows();
        let instances = u16::try_from(rows.len() + 1).unwrap_or(u16::MAX);
        let height = frame.area().height;
        // Denials get what is left, at least a quarter.
        let [title, top, table, denials] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(u16::try_from(notices.len()).unwrap_or(u16::MAX).min(height / 4)),
            Constraint::Length(instances.saturating_add(1).min(height / 2)),
            Constraint::Fill(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.title(), title);
        draw_lines(frame, top, notices);
        draw_instances(frame, table, rows);
        self.draw_denials(frame, denials);
    }

    fn title(&self) -> Line<'_> {
        match &self.status {
            Some((_, Status { version, config, .. })) => {
                Line::from(format!("opencode-egress {version}, policy {config}; q leaves")).bold()
            }
            None => Line::from("opencode-egress; q leaves").bold(),
        }
    }

    fn notices(&self) -> Vec<Line<'_>> {
        let trouble = self.trouble.iter().map(|trouble| match &self.status {
            Some(_) => format!("this is from before: {trouble}"),
            None => trouble.clone(),
        });
        let trouble = trouble.map(|text| Notice { severity: Severity::Look, text });
        let status = self.status.iter().flat_map(|(_, status)| status.notices());
        let mut lines: Vec<_> = trouble
            .chain(status)
            .map(|Notice { severity, text }| Line::styled(format!("! {text}"), color(severity)))
            .collect();
        if lines.is_empty() && self.status.is_some() {
            lines.push(Line::from("nothing needs attention"));
        }
        lines
    }

    /// A row for each instance, those that need attention first.
    fn rows(&self) -> Vec<(Vec<String>, Style)> {
        let mut rows: Vec<_> = self
            .status
            .iter()
            .flat_map(|(_, status)| &status.instances)
            .map(|(name, instance)| {
                let mut cells = instance.cells(name).to_vec();
                let rates = self.rates.get(name);
                let rate = |shown: fn(u64) -> String, number: fn(&Rates) -> u64| {
                    rates.map_or_else(|| "-".to_owned(), |rates| shown(number(rates)))
                };
                cells.extend([
                    rate(count, |rates| rates.allowed_packets),
                    rate(bytes, |rates| rates.allowed_bytes),
                    rate(count, |rates| rates.denied_packets),
                    rate(bytes, |rates| rates.denied_bytes),
                    count(instance.counters.lost),
                ]);
                let severity = instance.notices(name).first().map(|notice| notice.severity);
                // `None` would sort before every severity.
                ((severity.is_none(), severity), (cells, severity.map_or_else(Style::new, color)))
            })
            .collect();
        rows.sort_by_key(|(key, _)| *key);
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn draw_denials(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(1));
        let title = match self.denials.is_empty() {
            true => "Nothing was denied lately",
            false => "Denied last",
        };
        let mut lines = vec![Line::from(title).bold()];
        lines.extend(self.denials.iter().rev().take(room).map(|event| {
            let LoggedDenial { time, instance, line } = event;
            let by = match line.flow().map(|line| line.comm.as_str()) {
                Some("") => " by -".to_owned(),
                Some(comm) => format!(" by {comm}"),
                None => String::new(),
            };
            let repeats = match line.suppressed() {
                0 => String::new(),
                n => format!(", and {n} before"),
            };
            Line::from(format!("{} {instance}: {}{by}{repeats}", local_time(*time), denial(line)))
        }));
        draw_lines(frame, area, lines);
    }
}

fn color(severity: Severity) -> Style {
    Style::new().fg(match severity {
        Severity::Open => Color::Red,
        Severity::Look => Color::Yellow,
    })
}

/// Draws as many as there is room for; the last place says how many more there are.
fn draw_lines(frame: &mut Frame<'_>, area: Rect, mut lines: Vec<Line<'_>>) {
    let room = usize::from(area.height);
    if lines.len() > room {
        let more = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(Line::from(format!("and {more} more; `opencode-egress status` has them")));
    }
    frame.render_widget(ratatui::text::Text::from(lines), area);
}

fn draw_instances(frame: &mut Frame<'_>, area: Rect, rows: Vec<(Vec<String>, Style)>) {
    let more = ["ALLOWED/s", "", "DENIED/s", "", "LOST"];
    let header: Vec<_> = COLUMNS.iter().chain(&more).map(|title| (*title).to_owned()).collect();
    let room = usize::from(area.height.saturating_sub(2));
    let hidden = rows.len().saturating_sub(room);
    let mut texts = vec![header.clone()];
    texts.extend(rows.iter().map(|(cells, _)| cells.clone()));
    let widths = widths(&texts).into_iter().map(|width| u16::try_from(width).unwrap_or(u16::MAX));
    let shown = rows.into_iter().take(room).map(|(cells, style)| Row::new(cells).style(style));
    let table =
        Table::new(shown, widths.map(Constraint::Length)).header(Row::new(header).bold()).column_spacing(2);
    let [table_area, rest] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(area);
    frame.render_widget(table, table_area);
    if hidden > 0 {
        frame.render_widget(Line::from(format!("and {hidden} more instances")), rest);
    }
}

#[cfg(test)]
mod tests;
