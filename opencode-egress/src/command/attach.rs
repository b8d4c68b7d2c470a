//! `attach`: a unit asks for its own confinement, before anything else of it runs.

mod first;

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use self::first::comes_first;
use crate::{
    cgroups::{CgroupError, Hierarchy, unit_of, users_unit_of},
    command::{args::AttachArgs, client::unexpected, print::print_line},
    control::{
        client::{Client, ControlError},
        request::{Reply, Request},
    },
    kernel::{
        connections::SocketDiagnosis,
        holders::{self, Holder},
        hooks::ATTACH_ORDER,
    },
    policy::UnitName,
};

/// A daemon that came at the last moment still gets this long.
const SHORTEST: Duration = Duration::from_millis(100);

/// `attach`.
pub(super) fn attach(args: &AttachArgs) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let left = || deadline.saturating_duration_since(Instant::now()).max(SHORTEST);
    // First, as far as it can be seen from here: such a unit cannot have the privileges that the next line asks for.
    if let Ok((_, cgroup)) = own_cgroup() {
        refuse_users_unit(&cgroup)?;
    }
    see_the_host().context(
        "cannot look at the host's own files, for what the unit runs before `attach`; that takes root's privileges: write the line as `ExecStartPre=+…`",
    )?;
    // Outside a system service's cgroup it is the daemon that refuses.
    let unit = own_unit()?;
    let first = unit.as_ref().map_or(Ok(()), |(unit, _)| comes_first(unit, args, left()));
    // In any case: of a unit that starts although this fails, or runs something because it did, that is confined at least.
    let confined = confine(args, unit.as_ref(), left);
    if let Err(error) = first {
        let error = anyhow::Error::from(error);
        tell_daemon(args, &format!("{error:#}"));
        return Err(error);
    }
    confined
}

/// Leaves the unit's view of the file system for that of the first process: with `+` a command has root's privileges, and still
/// sees what `TemporaryFileSystem=` and `BindPaths=` make of the root, where there may be no /proc, and a systemctl that is not
/// the host's.
fn see_the_host() -> io::Result<()> {
    // Without a place for it in the unit's root (fsmount(2), Linux 5.2).
    let proc = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&proc)?;
    let proc = fsmount(&proc, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let host = openat(proc, "1/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // This process has one thread yet, as setns(2) wants it.
    Ok(move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Has the daemon confine the unit.
fn confine(
    args: &AttachArgs,
    own_unit: Option<&(UnitName, PathBuf)>,
    left: impl Fn() -> Duration,
) -> Result<()> {
    let request = Request::Attach { instance: args.name.to_string() };
    // Of this unit's network namespace, so that the daemon can reset connections there. Without one it says so when it would.
    let diagnosis = SocketDiagnosis::open().ok().map(SocketDiagnosis::into_socket);
    let diagnosis = diagnosis.as_ref().map(AsFd::as_fd);
    let reply = loop {
        let asked = Client::ask_with(&args.control.socket, &request, diagnosis, left());
        match asked.and_then(|mut client| client.reply(Some(left()))) {
            // A daemon that could not start, and is tried again.
            Err(ControlError::Broken { .. }) if left() > SHORTEST => sleep(SHORTEST),
            // The daemon may not ask for the program's name.
            Err(ControlError::Refused(why))
                if why.contains("cannot attach")
                    && let Some((unit, cgroup)) = own_unit
                    && let Some(holder) = holder(cgroup) =>
            {
                let why = format!("{unit} cannot be confined: {holder}");
                tell_daemon(args, &why);
                bail!(why)
            }
            reply => break reply?,
        }
    };
    match reply {
        Reply::Attached { unit, generation } => {
            print_line(format_args!("{unit} is confined, generation {generation}"))
        }
        other => Err(unexpected(&other)),
    }
}

/// The cgroup of this process, in its hierarchy.
fn own_cgroup() -> Result<(Hierarchy, PathBuf), CgroupError> {
    let hierarchy = Hierarchy::find()?;
    let cgroup = hierarchy.of_process(std::process::id())?;
    Ok((hierarchy, cgroup))
}

/// Fails for a cgroup of a unit of a user's own systemd.
fn refuse_users_unit(cgroup: &Path) -> Result<()> {
    if let Some((user, unit)) = users_unit_of(cgroup) {
        bail!(
            "{unit} is a unit of user {user}'s own systemd (systemctl --user), and only system units can be confined; make it one, in /etc/systemd/system, with User="
        );
    }
    Ok(())
}

/// The system service that this process is of, and its cgroup.
fn own_unit() -> Result<Option<(UnitName, PathBuf)>> {
    let (hierarchy, cgroup) = own_cgroup()?;
    refuse_users_unit(&cgroup)?;
    Ok(unit_of(&cgroup).map(|(unit, path)| (unit, hierarchy.mount().join(path))))
}

/// Has the daemon remember a failure that it has not seen, or not whole. One that is not there remembers nothing.
fn tell_daemon(args: &AttachArgs, why: &str) {
    let failed = Request::AttachFailed { instance: args.name.to_string(), why: why.to_owned() };
    let asked = Client::ask(&args.control.socket, &failed, Duration::ZERO);
    let _ = asked.and_then(|mut client| client.reply(Some(Duration::from_secs(1))));
}

/// Somebody else's program that keeps a hook of the unit to itself.
fn holder(cgroup: &Path) -> Option<Holder> {
    ATTACH_ORDER.into_iter().find_map(|hook| holders::find(hook, cgroup))
}
