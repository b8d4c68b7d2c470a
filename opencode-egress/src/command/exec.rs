//! `exec`: one command in a fresh cgroup under a policy, without daemon and systemd.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::MountFlags,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    thread::{CapabilitySet, UnshareFlags},
};

use crate::{
    cgroups::{Cgroup, Hierarchy},
    command::args::ExecArgs,
    kernel::{
        connections::SocketDiagnosis,
        instance::InstanceIndex,
        loader::{Lifetime, Loaded, load},
    },
    policy::{LogLimits, Mode, Policy, Rule, compile::compile, file},
    report::denial::DenialLine,
};

/// How many records of the kernel's are taken in one turn.
const TURN: usize = 256;

/// Beginning of the names of the cgroups that `exec` makes.
const CGROUP_PREFIX: &str = "opencode-egress-exec-";

/// Capabilities with which a process would send what no cgroup sees, leave its cgroup, or undo the
/// programs; docs/threat-model.md has each one's reason.
const DROPPED: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON);

/// Runs the command and returns its exit status.
///
/// # Errors
///
/// When it could not be confined or started; nothing ran then.
pub(super) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let policy = compile(&policy(args)?)?;
    let mut loaded = load(&Lifetime::Process)?;
    loaded.maps.set_limits(&LogLimits::default())?;
    loaded.maps.install(InstanceIndex::FIRST, &policy)?;
    let cgroup = Scratch::create()?;
    loaded.confine(&cgroup.0, InstanceIndex::FIRST, |loaded, hook, cgroup| {
        loaded.programs.attach_for_good(hook, cgroup)
    })?;
    let mut child = spawn(args, &cgroup.0)?;
    let status = watch(&mut loaded, &mut child)?;
    cgroup.kill();
    while report(&mut loaded) {}
    summary(&loaded)?;
    Ok(exit_code(status))
}

fn policy(args: &ExecArgs) -> Result<Policy> {
    let mut policy = match (&args.policy, &args.instance) {
        (Some(file), Some(name)) => file::load(file)?.instance(name, file)?.clone(),
        _ => Policy {
            allow: args.allow.iter().copied().map(Rule::any).collect(),
            deny: args.deny.iter().copied().map(Rule::any).collect(),
            ..Policy::default()
        },
    };
    if args.audit {
        policy.mode = Mode::Audit;
    }
    Ok(policy)
}

/// A cgroup below this process' own, so that what limits this process limits the command.
struct Scratch(Cgroup);

impl Scratch {
    fn create() -> Result<Self> {
        let hierarchy = Hierarchy::find()?;
        let own = hierarchy.of_process(std::process::id())?;
        remove_leftovers(&hierarchy, &own);
        let name = format!("{CGROUP_PREFIX}{}", std::process::id());
        Ok(Self(hierarchy.create(&own.join(name))?))
    }

    /// Ends what the command left running: nobody would report what is denied to it.
    fn kill(&self) {
        loop {
            let pids = self.0.processes();
            for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
                // It may be gone by now, which is what this wants.
                let _ = kill_process(pid, Signal::KILL);
            }
            if pids.is_empty() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Processes that are still there keep it, and stay confined in it.
        let _ = self.0.remove();
    }
}

/// Cgroups of earlier runs that were killed, once nothing runs in them.
fn remove_leftovers(hierarchy: &Hierarchy, own: &Path) {
    for entry in fs::read_dir(hierarchy.mount().join(own)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_bytes().starts_with(CGROUP_PREFIX.as_bytes())
            && let Ok(cgroup) = hierarchy.open(&own.join(&name))
            && !cgroup.is_populated()
        {
            let _ = cgroup.remove();
        }
    }
}

fn spawn(args: &ExecArgs, cgroup: &Cgroup) -> Result<Child> {
    let Some((program, arguments)) = args.command.split_first() else { bail!("no command to run") };
    let mut entrance = cgroup.entrance()?;
    let sealed = sealed_mounts()?;
    keep_descriptors()?;
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: between fork and exec only system calls on prepared data: nothing allocates or locks.
    unsafe {
        command.pre_exec(move || {
            // "0" is the process that writes it.
            entrance.write_all(b"0")?;
            seal(&sealed)?;
            drop_capabilities()
        })
    };
    command.spawn().with_context(|| format!("cannot run {}", program.display()))
}

/// Mounts through which a root user without capabilities could still leave its cgroup or remove pins.
fn sealed_mounts() -> Result<Vec<CString>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let sealed = fields.filter(|fields| matches!(fields.get(2), Some(&"cgroup" | &"cgroup2" | &"bpf")));
    Ok(sealed.map(|fields| CString::new(fields[1])).collect::<Result<_, _>>()?)
}

/// Makes those mounts read-only, in a mount namespace of the command's own.
fn seal(mounts: &[CString]) -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change, mount_remount};
    // SAFETY: the flags share nothing with other threads of this process: after fork there are none.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    for mount in mounts {
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        mount_remount(mount.as_c_str(), flags, c"")?;
    }
    Ok(())
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

/// Prints what is denied until the command ends.
fn watch(loaded: &mut Loaded, child: &mut Child) -> Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
    let ended: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the command")?;
    let diagnosis = SocketDiagnosis::open().context("cannot look at open connections")?;
    ignore_interrupts();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(loaded.events.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(loaded.resets.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the command"),
        }
        let over = !fds[0].revents().is_empty();
        reset(loaded, &diagnosis);
        report(loaded);
        if over {
            return child.wait().context("cannot wait for the command");
        }
    }
}

/// The terminal sends these to the command as well, and it is the command's to answer them.
fn ignore_interrupts() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Resets connections of which a packet was refused, so that the command does not wait for an answer.
fn reset(loaded: &mut Loaded, diagnosis: &SocketDiagnosis) {
    loaded.resets.take(TURN, |request| {
        if let Err(error) = diagnosis.reset_requested(request, true) {
            say(&format!("a refused connection is not reset, so its program waits: {error}"));
        }
    });
}

/// Prints some of what was refused. Returns whether there may be more.
fn report(loaded: &mut Loaded) -> bool {
    loaded.events.take(TURN, |denial| match denial {
        Ok(denial) => say(&format!("refused: {}", DenialLine::of(&denial, denial.event.suppressed))),
        Err(error) => say(&error.to_string()),
    })
}

/// Writes a line at once, so that what the command writes does not come into its middle.
fn say(line: &str) {
    // Nobody can be told when this fails.
    let _ = io::stderr().write_all(format!("opencode-egress: {line}\n").as_bytes());
}

fn summary(loaded: &Loaded) -> Result<()> {
    let denied = loaded.maps.counters(InstanceIndex::FIRST)?.denied;
    let total: u64 = denied.reasons.iter().map(|counter| counter.packets).sum();
    if denied.folded + denied.limited + denied.lost > 0 {
        say(&format!(
            "{total} refused in all; not shown: {} repeats, {} over the rate, {} lost",
            denied.folded, denied.limited, denied.lost
        ));
    }
    Ok(())
}

/// As shells have it: 128 and the signal's number for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
