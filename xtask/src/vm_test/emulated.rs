//! Scenarios in a virtual machine whose kernel has every controller in the unified hierarchy of cgroups, for those that take what this machine's
//! hierarchies of the first version hold back.
//!
//! It is Debian 13's kernel and root, the files that the scenarios take, at the places where they are here, and no network; QEMU emulates the
//! processor in software. In it the scenarios' machine is booted as it is here.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::{
    debian::{Kernel, parts, unpacked},
    kernels::{copy_modules, copy_program},
    qemu,
    roots::Root,
    script::{Outcome, Script, outcome, totals},
};
use crate::{
    daemon, opencode,
    process::{apt_install, fresh, output, root, run as run_command},
    render,
};

const PACKAGES: [&str; 5] = ["busybox-static", "cpio", "kmod", "squashfs-tools", "xz-utils"];
/// Modules that its root is mounted with.
const EARLY: [&str; 3] = ["drivers/block/virtio_blk", "fs/squashfs/squashfs", "fs/overlayfs/overlay"];
/// How many times as long a scenario may take: the processor is emulated.
const SLOWNESS: u64 = 6;

/// The first process: it mounts Debian's root below the files that the scenarios take.
const INIT: &str = r#"#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
for module in virtio_blk squashfs overlay; do $busybox insmod /$module.ko; done
$busybox mount -t squashfs -o ro /dev/vda /lower
$busybox mount -t squashfs -o ro /dev/vdb /files
$busybox mount -t tmpfs -o size=3g tmpfs /upper
$busybox mkdir /upper/files /upper/work
$busybox mount -t overlay -o lowerdir=/files:/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
for directory in proc sys dev; do $busybox mount --move /$directory /root/$directory; done
exec $busybox switch_root /root /start "$@"
"#;

/// What it runs then, with the driver's arguments behind it.
const START: &str = r#"#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs tmpfs $directory; done
echo +cpu +memory +pids > /sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
hostname vm
modprobe -a veth nf_tables sch_tbf
# What the machine's systemd shows of its start would be among what the scenario says.
mount --bind /dev/null /dev/console
python3 -B "$@"
echo "ended with $?"
echo o > /proc/sysrq-trigger
sleep 60
"#;

/// Runs the scenarios with one of `names` in theirs.
pub(super) fn run(names: &[String]) -> Result<()> {
    render::check()?;
    apt_install("the emulated machine", &PACKAGES)?;
    qemu::ensure()?;
    let binary = daemon::build()?;
    let scripts = Script::chosen(names)?;
    let machine = Emulated::make(&binary)?;
    let outcomes = scripts.iter().map(|script| machine.run(script, &binary));
    let outcomes = outcomes.collect::<Result<Vec<_>>>()?;
    println!("{}", totals(outcomes.iter()));
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed)).count();
    if failed > 0 { bail!("{failed} of {} scenarios failed", outcomes.len()) } else { Ok(()) }
}

/// What the machine is made of.
struct Emulated {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// Debian's root.
    lower: PathBuf,
    /// What is over it.
    files: PathBuf,
}

impl Emulated {
    fn make(binary: &Path) -> Result<Self> {
        let directory = root().join("target/emulated");
        fresh(&directory)?;
        let tree = unpacked(Kernel::V6_12, &root().join("target/kernels").join(Kernel::V6_12.name()))?;
        let (kernel, modules) = parts(&tree)?;
        let busybox = output(Command::new("sh").args(["-c", "command -v busybox"])).context("no busybox")?;
        let busybox = Path::new(&busybox);

        let files = directory.join("files");
        fs::create_dir_all(files.join("usr"))?;
        let mut copy = Command::new("cp");
        copy.args(["-r", "--parents"]).arg(env::current_exe()?).arg(binary).arg(opencode::binary()?);
        run_command("copying files", copy.args([root().join("vm-tests"), root().join("dist")]).arg(&files))?;
        copy_modules(&modules, &files.join("usr"))?;
        copy_program(busybox, Path::new("usr/sbin/modprobe"), &files)?;
        program(&files.join("start"), START)?;

        let early = directory.join("early");
        for mount in ["bin", "proc", "sys", "dev", "lower", "files", "upper", "root"] {
            fs::create_dir_all(early.join(mount))?;
        }
        copy_program(busybox, Path::new("bin/busybox"), &early)?;
        for module in EARLY {
            let mut unpack = Command::new("sh");
            unpack.args(["-c", "xz -dc \"$1\" > \"$2\"", "sh"]);
            unpack.arg(modules.join("kernel").join(module).with_extension("ko.xz"));
            let name = Path::new(module).file_name().context("a module has a name")?;
            run_command("unpacking a module", unpack.arg(early.join(name).with_extension("ko")))?;
        }
        program(&early.join("init"), INIT)?;
        let initramfs = directory.join("initramfs.gz");
        let mut cpio = Command::new("sh");
        cpio.args(["-c", "find . | cpio -o -H newc --quiet | gzip -1 > \"$1\"", "sh"]).arg(&initramfs);
        run_command("packing the initramfs", cpio.current_dir(&early))?;

        let lower = Root::Debian13.directory()?.context("Debian 13's root is a directory")?;
        let lower = squashed(&lower, &directory.join("lower.squashfs"))?;
        let files = squashed(&files, &directory.join("files.squashfs"))?;
        Ok(Self { kernel, initramfs, lower, files })
    }

    fn run(&self, script: &Script, binary: &Path) -> Result<Outcome> {
        let begin = Instant::now();
        let seconds = script.limit().as_secs() * SLOWNESS;
        let driver = root().join("vm-tests/driver.py");
        let xtask = env::current_exe()?;
        let host = render::directory().join(&script.host);
        let arguments =
            [driver.as_path(), &xtask, &host, binary, &script.path].map(|path| path.display().to_string());
        // What stands behind `--` is the first process' arguments, which it hands on.
        let append = format!("{} -- {} {seconds}", qemu::CONSOLE, arguments.join(" "));
        let mut qemu = qemu::machine(5120);
        qemu.args(["-append", &append]).arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        for image in [&self.lower, &self.files] {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,readonly=on", image.display()));
        }
        let mut machine =
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
        let console = BufReader::new(machine.stdout.take().context("the machine has no console")?);
        let (mut said, mut status) = (String::new(), None);
        for line in console.split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            println!("{line}");
            if let Some(ended) = line.strip_prefix("ended with ") {
                status = ended.parse().ok();
            }
            said += &format!("{line}\n");
        }
        machine.wait()?;
        let outcome = outcome(status, &said)?;
        script.tell(&outcome, begin);
        Ok(outcome)
    }
}

fn program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// An image of a directory.
fn squashed(directory: &Path, image: &Path) -> Result<PathBuf> {
    let mut pack = Command::new("mksquashfs");
    pack.arg(directory).arg(image).args([
        "-comp",
        "zstd",
        "-Xcompression-level",
        "1",
        "-quiet",
        "-no-progress",
    ]);
    run_command("packing a root", pack.stderr(Stdio::null()))?;
    Ok(image.to_owned())
}
