//! `fuzz`: what reads the bytes of others, under libFuzzer.
//!
//! No cargo-fuzz and no nightly compiler: coverage is a matter of a few flags (`fuzz/instrument.sh`), and the address
//! sanitizer would watch over code that is safe Rust. So it takes one C++ library, and shares the build of all
//! dependencies with the tests.

use std::{
    env,
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf,
    process::{ensure, root, run as run_command},
};

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long, each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this one; all by default
    target: Option<Target>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// The log line of a record of the ring buffer
    Event,
    /// What opens a TLS stream, as the reader and as rustls take it
    Hello,
    /// The policy file
    Policy,
    /// A request to the control socket
    Request,
    /// A question to the resolver
    Question,
    /// A server's answer to the resolver
    Reply,
    /// What the resolver says to the daemon
    Learn,
}

impl Target {
    const ALL: [Self; 7] =
        [Self::Event, Self::Hello, Self::Policy, Self::Request, Self::Question, Self::Reply, Self::Learn];

    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Hello => "hello",
            Self::Policy => "policy",
            Self::Request => "request",
            Self::Question => "question",
            Self::Reply => "reply",
            Self::Learn => "learn",
        }
    }
}

/// Builds the targets and runs them.
pub(crate) fn run(args: &Args) -> Result<()> {
    build_ebpf::run(&build_ebpf::Args::default())?;
    build()?;
    let targets = args.target.as_ref().map_or(&Target::ALL[..], std::slice::from_ref);
    targets.iter().try_for_each(|target| fuzz(*target, args.seconds))
}

/// A short run of every target, with the object that is there.
pub(crate) fn short() -> Result<()> {
    build()?;
    Target::ALL.into_iter().try_for_each(|target| fuzz(target, 3))
}

fn build() -> Result<()> {
    ensure("building libFuzzer", &[("c++", "g++")])?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--quiet", "--package", "opencode-egress-fuzz", "--bins"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", root().join("fuzz/instrument.sh"));
    run_command("building the fuzz targets", &mut cargo)
}

fn fuzz(target: Target, seconds: u32) -> Result<()> {
    let (name, root) = (target.name(), root());
    let place = root.join("target/fuzz").join(name);
    let (corpus, log) = (place.join("corpus"), place.join("log"));
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let binary = root.join("target/debug").join(format!("fuzz-{name}"));
    let mut command = Command::new(&binary);
    command.arg(&corpus).arg(root.join("fuzz/seeds").join(name));
    command.arg(format!("-artifact_prefix={}/", place.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.args(["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    let words = root.join("fuzz").join(format!("{name}.dict"));
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(output.try_clone()?).stderr(output);
    let status = command.status().with_context(|| format!("cannot run {}", binary.display()))?;
    report(&binary, &log, status.success())
}

/// Says how many inputs were tried, or which one failed.
fn report(binary: &Path, log: &Path, success: bool) -> Result<()> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let after =
        |label: &str| text.lines().rev().find_map(|line| line.split_once(label)).map(|(_, rest)| rest.trim());
    let name = binary.file_name().unwrap_or_default().display();
    if let Some(input) = after("Test unit written to ") {
        let begin = text.find("panicked at").or_else(|| text.find("ERROR: libFuzzer")).unwrap_or(0);
        let said: Vec<_> = text[begin..].lines().take(8).collect();
        bail!(
            "{name} fails:\n{}\nthe input: {input}\nto see it again: {} {input}",
            said.join("\n"),
            binary.display()
        );
    }
    match after("stat::number_of_executed_units:").and_then(|number| number.parse::<u64>().ok()) {
        Some(executed @ 1..) if success => {
            println!("ok     {name}: {executed} inputs");
            Ok(())
        }
        _ => bail!("{name} did not run; {} says why", log.display()),
    }
}
