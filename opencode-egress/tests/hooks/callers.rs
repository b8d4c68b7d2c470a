//! Who asked: the file that a process runs, by whom it came to be, and its cgroup. Nobody reads the ring before the process has ended.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use opencode_egress::report::caller::{Caller, shown_path};
use rustix::{
    fs::MemfdFlags,
    mount::{MountPropagationFlags, mount_bind_recursive, mount_change},
    process::chroot,
    thread::{UnshareFlags, set_name, unshare_unsafe},
};

use crate::{
    network::{DENIED, PORT},
    probe::Outcome,
    sys::send_to,
    tcp::tcp,
    udp::udp,
    world::{World, base_policy},
};

/// A directory of the test's own.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("opencode-egress-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path.canonicalize().expect("its path"))
    }

    /// A copy of a shell.
    fn shell(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::copy(shell(), &path).expect("a copy");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn shell() -> PathBuf {
    fs::canonicalize("/bin/bash").expect("bash")
}

fn shown(path: &Path) -> String {
    shown_path(path.as_os_str().as_bytes())
}

/// A command of bash's that is denied, and that ends with its error.
fn attempt() -> String {
    format!(": > /dev/tcp/{DENIED}/{PORT}")
}

/// Runs a program as the unit's second process, the first one is called `first`, and returns what was told of the one denial.
#[track_caller]
fn told_of(world: &mut World, program: &mut Command) -> (String, Caller) {
    told_by(world, || {
        let output = program.stdin(Stdio::null()).output()?;
        match String::from_utf8_lossy(&output.stderr) {
            said if said.contains("Operation not permitted") => Ok(()),
            said => Err(io::Error::other(said)),
        }
    })
}

#[track_caller]
fn told_by(world: &mut World, technique: impl FnOnce() -> io::Result<()>) -> (String, Caller) {
    world.events();
    let (outcome, _) = world.run(|| {
        set_name(c"first")?;
        technique()
    });
    assert_eq!(outcome, Outcome::DONE);
    let mut reported = world.reported();
    assert_eq!(reported.len(), 1, "one denial is told: {reported:#?}");
    let reported = reported.remove(0);
    let comm = reported.denial.event.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    (String::from_utf8_lossy(comm).into_owned(), reported.caller)
}

fn refused<T: std::fmt::Debug>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => Err(io::Error::other(format!("not refused: {other:?}"))),
    }
}

#[track_caller]
fn check(caller: &Caller, exe: &str, via: &[&str]) {
    assert_eq!(
        (caller.exe.as_deref(), &caller.via[..]),
        (Some(exe), &via.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..])
    );
    assert_eq!(caller.cgroup, None, "it is in the unit's own cgroup");
}

fn bash(script: &str) -> Command {
    let mut command = Command::new(shell());
    command.args(["-c", script]);
    command
}

#[test]
fn what_a_program_is_and_whose() {
    let mut world = World::new(&base_policy());
    let bash_path = shown(&shell());
    let (_, caller) = told_of(&mut world, &mut bash(&attempt()));
    check(&caller, &bash_path, &["bash", "first"]);

    let (_, caller) = told_of(&mut world, &mut bash(&format!("({}; :); :", attempt())));
    check(&caller, &bash_path, &["bash", "bash", "first"]);

    // After its exec a process is another one, and so are those that it starts.
    let directory = Directory::new("callers");
    let other = directory.shell("other");
    let script = format!("exec {} -c '({}; :); :'", other.display(), attempt());
    let (comm, caller) = told_of(&mut world, &mut bash(&script));
    assert_eq!(comm, "other");
    check(&caller, &shown(&other), &["other", "other", "first"]);

    let (_, caller) =
        told_of(&mut world, Command::new("./other").args(["-c", &attempt()]).current_dir(&directory.0));
    check(&caller, &shown(&other), &["other", "first"]);

    // A script's interpreter is what runs; the process has the script's name.
    let script = directory.0.join("script.sh");
    fs::write(&script, format!("#!{}\n{}\n", shell().display(), attempt())).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    let (comm, caller) = told_of(&mut world, &mut Command::new(&script));
    assert_eq!(comm, "script.sh");
    check(&caller, &bash_path, &["script.sh", "first"]);
}

#[test]
fn a_file_that_is_gone_and_one_that_never_had_a_name() {
    let mut world = World::new(&base_policy());
    let directory = Directory::new("gone");
    let gone = directory.shell("gone");
    let (_, caller) = told_by(&mut world, || {
        let mut command = Command::new(&gone);
        command.args(["-c", &format!("read; {}", attempt())]).stderr(Stdio::null());
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        fs::remove_file(&gone)?;
        // It reads the end.
        drop(child.stdin.take());
        child.wait().map(drop)
    });
    check(&caller, &format!("{}(deleted)", shown(&gone)), &["gone", "first"]);

    // It only looks so.
    let looks = directory.shell("is there (deleted)");
    let (_, caller) = told_of(&mut world, Command::new(&looks).args(["-c", &attempt()]));
    let (exe, shown_name) = (caller.exe.expect("a path"), r"/is\x20there\x20\x28deleted\x29");
    assert!(exe.ends_with(shown_name), "{exe}");

    let (_, caller) = told_by(&mut world, || {
        let file = rustix::fs::memfd_create("nameless", MemfdFlags::empty())?;
        io::copy(&mut fs::File::open(shell())?, &mut fs::File::from(file.try_clone()?))?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        Command::new(path).args(["-c", &attempt()]).output().map(drop)
    });
    assert_eq!(caller.exe.as_deref(), Some("/memfd:nameless(deleted)"));
}

/// Whatever a process calls itself, or its file, is one field.
#[test]
fn hostile_names() {
    let mut world = World::new(&base_policy());
    let directory = Directory::new("hostile");
    let hostile = directory.shell("a \"b\"\n/uid=0 exe=\u{202e}/x,y");
    let script = format!("printf 'x,y z=0' > /proc/self/comm; {}", attempt());
    let (_, caller) = told_of(&mut world, Command::new(&hostile).args(["-c", &script]));
    check(&caller, &shown(&hostile), &["x?y?z?0", "first"]);
    let line = caller.to_string();
    assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{line}");
    assert_eq!(line.split(' ').count(), 2, "two fields: {line}");
    // Longer than there is room for.
    let long = directory.shell(&["long"; 60].map(|name| format!("{name}/{name}")).join("/"));
    let (_, caller) = told_of(&mut world, Command::new(&long).args(["-c", &attempt()]));
    let exe = caller.exe.expect("a path");
    assert!(exe.starts_with(".../long/") && exe.ends_with("/long") && exe.len() > 150, "{exe}");
    assert!(long.display().to_string().ends_with(&exe[3..]), "{exe}");
}

#[test]
fn the_eight_nearest_are_named() {
    let mut world = World::new(&base_policy());
    for (depth, more) in [(6, false), (7, true), (12, true)] {
        let script = (0..depth).fold(attempt(), |inner, _| format!("({inner}; :); :"));
        let (_, caller) = told_of(&mut world, &mut bash(&script));
        let mut via = vec!["bash"; if more { 8 } else { 7 }];
        via.push(if more { "..." } else { "first" });
        assert_eq!(caller.via, via, "{depth} below the second process");
    }
}

/// A thread has a name of its own; the process is named in `via`.
#[test]
fn a_thread_is_its_process() {
    let mut world = World::new(&base_policy());
    let (comm, caller) = told_by(&mut world, || {
        let thread = std::thread::Builder::new().name("a thread".to_owned());
        thread.spawn(|| refused(tcp((DENIED, PORT).into())))?.join().expect("it does not panic")
    });
    assert_eq!(comm, "a thread");
    let own = fs::canonicalize("/proc/self/exe").expect("this program");
    check(&caller, &shown(&own), &["first"]);
}

#[test]
fn a_cgroup_below_the_units() {
    let mut world = World::new(&base_policy());
    world.move_below("payload");
    world.move_below("a job");
    let (_, caller) = told_of(&mut world, &mut bash(&attempt()));
    assert_eq!(caller.cgroup.as_deref(), Some(r"payload/a\x20job"));
    assert_eq!(caller.via, ["bash", "first"]);
}

/// Binds the whole tree to a directory, in mounts of its own.
fn bind_all(directory: &Path) -> io::Result<()> {
    // SAFETY: the probe has this thread alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount_bind_recursive("/", directory).map_err(Into::into)
}

/// Paths are those of the process' own root and mounts.
#[test]
fn a_root_of_its_own() {
    let mut world = World::new(&base_policy());
    let directory = Directory::new("root");
    let root = directory.0.join("new/root");
    fs::create_dir_all(&root).expect("a directory");
    let (_, caller) = told_by(&mut world, || {
        bind_all(&root)?;
        let (mut command, root) = (bash(&attempt()), root.clone());
        // SAFETY: between fork and exec there are system calls alone.
        unsafe { command.pre_exec(move || chroot(&root).map_err(Into::into)) };
        command.output().map(drop)
    });
    check(&caller, &shown(&shell()), &["bash", "first"]);
    // And without one, over a mount point.
    let mounted = root.join(shell().strip_prefix("/").expect("a path below the root"));
    let (_, caller) = told_by(&mut world, || {
        bind_all(&root)?;
        Command::new(&mounted).args(["-c", &attempt()]).output().map(drop)
    });
    check(&caller, &shown(&mounted), &["bash", "first"]);
}

/// A socket stays its maker's unit's. One of elsewhere who sends by it is told as it is, with no end to where it comes from.
#[test]
fn a_process_of_elsewhere() {
    let mut world = World::new(&base_policy());
    world.move_below("below");
    let outside = world.cgroup.0.path().parent().expect("the cgroup is in another one").join("cgroup.procs");
    let to = SocketAddr::from((DENIED, PORT));
    let (_, caller) = told_by(&mut world, || {
        let socket = udp(to)?;
        fs::write(&outside, "0")?;
        refused(send_to(&socket, b"data", 0, to))
    });
    assert_eq!((caller.via.first().map(String::as_str), caller.cgroup), (Some("first"), None));
    assert_eq!(
        caller.via.last().map(String::as_str),
        Some("..."),
        "where it ends nobody knows: {:?}",
        caller.via
    );
}

/// Datagrams, whichever hook judges them.
#[test]
fn who_sends_a_datagram() {
    let mut world = World::new(&base_policy());
    let to = SocketAddr::from((DENIED, PORT));
    let judged = world.judges_sendmsg() || world.loaded.programs.features().packet_knows_caller;
    assert!(judged, "one of the hooks knows the process");
    let (_, caller) = told_by(&mut world, || refused(send_to(&udp(to)?, b"data", 0, to)));
    assert_eq!(caller.via, ["first"]);
}

/// A program that ends with its error is known all the same: nothing looks for it later.
#[test]
fn a_hundred_that_end_at_once_are_known() {
    const ATTEMPTS: usize = 100;
    let mut world = World::new(&base_policy());
    world.events();
    let (outcome, _) = world.run(|| {
        set_name(c"first")?;
        for _ in 0..ATTEMPTS {
            // As the agent's shell runs curl.
            let mut command = bash(&attempt());
            let status = command.arg0("curl").stderr(Stdio::null()).status()?;
            assert!(!status.success());
        }
        Ok(())
    });
    assert_eq!(outcome, Outcome::DONE);
    let reported = world.reported();
    assert_eq!(reported.len(), ATTEMPTS);
    let pids = reported.iter().map(|reported| reported.denial.event.pid);
    assert!(pids.into_iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "they have ended");
    let expect = Caller {
        exe: Some(shown(&shell())),
        via: ["bash", "first"].map(str::to_owned).to_vec(),
        cgroup: None,
    };
    let known = reported.iter().filter(|reported| reported.caller == expect).count();
    assert!(known * 100 >= ATTEMPTS * 99, "{known} of {ATTEMPTS} are known: {:#?}", reported[0].caller);
    println!("callers known: {known} of {ATTEMPTS}");
}
