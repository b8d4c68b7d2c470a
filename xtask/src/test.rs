//! `test`: the test tiers that run on any Linux machine. docs/testing.md has what each shows.

use std::{env, process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{
    assets, build_ebpf, daemon, fuzz,
    machine::Machine,
    process::{ensure, output, root, run as run_command},
    render, scenarios,
    vm_test::verification,
};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this tier; all by default
    #[arg(long, value_enum)]
    tier: Option<Tier>,
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
        fuzz::short()?;
        assets::test()?;
        module()?;
    }
    if wanted(Tier::Hooks) {
        ensure("the hook tests", &[("ip", "iproute2"), ("nft", "nftables"), ("tcpdump", "tcpdump")])?;
        cargo("tier 2, hooks", &["test", "--package", "opencode-egress", "--test", "hooks"])?;
    }
    match Machine::impossible() {
        Some(why) if wanted(Tier::Machine) => println!("SKIPPED tier 3, machine: {why}"),
        None if wanted(Tier::Machine) => machine()?,
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

fn machine() -> Result<()> {
    let binary = daemon::with_object()?;
    eprintln!("xtask: tier 3, machine");
    let mut machine = Machine::boot(&binary)?;
    let mut failed = 0;
    let total = scenarios::all().count();
    for scenario in scenarios::all() {
        let begin = Instant::now();
        let result = (scenario.run)(&mut machine, &|_| {});
        let seconds = begin.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("ok     {:5.1} s  {}", seconds, scenario.title),
            Err(error) => {
                failed += 1;
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
    println!("{} passed, {failed} failed", total - failed);
    if failed > 0 { bail!("{failed} of {total} machine scenarios failed") } else { Ok(()) }
}
