//! Names: where questions go, which flows pass because an answer brought their address, and for how long.
//!
//! What the daemon and the resolver do is done by hand here: a stand-in for the resolver takes the questions (`resolver`), and the
//! test says which addresses its answers brought.

mod changes;
mod flows;
mod interfaces;
mod marks;
mod modes;
mod questions;
mod resolver;
mod resolvers;
mod time;
mod unasked;

use std::{net::IpAddr, time::Duration};

use opencode_egress::{
    kernel::{
        instance::InstanceIndex,
        loader::Lifetime,
        maps::{LearnedAddress, LoadedPolicy, boottime},
    },
    policy::{
        AnyRule, NameRule, Policy,
        compile::{CompiledPolicy, compile},
    },
};
use opencode_egress_common::abi::{Learned, RESOLVER_PORTS};

pub(crate) use self::flows::{WAYS, Way};
use self::resolver::Resolver;
use crate::{
    probe::unhurried,
    world::{World, base_policy},
};

/// Where the stand-in for the resolver listens.
pub(crate) const RESOLVER: u16 = RESOLVER_PORTS.0 + 7;

/// The bit by which the second lock would let flows by name pass.
pub(crate) const MARK: u32 = 0x0100_0000;

/// A rule for a name, that the policies here have.
pub(crate) const API: &str = "api.example.org:400-500/any";

/// A world under a policy with rules for names.
pub(crate) struct Named {
    pub(crate) world: World,
    pub(crate) resolver: Resolver,
    policy: CompiledPolicy,
}

impl Named {
    /// A world whose cgroup is confined to a policy; nothing is learned yet.
    pub(crate) fn new(policy: &Policy) -> Self {
        Self::with(&Lifetime::Process, policy)
    }

    /// The same, with the kernel side loaded for as long as this says.
    pub(crate) fn with(lifetime: &Lifetime<'_>, policy: &Policy) -> Self {
        let world = World::with(lifetime);
        let resolver = Resolver::start(&world.unit, RESOLVER);
        let mut named = Self { world, resolver, policy: compile(policy).expect("the policy compiles") };
        named.install(policy, &[]);
        named.world.confine();
        named
    }

    /// Puts a policy in force, with what its names brought so far: rule, address, and for how many seconds from now.
    pub(crate) fn install(&mut self, policy: &Policy, learned: &[(&str, IpAddr, u64)]) {
        self.policy = compile(policy).expect("the policy compiles");
        let learned =
            learned.iter().map(|(rule, address, left)| self.learned(rule, *address, boottime() + left));
        let mut loaded = LoadedPolicy::load(&self.policy).expect("the rules are loaded");
        loaded.with_names(RESOLVER, MARK, learned.collect());
        self.world
            .loaded
            .maps
            .put_in_force(vec![(InstanceIndex::FIRST, loaded)])
            .expect("the policy is in force");
    }

    /// An address that the name of a rule of the policy in force brought.
    pub(crate) fn learned(&self, rule: &str, address: impl Into<IpAddr>, until: u64) -> LearnedAddress {
        let id = name_rule(rule).id();
        let compiled = self.policy.names.iter().find(|name| name.id == id).expect("a rule of the policy");
        LearnedAddress {
            address: address.into(),
            grant: compiled.grant,
            learned: Learned { until, rule: id },
        }
    }

    /// Learns an address for long enough to begin something with it, and returns until when.
    pub(crate) fn learn_briefly(&mut self, rule: &str, address: impl Into<IpAddr>) -> u64 {
        // The clock is read in whole seconds: of these, one may be over at once.
        self.learn(rule, address, 3 + unhurried(Duration::from_secs(1)).as_secs())
    }

    /// Learns an address for so many seconds from now, and returns until when.
    pub(crate) fn learn(&mut self, rule: &str, address: impl Into<IpAddr>, left: u64) -> u64 {
        let until = boottime() + left;
        let learned = self.learned(rule, address, until);
        self.world.loaded.maps.learn(InstanceIndex::FIRST, &learned).expect("the kernel takes it");
        until
    }
}

/// A rule for a name, as text.
fn name_rule(text: &str) -> NameRule {
    match text.parse().expect("a rule") {
        AnyRule::Name(rule) => rule,
        AnyRule::Network(rule) => panic!("{rule} is a rule for a network"),
    }
}

/// The networks of the base policy, and names.
pub(crate) fn names(rules: &[&str]) -> Policy {
    Policy { names: rules.iter().map(|rule| name_rule(rule)).collect(), ..base_policy() }
}
