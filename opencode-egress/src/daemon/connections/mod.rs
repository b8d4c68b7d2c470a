//! Connections that are denied: those that a new policy denies, and those of which the kernel refused a packet.

mod judge;
pub(super) mod places;

use std::{collections::HashMap, os::fd::OwnedFd, rc::Rc};

use tracing::{info, warn};

use self::judge::Judge;
use crate::{
    daemon::{error::DaemonError, state::Daemon},
    kernel::{connections::SocketDiagnosis, instance::InstanceIndex, maps::KernelRules, pins::LinkDirectory},
    policy::{InstanceName, Mode},
    report::human::error_chain,
};

/// How many requests of the kernel's are answered in one turn.
const RESETS: usize = 256;
/// How many of them may have all sockets searched.
const SEARCHES: usize = 8;

impl Daemon {
    /// Resets sockets whose packets were refused, so that no program waits for an answer. Returns whether there may be more.
    pub fn take_resets(&mut self) -> bool {
        let Self { loaded, connections, .. } = self;
        let mut searches = 0;
        loaded.resets.take(RESETS, |reset| {
            let search = reset.cookie == 0 && searches < SEARCHES;
            searches += usize::from(search);
            // A socket is in one namespace; the request does not say in which.
            for diagnosis in connections.diagnoses_of(reset.instance) {
                match diagnosis.reset_requested(reset, search) {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => warn!("a refused connection is not reset, so its program waits: {error}"),
                }
            }
        })
    }

    /// Takes the socket diagnosis of a unit's network namespace, which the unit's `attach` opened there.
    pub(super) fn keep_diagnosis(&mut self, instance: InstanceIndex, links: &LinkDirectory, socket: OwnedFd) {
        let opened = SocketDiagnosis::opened_elsewhere(socket).and_then(|diagnosis| {
            let namespace = diagnosis.namespace()?;
            Ok((diagnosis, namespace))
        });
        let (diagnosis, namespace) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                return warn!("{}: its connections are refused, but not reset: {error}", links.unit);
            }
        };
        if self.connections.keep(namespace, diagnosis, links.cgroup, instance)
            && let Err(error) = links.mark_other_network()
        {
            warn!(
                "later daemons will not know the network namespace of {}: {}",
                links.unit,
                error_chain(&error)
            );
        }
    }

    /// Remembers the cgroups that are below confined ones now, and lets go of the namespaces of those that are gone. What
    /// cannot be looked at is looked at again in some seconds.
    pub fn remember_children(&mut self) {
        let _ = self.look_at_children();
    }

    fn look_at_children(&mut self) -> Result<(), DaemonError> {
        let Self { confinement, connections, loaded, .. } = self;
        let links = confinement.pins.all_links()?;
        connections.retain(|cgroup| links.iter().any(|links| links.cgroup == cgroup));
        let services = confinement.hierarchy.services()?;
        for links in &links {
            let Some(instance) = loaded.maps.instance_of(links.cgroup) else { continue };
            for cgroup in confinement.hierarchy.open_all(services.get(&links.unit))? {
                if cgroup.id() == links.cgroup {
                    cgroup.ids().into_iter().for_each(|id| connections.remember(id, instance));
                }
            }
        }
        Ok(())
    }

    /// Resets what instances have open and their policies deny, so that no program waits for an answer. Returns what was not reset, for people;
    /// it is logged here.
    pub(super) fn reset_denied(&mut self, names: &[&InstanceName]) -> Vec<String> {
        let mut not_reset = vec![];
        let judged = self.judged(names, &mut not_reset);
        let (mut reset, mut mptcp, mut failed, mut why) = (0, 0, 0, None);
        for diagnosis in self.connections.diagnoses().filter(|_| !judged.is_empty()) {
            let open = match diagnosis.connections() {
                Ok(open) => open,
                Err(error) => {
                    not_reset.push(format!("the connections of a network namespace cannot be read: {error}"));
                    continue;
                }
            };
            for connection in open {
                let Some(policy) = judged.get(&connection.cgroup) else { continue };
                if !policy.denies(&connection.flow, connection.local_port) {
                    continue;
                }
                match diagnosis.reset(&connection) {
                    Ok(_) if connection.mptcp => mptcp += 1,
                    Ok(_) => reset += 1,
                    Err(error) => {
                        failed += 1;
                        why = Some(error);
                    }
                }
            }
        }
        if let Some(why) = why {
            not_reset.push(format!("connections that are refused and not reset: {failed} ({why})"));
        }
        if mptcp > 0 {
            not_reset.push(format!(
                "parts of MPTCP connections that were reset: {mptcp}. The kernel tells their programs only after net.mptcp.close_timeout; lower that (sysctl), or restart the units"
            ));
        }
        if reset > 0 {
            info!("reset {reset} open connections that are denied now");
        }
        not_reset.iter().for_each(|what| warn!("{what}"));
        self.connections.not_reset.clone_from(&not_reset);
        not_reset
    }

    /// The cgroups of instances, and by what is judged what they have open.
    fn judged(
        &self,
        names: &[&InstanceName],
        not_reset: &mut Vec<String>,
    ) -> HashMap<u64, Rc<Judge<KernelRules>>> {
        let mut judged = HashMap::new();
        let services = self.confinement.hierarchy.services();
        let links = self.confinement.pins.all_links();
        let (services, links) = match (services, links) {
            (Ok(services), Ok(links)) => (services, links),
            (Err(error), _) => {
                not_reset.push(format!("units cannot be looked for: {}", error_chain(&error)));
                return judged;
            }
            (_, Err(error)) => {
                not_reset.push(format!("links cannot be looked for: {}", error_chain(&error)));
                return judged;
            }
        };
        for name in names {
            let Ok(instance) = self.instance(name) else { continue };
            if instance.mode() == Mode::Audit {
                continue;
            }
            let policy = match self.loaded.maps.policy(instance.index) {
                Ok(policy) => Rc::new(Judge {
                    policy,
                    dropped: self.names.dropped(instance.index),
                    leased: instance.policy.iter().flat_map(|policy| policy.leased.all().cloned()).collect(),
                    brought: self.names.brought(name),
                }),
                Err(error) => {
                    not_reset.push(format!("{name}: its policy cannot be read: {}", error_chain(&error)));
                    continue;
                }
            };
            let of_instance = |cgroup: u64| self.loaded.maps.instance_of(cgroup) == Some(instance.index);
            // Also cgroups that are gone: their sockets may not be.
            let linked = links.iter().map(|links| links.cgroup).filter(|cgroup| of_instance(*cgroup));
            let mut ids: Vec<u64> = linked.chain(self.connections.children_of(instance.index)).collect();
            // By predecessors' links, too, which may deny everything by now.
            match (self.all_outlived(name), self.retired_cgroups(name)) {
                (Ok(outlived), Ok(retired)) => {
                    ids.extend(outlived.iter().filter(|cgroup| !retired.contains(cgroup)));
                    let all_denied = Rc::new(Judge::default());
                    judged.extend(retired.into_iter().map(|cgroup| (cgroup, Rc::clone(&all_denied))));
                }
                (Err(error), _) | (_, Err(error)) => {
                    not_reset.push(format!("{name}: what outlived its units: {}", error_chain(&error)));
                }
            }
            for unit in instance.units() {
                match self.confinement.hierarchy.open_all(services.get(unit)) {
                    Ok(cgroups) => {
                        for cgroup in cgroups {
                            let is_linked = || links.iter().any(|links| links.cgroup == cgroup.id());
                            let its = cgroup.ids();
                            // A unit that was detached is judged by nothing, whatever was remembered of it.
                            match instance.detached && !is_linked() {
                                true => ids.retain(|id| !its.contains(id)),
                                false => ids.extend(its),
                            }
                        }
                    }
                    Err(error) => not_reset.push(format!("{unit}: {}", error_chain(&error))),
                }
            }
            let out_of_sight = links.iter().filter(|links| {
                ids.contains(&links.cgroup)
                    && links.is_in_other_network()
                    && !self.connections.knows_namespace_of(links.cgroup)
            });
            not_reset.extend(out_of_sight.map(|links| {
                format!(
                    "{} has a network namespace that this daemon has not seen: what it has open and is denied now is refused, but not reset; restart it",
                    links.unit
                )
            }));
            judged.extend(ids.into_iter().map(|id| (id, Rc::clone(&policy))));
        }
        judged
    }
}
