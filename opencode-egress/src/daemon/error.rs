//! What can go wrong in the daemon.

use std::path::PathBuf;

use crate::{
    cgroups::CgroupError,
    control::caller::CallerError,
    kernel::{
        confine::ConfineError, features::KernelError, loader::LoadError, maps::MapsError, pins::PinError,
        programs::AttachError, registry::InstanceNumbersError,
    },
    policy::{
        InstanceName, UnitName,
        compile::CompileError,
        file::ConfigError,
        lease::{LeaseKind, LeaseRule, MAX_LEASES},
    },
};

/// Why the daemon did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The policy file cannot be read, or has an error.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A policy takes more room than the maps have.
    #[error("instance `{name}` cannot be compiled")]
    Compile {
        /// The instance whose policy it is.
        name: InstanceName,
        /// What there is too much of.
        #[source]
        source: CompileError,
    },
    /// A policy takes what the kernel has not.
    #[error("instance `{name}` cannot be confined as its policy has it")]
    Kernel {
        /// The instance whose policy it is.
        name: InstanceName,
        /// What the kernel lacks.
        #[source]
        source: KernelError,
    },
    /// The programs or maps could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read or written.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The instances' numbers could not be read or written.
    #[error(transparent)]
    InstanceNumbers(#[from] InstanceNumbersError),
    /// A link or map could not be pinned, or its pin not be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A cgroup could not be found or read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The process that asks could not be found out.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// A program could not be attached to a cgroup.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel did not say which connections are open.
    #[error("cannot look at open connections")]
    Connections(#[source] std::io::Error),
    /// inotify could not be had, which says when cgroups and pins come and go.
    #[error(
        "cannot watch for units and links that come and go; see fs.inotify.max_user_watches and max_user_instances in sysctl"
    )]
    Watch(#[source] std::io::Error),
    /// There are no sockets for the questions of an instance whose policy has rules for names.
    #[error("there can be no resolver for instance `{name}`, whose policy lists names")]
    ResolverSockets {
        /// The instance.
        name: InstanceName,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// An instance's names were asked for, and it lists none.
    #[error("the policy of instance `{name}` that is in force lists no names")]
    NoNames {
        /// The instance.
        name: InstanceName,
    },
    /// A unit in a network namespace of its own has names listed.
    #[error(
        "{unit} has a network namespace of its own, where no resolver answers, and instance `{name}` lists names: leave out PrivateNetwork=, NetworkNamespacePath= and JoinsNamespaceOf=, or list networks"
    )]
    OtherNetwork {
        /// The unit.
        unit: UnitName,
        /// The instance.
        name: InstanceName,
    },
    /// A client named an instance that no policy is for.
    #[error("no instance `{name}` in {}; it has: {known}", config.display())]
    UnknownInstance {
        /// The name asked for.
        name: String,
        /// The policy file.
        config: PathBuf,
        /// The instances that there are.
        known: String,
    },
    /// A lease of a rule that the policy file has.
    #[error("the policy of instance `{name}` allows `{rule}` already, so there is nothing to grant")]
    HasRule {
        /// The instance.
        name: InstanceName,
        /// The lease's rule.
        rule: LeaseRule,
    },
    /// A lease of what deny rules deny.
    #[error(
        "the policy of instance `{name}` denies all of `{rule}`, by {by}, and a lease passes no deny rule: take that out of the policy file first"
    )]
    LeaseDenied {
        /// The instance.
        name: InstanceName,
        /// The lease's rule.
        rule: LeaseRule,
        /// The deny rules.
        by: String,
    },
    /// A lease of audit mode for an instance that has it.
    #[error("instance `{name}` is in audit mode by its policy, so there is nothing to grant")]
    AuditAlready {
        /// The instance.
        name: InstanceName,
    },
    /// An instance has as many leases as it may.
    #[error(
        "instance `{name}` has {MAX_LEASES} leases, which is the most; revoke one, or list what is needed in the policy file"
    )]
    TooManyLeases {
        /// The instance.
        name: InstanceName,
    },
    /// What is to be revoked is not leased.
    #[error(
        "instance `{name}` has no lease of `{kind}`; `opencode-egress leases {name}` prints those that it has, each with its rule"
    )]
    NoLease {
        /// The instance.
        name: InstanceName,
        /// What was to be revoked.
        kind: LeaseKind,
    },
    /// No lease was over.
    #[error("no lease of instance `{name}` is over")]
    NothingOver {
        /// The instance.
        name: InstanceName,
    },
    /// What was to be done elsewhere was not.
    #[error("the change broke off: {0}")]
    BrokenOff(String),
    /// A lease cannot be written to their file.
    #[error("the lease is not granted: {}, which keeps it over a restart of the daemon, cannot be written; see whether there is room", path.display())]
    KeepLeases {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The policy file has the instance, and was not applied since.
    #[error("instance `{name}` is in {}, but that is not applied; run `opencode-egress reload`", config.display())]
    NotApplied {
        /// The instance.
        name: String,
        /// The policy file.
        config: PathBuf,
    },
    /// The process that called `attach` is in no system service.
    #[error("process {pid} is in {}, which is no system service's cgroup; `attach` is for a unit's ExecStartPre=+", cgroup.display())]
    NoUnit {
        /// The process that called.
        pid: u32,
        /// Its cgroup.
        cgroup: PathBuf,
    },
    /// The unit that called `attach` is not among those of the instance that it named.
    #[error(
        "{unit} asks for instance `{name}`, which does not list it; add it to `units` of `{name}` and reload"
    )]
    NotListed {
        /// The caller's unit.
        unit: UnitName,
        /// The instance that it named.
        name: InstanceName,
    },
}

impl From<ConfineError> for DaemonError {
    fn from(error: ConfineError) -> Self {
        match error {
            ConfineError::Attach(error) => error.into(),
            ConfineError::Maps(error) => error.into(),
        }
    }
}
