//! `exec`: one command in a fresh cgroup under a policy, without daemon and systemd.

mod names;
mod output;
mod scratch;
mod seal;
mod signals;
mod syscalls;

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
    thread::CapabilitySet,
};
use seccompiler::apply_filter;

pub(super) use self::scratch::is_confined_by_exec;
use self::{names::Names, output::Output, scratch::Scratch, signals::Signals};
use crate::{
    cgroups::Cgroup,
    command::args::ExecArgs,
    daemon::names::Shown,
    kernel::{
        connections::SocketDiagnosis,
        features::Features,
        instance::InstanceIndex,
        loader::{Lifetime, Loaded, load},
        maps::LoadedPolicy,
        ring::Reported,
    },
    policy::{LogLimits, Mode, Policy, Resolver, compile::compile, file},
    report::denial::DenialLine,
};

/// How many records of the kernel's are taken in one turn.
const TURN: usize = 256;

/// Capabilities with which a process would send what no cgroup sees, leave its cgroup, or undo the
/// programs; docs/threat-model.md has each one's reason.
const DROPPED: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// How often the resolver is listened to when the command has ended: each time to 16 KiB, at most.
const MOST_LEFT: u32 = 64;

/// Runs the command and returns its exit status.
///
/// # Errors
///
/// When it could not be confined or started; nothing ran then.
pub(super) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let (policy, log, resolver) = policy(args)?;
    Features::of_this_kernel().check(&policy)?;
    let compiled = compile(&policy)?;
    let mut loaded = load(&Lifetime::Process)?;
    loaded.maps.set_limits(&log)?;
    let mut loaded_policy = LoadedPolicy::load(&compiled)?;
    let mut names = match compiled.names.is_empty() {
        true => None,
        false => Some(Names::start(compiled.names, policy.mode, (log, &resolver), &mut loaded_policy)?),
    };
    let needs = loaded_policy.needs();
    loaded.maps.put_in_force(vec![(InstanceIndex::FIRST, loaded_policy)])?;
    let diagnosis = SocketDiagnosis::open().context("cannot look at open connections")?;
    let signals = Signals::take()?;
    let cgroup = Scratch::create()?;
    loaded.confine(&cgroup.0, InstanceIndex::FIRST, needs, |loaded, hook, cgroup| {
        loaded.programs.attach_for_good(hook, cgroup)
    })?;
    let (child, mut output) = spawn(args, &cgroup.0, signals.release())?;
    let status = watch(&mut loaded, child, &diagnosis, &signals, (&policy, &mut names), &mut output)?;
    let left = cgroup.kill();
    while report(&mut loaded, (&policy, &names), &mut output) {}
    if let Some(names) = &mut names {
        // What the resolver has said of it, and not what one that never stops goes on to say.
        let _ = (0..MOST_LEFT).all(|_| names.take(&mut loaded, &mut output));
    }
    conclude((&loaded, &names), status, &left, &cgroup.0, &mut output)?;
    // There is no command to pass signals on to.
    signals.release()();
    output.finish();
    Ok(exit_code(status))
}

/// The policy, and what its file says for all instances.
fn policy(args: &ExecArgs) -> Result<(Policy, LogLimits, Resolver)> {
    let (mut policy, log, resolver) = match (&args.policy, &args.instance) {
        (Some(file), Some(name)) => {
            let set = file::load(file)?;
            (set.instance(name, file)?.clone(), set.log, set.resolver)
        }
        _ => (listed(args), LogLimits::default(), Resolver::default()),
    };
    if args.audit {
        policy.mode = Mode::Audit;
    }
    policy.errno = args.errno.unwrap_or(policy.errno);
    Ok((policy, log, resolver))
}

/// The policy that the arguments list.
fn listed(args: &ExecArgs) -> Policy {
    let mut policy = Policy { deny: args.deny.clone(), loopback: args.loopback, ..Policy::default() };
    let of_presets = args.preset.iter().flat_map(|preset| &preset.allow);
    args.allow.iter().chain(of_presets).for_each(|rule| policy.allow(rule.clone()));
    policy
}

/// Starts the command, from a thread that has left this process' mount namespace for a sealed one.
fn spawn(
    args: &ExecArgs,
    cgroup: &Cgroup,
    release_signals: impl Fn() + Send + Sync + 'static,
) -> Result<(Child, Output)> {
    let Some((program, arguments)) = args.command.split_first() else { bail!("no command to run") };
    let mut entrance = cgroup.entrance()?;
    let filters = syscalls::filters()?;
    keep_descriptors()?;
    let mut command = Command::new(program);
    command.args(arguments);
    let output = Output::share_with(&mut command)?;
    // SAFETY: between fork and exec only system calls on prepared data: nothing allocates or locks, but where it fails, for
    // the message of an error.
    unsafe {
        command.pre_exec(move || {
            // "0" is the process that writes it.
            entrance.write_all(b"0")?;
            drop_capabilities()?;
            release_signals();
            // Also takes from it what setuid programs would give back.
            filters.iter().try_for_each(|filter| apply_filter(filter).map_err(io::Error::other))
        })
    };
    let start = move || {
        seal::seal_this_thread()?;
        command.spawn().with_context(|| format!("cannot run {}", program.display()))
    };
    let child = thread::scope(|scope| scope.spawn(start).join());
    let child = child.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok((child, output))
}

fn drop_capabilities() -> io::Result<()> {
    use rustix::thread::{
        capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    };
    for capability in DROPPED.iter() {
        remove_capability_from_bounding_set(capability)?;
    }
    clear_ambient_capability_set()?;
    let mut sets = capabilities(None)?;
    sets.permitted.remove(DROPPED);
    sets.effective.remove(DROPPED);
    sets.inheritable.remove(DROPPED);
    Ok(set_capabilities(None, sets)?)
}

/// Keeps what is beyond the standard streams from the command: a socket among it belongs to this
/// process' cgroup. (close_range(2) does this at once, but only marks them since Linux 5.11.)
fn keep_descriptors() -> Result<()> {
    let why = "cannot see which descriptors this process was given";
    for entry in fs::read_dir("/proc/self/fd").context(why)? {
        let name = entry.context(why)?.file_name();
        let fd: RawFd = name.to_str().and_then(|name| name.parse().ok()).context(why)?;
        if fd > libc::STDERR_FILENO {
            // SAFETY: F_SETFD only marks the descriptor; on one that is gone by now it fails.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Prints what is refused until the command ends.
fn watch(
    loaded: &mut Loaded,
    mut child: Child,
    diagnosis: &SocketDiagnosis,
    signals: &Signals,
    (policy, names): (&Policy, &mut Option<Names>),
    output: &mut Output,
) -> Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
    let ended: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the command")?;
    let stderr = io::stderr();
    loop {
        let watched = [ended.as_fd(), loaded.events.as_fd(), loaded.resets.as_fd(), signals.as_fd()];
        let mut fds = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).to_vec();
        fds.extend(output.waits_for(&stderr));
        let resolver = names.as_ref().and_then(Names::as_fd);
        fds.extend(resolver.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let patience = output.patience().map(Timespec::try_from).transpose()?;
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the command"),
        }
        let over = !fds[0].revents().is_empty();
        signals.pass_on(&ended);
        if let Some(names) = names {
            names.take(loaded, output);
        }
        reset(loaded, diagnosis, output);
        report(loaded, (policy, names), output);
        output.go_on();
        if over {
            return child.wait().context("cannot wait for the command");
        }
    }
}

/// Resets connections of which a packet was refused, so that the command does not wait for an answer.
fn reset(loaded: &mut Loaded, diagnosis: &SocketDiagnosis, output: &mut Output) {
    loaded.resets.take(TURN, |request| {
        if let Err(error) = diagnosis.reset_requested(request, true) {
            output.say(&format!("a refused connection is not reset, so its program waits: {error}"));
        }
    });
}

/// Prints some of what was refused. Returns whether there may be more.
fn report(loaded: &mut Loaded, (policy, names): (&Policy, &Option<Names>), output: &mut Output) -> bool {
    let programs_look = loaded.callers.is_ok();
    loaded.events.take(TURN, |reported| match reported {
        Ok(Reported { denial, mut caller }) => {
            if !programs_look && denial.event.pid != 0 {
                caller = scratch::caller(denial.event.pid);
            }
            let line = DenialLine::of(&denial, denial.event.suppressed).with_hint(policy);
            let line = line.with_caller(caller);
            let name = names.as_ref().and_then(|names| names.name_of(line.dst));
            output.say(&format!("denied: {}", line.with_name(name)));
        }
        Err(error) => output.say(&error.to_string()),
    })
}

/// Says what no line said.
fn conclude(
    (loaded, names): (&Loaded, &Option<Names>),
    status: ExitStatus,
    left: &[u32],
    cgroup: &Cgroup,
    output: &mut Output,
) -> Result<()> {
    if status.signal() == Some(libc::SIGSYS) {
        output.say("the command was ended by SIGSYS, as by a system call of another architecture: exec runs no 32-bit programs");
    }
    let denied = loaded.maps.counters(InstanceIndex::FIRST)?.denied;
    let total = denied.reasons.iter().map(|counter| counter.packets).sum();
    let flows = Shown { total, folded: denied.folded, limited: denied.limited, lost: denied.lost };
    let questions = names.as_ref().map(Names::shown).unwrap_or_default();
    if let Some(summary) = summary(flows, questions) {
        output.say(&summary);
    }
    if !left.is_empty() {
        let ids: Vec<_> = left.iter().map(u32::to_string).collect();
        output.say(&format!(
            "cannot end what the command left running (process {}); it stays confined in {}, which can be removed once it has ended",
            ids.join(", "),
            cgroup.path().display()
        ));
    }
    Ok(())
}

/// What no line shows of denied flows and refused questions, if there is something.
fn summary(flows: Shown, questions: Shown) -> Option<String> {
    let sum = |of: fn(Shown) -> u64| of(flows) + of(questions);
    let (total, folded) = (sum(|shown| shown.total), sum(|shown| shown.folded));
    let (limited, lost) = (sum(|shown| shown.limited), sum(|shown| shown.lost));
    (folded + limited + lost > 0).then(|| {
        format!("{total} denied in all; not shown: {folded} repeats, {limited} over the rate, {lost} lost")
    })
}

/// As shells have it: 128 and the signal's number for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_without_a_line_are_in_the_summary() {
        let all_shown = Shown { total: 2, ..Shown::default() };
        let sixty = Shown { total: 60, folded: 5, limited: 35, lost: 1 };
        assert_eq!(summary(all_shown, all_shown), None);
        let told = "62 denied in all; not shown: 5 repeats, 35 over the rate, 1 lost";
        for [flows, questions] in [[all_shown, sixty], [sixty, all_shown]] {
            assert_eq!(summary(flows, questions).as_deref(), Some(told));
        }
    }
}
