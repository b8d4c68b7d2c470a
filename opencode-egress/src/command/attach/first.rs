//! Whether anything of a unit runs before `attach`, where nothing confines it yet. systemd says what a unit runs, as it has it
//! in memory: with drop-ins, and without edits that it was not told of.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Parser as _;

use crate::{
    command::args::{self, AttachArgs, Cli},
    policy::{InstanceName, UnitName},
};

/// Where systemctl is, on Debian's layout and on NixOS'. Not looked for in PATH, which the unit chooses while this is root.
const SYSTEMCTL: [&str; 3] = ["/usr/bin/systemctl", "/bin/systemctl", "/run/current-system/sw/bin/systemctl"];

/// Why a unit may not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFirst {
    #[error(
        "{unit} runs `{line}` before `attach`, where nothing confines it; write `{wanted}` as its first `ExecStartPre=`, and this behind it"
    )]
    Earlier { unit: UnitName, line: String, wanted: String },
    #[error(
        "{unit} has `{line}`, which `ExecStartPre=` lines come after: it runs before `attach`, where nothing confines it; make it an `ExecStartPre=` line behind `{wanted}`"
    )]
    Condition { unit: UnitName, line: String, wanted: String },
    #[error(
        "{unit} has no `ExecStartPre=`, so this is not its first command; write `{wanted}` into its [Service] section"
    )]
    None { unit: UnitName, wanted: String },
    #[error("{unit} starts also when `attach` fails: its line `{line}` begins with `-`; write `{wanted}`")]
    Ignored { unit: UnitName, line: String, wanted: String },
    #[error("systemd cannot be asked what {unit} runs before `attach`: there is no {}", SYSTEMCTL.join(", nor "))]
    NoSystemctl { unit: UnitName },
    #[error("systemd cannot be asked what {unit} runs before `attach`: {program} cannot be run")]
    Run {
        unit: UnitName,
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "systemd did not say within {patience:.1?} what {unit} runs before `attach`; is it busy? (systemctl list-jobs)"
    )]
    Silent { unit: UnitName, patience: Duration },
    #[error("systemd does not say what {unit} runs before `attach`: `systemctl show {unit}` says `{said}`")]
    Unknown { unit: UnitName, said: String },
}

/// Sees to it that nothing of a unit came before this call: no `ExecCondition=`, and as the first `ExecStartPre=` a call of this
/// program for the same instance whose failure counts.
pub(super) fn comes_first(unit: &UnitName, args: &AttachArgs, patience: Duration) -> Result<(), NotFirst> {
    let shown = show(unit, patience)?;
    let own = |path: &str| {
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        identity(Path::new(path)).is_some_and(|file| Some(file) == identity(Path::new("/proc/self/exe")))
    };
    judge(unit, &args.name, &shown, own)
}

/// What `systemctl show` says of the unit.
fn show(unit: &UnitName, patience: Duration) -> Result<String, NotFirst> {
    let there = SYSTEMCTL.into_iter().find(|path| Path::new(path).exists());
    let program = there.ok_or_else(|| NotFirst::NoSystemctl { unit: unit.clone() })?;
    let error = |source| NotFirst::Run { unit: unit.clone(), program, source };
    let mut systemctl = Command::new(program)
        .args(["show", "--no-pager", "--property=LoadState,ExecCondition,ExecStartPre", "--", unit.as_str()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(error)?;
    let (sender, said) = mpsc::channel();
    if let Some(mut stdout) = systemctl.stdout.take() {
        thread::spawn(move || {
            let mut text = String::new();
            // Nobody waits any more, or it is no text: either way there is nothing to judge.
            let _ = stdout.read_to_string(&mut text).map(|_| sender.send(text));
        });
    }
    let said = said.recv_timeout(patience);
    if said.is_err() {
        let _ = systemctl.kill();
    }
    let _ = systemctl.wait();
    match said {
        Ok(said) => Ok(said),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(NotFirst::Silent { unit: unit.clone(), patience }),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(NotFirst::Unknown { unit: unit.clone(), said: String::new() })
        }
    }
}

/// Judges what `systemctl show` said. `own` is whether a path is this program.
fn judge(
    unit: &UnitName,
    name: &InstanceName,
    shown: &str,
    own: impl Fn(&str) -> bool,
) -> Result<(), NotFirst> {
    let unit = unit.clone();
    let wanted = format!("ExecStartPre=+/usr/bin/opencode-egress attach {name}");
    if !shown.lines().any(|line| line == "LoadState=loaded") {
        return Err(NotFirst::Unknown { unit, said: shown.trim().replace('\n', " ") });
    }
    let commands = |key: &'static str| {
        let lines = shown.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='));
        lines.filter(|text| !text.is_empty()).map(Shown::parse)
    };
    if let Some(command) = commands("ExecCondition").next() {
        return Err(NotFirst::Condition { unit, line: command.line("ExecCondition"), wanted });
    }
    let Some(first) = commands("ExecStartPre").next() else { return Err(NotFirst::None { unit, wanted }) };
    let line = first.line("ExecStartPre");
    if !first.attaches(name) || !own(first.path) && first.pid != std::process::id().to_string() {
        return Err(NotFirst::Earlier { unit, line, wanted });
    }
    if first.ignores_errors {
        return Err(NotFirst::Ignored { unit, line, wanted });
    }
    Ok(())
}

/// A command as `systemctl show` writes it:
/// `{ path=/bin/true ; argv[]=/bin/true x ; ignore_errors=no ; start_time=[…] ; stop_time=[…] ; pid=7 ; code=… ; status=… }`.
/// Arguments stand as they are, so one that looks like the fields behind it is found by looking from the end.
struct Shown<'a> {
    path: &'a str,
    arguments: &'a str,
    ignores_errors: bool,
    pid: &'a str,
}

impl<'a> Shown<'a> {
    fn parse(text: &'a str) -> Self {
        let begin = text.strip_prefix("{ path=").unwrap_or(text);
        let (path, rest) = begin.split_once(" ; argv[]=").unwrap_or((begin, begin));
        let (arguments, fields) = rest.rsplit_once(" ; ignore_errors=").unwrap_or((rest, ""));
        let pid = fields.split(" ; ").find_map(|field| field.strip_prefix("pid="));
        Self { path, arguments, ignores_errors: !fields.starts_with("no "), pid: pid.unwrap_or_default() }
    }

    fn line(&self, key: &str) -> String {
        let ignored = if self.ignores_errors { "-" } else { "" };
        format!("{key}={ignored}{}", self.arguments)
    }

    /// Whether it is `attach` for this instance.
    fn attaches(&self, name: &InstanceName) -> bool {
        let cli = Cli::try_parse_from(self.arguments.split_whitespace());
        cli.is_ok_and(|cli| matches!(cli.command, args::Command::Attach(args) if args.name == *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "/usr/bin/opencode-egress";

    fn command(key: &str, line: &str, ignored: &str) -> String {
        let path = line.split(' ').next().unwrap_or_default();
        format!(
            "{key}={{ path={path} ; argv[]={line} ; ignore_errors={ignored} ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }}\n"
        )
    }

    #[track_caller]
    fn check(commands: &[String], expect: Result<(), &str>) {
        let unit: UnitName = "opencode-a.service".parse().expect("a unit");
        let name = "a".parse().expect("a name");
        let shown = format!("{}LoadState=loaded\n", commands.concat());
        let judged = judge(&unit, &name, &shown, |path| path == PROGRAM);
        match (judged, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(words)) if error.to_string().contains(words) => {}
            (judged, _) => panic!("{shown}\nis judged {judged:?}, not {expect:?}"),
        }
    }

    fn pre(line: &str) -> String {
        command("ExecStartPre", line, "no")
    }

    #[test]
    fn attach_comes_first_or_not_at_all() {
        let attach = pre(&format!("{PROGRAM} attach a"));
        check(std::slice::from_ref(&attach), Ok(()));
        check(&[pre(&format!("{PROGRAM} attach --timeout 60 a")), pre("/bin/true")], Ok(()));
        let condition = command("ExecCondition", "/bin/sh -c evil", "no");
        check(
            &[condition, attach.clone()],
            Err("`ExecCondition=/bin/sh -c evil`, which `ExecStartPre=` lines"),
        );
        check(&[pre("/bin/sh -c evil"), attach.clone()], Err("runs `ExecStartPre=/bin/sh -c evil` before"));
        let other = pre(&format!("{PROGRAM} attach b"));
        check(&[other, attach.clone()], Err("attach b` before `attach`"));
        check(&[pre(&format!("/bin/sh -c {PROGRAM} attach a")), attach.clone()], Err("before `attach`"));
        check(&[pre("/tmp/opencode-egress attach a"), attach], Err("before `attach`"));
        check(&[command("ExecStartPre", &format!("{PROGRAM} attach a"), "yes")], Err("begins with `-`"));
        check(&[], Err("has no `ExecStartPre=`"));
    }

    #[test]
    fn what_looks_like_a_field_is_an_argument() {
        let evil = format!(
            "/bin/sh -c x ; ignore_errors=no ; pid={} ; argv[]={PROGRAM} attach a",
            std::process::id()
        );
        check(&[pre(&evil)], Err("before `attach`"));
    }

    #[test]
    fn a_unit_of_which_systemd_knows_nothing_is_refused() {
        let unit: UnitName = "opencode-a.service".parse().expect("a unit");
        for said in ["", "LoadState=not-found\n"] {
            let judged = judge(&unit, &"a".parse().expect("a name"), said, |_| true);
            assert!(matches!(judged, Err(NotFirst::Unknown { .. })), "{judged:?}");
        }
    }
}
