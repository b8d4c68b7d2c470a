//! What `top` draws: the status with rates, what was denied, and what lies over that. Drawing knows no daemon and no terminal.

use std::time::Instant;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Text},
    widgets::{Clear, Paragraph, Row as TableRow, Table, Wrap},
};

use crate::{
    command::top::{
        denied::Row,
        state::{Panel, Rates, Top},
        texts,
    },
    policy::lease::LeaseStatus,
    report::{
        human::{bytes, count, local_time},
        status::Status,
        view::{COLUMNS, Notice, Severity, denial, leases_text, widths},
    },
};

/// Draws all of it, as it is at the time `now`; without colours where there are to be none.
pub(super) fn draw(top: &Top, now: Instant, colors: bool, frame: &mut Frame<'_>) {
    let notices = notices(top, colors, frame.area());
    let rows = rows(top, colors);
    let height = frame.area().height;
    let above = lines(notices.len()).min(notices_room(height));
    let leased = leased(top, now);
    // The line that says at least how many leases there are; a low screen has none to give.
    let told = u16::from(!leased.is_empty() && height >= 16);
    // Denials get what is left, a line at least, beside the one of the title and that of the keys.
    let room = (height / 2 - told).min(height.saturating_sub(above + 3));
    let instances = lines(rows.len() + 1).min(room);
    let gap = (room - instances).min(1);
    // Of what is left for denials, leases take what is above a quarter of the screen, or four lines.
    let left = height.saturating_sub(above + instances + gap + 2);
    let leases =
        lease_lines(&leased, frame.area().width, left.saturating_sub((height / 4).max(4)).max(told).into());
    let [title, above, table, below, _, denials, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(above),
        Constraint::Length(instances),
        Constraint::Length(lines(leases.len())),
        Constraint::Length(gap),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(top), title);
    draw_lines(frame, above, notices);
    draw_instances(frame, table, rows);
    frame.render_widget(Text::from(leases), below);
    match &top.panel {
        None => draw_denials(top, frame, denials),
        // It needs room to be read.
        Some(panel) => {
            let area = above.union(table).union(denials);
            draw_panel(panel, frame, area);
        }
    }
    let last = match &top.said {
        Some(said) => Line::from(said.as_str()).bold(),
        None => Line::from(texts::KEYS),
    };
    frame.render_widget(last, keys);
}

fn headline(top: &Top) -> Line<'_> {
    match &top.status {
        Some((_, Status { version, config, .. })) => {
            Line::from(format!("opencode-egress {version}, policy {config}")).bold()
        }
        None => Line::from("opencode-egress").bold(),
    }
}

/// As the layout counts them.
fn lines(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// How many lines of a screen notices may take.
fn notices_room(height: u16) -> u16 {
    height / 4
}

/// The notices, each whole where there is room for all of them, else each in one line.
fn notices(top: &Top, colors: bool, Rect { width, height, .. }: Rect) -> Vec<Line<'_>> {
    let trouble = top.trouble.iter().map(|trouble| match &top.status {
        Some(_) => format!("this is from before: {trouble}"),
        None => trouble.clone(),
    });
    let trouble = trouble.map(|text| Notice { severity: Severity::Look, text });
    let status = top.status.iter().flat_map(|(_, status)| status.notices());
    let notices: Vec<_> = trouble.chain(status).collect();
    let drawn = |as_lines: fn(String, u16) -> Vec<String>| -> Vec<Line<'_>> {
        let lines = notices.iter().flat_map(|Notice { severity, text }| {
            let lines = as_lines(format!("! {text}"), width).into_iter();
            lines.map(|line| Line::styled(line, style(*severity, colors)))
        });
        lines.collect()
    };
    let mut lines = drawn(folded);
    if lines.len() > usize::from(notices_room(height)) {
        lines = drawn(|text, width| vec![fitting(text, width)]);
    }
    if lines.is_empty() && top.status.is_some() {
        lines.push(Line::from("nothing needs attention"));
    }
    lines
}

/// What is shown of an instance's rates and losses, beside [`COLUMNS`].
const MORE: [&str; 5] = ["ALLOWED/s", "", "DENIED/s", "", "LOST"];

/// The columns in the order in which they go where the screen is too narrow for all.
const DISPENSABLE: [usize; 6] = [4, 3, 6, 8, 9, 1];

/// A row for each instance, those that need attention first.
fn rows(top: &Top, colors: bool) -> Vec<(Vec<String>, Style)> {
    let mut rows: Vec<_> = top
        .status
        .iter()
        .flat_map(|(_, status)| &status.instances)
        .map(|(name, instance)| {
            let mut cells = instance.cells(name).to_vec();
            let rates = top.rates.get(name);
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
            let style = severity.map_or_else(Style::new, |severity| style(severity, colors));
            // `None` would sort before every severity.
            ((severity.is_none(), severity), (cells, style))
        })
        .collect();
    rows.sort_by_key(|(key, _)| *key);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Without colours the worse is told from the rest by being bold.
fn style(severity: Severity, colors: bool) -> Style {
    match (severity, colors) {
        (Severity::Open, true) => Style::new().fg(Color::Red),
        (Severity::Look, true) => Style::new().fg(Color::Yellow),
        (Severity::Open, false) => Style::new().bold(),
        (Severity::Look, false) => Style::new(),
    }
}

/// An instance's leases that are in force.
struct Leased<'a> {
    name: &'a str,
    leases: &'a [LeaseStatus],
    /// How long ago what they say of themselves was so, in seconds.
    passed: u64,
}

/// The instances with leases. They end in the kernel, so they do here, however rarely the daemon is asked.
fn leased(top: &Top, now: Instant) -> Vec<Leased<'_>> {
    let Some((at, status)) = &top.status else { return vec![] };
    let passed = now.saturating_duration_since(*at).as_secs();
    let leased = status.instances.iter().map(|(name, instance)| {
        // Those that end first come first.
        let over = instance.leases.partition_point(|lease| lease.seconds <= passed);
        Leased { name, leases: &instance.leases[over..], passed }
    });
    leased.filter(|leased| !leased.leases.is_empty()).collect()
}

/// A line for each instance with leases; where there is no room for all, the last one says what is not shown.
fn lease_lines(leased: &[Leased<'_>], width: u16, room: usize) -> Vec<Line<'static>> {
    let shown = if leased.len() > room { room.saturating_sub(1) } else { leased.len() };
    let (shown, rest) = leased.split_at(shown);
    let mut texts: Vec<_> = shown.iter().map(|leased| lease_line(leased, width)).collect();
    if room > 0 && !rest.is_empty() {
        let leases: usize = rest.iter().map(|leased| leased.leases.len()).sum();
        let (and, more) = if shown.is_empty() { ("", "") } else { ("and ", "more ") };
        let instances = rest.len();
        texts.push(fitting(
            format!("{and}{leases} leases of {instances} {more}instances; `opencode-egress leases` has them"),
            width,
        ));
    }
    texts.into_iter().map(Line::from).collect()
}

/// What is cut out stands before the time that is left: a rule may have dozens of ports.
fn lease_line(Leased { name, leases, passed }: &Leased<'_>, width: u16) -> String {
    let text = format!("{name}: {}", leases_text(leases, *passed).unwrap_or_default());
    let (rule, time) = text.split_at(text.rfind(" (").unwrap_or(text.len()));
    let room = width.saturating_sub(lines(time.chars().count()));
    fitting(format!("{}{time}", fitting(rule.to_owned(), room)), width)
}

/// The denials; the chosen one is in sight, and reversed.
fn draw_denials(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let chosen = top.denied.position();
    // Where there is one line, it is the chosen row's: the keys are about that.
    let titled = chosen.is_none() || area.height > 1;
    let room = usize::from(area.height).saturating_sub(usize::from(titled));
    let first = chosen.map_or(0, |chosen| (chosen + 1).saturating_sub(room));
    let title = match top.denied.len() {
        0 => "Nothing was denied lately".to_owned(),
        rows if room == 0 => format!("Denied last ({rows})"),
        rows if rows > room => {
            format!("Denied last ({} to {} of {rows})", first + 1, (first + room).min(rows))
        }
        _ => "Denied last".to_owned(),
    };
    let mut lines: Vec<_> = titled.then(|| Line::from(title).bold()).into_iter().collect();
    lines.extend(top.denied.rows().enumerate().skip(first).take(room).map(|(at, row)| {
        let is_chosen = Some(at) == chosen;
        // Without colours, and where reversing is not shown, the sign tells.
        let text = format!("{} {}", if is_chosen { ">" } else { " " }, row_text(row));
        let line = Line::from(fitting(text, area.width));
        if is_chosen { line.reversed() } else { line }
    }));
    frame.render_widget(Text::from(lines), area);
}

/// A text in lines that fit on the screen; all but the first are indented.
fn folded(text: String, width: u16) -> Vec<String> {
    let (mut lines, mut line) = (vec![], String::new());
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > usize::from(width) {
            lines.push(std::mem::replace(&mut line, format!("  {word}")));
        } else {
            let space = if line.is_empty() { "" } else { " " };
            line = format!("{line}{space}{word}");
        }
    }
    lines.push(line);
    lines.into_iter().map(|line| fitting(line, width)).collect()
}

/// A text that is cut at the screen's edge says so.
fn fitting(text: String, width: u16) -> String {
    let room = usize::from(width);
    match text.chars().count() > room {
        true => text.chars().take(room.saturating_sub(1)).chain(['…']).collect(),
        false => text,
    }
}

fn row_text(row: &Row) -> String {
    let line = &row.last.line;
    let by = match line.process() {
        (_, "", _) => " by -".to_owned(),
        (_, comm, _) => format!(" by {comm}"),
    };
    let times = if row.times > 1 { format!(" ×{}", count(row.times)) } else { String::new() };
    format!("{} {}:{times} {}{by}", time_of_day(row.last.time), row.key.instance, denial(line))
}

/// As on a clock: `22:08:16`.
fn time_of_day(time: u64) -> String {
    let local = local_time(time);
    local.get(11..19).unwrap_or(&local).to_owned()
}

fn draw_panel(panel: &Panel, frame: &mut Frame<'_>, area: Rect) {
    let [title, text] = Layout::vertical([Constraint::Length(2), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Clear, area);
    frame.render_widget(Line::from(panel.title.as_str()).bold(), title);
    let lines = panel.lines.iter().skip(panel.from).map(|line| Line::from(line.as_str()));
    let text_lines: Vec<_> = lines.collect();
    frame.render_widget(Paragraph::new(text_lines).wrap(Wrap { trim: false }), text);
}

/// Draws as many as there is room for; the last place says how many more there are.
fn draw_lines(frame: &mut Frame<'_>, area: Rect, mut lines: Vec<Line<'_>>) {
    let room = usize::from(area.height);
    if lines.len() > room {
        let more = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(Line::from(format!("and {more} more; `opencode-egress status` has them")));
    }
    frame.render_widget(Text::from(lines), area);
}

fn draw_instances(frame: &mut Frame<'_>, area: Rect, rows: Vec<(Vec<String>, Style)>) {
    let header: Vec<_> = COLUMNS.iter().chain(&MORE).map(|title| (*title).to_owned()).collect();
    // Below the header; where there are more, the last line says how many.
    let mut room = usize::from(area.height.saturating_sub(1));
    if rows.len() > room {
        room = room.saturating_sub(1);
    }
    let hidden = rows.len().saturating_sub(room);
    let mut texts = vec![header.clone()];
    texts.extend(rows.iter().map(|(cells, _)| cells.clone()));
    let widths = widths(&texts);
    let columns = columns(&widths, usize::from(area.width));
    let of = |cells: &[String]| -> Vec<String> {
        columns.iter().filter_map(|column| cells.get(*column).cloned()).collect()
    };
    let constraints = columns.iter().filter_map(|column| widths.get(*column));
    let constraints = constraints.map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
    let shown = rows.iter().take(room).map(|(cells, style)| TableRow::new(of(cells)).style(*style));
    let table =
        Table::new(shown, constraints).header(TableRow::new(of(&header)).bold()).column_spacing(SPACING);
    let rest = Constraint::Length(lines(hidden.min(1)));
    let [table_area, rest] = Layout::vertical([Constraint::Fill(1), rest]).areas(area);
    frame.render_widget(table, table_area);
    if hidden > 0 {
        frame.render_widget(Line::from(format!("and {hidden} more instances")), rest);
    }
}

/// Columns between two others.
const SPACING: u16 = 2;

/// The columns for which a screen has room.
fn columns(widths: &[usize], room: usize) -> Vec<usize> {
    let mut columns: Vec<_> = (0..widths.len()).collect();
    for dispensable in DISPENSABLE {
        let taken: usize = columns.iter().map(|column| widths[*column] + usize::from(SPACING)).sum();
        if taken <= room + usize::from(SPACING) {
            break;
        }
        columns.retain(|column| *column != dispensable);
    }
    columns
}

#[cfg(test)]
mod tests;
