//! What the kernel remembers of denials, whatever the log left out.

use std::collections::BTreeMap;

use opencode_egress_common::{
    abi::{DestinationDenials, DestinationKey},
    reason::DropReason,
};

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

    /// Everything that was denied to an instance, as far as the kernel remembers: each destination once for each reason and name. And the names that it
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
        let names = self.names.of.get(&index);
        let name_of = |destination: Destination, key: &DestinationKey| match is_of_server(key) {
            true => names?.servers.name_of(destination, key.server).map(str::to_owned),
            false => names?.name_of_denied(destination.address).map(ToString::to_string),
        };
        let destinations = merged(&seen, name_of).into_iter().filter_map(|(of, attempts)| {
            let (destination, reason, name) = of;
            let reason = DropReason::from_number(reason)?.name().to_owned();
            let tried = denied.of_destination(destination, &reason, attempts);
            Some(DeniedDestination { destination, reason, attempts, name, tried })
        });
        let asked = names.map(|names| names.questions.unlisted()).unwrap_or_default();
        let asked = asked.into_iter().map(|(name, attempts)| {
            let tried = denied.of_question(&name, attempts);
            DeniedName { name, attempts, tried }
        });
        Ok(RememberedDenials { destinations: destinations.collect(), names: asked.collect(), remembered })
    }
}

/// Whether a denial is of a hello, whose server it is about.
fn is_of_server(key: &DestinationKey) -> bool {
    key.reason == DropReason::TlsNameNotAllowed as u8
}

/// How often each destination was denied for a reason under a name, whatever the hook.
fn merged(
    seen: &[(DestinationKey, DestinationDenials)],
    name_of: impl Fn(Destination, &DestinationKey) -> Option<String>,
) -> BTreeMap<(Destination, u8, Option<String>), u64> {
    let mut merged = BTreeMap::new();
    for (key, denials) in seen {
        if let Some(destination) = Destination::of(&key.flow()) {
            *merged.entry((destination, key.reason, name_of(destination, key))).or_default() +=
                denials.attempts;
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use opencode_egress_common::{
        flow::{Flow, Protocol},
        reason::Hook,
    };

    use super::*;
    use crate::daemon::names::DeniedServers;

    #[test]
    fn each_server_is_counted_as_the_kernel_has_it_and_one_that_no_line_told_is_there() {
        let address = IpAddr::from([192, 0, 2, 1]).into();
        let flow = Flow { address, protocol: Protocol::TCP, port: 443 };
        let seen = |reason, server, attempts| {
            let key = DestinationKey::new(1, &flow, Hook::Egress, reason);
            (DestinationKey { server, ..key }, DestinationDenials { attempts, reported: 0, told: 0 })
        };
        let (hello, denied) = (DropReason::TlsNameNotAllowed, DropReason::NotAllowed);
        let seen = [seen(hello, 7, 50), seen(hello, 8, 2), seen(hello, 9, 3), seen(denied, 0, 4)];
        let destination = Destination::of(&flow).expect("one");
        let mut servers = DeniedServers::default();
        servers.deny(destination, 7, "a.example");
        servers.deny(destination, 8, "b.example");
        let name_of = |destination, key: &DestinationKey| {
            is_of_server(key).then(|| servers.name_of(destination, key.server).map(str::to_owned))?
        };
        let merged = merged(&seen, name_of);
        let found: Vec<_> = merged
            .iter()
            .map(|((_, reason, name), attempts)| (*reason, name.as_deref(), *attempts))
            .collect();
        let (hello, denied) = (hello as u8, denied as u8);
        let mut expected = [
            (hello, None, 3),
            (hello, Some("a.example"), 50),
            (hello, Some("b.example"), 2),
            (denied, None, 4),
        ];
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
