//! `top`: the status in the terminal, again and again.

mod screen;

use std::{
    io::{IsTerminal as _, stdout},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read},
};
use signal_hook::{
    consts::{SIGHUP, SIGTERM},
    flag,
};

use crate::{
    command::{args::TopArgs, client::unexpected, top::screen::Top},
    control::{
        client::Client,
        request::{Reply, Request},
    },
    report::{denial::LoggedDenial, status::Status},
};

/// How long the daemon may take; the screen stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows the status until a key ends it.
///
/// # Errors
///
/// When there is no terminal, or it cannot be read or written any more.
pub(super) fn top(args: &TopArgs) -> Result<()> {
    if !stdout().is_terminal() {
        bail!("top draws on a terminal, and stdout is none; `opencode-egress status` prints the same once");
    }
    // Restores the terminal, also after an error or a panic; a signal ends `watch`.
    ratatui::run(|terminal| watch(terminal, &args.control.socket, Duration::from_secs(args.interval)))
}

fn watch(terminal: &mut DefaultTerminal, socket: &Path, interval: Duration) -> Result<()> {
    let mut top = Top::default();
    let mut denials = None;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
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
            terminal.draw(|frame| top.draw(frame))?;
            let left = interval.saturating_sub(asked.elapsed());
            // Denials are drawn as they come, a moment later. Keys are read also when no time is left, because a
            // daemon that hangs takes all of it.
            if ended.load(Ordering::Relaxed) || (poll(left.min(MOMENT))? && leaves(&read()?)) {
                return Ok(());
            }
            if left.is_zero() {
                break;
            }
        }
    }
}

/// How often denials are looked for.
const MOMENT: Duration = Duration::from_millis(250);

fn leaves(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || key.code == KeyCode::Char('q'))
}

fn status(socket: &Path) -> Result<Status> {
    match Client::ask(socket, &Request::Status, Duration::ZERO)?.reply(Some(PATIENCE))? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Denials as they come, until the daemon goes away.
fn follow(socket: PathBuf) -> Receiver<LoggedDenial> {
    let (sender, receiver) = channel();
    thread::spawn(move || pass_on(&socket, &sender));
    receiver
}

fn pass_on(socket: &Path, sender: &Sender<LoggedDenial>) {
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
    loop {
        match denials.try_recv() {
            Ok(event) => top.add_denial(event),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}
