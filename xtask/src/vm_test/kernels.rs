//! The hook tests on another kernel, in a virtual machine. docs/kernels.md has what was seen.
//!
//! The machine is Debian's kernel and an initramfs of the test binary and what that calls; there is no disk
//! and no network. QEMU emulates the processor in software, so this also runs where there is no KVM.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    debian::{Kernel, parts, unpacked},
    qemu,
    steps::{self, Steps},
};
use crate::{
    build_ebpf,
    harness::Results,
    process::{apt_install, fresh, output, root, run as run_command},
};

const PACKAGES: [&str; 10] = [
    "util-linux",
    "busybox-static",
    "bash",
    "kmod",
    "cpio",
    "xz-utils",
    "binutils",
    "iproute2",
    "nftables",
    "tcpdump",
];

/// A machine on which no test has ended for so long hangs. One test takes a minute or two, and several times
/// that where others take the processor.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// The first process. The file systems are where systemd mounts them. Modules that several tests take come
/// before them: busybox's modprobe does not wait for one that is being loaded already, and says that it is there.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/root OPENCODE_EGRESS_TEST_SLOWNESS=10 OPENCODE_EGRESS_TEST_PACKETS=5000
export OPENCODE_EGRESS_TEST_OWNS_MACHINE=1
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
$busybox mount -t bpf -o mode=700 bpf /sys/fs/bpf
$busybox mount -t tmpfs tmpfs /run
modprobe -a veth sctp
ip link set lo up
version=$($busybox uname -v)
version=${version#*Debian }
echo "kernel $($busybox uname -r) ${version%% *}"
hooks --test-threads=2 --show-output $($busybox cat /names)
$busybox poweroff -f
"#;

/// Runs the tests with one of `names` in theirs, or all, on one kernel after the other.
pub(super) fn run(kernels: &[Kernel], names: &[String]) -> Result<()> {
    apt_install("the virtual machine", &PACKAGES)?;
    qemu::ensure()?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    let binaries = Binaries::build()?;
    let mut rows = vec![];
    for kernel in kernels {
        let directory = root().join("target/kernels").join(kernel.name());
        let tree = unpacked(*kernel, &directory)?;
        let initramfs = directory.join("initramfs.gz");
        pack(&directory.join("root"), &tree, &binaries, names, &initramfs)?;
        rows.push(boot(&parts(&tree)?.0, &initramfs)?);
    }
    let here = if names.iter().any(|name| name == "verifier") { Some(steps_here(&binaries)?) } else { None };
    let here = here.iter().map(|(kernel, steps)| (kernel.as_str(), steps));
    steps::write(rows.iter().map(|report| (report.kernel.as_str(), &report.steps)).chain(here))?;
    println!("\n| kernel | hook tests | techniques skipped | minutes |\n|---|---|---|---|");
    rows.iter().for_each(|report| println!("{}", report.row()));
    if rows.iter().all(|report| report.results.all_passed()) { Ok(()) } else { bail!("not all tests passed") }
}

/// What the programs take this machine's own kernel, with its version.
fn steps_here(binaries: &Binaries) -> Result<(String, Steps)> {
    let mut test = Command::new(&binaries.tests);
    let said = output(test.args(["verifier", "--show-output"])).context("the test `verifier` failed here")?;
    let mut steps = Steps::default();
    said.lines().for_each(|line| steps.hear(line));
    let kernel = output(Command::new("uname").arg("-r")).context("no uname")?;
    Ok((kernel.trim().to_owned(), steps))
}

/// What is run on the machine.
struct Binaries {
    tests: PathBuf,
    /// The daemon. On the machine it is where it was built, for the tests start it there.
    daemon: PathBuf,
}

impl Binaries {
    fn build() -> Result<Self> {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args([
            "test",
            "--quiet",
            "--package",
            "opencode-egress",
            "--test",
            "hooks",
        ]);
        // Optimised: loading the object takes the emulated processor many times as long otherwise.
        cargo.arg("--release");
        let messages = output(cargo.args(["--no-run", "--message-format=json"]))
            .context("cannot build the hook tests")?;
        let messages =
            messages.lines().map_while(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let messages: Vec<_> = messages.collect();
        let executable = |name: &str| {
            let mut named = messages.iter().filter(|message| message["target"]["name"] == name);
            let path = named.find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
            path.with_context(|| format!("cargo does not say where it put {name}"))
        };
        Ok(Self { tests: executable("hooks")?, daemon: executable("opencode-egress")? })
    }
}

/// Makes the initramfs.
fn pack(target: &Path, tree: &Path, binaries: &Binaries, names: &[String], initramfs: &Path) -> Result<()> {
    fresh(target)?;
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "root"] {
        fs::create_dir(target.join(directory))?;
    }
    symlink("bin", target.join("sbin"))?;
    fs::write(target.join("init"), INIT)?;
    fs::set_permissions(target.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(target.join("names"), names.join(" "))?;
    // tcpdump stays root, and looks it up.
    fs::write(target.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
    fs::write(target.join("etc/group"), "root:x:0:\n")?;
    let found = |name| {
        let path = output(Command::new("sh").args(["-c", "command -v \"$1\"", "sh", name]));
        path.map(PathBuf::from).with_context(|| format!("there is no {name}"))
    };
    // The kernel calls modprobe when a test asks for a protocol that is in a module.
    let programs = [
        ("busybox", "busybox"),
        ("busybox", "modprobe"),
        ("bash", "bash"),
        ("ip", "ip"),
        ("nft", "nft"),
        ("tcpdump", "tcpdump"),
    ];
    for (program, name) in programs {
        copy_program(&found(program)?, Path::new("bin").join(name).as_path(), target)?;
    }
    let daemon = binaries.daemon.strip_prefix("/")?;
    for (program, path) in [(&binaries.tests, Path::new("bin/hooks")), (&binaries.daemon, daemon)] {
        copy_program(program, path, target)?;
        let mut strip = Command::new("strip");
        run_command("leaving out debug information", strip.arg("--strip-debug").arg(target.join(path)))?;
    }
    copy_modules(&parts(tree)?.1, target)?;
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio -o -H newc --quiet | gzip -1 > \"$1\"", "sh"]).arg(initramfs);
    run_command("packing the initramfs", cpio.current_dir(target))
}

/// Copies a program with its libraries.
pub(super) fn copy_program(program: &Path, name: &Path, target: &Path) -> Result<()> {
    let copy = |from: &Path, to: &Path| {
        let to = target.join(to);
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
    };
    copy(program, name)?;
    // A static program has none, and ldd fails.
    let libraries = output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
        copy(library, library.strip_prefix("/")?)?;
    }
    Ok(())
}

/// Copies the modules that the tests or their protocols may take.
pub(super) fn copy_modules(modules: &Path, target: &Path) -> Result<()> {
    let release = modules.file_name().context("the modules have a release")?;
    let copy = target.join("lib/modules").join(release);
    fs::create_dir_all(&copy)?;
    let mut cp = Command::new("sh");
    // busybox need not know how they are compressed.
    let script =
        "cp --parents -r $(ls | grep '^modules\\.') kernel/net kernel/lib kernel/crypto kernel/drivers/net/veth.ko* \"$1\" &&
        find \"$1\" -name '*.ko.xz' -exec xz -d {} +";
    cp.current_dir(modules).args(["-c", script, "sh"]).arg(&copy);
    run_command("copying modules", &mut cp)?;
    let mut depmod = Command::new("depmod");
    run_command("listing modules", depmod.arg("-b").arg(target).arg(release))
}

/// A running machine; it is stopped when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the tests said on a machine's console.
#[derive(Default)]
struct Report {
    kernel: String,
    results: Results,
    steps: Steps,
    /// The test that ended last, and those that the harness calls slow and that have not ended.
    last: Option<String>,
    slow: BTreeSet<String>,
    took: Duration,
}

impl Report {
    /// Takes a line in, and returns whether it shows that the tests go on.
    fn hear(&mut self, line: &str) -> bool {
        self.results.hear(line);
        self.steps.hear(line);
        if let Some(kernel) = line.strip_prefix("kernel ") {
            self.kernel = kernel.to_owned();
        } else if let Some(test) = line.strip_prefix("test ") {
            if let Some((name, _)) = test.split_once(" has been running for") {
                self.slow.insert(name.to_owned());
            } else if let Some((name, _)) = test.split_once(" ... ") {
                self.slow.remove(name);
                self.last = Some(name.to_owned());
            }
        }
        line.starts_with("test ")
    }

    /// Where the tests were when they were heard last.
    fn place(&self) -> String {
        let last = self.last.as_deref().unwrap_or("none");
        format!("the last test that ended: {last}; tests that took long and had not ended: {:?}", self.slow)
    }

    /// A row as docs/kernels.md has it.
    fn row(&self) -> String {
        let (passed, run, skipped) = (self.results.passed(), self.results.run(), self.results.skipped());
        let minutes = self.took.as_secs().div_ceil(60);
        format!("| {} | {passed} of {run} passed | {skipped} | {minutes} |", self.kernel)
    }
}

/// Boots the machine, shows what it says, and fails unless the tests come to their end.
fn boot(kernel: &Path, initramfs: &Path) -> Result<Report> {
    eprintln!("xtask: booting {}", kernel.display());
    let mut qemu = qemu::machine(2048);
    qemu.args(["-append", qemu::CONSOLE]).arg("-kernel").arg(kernel);
    let qemu = qemu.arg("-initrd").arg(initramfs).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(qemu.context("cannot run setpriv and qemu-system-x86_64")?);
    let stdout = BufReader::new(machine.0.stdout.take().context("the machine has no console")?);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = stdout.split(b'\n').map_while(Result::ok);
        lines
            .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
            .try_for_each(|line| sender.send(line))
    });
    let started = Instant::now();
    let mut heard = started;
    let mut report = Report::default();
    loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(heard.elapsed())) {
            Ok(line) => {
                println!("{line}");
                if report.hear(&line) {
                    heard = Instant::now();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine hangs: no test ended in {PATIENCE:?}; {}", report.place())
            }
        }
    }
    report.took = started.elapsed();
    if !report.results.ended() {
        bail!("the machine ended before the tests did; {}", report.place());
    }
    Ok(report)
}
