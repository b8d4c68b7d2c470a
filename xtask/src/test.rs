//! `test`: the test tiers that run on any Linux machine. docs/testing.md has what each shows.

use std::{
    cell::RefCell,
    env,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    assets, build_ebpf, daemon, fuzz,
    harness::Results,
    machine::Machine,
    process::{apt_install, ensure, output, root, run as run_command},
    render, scenarios,
    vm_test::{
        script::{self, Outcome},
        verification,
    },
};

/// Which tiers to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this tier; all by default
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// Of the machine's scenarios only those whose titles have one of these
    #[arg(requires = "tier", value_name = "WORDS")]
    only: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// The decision, the compiler, parsing: no kernel
    Host,
    /// Real sockets in a confined cgroup and network namespaces
    Hooks,
    /// Real systemd, the real server, a second host
    Machine,
}

/// Runs the tiers.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = |tier| args.tier.is_none_or(|only| only == tier);
    build_ebpf::run(&build_ebpf::Args::default())?;
    if wanted(Tier::Host) {
        lints()?;
        cargo("tier 1, host", &["test", "--quiet", "--lib", "--bins"])?;
        let resolver = ["test", "--quiet", "--package", "opencode-egress", "--test", "resolver"];
        cargo("tier 1, host: the resolver", &resolver)?;
        fuzz::short()?;
        assets::test()?;
        module()?;
    }
    if wanted(Tier::Hooks) {
        hooks()?;
    }
    match Machine::impossible() {
        Some(why) if wanted(Tier::Machine) => println!("SKIPPED tier 3, machine: {why}"),
        None if wanted(Tier::Machine) => machine(&args.only)?,
        _ => {}
    }
    // Last: what it asks for takes long, and says nothing about the rest.
    if wanted(Tier::Host) { verification::check() } else { Ok(()) }
}

/// Formatting and lints, where the toolchain has what that takes.
fn lints() -> Result<()> {
    for (tool, words) in [
        ("fmt", &["fmt", "--all", "--check"][..]),
        ("clippy", &["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"][..]),
    ] {
        if output(Command::new("cargo").args([tool, "--version"])).is_some() {
            cargo(&format!("cargo {tool}"), words)?;
        } else {
            println!("SKIPPED cargo {tool}: this toolchain does not have it");
        }
    }
    Ok(())
}

/// The NixOS module: that what is rendered is up to date, and, where nixpkgs' library is, the tests by evaluation.
fn module() -> Result<()> {
    render::check()?;
    if env::var_os("NIXPKGS").is_none() {
        println!(
            "SKIPPED evaluating the NixOS module: set NIXPKGS to a checkout of nixpkgs, or of https://github.com/nix-community/nixpkgs.lib"
        );
        return Ok(());
    }
    for tests in ["nixos/tests", "nixos/tests/opencode-json"] {
        let failures = render::evaluate(tests)?;
        if failures.trim() != "[]" {
            bail!("{tests}: {failures}");
        }
        println!("ok     {tests}");
    }
    Ok(())
}

fn cargo(what: &str, words: &[&str]) -> Result<()> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run_command(what, cargo.current_dir(root()).args(words))
}

/// The hook tests, closing with how many techniques this kernel cannot try.
fn hooks() -> Result<()> {
    ensure("the hook tests", &[("ip", "iproute2"), ("nft", "nftables"), ("tcpdump", "tcpdump")])?;
    eprintln!("xtask: tier 2, hooks");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--package", "opencode-egress", "--test", "hooks", "--", "--show-output"]);
    let mut tests = cargo.current_dir(root()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut results = Results::default();
    for line in BufReader::new(tests.stdout.take().context("cargo has no stdout")?).lines() {
        let line = line?;
        println!("{line}");
        results.hear(&line);
    }
    let status = tests.wait()?;
    if results.ended() {
        println!("{}", results.closing_line());
    }
    if status.success() { Ok(()) } else { bail!("the hook tests failed with {status}") }
}

fn machine(only: &[String]) -> Result<()> {
    ensure("the machine tier", &[("tmux", "tmux")])?;
    apt_install("the machine tier", &[scenarios::CLOCK])?;
    let binary = daemon::with_object()?;
    eprintln!("xtask: tier 3, machine");
    let mut machine = Machine::boot(&binary)?;
    let mut outcomes = vec![];
    let wanted = |title: &str| only.is_empty() || only.iter().any(|words| title.contains(words));
    for scenario in scenarios::all().filter(|scenario| wanted(scenario.title)) {
        let begin = Instant::now();
        let said = RefCell::new(String::new());
        let result = (scenario.run)(&mut machine, &|text| *said.borrow_mut() += &format!("{text}\n"));
        let seconds = begin.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                println!("ok     {:5.1} s  {}", seconds, scenario.title);
                let not_shown = script::not_shown(&said.borrow());
                not_shown.iter().for_each(|part| println!("       but for: {part}"));
                outcomes.push(Outcome::Passed(not_shown));
            }
            Err(error) => {
                outcomes.push(Outcome::Failed);
                println!("FAILED {:5.1} s  {}\n{error:#}", seconds, scenario.title);
                let journal = machine.run(&[
                    "journalctl",
                    "--no-pager",
                    "-n",
                    "30",
                    "-o",
                    "short-precise",
                    "_TRANSPORT=stdout",
                    "_TRANSPORT=journal",
                ]);
                println!("the machine's last words:\n{}", journal.unwrap_or_default());
            }
        }
    }
    if outcomes.is_empty() {
        bail!("no machine scenario has one of {only:?} in its title");
    }
    println!("{}", script::totals(outcomes.iter()));
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed)).count();
    if failed > 0 { bail!("{failed} of {} machine scenarios failed", outcomes.len()) } else { Ok(()) }
}
