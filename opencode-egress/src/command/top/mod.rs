//! `top`: the status in the terminal, again and again, and what an operator does about what was denied.

mod denied;
mod screen;
mod state;
mod texts;

use std::{
    env,
    ffi::OsStr,
    io::{IsTerminal as _, stdout},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use crossterm::{
    clipboard::CopyToClipboard,
    event::{poll, read},
    execute,
};
use ratatui::DefaultTerminal;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag,
};

use crate::{
    command::{
        args::TopArgs,
        client::unexpected,
        leases::sudo_user,
        top::state::{Action, Grant, Top},
    },
    control::{
        client::Client,
        request::{Reply, Request},
    },
    policy::lease::{LeaseKind, LeaseTime},
    report::{denial::LoggedDenial, human::local_time, status::Status},
};

/// How long the daemon may take; the screen stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take for what a key asks: a policy of many rules is looked through.
const LONG_PATIENCE: Duration = Duration::from_secs(10);
/// How often denials are looked for, and drawn; keys at once.
const MOMENT: Duration = Duration::from_millis(250);
/// Denials that wait to be looked at, and that are looked at in one turn: however many come, keys are read in between. The daemon leaves
/// out what a reader is too slow for.
const TURN: usize = 8192;
/// How long a key grants a rule.
const GRANTED: u64 = 60 * 60;

/// Shows the status until a key ends it.
///
/// # Errors
///
/// When there is no terminal, or it cannot be read or written any more.
pub(super) fn top(args: &TopArgs) -> Result<()> {
    if let Some(why) = undrawable(stdout().is_terminal(), env::var_os("TERM").as_deref()) {
        bail!("top draws on a terminal, and {why}; `opencode-egress status` prints the same once");
    }
    // Restores the terminal, also after an error or a panic; a signal ends `watch`.
    ratatui::run(|terminal| watch(terminal, &args.control.socket, Duration::from_secs(args.interval)))
}

/// Why the output is nothing to draw on, by whether it is a terminal and by the variable `TERM`.
fn undrawable(is_terminal: bool, term: Option<&OsStr>) -> Option<&'static str> {
    match term.and_then(OsStr::to_str) {
        _ if !is_terminal => Some("stdout is none"),
        // Terminals that move no cursor, as in editors and logs of builds: they show escape sequences as they are.
        Some("dumb") => Some("TERM=dumb says that nothing can be drawn on this one"),
        None | Some("") => Some("TERM, which says what can be drawn on this one, is not set"),
        Some(_) => None,
    }
}

fn watch(terminal: &mut DefaultTerminal, socket: &Path, interval: Duration) -> Result<()> {
    let mut top = Top::default();
    let mut denials = None;
    // <https://no-color.org>
    let colors = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT, SIGQUIT] {
        flag::register(signal, Arc::clone(&ended))?;
    }
    loop {
        let asked = Instant::now();
        match status(socket) {
            Ok(status) => {
                top.update(asked, status);
                if denials.is_none() {
                    top.forget_denials();
                    denials = Some(follow(socket.to_owned()));
                }
            }
            Err(error) => top.lose(format!("{error:#}")),
        }
        loop {
            if !receive(&mut top, denials.as_ref()) {
                denials = None;
            }
            terminal.draw(|frame| screen::draw(&top, Instant::now(), colors, frame))?;
            let left = interval.saturating_sub(asked.elapsed());
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Denials are drawn as they come, a moment later. Keys are read also when no time is left, because a
            // daemon that hangs takes all of it.
            if poll(left.min(MOMENT))? {
                match top.take(&read()?) {
                    Some(Action::Leave) => return Ok(()),
                    Some(action) => {
                        let changes = matches!(action, Action::Grant(_));
                        act(&mut top, socket, action)?;
                        if changes {
                            break;
                        }
                    }
                    None => {}
                }
            }
            if left.is_zero() {
                break;
            }
        }
    }
}

/// Does what a key asks.
///
/// # Errors
///
/// When the terminal cannot be written.
fn act(top: &mut Top, socket: &Path, action: Action) -> Result<()> {
    match action {
        Action::Leave => {}
        Action::Copy(text) => copy(&text)?,
        Action::Explain { instance, target } => {
            let title = format!("{instance}: {target}");
            match ask(socket, &Request::Explain { instance, destination: target }, LONG_PATIENCE) {
                Ok(Reply::Explained(explanation)) => top.show(title, &explanation.to_string()),
                Ok(other) => top.say(unexpected(&other).to_string()),
                Err(error) => top.say(format!("{error:#}")),
            }
        }
        Action::Grant(grant) => match granted(socket, grant) {
            Ok((said, notes)) if notes.is_empty() => top.say(said),
            Ok((said, notes)) => top.show(said, &notes.join("\n")),
            Err(error) => top.say(format!("{error:#}")),
        },
    }
    Ok(())
}

/// Has the daemon grant a rule. Returns what became of it, and what to know of it.
fn granted(socket: &Path, Grant { instance, rule }: Grant) -> Result<(String, Vec<String>)> {
    let request = Request::Allow {
        instance: instance.clone(),
        grants: LeaseKind::Rule(rule),
        time: LeaseTime::try_from(GRANTED)?,
        hard: false,
        reason: "by `top`".parse().ok(),
        sudo_user: sudo_user(),
    };
    match ask(socket, &request, LONG_PATIENCE)? {
        Reply::Granted { lease, notes, .. } => {
            let until = local_time(lease.until);
            Ok((format!("{instance}: {} is allowed until {until}", lease.lease.kind), notes))
        }
        other => Err(unexpected(&other)),
    }
}

/// Puts a text on the terminal's clipboard, where the terminal lets programs do that
/// (<https://invisible-island.net/xterm/ctlseqs/ctlseqs.html>, OSC 52).
fn copy(text: &str) -> Result<()> {
    Ok(execute!(stdout(), CopyToClipboard::to_clipboard_from(text))?)
}

fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Reply> {
    Ok(Client::ask(socket, request, Duration::ZERO)?.reply(Some(patience))?)
}

fn status(socket: &Path) -> Result<Status> {
    match ask(socket, &Request::Status, PATIENCE)? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Denials as they come, until the daemon goes away.
fn follow(socket: PathBuf) -> Receiver<LoggedDenial> {
    let (sender, receiver) = sync_channel(TURN);
    thread::spawn(move || pass_on(&socket, &sender));
    receiver
}

fn pass_on(socket: &Path, sender: &SyncSender<LoggedDenial>) {
    let request = Request::Events { instance: None, follow: true, leases: false };
    let Ok(mut client) = Client::ask(socket, &request, Duration::ZERO) else { return };
    while let Ok(Reply::Event(event)) = client.reply(None) {
        if sender.send(*event).is_err() {
            return;
        }
    }
}

/// Takes the denials that are there. Returns whether more can come.
fn receive(top: &mut Top, denials: Option<&Receiver<LoggedDenial>>) -> bool {
    let Some(denials) = denials else { return false };
    for _ in 0..TURN {
        match denials.try_recv() {
            Ok(event) => top.add_denial(event),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_to_draw_on_is_refused() {
        let refused = |term: Option<&str>| undrawable(true, term.map(OsStr::new)).is_some();
        assert!(refused(None) && refused(Some("")) && refused(Some("dumb")));
        assert!(!refused(Some("linux")) && !refused(Some("xterm-256color")));
        assert_eq!(undrawable(false, Some(OsStr::new("linux"))), Some("stdout is none"));
    }
}
