//! The command line. Every reading command has `--json`; errors go to stderr and say what to do.

mod asking;
mod leases;

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    daemon::serve::exposition,
    policy::{
        AnyRule, Errno, InstanceName, Loopback, Rule,
        preset::{Preset, preset},
    },
};

pub use asking::{CONTROL_SOCKET, ControlArgs, ReadArgs};
pub use leases::{AllowArgs, LearnArgs, LeasesArgs, RevokeArgs};

/// Where the daemon answers confined processes.
pub const WHY_SOCKET: &str = "/run/opencode-egress/why.sock";
/// Where the daemon listens for the resolver.
pub const RESOLVER_SOCKET: &str = "/run/opencode-egress/resolver.sock";
/// Which servers the host asks.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where links and maps are pinned.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/opencode-egress";
/// Where the policy is.
pub const POLICY_FILE: &str = "/etc/opencode-egress/policy.json";

/// Egress control for headless opencode servers: what each may reach, enforced by eBPF on its cgroup.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: confine every listed unit, log what is denied
    Run(RunArgs),
    /// Answer the instances' DNS questions; in a unit of its own
    ///
    /// Asks for listed names only, has the daemon learn each answer's addresses, and then tells them. Its sockets come from the
    /// daemon. It gives up every privilege that it is started with; root becomes nobody.
    Resolve(ResolveArgs),
    /// Confine the calling unit; its first ExecStartPre=+
    ///
    /// Returns once every hook is attached to the unit's cgroup. Fails, so that the unit does not start, when systemd
    /// has something of the unit that runs before this (an ExecCondition=, another ExecStartPre=) or does not say, when
    /// the daemon does not answer, when the unit is not listed under NAME, or when the kernel refuses.
    Attach(AttachArgs),
    /// Run one command under a policy, without daemon and systemd
    ///
    /// The command runs in a fresh cgroup, without the capabilities, system calls and writable files of the kernel's that
    /// would lead round the policy: sockets are of AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, there is no io_uring,
    /// and setuid programs give nothing back. What is denied to it is printed to stderr, on lines of their own. Signals
    /// are passed on. The exit status is the command's, 128 and the signal's number when a signal ended it; 125 when it
    /// could not be confined.
    Exec(ExecArgs),
    /// Validate a policy file and print what it compiles to
    ///
    /// Also says which listeners are at no address of this machine, which is no error. With --against, says what of an instance's past the
    /// file would judge otherwise.
    Check(CheckArgs),
    /// Show what is confined, and what was denied
    Status(ReadArgs),
    /// Watch what is confined, how much passes and what is denied, and answer it
    ///
    /// The arrows choose what was denied: `a` lets it pass for an hour, after showing the rule and asking; `e` explains the verdict, `w`
    /// says who asked, and `n` puts the option of the NixOS module on the terminal's clipboard, where the terminal lets programs do that
    /// (OSC 52). `?` has all keys, and `q` leaves. Without colours where NO_COLOR is set.
    Top(TopArgs),
    /// Say what becomes of a flow, and why
    ///
    /// Of an address and port at which the instance itself might listen, also what becomes of a bind.
    Explain(ExplainArgs),
    /// Print the names that answers are known of, their addresses, and for how long new flows may go there
    ///
    /// A listed name that nobody asked for yet is not among them. An address is shown for ten minutes after its time is over; flows that
    /// began before that go on for as long as they live.
    Names(NamesArgs),
    /// Say what the calling unit may reach, and what was refused to it lately; for an agent, no privilege needed
    ///
    /// The daemon knows by the caller's cgroup which instance asks, and tells of no other. With each refusal comes the rule
    /// that would let it pass, to ask the operator for. Refusals are the last 256 that were logged. An instance is
    /// answered ten times at once, and five times a second after that.
    Why(WhyArgs),
    /// Print the last denials, and with --follow those to come
    Events(EventsArgs),
    /// Print what the daemon counts, for Prometheus
    ///
    /// The output is in Prometheus' text format, as node_exporter's textfile collector reads it.
    Metrics(MetricsArgs),
    /// Print the fewest rules that would have let pass what was denied
    ///
    /// From everything that was denied since the kernel began to count, also what the log's limits left out; with
    /// --since from the journal. What the policy file allows by now is left out, so an edit counts before it is
    /// applied. What was asked for by name becomes a rule for the name, or a preset where at least half of its names were
    /// asked for. What was tried within one minute and no more, by programs that a shell started, is set apart: it is what an
    /// agent typed, and not what its server needs. No network of several hosts covers any part of a deny rule. Judge each one
    /// before it is pasted into the policy: a denial may have had good reason.
    Suggest(SuggestArgs),
    /// Print lists of names that go together, by the service or tool that needs them
    ///
    /// A policy takes one as {"preset": NAME} under `allow`, `exec` with --preset, an instance of the NixOS module under
    /// `networkIsolation.presets`.
    Presets(PresetsArgs),
    /// Apply the policy file again
    Reload(ControlArgs),
    /// Take an instance's links away, on purpose: its running units are no longer confined
    Detach(DetachArgs),
    /// Let an instance do what it wants for a time, and report what its policy would deny
    ///
    /// Audit mode as a lease: until it is over nothing is refused, not even what a deny rule covers; every denial is told, and
    /// passes. It ends by itself, the policy is enforced from then on, and `suggest` says what the policy lacks. It outlives a restart of
    /// the daemon, a reload and an upgrade, but not the machine. The journal has who began it.
    Learn(LearnArgs),
    /// Grant an instance a rule for a time: a lease
    ///
    /// It is in force for new flows at once, and until its time is over; what began under it goes on then, unless it is granted with --hard.
    /// No deny rule of the policy file is passed. The same rule again takes the place of the lease that is there: its time, its reason and
    /// --hard. A lease outlives a restart of the daemon, a reload and an upgrade, but not the machine. The journal has who granted it.
    Allow(AllowArgs),
    /// End a lease before its time, and what began under it
    Revoke(RevokeArgs),
    /// Print the leases in force, those that end first in front
    Leases(LeasesArgs),
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages
    Man {
        /// Where to; made if it is not there
        directory: PathBuf,
    },
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = POLICY_FILE)]
    pub config: PathBuf,
    /// Directory on a bpffs in which links and maps are pinned; root alone may write to it and all above it
    #[arg(long, value_name = "DIR", default_value = PIN_DIRECTORY)]
    pub pins: PathBuf,
    /// Serve metrics over HTTP: on a loopback address, as in 127.0.0.1:9642, or on a Unix socket's absolute path
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<exposition::MetricsAddress>,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// Where the daemon listens for it
    #[arg(long, value_name = "PATH", default_value = RESOLVER_SOCKET)]
    pub control: PathBuf,
    /// A socket that is connected to the daemon, as the number of an open descriptor; the resolver ends with it
    #[arg(long, value_name = "N", conflicts_with = "control")]
    pub fd: Option<RawFd>,
    /// Whose servers to ask, unless the policy file names some
    #[arg(long, value_name = "FILE", default_value = RESOLV_CONF)]
    pub resolv_conf: PathBuf,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The instance that the calling unit belongs to
    pub name: InstanceName,
    /// Give up after this many seconds
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Let a network or a name pass, as in 10.10.0.0/16, 203.0.113.0/24:443,8000-8100/tcp, [2001:db8::/32]:443, api.example.org
    /// (which is TCP 443), github.com:22,443 or *.example.net; repeatable
    #[arg(long, value_name = "RULE", conflicts_with = "policy")]
    pub allow: Vec<AnyRule>,
    /// Deny a network, whatever is allowed, as in 10.10.9.0/24 or 10.10.9.0/24:25/tcp; repeatable
    #[arg(long, value_name = "RULE", conflicts_with = "policy")]
    pub deny: Vec<Rule>,
    /// Let pass what a service or tool needs, as in npm; `opencode-egress presets` has them all; repeatable
    #[arg(long, value_name = "PRESET", conflicts_with = "policy", value_parser = preset)]
    pub preset: Vec<&'static Preset>,
    /// What the command may say to itself over loopback: `own`, whatever its own sockets take, or `listed`, what rules list
    #[arg(long, value_name = "WHAT", default_value = "own", conflicts_with = "policy")]
    pub loopback: Loopback,
    /// Take the policy of an instance from this file, and with it the file's `log` limits and resolver
    #[arg(long, value_name = "FILE", requires = "instance")]
    pub policy: Option<PathBuf>,
    /// The instance whose policy to take
    #[arg(long, value_name = "NAME", requires = "policy")]
    pub instance: Option<InstanceName>,
    /// Report what would be denied, and let it pass
    #[arg(long)]
    pub audit: bool,
    /// The error that a denied connect, send or bind gets: EPERM, ECONNREFUSED, EHOSTUNREACH or ENETUNREACH. Others than EPERM take a
    /// kernel that lets programs choose one, such as Linux 6.1
    #[arg(long, value_name = "ERRNO")]
    pub errno: Option<Errno>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The policy file
    #[arg(default_value = POLICY_FILE)]
    pub file: PathBuf,
    /// Instead, compare the file with what this instance did, by the journal: say what of that which passed the file would refuse, and what of
    /// that which was refused it would let pass. Exit status: 0 if neither, 3 if it would refuse something that passed, 4 if it would
    /// only let more pass
    #[arg(long, value_name = "NAME")]
    pub against: Option<InstanceName>,
    /// With --against, since when, as in -1h, yesterday or "2026-11-21 20:00"
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "-7d",
        allow_hyphen_values = true,
        requires = "against"
    )]
    pub since: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `presets`.
#[derive(Debug, Args)]
pub struct PresetsArgs {
    /// Only this one
    #[arg(value_parser = preset)]
    pub name: Option<&'static Preset>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Ask the daemon every S seconds
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The instance
    pub name: InstanceName,
    /// The destination, as in 10.10.0.1, 10.10.0.1:443, [2001:db8::1]:53/udp, api.example.org (which is TCP 443), github.com:22
    #[arg(value_name = "DEST[:PORT][/PROTO]")]
    pub destination: crate::policy::target::Target,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The daemon's socket for this
    #[arg(long, value_name = "PATH", default_value = WHY_SOCKET)]
    pub socket: PathBuf,
}

/// Arguments of `names`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// The instance
    pub name: InstanceName,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only this instance's
    pub name: Option<InstanceName>,
    /// Go on as they come
    #[arg(long, short)]
    pub follow: bool,
    /// Show the arguments of the processes that asked, of those that still run
    ///
    /// They are in no log, for keys stand there. With --follow they are read as each denial comes: what ends at its error has none.
    #[arg(long)]
    pub args: bool,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Put them into this file instead, in one step, readable by all
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `suggest`.
#[derive(Debug, Args)]
pub struct SuggestArgs {
    /// The instance
    pub name: InstanceName,
    /// Ask the journal for what was denied since then, as in -1h, yesterday or "2026-11-21 20:00"; needs no daemon
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub since: Option<String>,
    /// Print options of the NixOS module
    #[arg(long, conflicts_with = "json")]
    pub nix: bool,
    /// Print what is to stand in `allow` besides, as a JSON array; without what is set apart
    #[arg(long, conflicts_with_all = ["json", "nix"])]
    pub policy: bool,
    /// The widest IPv4 network to suggest, as a prefix length from 8 to 32; 32 for single addresses
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u8).range(8..=32))]
    pub max_prefix_v4: u8,
    /// The widest IPv6 network to suggest, as a prefix length from 32 to 128; 128 for single addresses
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u8).range(32..=128))]
    pub max_prefix_v6: u8,
    /// Of several names below a registered one, as of a.example.org and b.example.org, suggest every name below that, as
    /// in *.example.org
    #[arg(long)]
    pub wildcards: bool,
    /// The policy file that the rules are for
    #[arg(long, value_name = "FILE", default_value = POLICY_FILE)]
    pub config: PathBuf,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The instance
    pub name: InstanceName,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}
