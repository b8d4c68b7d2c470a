//! Debian's kernels, from the mirror that this machine's own apt has.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{apt_get, fresh, output, run as run_command};

/// The keys whose signatures of Debian's package lists are good.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that the tests run on.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    Newest,
}

impl Kernel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The Debian release that has this kernel.
    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }
}

/// The kernel's packages, unpacked. What is there is taken; remove `target/kernels` for newer ones.
pub(super) fn unpacked(kernel: Kernel, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("tree");
    if tree.exists() {
        return Ok(tree);
    }
    let apt = Apt::of(kernel, directory)?;
    let what = format!("asking Debian {} for its kernel", kernel.suite());
    apt_get(&what, apt.command("apt-get").arg("update"))?;
    let packages = apt.kernel_packages();
    if packages.is_empty() {
        bail!("Debian {} has no package linux-image-cloud-amd64", kernel.suite());
    }
    let (archives, partial) = (directory.join("archives"), directory.join("tree.part"));
    for path in [&archives, &partial] {
        fresh(path)?;
    }
    let mut download = apt.command("apt-get");
    download.current_dir(&archives).arg("download").args(&packages);
    apt_get(&format!("downloading {packages:?}"), &mut download)?;
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
        fs::write(&sources, format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))?;
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
pub(super) fn mirror() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]));
    let targets = targets.context("apt-get does not say where packages come from")?;
    let found = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    Ok(found.context("apt has no Debian mirror; run apt-get update")?.to_owned())
}

/// The kernel, and the directory of its modules.
pub(super) fn parts(tree: &Path) -> Result<(PathBuf, PathBuf)> {
    let modules = ["lib/modules", "usr/lib/modules"].into_iter().find_map(|path| only(&tree.join(path), ""));
    let modules = modules.with_context(|| format!("no modules in {}", tree.display()))?;
    let kernel = only(&tree.join("boot"), "vmlinuz").or_else(|| only(&modules, "vmlinuz"));
    Ok((kernel.with_context(|| format!("no kernel in {}", tree.display()))?, modules))
}

/// The entry of a directory whose name begins so.
fn only(directory: &Path, beginning: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    entries.find(|entry| entry.file_name().to_string_lossy().starts_with(beginning)).map(|entry| entry.path())
}
