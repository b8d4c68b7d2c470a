//! How long policies take to be in force, and what many instances take.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use opencode_egress::{
    cgroups::Hierarchy,
    kernel::{
        hooks::Needs,
        instance::InstanceIndex,
        loader::{Lifetime, load},
        maps::LearnedAddress,
        pins::Pins,
    },
    policy::{InstanceName, PolicySet, UnitName, compile::compile, file, known::KnownNames},
};
use opencode_egress_common::abi::{Learned, NameRuleId};

use crate::{
    measure::{in_force, policy},
    networks::networks,
    subject::Subject,
    table::{median, time},
};

const RULES: usize = 100_000;
const INSTANCES: u32 = 1000;
const INSTANCE_RULES: usize = 10;

/// The report's second part.
pub(crate) fn measure() -> Result<String> {
    let mut text = String::from("\n| | takes |\n|---|---|\n");
    let mut line = |what: &str, result: String| {
        eprintln!("{what}: {result}");
        let _ = writeln!(text, "| {what} | {result} |");
    };
    let (all, install) = many_rules()?;
    line("100k rules in force, from the policy file", took(all));
    line("of that, after parsing and compiling", took(install));
    for subject in [Subject::Systemd(RULES), Subject::Nftables(RULES)] {
        match in_force(subject) {
            Ok(duration) => line(&format!("100k networks in force with {subject}"), took(duration)),
            Err(error) => {
                line(&format!("100k networks in force with {subject}"), format!("skipped: {error:#}"))
            }
        }
    }
    many_instances(&mut line)?;
    many_names(&mut line)?;
    Ok(text)
}

fn took(duration: Duration) -> String {
    time(duration.as_secs_f64() * 1e9)
}

fn median_time(mut run: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = vec![];
    for _ in 0..5 {
        times.push(run()?.as_secs_f64());
    }
    Ok(Duration::from_secs_f64(median(times).unwrap_or_default()))
}

/// From the text of a policy file to the policy in force, and the part of it that is installing.
fn many_rules() -> Result<(Duration, Duration)> {
    let networks: Vec<_> = networks(RULES).iter().map(ToString::to_string).collect();
    let name: InstanceName = "bench".parse()?;
    let file = serde_json::json!({
        "version": 1,
        "instances": { name.as_str(): { "units": ["bench.service"], "allow": networks } },
    });
    let file = serde_json::to_string_pretty(&file)?;
    let mut loaded = load(&Lifetime::Process)?;
    let mut installing = vec![];
    let all = median_time(|| {
        let start = Instant::now();
        let set: PolicySet = file::parse(Path::new("policy.json"), &file)?;
        let compiled = compile(&set.instances[&name])?;
        let compiled_at = start.elapsed();
        loaded.maps.install(InstanceIndex::FIRST, &compiled)?;
        let all = start.elapsed();
        eprintln!("parsed and compiled after {compiled_at:?}, in force after {all:?}");
        installing.push((all - compiled_at).as_secs_f64());
        Ok(all)
    })?;
    Ok((all, Duration::from_secs_f64(median(installing).unwrap_or_default())))
}

/// As the daemon does it: pinned maps, a pinned link for every hook of every instance.
fn many_instances(line: &mut impl FnMut(&str, String)) -> Result<()> {
    let pins = Pins::below(Path::new("/sys/fs/bpf/bench"))?;
    let mut loaded = load(&Lifetime::Pinned(pins.maps()))?;
    let compiled = compile(&policy(INSTANCE_RULES))?;
    let hierarchy = Hierarchy::find()?;
    hierarchy.create(Path::new("scale"))?;
    let mut cgroups = vec![];
    for number in 1..=INSTANCES {
        cgroups.push(hierarchy.create(Path::new(&format!("scale/{number}")))?);
    }
    let all: Vec<_> =
        (1..=INSTANCES).filter_map(InstanceIndex::new).map(|index| (index, &compiled)).collect();
    let before = kernel_memory()?;
    let start = Instant::now();
    loaded.maps.install_all(&all)?;
    let installed = start.elapsed();
    for (cgroup, (index, _)) in cgroups.iter().zip(&all) {
        let unit: UnitName = format!("bench-{}.service", index.number()).parse()?;
        let directory = pins.links(&unit, cgroup.id())?;
        let links = loaded.confine(cgroup, *index, Needs::NONE, |loaded, hook, cgroup| {
            loaded.programs.attach(hook, cgroup)
        })?;
        for (hook, link) in links {
            directory.pin(hook, &link)?;
        }
    }
    let attached = start.elapsed();
    line("1,000 instances of 10 rules, attached and pinned", took(attached));
    line("of that, putting their policies in force", took(installed));
    let bytes = kernel_memory()?.saturating_sub(before);
    line(
        "kernel memory for each of them",
        format!("{:.1} KiB", bytes as f64 / 1024.0 / f64::from(INSTANCES)),
    );
    let reload = median_time(|| {
        let start = Instant::now();
        loaded.maps.install_all(&all[..1])?;
        Ok(start.elapsed())
    })?;
    line("a reload that changes one of them", took(reload));
    let start = Instant::now();
    loaded.maps.install_all(&all)?;
    line("a reload that changes all of them", took(start.elapsed()));
    Ok(())
}

/// What it takes to know many names: in the kernel, and in the daemon.
fn many_names(line: &mut impl FnMut(&str, String)) -> Result<()> {
    const NAMES: u32 = 50;
    const ADDRESSES: u32 = 20;
    let pins = Pins::below(Path::new("/sys/fs/bpf/bench-names"))?;
    let mut loaded = load(&Lifetime::Pinned(pins.maps()))?;
    let (memory, resident) = (kernel_memory()?, resident()?);
    let mut known: Vec<KnownNames> = vec![];
    let until = u64::MAX;
    for index in (1..=INSTANCES).filter_map(InstanceIndex::new) {
        let mut names = KnownNames::default();
        for name in 0..NAMES {
            let first = 0x0b00_0000 + (index.number() * NAMES + name) * ADDRESSES;
            let addresses: Vec<_> =
                (first..first + ADDRESSES).map(|number| IpAddr::from(number.to_be_bytes())).collect();
            names.learn(&format!("n{name}.bench.example").parse()?, &addresses, until, 0);
            for address in addresses {
                let learned = Learned { until, rule: NameRuleId(u64::from(name)) };
                loaded.maps.learn(index, &LearnedAddress { address, grant: 0, learned })?;
            }
        }
        known.push(names);
    }
    let kernel = kernel_memory()?.saturating_sub(memory);
    let daemon = self::resident()?.saturating_sub(resident);
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / 1024.0 / 1024.0);
    line("1,000 instances of 50 names of 20 addresses, in the kernel", mib(kernel));
    line("the same, in the daemon", mib(daemon));
    drop(known);
    Ok(())
}

/// What this process has in memory.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// What the kernel holds outside of processes and caches, once it has settled: what was closed before is freed
/// some time later.
fn kernel_memory() -> Result<u64> {
    const CLOSE: u64 = 256 * 1024;
    let mut last = kernel_memory_now()?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_secs(1));
        let now = kernel_memory_now()?;
        if now.abs_diff(last) < CLOSE {
            return Ok(now);
        }
        last = now;
    }
    eprintln!("kernel memory does not settle; take its number with care");
    Ok(last)
}

fn kernel_memory_now() -> Result<u64> {
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let text = fs::read_to_string("/proc/meminfo")?;
    ["SUnreclaim:", "SReclaimable:", "Percpu:", "VmallocUsed:"].iter().try_fold(0, |sum, name| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).context("a line of /proc/meminfo")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(sum + kib * 1024)
    })
}
