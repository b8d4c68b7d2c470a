//! Explaining a verdict: by what is in the kernel, and beside it by what the policy file says now.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use opencode_egress_common::{abi::PolicyHeader, decide::Rules, flow::Protocol};

use crate::{
    daemon::{
        error::DaemonError,
        names::weigh,
        policies::read::{InstancePolicies, Read, read},
        state::Daemon,
    },
    kernel::{addresses::own_addresses, maps::KernelRules},
    policy::{
        InstanceName, Policy,
        compile::CompiledName,
        destination::protocol_name,
        explain::{Explanation, Judgement, PolicyFile, Rewritten, explain, tell_leases},
        lease::{AllLeased, LeaseStatus},
        name::LearnedName,
        target::Target,
    },
    report::human::{error_chain, local_time},
};

/// What an explanation takes of the daemon: to be made elsewhere, while the daemon answers.
pub(in crate::daemon) struct ExplainTask {
    name: String,
    destination: Target,
    config: PathBuf,
    mark: u32,
    in_force: InstancePolicies,
    leased: AllLeased,
    instance: Result<InForce, DaemonError>,
}

/// An instance as it is in force.
struct InForce {
    name: InstanceName,
    policy: Arc<Policy>,
    judged_by: Option<(PolicyHeader, KernelRules)>,
    detached: bool,
    learned: Vec<LearnedName>,
    /// The rules for names.
    names: Arc<[CompiledName]>,
    /// What they did not let the name bring, maybe when they were others.
    forbidden: Vec<IpAddr>,
    rewritten: Option<Rewritten>,
    leases: Vec<LeaseStatus>,
}

impl Daemon {
    /// Begins to explain the verdict on a flow.
    pub(in crate::daemon) fn begin_explain(&self, name: &str, destination: Target) -> ExplainTask {
        let instance = self.known(name).and_then(|name| {
            let instance = self.instance(&name)?;
            let policy = instance.policy.clone().unwrap_or_default();
            let judged_by = self.loaded.maps.policy(instance.index)?;
            let mut lately = instance.recent.iter().rev().filter_map(|denial| denial.line.flow());
            let rewritten = lately.find(|line| match &destination {
                Target::Address(destination) => {
                    line.asked == Some(SocketAddr::new(destination.address, destination.port))
                        && line.proto == protocol_name(Protocol(destination.protocol))
                }
                Target::Name(_) => false,
            });
            let rewritten = rewritten.map(|line| Rewritten {
                to: SocketAddr::new(line.dst, line.dport),
                reason: line.reason.clone(),
            });
            let names = self.names.of.get(&instance.index);
            let learned = match (&destination, names) {
                (_, None) => vec![],
                (Target::Name(named), Some(names)) => names.learned(Some(&named.name)),
                (Target::Address(destination), Some(names)) => {
                    let address = destination.address.to_canonical();
                    names.learned(None).into_iter().filter(|learned| learned.address == address).collect()
                }
            };
            let forbidden = match (&destination, names) {
                (Target::Name(named), Some(names)) => names.questions.forbidden(&named.name),
                _ => vec![],
            };
            let names = names.map(|names| Arc::clone(&names.rules)).unwrap_or_default();
            let leases = self.leases.status(&name);
            let detached = instance.detached;
            Ok(InForce { name, policy, judged_by, detached, learned, names, forbidden, rewritten, leases })
        });
        ExplainTask {
            name: name.to_owned(),
            destination,
            config: self.policies.config.clone(),
            mark: self.names.settings.mark,
            in_force: self.in_force(),
            leased: self.leases.leased(),
            instance,
        }
    }
}

impl ExplainTask {
    /// Judges a flow by what is in the kernel, and says where the policy file differs.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub(in crate::daemon) fn run(self) -> Result<Explanation, DaemonError> {
        let Self { name, destination, config, mark, in_force, leased, instance } = self;
        let file = read(&config, mark, &in_force, &leased)
            .map(|Read { policies, compiled, .. }| (policies, compiled));
        let InForce { name, policy, judged_by, detached, learned, names, forbidden, rewritten, leases } =
            instance.map_err(|error| match (&file, error) {
                (Ok((policies, _)), DaemonError::UnknownInstance { .. })
                    if policies.keys().any(|known| known.as_str() == name) =>
                {
                    DaemonError::NotApplied { name, config: config.clone() }
                }
                (_, error) => error,
            })?;
        let resolver_port = judged_by.as_ref().map_or(0, |(header, _)| header.resolver_port);
        let mut judgement = match judged_by {
            Some((header, rules)) => {
                let refused = refused(&destination, &forbidden, &names, &rules);
                explain(&destination, &header, &rules, &policy, &learned, &refused)
            }
            None => Judgement::without_policy(),
        };
        if let Target::Address(destination) = &destination {
            let lists = |policy: &Policy| policy.listen.iter().any(|listen| listen.port == destination.port);
            let others = in_force.iter().filter(|(other, policy)| **other != name && lists(policy));
            if let Some((other, _)) = others.into_iter().next() {
                judgement.place_is_taken(other);
            }
        }
        let file = match &file {
            Ok((policies, compiled)) => match (policies.get(&name), compiled.get(&name)) {
                (Some(_), None) => PolicyFile::Same,
                (file, compiled) => {
                    let file = file.map(|policy| &**policy).zip(compiled);
                    let refused = file.map_or(vec![], |(_, compiled)| {
                        refused(&destination, &forbidden, &compiled.names, &compiled.rules())
                    });
                    PolicyFile::compare(file, (&policy, resolver_port), &destination, &judgement, &refused)
                }
            },
            Err(error) => PolicyFile::Unusable { error: error_chain(error) },
        };
        tell_leases(&mut judgement, &leases, local_time);
        let config = config.display().to_string();
        Ok(Explanation { destination, judgement, detached, config, file, rewritten })
    }
}

/// Which of the addresses that were forbidden to a name a policy does not let it bring.
fn refused(target: &Target, forbidden: &[IpAddr], names: &[CompiledName], rules: &impl Rules) -> Vec<IpAddr> {
    let Target::Name(named) = target else { return vec![] };
    // Without its own addresses those that no name may bring are known by what they are.
    let own = own_addresses().unwrap_or_default();
    weigh(&named.name, forbidden, 0, names, rules, &own).forbidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::compile;

    #[test]
    fn what_a_policy_lets_the_name_bring_by_now_is_not_refused() {
        let forbidden = ["10.0.0.7", "169.254.169.254"].map(|text| text.parse().expect("an address"));
        let refused = |rules: &[&str], target: &str| {
            let mut policy = Policy::default();
            rules.iter().for_each(|rule| policy.allow(rule.parse().expect("a rule")));
            let compiled = compile(&policy).expect("it fits");
            let target = target.parse().expect("a target");
            refused(&target, &forbidden, &compiled.names, &compiled.rules())
        };
        assert_eq!(refused(&["*.corp.example"], "db.corp.example"), forbidden);
        assert_eq!(refused(&["*.corp.example/private"], "db.corp.example"), forbidden[1..]);
        let network = ["*.corp.example/private", "169.254.169.254/32:80"];
        assert_eq!(refused(&network, "db.corp.example:80"), Vec::<IpAddr>::new());
        assert_eq!(refused(&["other.example"], "db.corp.example"), Vec::<IpAddr>::new(), "it is not listed");
        assert_eq!(refused(&["*.corp.example"], "10.0.0.7:443"), Vec::<IpAddr>::new());
    }
}
