//! `vm-test`: the hook tests on another kernel, in a virtual machine. docs/kernels.md has what was seen.
//!
//! The machine is Debian's kernel and an initramfs of the test binary and what that calls; there is no disk
//! and no network. QEMU emulates the processor in software, so this also runs where there is no KVM.

use std::{
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

use crate::{
    build_ebpf,
    process::{apt_install, output, run as run_command},
    root,
};

/// Which kernel, and what to run on it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel's series
    #[arg(long, value_enum)]
    kernel: Kernel,
    /// Only tests with one of these in their names
    names: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    Newest,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The Debian release that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }
}

const PACKAGES: [&str; 8] =
    ["qemu-system-x86", "busybox-static", "kmod", "cpio", "xz-utils", "binutils", "iproute2", "tcpdump"];

/// A machine that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The first process. The cgroup's file systems are where systemd mounts them.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/root OPENCODE_EGRESS_TEST_SLOWNESS=5
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
$busybox mount -t bpf bpf /sys/fs/bpf
$busybox mount -t tmpfs tmpfs /tmp
$busybox mount -t tmpfs tmpfs /run
ip link set lo up
echo "kernel $($busybox uname -r)"
hooks --test-threads=2 --show-output $($busybox cat /names)
$busybox poweroff -f
"#;

/// Runs the tests.
pub(crate) fn run(args: &Args) -> Result<()> {
    apt_install("the virtual machine", &PACKAGES)?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    let tests = test_binary()?;
    let directory = root().join("target/kernels").join(args.kernel.name());
    let tree = unpacked(args.kernel, &directory)?;
    let initramfs = directory.join("initramfs.gz");
    pack(&directory.join("root"), &tree, &tests, &args.names, &initramfs)?;
    let (kernel, _) = parts(&tree)?;
    boot(&kernel, &initramfs)
}

fn test_binary() -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["test", "--quiet", "--package", "opencode-egress", "--test", "hooks"]);
    // Optimised: loading the object takes the emulated processor many times as long otherwise.
    cargo.arg("--release");
    let messages =
        output(cargo.args(["--no-run", "--message-format=json"])).context("cannot build the hook tests")?;
    let messages = messages.lines().map_while(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let binary = messages
        .filter(|message| message["target"]["name"] == "hooks")
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    binary.context("cargo does not say where the hook tests are")
}

/// The kernel's packages, unpacked. What is there is taken; remove `target/kernels` for newer ones.
fn unpacked(kernel: Kernel, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("tree");
    if tree.exists() {
        return Ok(tree);
    }
    let apt = Apt::of(kernel, directory)?;
    run_command(
        &format!("asking Debian {} for its kernel", kernel.suite()),
        apt.command("apt-get").args(["-q", "update"]).stdout(Stdio::null()),
    )?;
    let packages = apt.kernel_packages();
    if packages.is_empty() {
        bail!("Debian {} has no package linux-image-cloud-amd64", kernel.suite());
    }
    let (archives, partial) = (directory.join("archives"), directory.join("tree.part"));
    for path in [&archives, &partial] {
        fresh(path)?;
    }
    let mut download = apt.command("apt-get");
    download.current_dir(&archives).args(["-q", "download"]).args(&packages).stdout(Stdio::null());
    run_command(&format!("downloading {packages:?}"), &mut download)?;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        run_command("unpacking", Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
    }
    fs::rename(&partial, &tree)?;
    Ok(tree)
}

/// apt with one source, and lists of its own.
struct Apt(Vec<String>);

impl Apt {
    fn of(kernel: Kernel, directory: &Path) -> Result<Self> {
        let lists = directory.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        let (sources, status) = (directory.join("sources.list"), directory.join("status"));
        let (mirror, suite) = (mirror()?, kernel.suite());
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(&sources, format!("deb [arch=amd64 signed-by={key}] {mirror} {suite} main\n"))?;
        // What is installed here is not asked for.
        fs::write(&status, "")?;
        let option = |name: &str, value: &Path| format!("-o{name}={}", value.display());
        Ok(Self(vec![
            option("Dir::Etc::sourcelist", &sources),
            option("Dir::Etc::sourceparts", Path::new("-")),
            option("Dir::State::lists", &lists),
            option("Dir::State::status", &status),
            option("Dir::Cache", &directory.join("cache")),
            "-oAcquire::Languages=none".into(),
            "-oAPT::Sandbox::User=root".into(),
        ]))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.0);
        command
    }

    /// The packages with the newest kernel and its modules. The cloud kernels have what the tests take and
    /// little else.
    fn kernel_packages(&self) -> Vec<String> {
        let mut packages = vec!["linux-image-cloud-amd64".to_owned()];
        let mut next = 0;
        while let Some(package) = packages.get(next) {
            let depends = output(self.command("apt-cache").args(["depends", package])).unwrap_or_default();
            let depends = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
            let more: Vec<_> = depends
                .filter(|name| {
                    ["image", "binary", "modules"]
                        .iter()
                        .any(|part| name.starts_with(&format!("linux-{part}-")))
                })
                .filter(|name| packages.iter().all(|known| known != name))
                .map(str::to_owned)
                .collect();
            packages.extend(more);
            next += 1;
        }
        packages.split_off(1)
    }
}

/// Where this machine has its Debian packages from.
fn mirror() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]));
    let targets = targets.context("apt-get does not say where packages come from")?;
    let found = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    Ok(found.context("apt has no Debian mirror; run apt-get update")?.to_owned())
}

/// The kernel, and the directory of its modules.
fn parts(tree: &Path) -> Result<(PathBuf, PathBuf)> {
    let modules = ["lib/modules", "usr/lib/modules"].into_iter().find_map(|path| only(&tree.join(path), ""));
    let modules = modules.with_context(|| format!("no modules in {}", tree.display()))?;
    let kernel = only(&tree.join("boot"), "vmlinuz").or_else(|| only(&modules, "vmlinuz"));
    Ok((kernel.with_context(|| format!("no kernel in {}", tree.display()))?, modules))
}

/// What in a directory has a name that begins so.
fn only(directory: &Path, beginning: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    entries.find(|entry| entry.file_name().to_string_lossy().starts_with(beginning)).map(|entry| entry.path())
}

fn fresh(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// Makes the initramfs.
fn pack(target: &Path, tree: &Path, tests: &Path, names: &[String], initramfs: &Path) -> Result<()> {
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
    let programs = [("busybox", "busybox"), ("busybox", "modprobe"), ("ip", "ip"), ("tcpdump", "tcpdump")];
    for (program, name) in programs {
        copy_program(&found(program)?, name, target)?;
    }
    copy_program(tests, "hooks", target)?;
    let mut strip = Command::new("strip");
    run_command("leaving out debug information", strip.arg("--strip-debug").arg(target.join("bin/hooks")))?;
    copy_modules(&parts(tree)?.1, target)?;
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio -o -H newc --quiet | gzip -1 > \"$1\"", "sh"]).arg(initramfs);
    run_command("packing the initramfs", cpio.current_dir(target))
}

/// Copies a program with its libraries.
fn copy_program(program: &Path, name: &str, target: &Path) -> Result<()> {
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
    };
    copy(program, &target.join("bin").join(name))?;
    // A static program has none, and ldd fails.
    let libraries = output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
        let to = target.join(library.strip_prefix("/")?);
        fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
        copy(library, &to)?;
    }
    Ok(())
}

/// Copies the modules that the tests or their protocols may take.
fn copy_modules(modules: &Path, target: &Path) -> Result<()> {
    let release = modules.file_name().context("the modules have a release")?;
    let copy = target.join("lib/modules").join(release);
    fs::create_dir_all(&copy)?;
    let mut cp = Command::new("sh");
    // busybox need not know how they are compressed.
    let script =
        "cp --parents -r modules.* kernel/net kernel/lib kernel/crypto kernel/drivers/net/veth.ko* \"$1\" &&
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

/// Boots the machine, shows what it says, and fails unless the tests say that all is well.
fn boot(kernel: &Path, initramfs: &Path) -> Result<()> {
    eprintln!("xtask: booting {}", kernel.display());
    let mut qemu = Command::new("qemu-system-x86_64");
    // Not KVM: where it is there but does not work, the machine would hang.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"]);
    qemu.args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]);
    // The emulated timer is late on a busy machine, which is no reason to give up on it.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]).arg("-kernel").arg(kernel);
    let qemu = qemu.arg("-initrd").arg(initramfs).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine(qemu.context("cannot run qemu-system-x86_64")?);
    let stdout = BufReader::new(machine.0.stdout.take().context("the machine has no console")?);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = stdout.split(b'\n').map_while(Result::ok);
        lines
            .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
            .try_for_each(|line| sender.send(line))
    });
    let deadline = Instant::now() + PATIENCE;
    let (mut result, mut skipped) = (None, 0);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                skipped += usize::from(line.starts_with("skipped:"));
                if line.starts_with("test result: ") {
                    result = Some(line);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!("the machine did not end in {PATIENCE:?}"),
        }
    }
    match result {
        Some(line) if line.starts_with("test result: ok.") => {
            println!("{line}\n{skipped} techniques skipped");
            Ok(())
        }
        Some(line) => bail!("{line}"),
        None => bail!("the machine ended before the tests did"),
    }
}
