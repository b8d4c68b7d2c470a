//! Explaining a verdict: by what is in the kernel, and beside it by what the policy file says now.

use std::net::SocketAddr;

use opencode_egress_common::flow::Protocol;

use crate::{
    daemon::{error::DaemonError, policies, state::Daemon},
    policy::{
        destination::{Destination, protocol_name},
        explain::{Explanation, Judgement, PolicyFile, Rewritten, explain},
    },
    report::human::error_chain,
};

impl Daemon {
    /// Judges a flow by what is in the kernel, and says where the policy file differs.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn explain(&self, name: &str, destination: Destination) -> Result<Explanation, DaemonError> {
        let file = policies::read(&self.policies.config);
        let known = self.known(name).map_err(|unknown| match &file {
            Ok(read) if read.set.instances.keys().any(|known| known.as_str() == name) => {
                DaemonError::NotApplied { name: name.to_owned(), config: self.policies.config.clone() }
            }
            _ => unknown,
        })?;
        let instance = self.instance(&known)?;
        let in_force = instance.policy.clone().unwrap_or_default();
        let judgement = match self.loaded.maps.policy(instance.index)? {
            Some((header, rules)) => explain(destination, &header, &rules, &in_force),
            None => Judgement::without_policy(),
        };
        let file = match &file {
            Ok(read) => {
                let file = read.set.instances.get(&known).zip(read.compiled.get(&known));
                PolicyFile::compare(file, &in_force, destination, &judgement)
            }
            Err(error) => PolicyFile::Unusable { error: error_chain(error) },
        };
        let config = self.policies.config.display().to_string();
        let asked = SocketAddr::new(destination.address, destination.port);
        let mut lately = instance.recent.iter().rev().map(|denial| &denial.line);
        let rewritten = lately.find(|line| {
            line.asked == Some(asked) && line.proto == protocol_name(Protocol(destination.protocol))
        });
        let rewritten = rewritten
            .map(|line| Rewritten { to: SocketAddr::new(line.dst, line.dport), reason: line.reason.clone() });
        let detached = instance.detached;
        Ok(Explanation { destination, judgement, detached, config, file, rewritten })
    }
}
