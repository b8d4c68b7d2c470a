//! Learning: what the resolver says is weighed, put in force and kept, in this order, before it may tell its client.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{KEPT, Names, store::Record, until, weigh};
use crate::{
    control::{
        learned::MAX_TTL,
        request::{AddressTime, NameAddresses},
    },
    daemon::{error::DaemonError, state::Daemon},
    kernel::{instance::InstanceIndex, maps::boottime},
    policy::{Mode, known::KnownName, name::DnsName},
    report::{human::error_chain, journal::NAME_ALLOWED_ID},
};

/// How often a step is taken to remove what is over from the kernel: each takes milliseconds, however little there is.
const SWEEP: Duration = Duration::from_secs(10);
/// Addresses of one instance that are in force at a time.
const MAX_ADDRESSES: usize = 8192;

impl Daemon {
    /// Weighs an answer that the resolver has for an instance, one of whose programs asked from this source, and puts in force and keeps what may be told. Returns that.
    pub(in crate::daemon) fn learn(
        &mut self,
        number: u32,
        name: &str,
        addresses: &[IpAddr],
        ttl: u32,
        source: SocketAddr,
    ) -> Vec<IpAddr> {
        let Self { loaded, names, policies, .. } = self;
        let Some(index) = InstanceIndex::new(number) else { return vec![] };
        let Some(own) = names.own_addresses() else { return vec![] };
        let Names { of, store, trouble, brought, .. } = names;
        let Some(instance) = of.get_mut(&index) else { return vec![] };
        let audit = instance.mode == Mode::Audit;
        let Ok(name) = name.parse::<DnsName>() else {
            // No rule can list it.
            return if audit { addresses.to_vec() } else { vec![] };
        };
        let Ok(Some((_, rules))) = loaded.maps.policy(index) else { return vec![] };
        let now = boottime();
        let until = until(now, ttl, MAX_TTL);
        if audit && !instance.lists(&name) {
            // It would be refused; the line says so.
            instance.denied.answered(&name, addresses, until, now.saturating_sub(KEPT));
            return addresses.to_vec();
        }
        let mut weighed = weigh(&name, addresses, until, &instance.rules, &rules, &own);
        if instance.known.count().1 + weighed.learned.len() > MAX_ADDRESSES {
            instance.known.forget(now);
            if instance.known.count().1 + weighed.learned.len() > MAX_ADDRESSES {
                *trouble = Some(format!(
                    "instance `{}` has {MAX_ADDRESSES} addresses by names, and an answer with more is refused until some are over",
                    instance.name
                ));
                return vec![];
            }
        }
        let mut learned: Vec<IpAddr> = weighed.learned.iter().map(|learned| learned.address).collect();
        learned.dedup();
        if !learned.is_empty() {
            // First: a daemon that ends here knows it when it starts again, and so does whoever was told.
            let record = Record {
                instance: instance.name.to_string(),
                name: name.to_string(),
                addresses: learned.clone(),
                until,
            };
            store.append(&record);
            brought.entry(record.instance).or_default().add(&learned);
            instance.known.learn(&name, &learned, until, now.saturating_sub(KEPT));
            if instance.allowed.is_news(&name, &policies.log, Instant::now()) {
                info!(
                    MESSAGE_ID = NAME_ALLOWED_ID,
                    OPENCODE_INSTANCE = %instance.name,
                    EGRESS_ALLOWED = %name,
                    "{}: asked for {name}, which is listed",
                    instance.name
                );
            }
        }
        for address in &weighed.learned {
            if let Err(why) = loaded.maps.learn(index, address) {
                let why = format!("an address that {name} brought is not in force: {}", error_chain(&why));
                if trouble.as_ref() != Some(&why) {
                    error!("{why}");
                }
                *trouble = Some(why);
                weighed.told.retain(|told| *told != address.address);
            }
        }
        if audit && !weighed.forbidden.is_empty() {
            // For the lines of flows to them: they pass, and none of it is learned.
            instance.denied.answered(&name, &weighed.forbidden, until, now.saturating_sub(KEPT));
        }
        self.refuse_addresses(index, &name, &weighed.forbidden, source);
        if audit { addresses.to_vec() } else { weighed.told }
    }

    /// Takes a step to forget what is over. To be called every second.
    pub fn forget_names(&mut self) {
        let Self { loaded, names, .. } = self;
        if names.swept.elapsed() >= SWEEP {
            names.swept = Instant::now();
            if let Err(error) = loaded.maps.forget_expired() {
                warn!("addresses whose time is over stay in memory: {}", error_chain(&error));
            }
        }
        let over = boottime().saturating_sub(KEPT);
        for instance in names.of.values_mut() {
            instance.known.forget(over);
            instance.denied.forget(over);
        }
        if !names.of.is_empty() && names.store.is_long() {
            names.rewrite();
        }
    }

    /// The names that are known to an instance, and their addresses.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or its policy has no rules for names.
    pub(in crate::daemon) fn known_names(&self, name: &str) -> Result<Vec<NameAddresses>, DaemonError> {
        let name = self.known(name)?;
        let index = self.instance(&name)?.index;
        let names = self.names.of.get(&index).ok_or(DaemonError::NoNames { name })?;
        let now = boottime();
        let addresses = |known: &KnownName| {
            let time =
                |(address, until): (IpAddr, u64)| AddressTime { address, seconds: until.saturating_sub(now) };
            known.addresses().map(time).collect()
        };
        let known = names.known.iter();
        Ok(known
            .map(|(name, known)| NameAddresses { name: name.to_string(), addresses: addresses(known) })
            .collect())
    }
}
