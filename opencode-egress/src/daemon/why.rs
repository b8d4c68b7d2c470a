//! What a confined process may ask: what its own instance may reach, and what was refused to it.

use std::time::Instant;

use crate::{
    cgroups::unit_of,
    control::caller::Caller,
    daemon::state::Daemon,
    policy::InstanceName,
    report::{human::error_chain, why::Why},
};

/// Why a process is not told.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum WhyError {
    /// It is not known who asks.
    #[error("who asks is not known: {why}; ask again")]
    Unknown {
        /// Why not.
        why: String,
    },
    /// It is of no instance.
    #[error(
        "process {pid} is of no confined unit, so there is no policy to tell of. `opencode-egress exec` prints what it refuses itself; root asks by `opencode-egress status`, `events` and `explain`"
    )]
    NotConfined {
        /// The process.
        pid: u32,
    },
    /// Its instance has asked more often than it may.
    #[error("instance `{instance}` has asked too often; wait a second")]
    TooOften {
        /// The instance.
        instance: InstanceName,
    },
    /// The policy file does not have its instance any more.
    #[error("the policy file does not have instance `{instance}` any more, and everything is refused to it")]
    NoPolicy {
        /// The instance.
        instance: InstanceName,
    },
}

impl Daemon {
    /// What a caller may know of the instance that its unit belongs to, whoever it is: the unit is asked, and no user.
    pub(in crate::daemon) fn why(&mut self, caller: &Caller, now: Instant) -> Result<Why, WhyError> {
        let path = match &caller.cgroup {
            Ok(path) => path,
            Err(error) => return Err(WhyError::Unknown { why: error_chain(error) }),
        };
        let unit = unit_of(path).map(|(unit, _)| unit);
        let of_unit = self
            .instances
            .iter_mut()
            .find(|(_, instance)| instance.units().any(|known| Some(known) == unit.as_ref()));
        let Some((name, instance)) = of_unit else { return Err(WhyError::NotConfined { pid: caller.pid }) };
        if !instance.asked.take(now) {
            return Err(WhyError::TooOften { instance: name.clone() });
        }
        match &instance.policy {
            Some(policy) => Ok(Why::of(name, policy, &self.leases.status(name), instance.recent.iter())),
            None => Err(WhyError::NoPolicy { instance: name.clone() }),
        }
    }
}
