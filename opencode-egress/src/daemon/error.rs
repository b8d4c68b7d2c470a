//! What can go wrong in the daemon.

use std::path::PathBuf;

use crate::{
    cgroups::CgroupError,
    control::caller::CallerError,
    kernel::{
        confine::ConfineError, loader::LoadError, maps::MapsError, pins::PinError, programs::AttachError,
        registry::InstanceNumbersError,
    },
    policy::{InstanceName, UnitName, compile::CompileError, file::ConfigError},
};

/// Why the daemon did not do something.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The policy file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A policy does not fit.
    #[error("instance `{name}` cannot be compiled")]
    Compile {
        /// Whose.
        name: InstanceName,
        /// Why.
        #[source]
        source: CompileError,
    },
    /// The kernel side.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The instances' numbers.
    #[error(transparent)]
    InstanceNumbers(#[from] InstanceNumbersError),
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Who asks.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// A link.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The kernel's socket diagnosis.
    #[error("cannot look at open connections")]
    Connections(#[source] std::io::Error),
    /// inotify.
    #[error(
        "cannot watch for units and links that come and go; see fs.inotify.max_user_watches and max_user_instances in sysctl"
    )]
    Watch(#[source] std::io::Error),
    /// Somebody asks for an instance that is not there.
    #[error("no instance `{name}` in {}; it has: {known}", config.display())]
    UnknownInstance {
        /// The name asked for.
        name: String,
        /// The policy file.
        config: PathBuf,
        /// Those that are there.
        known: String,
    },
    /// The policy file has the instance, and was not applied since.
    #[error("instance `{name}` is in {}, but that is not applied; run `opencode-egress reload`", config.display())]
    NotApplied {
        /// The instance.
        name: String,
        /// The policy file.
        config: PathBuf,
    },
    /// `attach` from outside a unit.
    #[error("process {pid} is in {}, which is no system service's cgroup; `attach` is for a unit's ExecStartPre=+", cgroup.display())]
    NoUnit {
        /// The caller.
        pid: u32,
        /// Its cgroup.
        cgroup: PathBuf,
    },
    /// `attach` from a unit of something else.
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
