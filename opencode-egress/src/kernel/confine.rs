//! Confining a cgroup: the links of every hook and the storage entry that says whose it is, in the safe order.

use opencode_egress_common::reason::Hook;

use crate::{
    cgroups::Cgroup,
    kernel::{hooks::Needs, instance::InstanceIndex, loader::Loaded, maps::MapsError, programs::AttachError},
};

/// Why a cgroup is not confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A hook could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The storage entry that says whose the cgroup is could not be written.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

impl Loaded {
    /// Confines a cgroup to an instance's policy, which must be in force already: `attach` makes the
    /// attachment of one hook, of those that a policy with these `needs` takes.
    ///
    /// `sock_create` lets nearly everything pass whatever the policy is; attaching it makes the cgroup's
    /// storage, so that what says whose the cgroup is can be written before any hook that judges. Until all are attached the
    /// cgroup is half confined, so a unit's first process must wait for the end of this.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what was attached by then stays attached.
    pub fn confine<T>(
        &mut self,
        cgroup: &Cgroup,
        instance: InstanceIndex,
        needs: Needs,
        mut attach: impl FnMut(&mut Self, Hook, &Cgroup) -> Result<T, AttachError>,
    ) -> Result<Vec<(Hook, T)>, ConfineError> {
        let mut attached = vec![];
        for hook in self.programs.hooks(needs) {
            attached.push((hook, attach(self, hook, cgroup)?));
            if hook == Hook::SockCreate && !self.maps.is_confined_to(cgroup.id(), instance) {
                self.maps.set_instance_of(cgroup.id(), instance)?;
            }
        }
        Ok(attached)
    }
}
