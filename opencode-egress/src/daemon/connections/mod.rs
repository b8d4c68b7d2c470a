//! Connections that are denied: those that a new policy denies, and those of which the kernel refused a packet.

pub(super) mod places;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    os::fd::OwnedFd,
    rc::Rc,
};

use opencode_egress_common::{
    abi::PolicyHeader,
    decide::{Verdict, decide},
    flow::Flow,
    names::{NamedFlow, by_lease, may_be_allowed_by_name},
};
use tracing::{info, warn};

use crate::{
    daemon::{error::DaemonError, state::Daemon},
    kernel::{
        connections::{Connection, SocketDiagnosis},
        instance::InstanceIndex,
        maps::{KernelRules, boottime},
        pins::LinkDirectory,
    },
    policy::{AnyRule, InstanceName, Mode, lease::LeaseRule},
    report::human::error_chain,
};

/// How many requests of the kernel's are answered in one turn.
const RESETS: usize = 256;
/// How many of them may have all sockets searched.
const SEARCHES: usize = 8;

/// A policy as the kernel has it.
type InForce = (PolicyHeader, KernelRules);

/// The policies by which instances were judged before a change, of those instances whose new policy has name rules.
pub(super) type InForceBefore = HashMap<InstanceIndex, InForce>;

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

    /// Resets what instances have open and their policies deny, so that no program waits for an answer; `before` is what was in force
    /// until now. Returns what was not reset, for people; it is logged here.
    pub(super) fn reset_denied(&mut self, names: &[&InstanceName], before: InForceBefore) -> Vec<String> {
        self.reset(names, before, &[])
    }

    /// The same of an instance whose leases of these rules are over, with what began under them.
    pub(super) fn reset_leased(&mut self, name: &InstanceName, over: Vec<LeaseRule>) -> Vec<String> {
        self.reset(&[name], InForceBefore::new(), &over)
    }

    fn reset(&mut self, names: &[&InstanceName], before: InForceBefore, over: &[LeaseRule]) -> Vec<String> {
        let mut not_reset = vec![];
        let judged = self.judged(names, before, over, &mut not_reset);
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
                if !policy.denies(&connection) {
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
        mut before: InForceBefore,
        over: &[LeaseRule],
        not_reset: &mut Vec<String>,
    ) -> HashMap<u64, Rc<Judge>> {
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
                    before: before.remove(&instance.index),
                    dropped: self.names.dropped(instance.index),
                    leased: instance.policy.iter().flat_map(|policy| policy.leased.all().cloned()).collect(),
                    over: over.to_vec(),
                    named: self.names.addresses(instance.index),
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
                    Ok(cgroups) => ids.extend(cgroups.iter().flat_map(|cgroup| cgroup.ids())),
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

/// The policy by which a cgroup's connections are judged; without one, all are denied.
#[derive(Default)]
struct Judge {
    policy: Option<InForce>,
    /// The policy before it.
    before: Option<InForce>,
    /// Addresses that only names brought which are not listed any more.
    dropped: BTreeSet<IpAddr>,
    /// Rules of its leases, of those that ended too.
    leased: Vec<LeaseRule>,
    /// Rules of leases that are over, with what began under them.
    over: Vec<LeaseRule>,
    /// Addresses that names brought: what goes there may have begun by one of them.
    named: BTreeSet<IpAddr>,
}

impl Judge {
    fn denies(&self, Connection { flow, local_port, .. }: &Connection) -> bool {
        let Some((header, rules)) = &self.policy else { return true };
        match judge(header, rules, flow, *local_port) {
            Verdict::Allow => false,
            // Which name or lease a connection began by, only its socket knows: its next packet is judged, and ends it where it is denied.
            Verdict::Deny(reason)
                if may_be_allowed_by_name(reason)
                    && (header.name_grants > 0 || covers(&self.leased, flow) || covers(&self.over, flow)) =>
            {
                self.dropped.contains(&IpAddr::from(flow.address))
                    || self.was_leased(rules, flow)
                    || self.was_by_network(flow, *local_port)
            }
            Verdict::Deny(_) => true,
        }
    }

    /// Whether a connection that the rules deny is one that networks allowed until now. It began by no name and no lease, unless these
    /// networks came after it.
    fn was_by_network(&self, flow: &Flow, local_port: u16) -> bool {
        let allowed = |(header, rules): &InForce| judge(header, rules, flow, local_port) == Verdict::Allow;
        !self.named.contains(&IpAddr::from(flow.address))
            && !covers(&self.leased, flow)
            && self.before.as_ref().is_some_and(allowed)
    }

    /// Whether a connection that the rules deny can have begun under none but the leases that are over.
    fn was_leased(&self, rules: &KernelRules, flow: &Flow) -> bool {
        let address = IpAddr::from(flow.address);
        let now = boottime();
        covers(&self.over, flow)
            && !self.named.contains(&address)
            && NamedFlow::of(flow).is_some_and(|flow| by_lease(rules, &flow, now).is_none())
    }
}

/// What the networks and listeners of a policy say of a connection.
fn judge(header: &PolicyHeader, rules: &KernelRules, flow: &Flow, local_port: u16) -> Verdict {
    if header.listens_on(local_port) {
        return Verdict::Allow;
    }
    header.judge_resolver(flow).unwrap_or_else(|| decide(rules, flow).settle(|| true))
}

/// Whether a flow is one of a lease of a network.
fn covers(leases: &[LeaseRule], flow: &Flow) -> bool {
    leases.iter().any(|rule| match rule.rule() {
        AnyRule::Network(rule) => {
            rule.cidr().net().contains(&IpAddr::from(flow.address)) && rule.speaks_of(flow)
        }
        AnyRule::Name(_) => false,
    })
}
