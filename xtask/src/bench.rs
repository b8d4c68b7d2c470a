//! `bench`: what a policy and what names cost, measured here and written into docs/performance.md.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build_ebpf,
    process::{apt_unpacked, ensure as ensure_programs, output, root, run as run_command, text},
};

/// How much to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often every subject is set up afresh
    #[arg(long, default_value_t = 10)]
    setups: usize,
    /// Batches of each operation after each set-up
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Print the tables and leave docs/performance.md alone
    #[arg(long)]
    print: bool,
}

const BEGIN: &str = "<!-- `cargo xtask bench` writes from here on -->\n";
const END: &str = "<!-- to here -->\n";

/// Measures, and writes the tables into docs/performance.md.
pub(crate) fn run(args: &Args) -> Result<()> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    let why = "comparing with nftables, systemd and dnsmasq";
    ensure_programs(
        why,
        &[
            ("nft", "nftables"),
            ("systemctl", "systemd"),
            ("unshare", "util-linux"),
            ("dnsmasq", "dnsmasq-base"),
        ],
    )?;
    let report = root().join("target/bench.md");
    let mut cargo = cargo_bench("hotpath");
    cargo.args(["--", "--setups", &args.setups.to_string(), "--rounds", &args.rounds.to_string()]);
    cargo.arg("--report").arg(&report);
    run_command("building and measuring (some minutes)", &mut cargo)?;
    let tables = fs::read_to_string(&report).with_context(|| format!("cannot read {}", report.display()))?;
    eprintln!("xtask: measuring the resolver");
    let mut names = cargo_bench("names");
    // Installed, it would take this machine's own questions.
    let resolved = apt_unpacked("comparing with it", &["systemd-resolved", "libsystemd-shared"])?;
    names.args(["--", "--resolved"]).arg(resolved);
    let names = names.output()?;
    ensure!(names.status.success(), "the bench of names failed:\n{}", text(&names));
    let names = String::from_utf8_lossy(&names.stdout).trim().to_owned();
    let text = format!("{}\n{tables}\n{names}\n", setting(args)?);
    if args.print {
        print!("{text}");
        return Ok(());
    }
    let page = root().join("docs/performance.md");
    let old = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let (head, rest) = old.split_once(BEGIN).with_context(|| format!("no {BEGIN} in {}", page.display()))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("no {END} in {}", page.display()))?;
    fs::write(&page, format!("{head}{BEGIN}\n{text}\n{END}{tail}"))?;
    eprintln!("xtask: {} is up to date", page.display());
    Ok(())
}

fn cargo_bench(name: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["bench", "--quiet", "--package", "opencode-egress", "--bench", name]);
    if output(Command::new("id").arg("-u")).as_deref() != Some("0") {
        cargo.args(["--config", "target.'cfg(unix)'.runner = 'sudo'"]);
    }
    cargo
}

/// On what, and how, it was measured.
fn setting(args: &Args) -> Result<String> {
    let kernel = output(Command::new("uname").arg("-sr")).context("no uname")?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let mut models = cpus.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = models.next().map_or("an unnamed CPU", |(_, model)| model).to_owned();
    let count = models.count() + 1;
    Ok(format!(
        "`cargo xtask bench --setups {} --rounds {}`; {kernel}; {count} CPUs, {model}\n",
        args.setups, args.rounds
    ))
}
