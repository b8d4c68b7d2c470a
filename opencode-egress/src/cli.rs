//! The command line. Every reading command has `--json`; errors go to stderr and say what to do.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::policy::{Cidr, InstanceName};

/// Where the daemon answers.
pub const CONTROL_SOCKET: &str = "/run/opencode-egress/control.sock";
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
    /// Run the daemon: confine every listed unit, log what is refused
    Run(RunArgs),
    /// Confine the calling unit; its first ExecStartPre=+
    ///
    /// Returns once every hook is attached to the unit's cgroup. Fails, so that the unit does not start, when the
    /// daemon does not answer, when the unit is not listed under NAME, or when the kernel refuses.
    Attach(AttachArgs),
    /// Run one command under a policy, without daemon and systemd
    ///
    /// The command runs in a fresh cgroup, without the capabilities that would lead round the policy. What is
    /// refused to it is printed to stderr. The exit status is the command's; 125 when it could not be confined.
    Exec(ExecArgs),
    /// Validate a policy file and print what it compiles to
    Check(CheckArgs),
    /// Show what is confined, and what was refused
    Status(ReadArgs),
    /// Say what becomes of a flow, and why
    Explain(ExplainArgs),
    /// Print denied flows
    Events(EventsArgs),
    /// Apply the policy file again
    Reload(ControlArgs),
    /// Take an instance's links away, on purpose: its running units are no longer confined
    Detach(DetachArgs),
}

/// Where to reach the daemon.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET, env = "OPENCODE_EGRESS_SOCKET")]
    pub socket: PathBuf,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The policy file
    #[arg(long, value_name = "FILE", default_value = POLICY_FILE)]
    pub config: PathBuf,
    /// Directory on a bpffs in which links and maps are pinned
    #[arg(long, value_name = "DIR", default_value = PIN_DIRECTORY)]
    pub pins: PathBuf,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `attach`.
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

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Let a network pass, as in 10.10.0.0/16; repeatable
    #[arg(long, value_name = "CIDR", conflicts_with = "policy")]
    pub allow: Vec<Cidr>,
    /// Refuse a network, whatever is allowed; repeatable
    #[arg(long, value_name = "CIDR", conflicts_with = "policy")]
    pub deny: Vec<Cidr>,
    /// Take the policy of an instance from this file
    #[arg(long, value_name = "FILE", requires = "instance")]
    pub policy: Option<PathBuf>,
    /// The instance whose policy to take
    #[arg(long, value_name = "NAME", requires = "policy")]
    pub instance: Option<InstanceName>,
    /// Report what would be refused, and let it pass
    #[arg(long)]
    pub audit: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The policy file
    #[arg(default_value = POLICY_FILE)]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A command that reads from the daemon.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The instance
    pub name: InstanceName,
    /// The destination, as in 10.10.0.1, 10.10.0.1:443, [2001:db8::1]:53/udp
    #[arg(value_name = "DEST[:PORT][/PROTO]")]
    pub destination: crate::explain::Destination,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only this instance's
    pub name: Option<InstanceName>,
    /// Go on as they come
    #[arg(long, short)]
    pub follow: bool,
    /// What to print and whom to ask.
    #[command(flatten)]
    pub read: ReadArgs,
}

/// `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The instance
    pub name: InstanceName,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}
