//! Boots a systemd for the measurement and waits for its result.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use opencode_egress::cgroups::Hierarchy;

use crate::Args;

/// The script that becomes a systemd of its own; the machine tests use it too.
const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vm-tests/machine/boot.sh");
/// Where the shared directory is under the booted systemd.
const SHARED: &str = "/run/bench";
/// Where this program is in that directory.
pub(crate) const PROGRAM: &str = "/run/bench/hotpath";
/// Where the report is in that directory.
pub(crate) const RESULT: &str = "/run/bench/result";

/// Boots, shows the progress, and prints the report.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("attaching eBPF programs and booting a systemd takes root");
    }
    let shared = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    fs::copy(env::current_exe()?, shared.path().join("hotpath"))?;
    let units = shared.path().join("files/etc/systemd/system");
    fs::create_dir_all(&units)?;
    fs::write(units.join("measure.service"), unit(args))?;
    fs::create_dir(shared.path().join("mounts"))?;
    File::create(shared.path().join("log"))?;
    boot(shared.path())?;
    let report = fs::read_to_string(shared.path().join("result"))
        .context("the measurement ended without a result; what it said is above")?;
    match &args.report {
        Some(path) => fs::write(path, report).with_context(|| format!("cannot write {}", path.display())),
        None => {
            print!("{report}");
            Ok(())
        }
    }
}

fn unit(args: &Args) -> String {
    let Args { setups, rounds, only, no_scale, .. } = args;
    let only = if only.is_empty() { String::new() } else { format!(" --only {}", only.join(",")) };
    let no_scale = if *no_scale { " --no-scale" } else { "" };
    format!(
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n\
         [Service]\nType=exec\nLimitNOFILE=65536\nLimitMEMLOCK=infinity\n\
         StandardOutput=null\nStandardError=append:{SHARED}/log\n\
         ExecStart={PROGRAM} --setups {setups} --rounds {rounds}{only}{no_scale} measure\n"
    )
}

/// Runs systemd until it ends. It gets a cgroup of its own to be the root of what it sees.
fn boot(shared: &Path) -> Result<()> {
    let hierarchy = Hierarchy::find()?;
    let own = hierarchy.of_process(std::process::id())?;
    let cgroup = hierarchy.create(&own.join(format!("opencode-egress-bench-{}", std::process::id())))?;
    let mut entrance = cgroup.entrance()?;
    let mut command = Command::new("unshare");
    command.args("--fork --kill-child --pid --mount --net --cgroup --uts --ipc".split(' '));
    command.arg("sh").arg(BOOT).arg(shared.join("mounts")).arg(shared.join("files"));
    command.arg(format!("{}={SHARED}", shared.display()));
    command.env("BOOT_UNIT", "measure.service").env("SYSTEMD_LOG_TARGET", "null");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: between fork and exec, one write to an open file.
    unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
    let mut child = command.spawn().context("cannot run unshare (util-linux)")?;
    let mut shown = 0;
    loop {
        let ended = child.try_wait()?.is_some();
        shown += show(&shared.join("log"), shown)?;
        if ended {
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    // Its processes went with it, but the kernel may still be at that.
    for _ in 0..50 {
        if cgroup.remove().is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    cgroup.remove().context("something of the measurement is still running")
}

fn show(log: &Path, from: u64) -> Result<u64> {
    let mut text = String::new();
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(from))?;
    file.read_to_string(&mut text)?;
    eprint!("{text}");
    Ok(text.len() as u64)
}
