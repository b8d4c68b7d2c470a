//! What the kernel remembers of denials, whatever the log left out.

use std::collections::BTreeMap;

use opencode_egress_common::reason::DropReason;

use crate::{
    control::request::RememberedDenials,
    daemon::{
        error::DaemonError,
        state::{Daemon, InstanceState},
    },
    policy::{
        Mode,
        destination::Destination,
        suggest::{self, Denials, DeniedDestination, DeniedName, SuggestedRule, Suggestion, Widest},
    },
    report::{human::now, status::SteadyDenial},
};

/// Single addresses, and the names as they were asked for.
const AS_TRIED: Widest = Widest { v4: 32, v6: 128, wildcards: false };

impl Daemon {
    /// What is denied to an instance steadily, and a rule would let pass. Nothing where its policy cannot be read, of which others tell.
    pub(in crate::daemon) fn steady(&self, instance: &InstanceState) -> Vec<SteadyDenial> {
        let Some(policy) = instance.policy.as_ref().filter(|policy| policy.mode == Mode::Enforce) else {
            return vec![];
        };
        let (destinations, names) = instance.denied.steady(now());
        if destinations.is_empty() && names.is_empty() {
            return vec![];
        }
        let Ok(Some((_, rules))) = self.loaded.maps.policy(instance.index) else { return vec![] };
        let Suggestion { rules, .. } =
            suggest::rules_for(policy, &rules, &mut [], &destinations, &names, AS_TRIED);
        let steady = rules.into_iter().map(|SuggestedRule { rule, denials: Denials { attempts, tried } }| {
            SteadyDenial { rule: rule.to_string(), attempts, tried }
        });
        steady.collect()
    }

    /// Everything that was denied to an instance, as far as the kernel remembers: each destination once for each reason. And the names that it
    /// asked for and no rule lists, as far as this daemon does.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn seen(&self, name: &str) -> Result<RememberedDenials, DaemonError> {
        let InstanceState { index, denied, .. } = self.instance(&self.known(name)?)?;
        let index = *index;
        let seen = self.loaded.maps.seen(index)?;
        let remembered = seen.len();
        let mut destinations: BTreeMap<(Destination, u8), u64> = BTreeMap::new();
        for (key, denials) in seen {
            if let Some(destination) = Destination::of(&key.flow()) {
                *destinations.entry((destination, key.reason)).or_default() += denials.attempts;
            }
        }
        let names = self.names.of.get(&index);
        let destinations = destinations.into_iter().filter_map(|((destination, reason), attempts)| {
            let reason = DropReason::from_number(reason)?;
            let by_hello = reason == DropReason::TlsNameNotAllowed;
            // These come with the servers' names below.
            if by_hello && names.is_some_and(|names| names.servers.knows(destination)) {
                return None;
            }
            let reason = reason.name().to_owned();
            let name =
                names.filter(|_| !by_hello).and_then(|names| names.name_of_denied(destination.address));
            let tried = denied.of_destination(destination, &reason, attempts);
            Some(DeniedDestination {
                destination,
                reason,
                attempts,
                name: name.map(ToString::to_string),
                tried,
            })
        });
        let asked = names.map(|names| names.questions.unlisted()).unwrap_or_default();
        let asked = asked.into_iter().map(|(name, attempts)| {
            let tried = denied.of_question(&name, attempts);
            DeniedName { name, attempts, tried }
        });
        let servers = names.into_iter().flat_map(|names| names.servers.iter().cloned());
        let servers = servers.map(|server| {
            let tried = denied.of_destination(server.destination, &server.reason, server.attempts);
            DeniedDestination { tried, ..server }
        });
        let destinations = destinations.chain(servers).collect();
        Ok(RememberedDenials { destinations, names: asked.collect(), remembered })
    }
}
