//! The arguments of a process that asked, while it lives. They are read by whoever looks, and are in no log: keys stand there.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::report::{
    caller::{Caller, shown_name, shown_path},
    denial::LoggedDenial,
};

/// How much of them is shown, in bytes.
const LONGEST: usize = 4096;

/// The arguments of the process that met a denial, each as it may be printed. `None`: it has ended, it has none (yet), another one has
/// its number by now, or nobody knows which one it was.
pub(super) fn of(event: &LoggedDenial) -> Option<Vec<String>> {
    let (pid, _, caller) = event.line.process();
    if pid == 0 {
        return None;
    }
    // Empty for one that has ended and is not waited for, and between the kernel's `execve` and the new program's first instruction.
    let args = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|args| !args.is_empty())?;
    // Looked at after that.
    if !is_it(pid, caller, event.time) {
        return None;
    }
    let args = args.strip_suffix(&[0]).unwrap_or(&args);
    let shown = args.get(..LONGEST).unwrap_or(args);
    Some(shown.split(|byte| *byte == 0).map(shown_path).collect())
}

/// Whether the process of that number is the one that a line is of: it has its name, and was there when it was denied something.
fn is_it(pid: u32, caller: &Caller, time: u64) -> bool {
    let Ok(name) = fs::read(format!("/proc/{pid}/comm")) else { return false };
    let name = shown_name(name.strip_suffix(b"\n").unwrap_or(&name));
    let was_there = began(pid).is_some_and(|began| began <= time);
    was_there && caller.via.first().is_none_or(|known| *known == name)
}

/// When a process began, in seconds since 1970.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field (proc_pid_stat(5)); what comes before the third may be anything.
    let stat = String::from_utf8_lossy(&stat);
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    // SAFETY: the call has no precondition.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(now.saturating_sub(u64::try_from(up).ok()?).saturating_add(ticks / per_second))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::report::{denial::Line, view::tests::event};

    #[test]
    fn they_are_shown_while_the_process_lives() {
        let mut command = Command::new("cat");
        command.args(["-", "a\nb=c d"]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("cat");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let denied = |pid, name: &str, time| {
            let mut event = event(time);
            if let Line::Flow(line) = &mut event.line {
                line.pid = pid;
                line.caller.via = vec![name.to_owned()];
            }
            event
        };
        // `spawn` returns, and the process has its new name, a moment before its arguments are there.
        while !fs::read(format!("/proc/{}/cmdline", child.id())).expect("its arguments").starts_with(b"cat\0")
        {
            std::thread::yield_now();
        }
        let shown = ["cat", "-", r"a\x0ab\x3dc\x20d"].map(str::to_owned).to_vec();
        assert_eq!(of(&denied(child.id(), "cat", now + 1)), Some(shown));
        assert_eq!(of(&denied(child.id(), "curl", now + 1)), None, "it is another one");
        assert_eq!(of(&denied(child.id(), "cat", now - 3600)), None, "it was not there then");
        assert_eq!(of(&denied(0, "cat", now + 1)), None);
        drop(child.stdin.take());
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        assert_eq!(of(&denied(child.id(), "cat", now + 1)), None, "it has ended");
    }
}
