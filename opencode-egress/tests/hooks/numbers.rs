//! The instances' numbers: who has which, and what is left of the one before.

use std::{collections::BTreeSet, net::SocketAddr};

use opencode_egress::{
    kernel::{
        instance::InstanceIndex,
        registry::{InstanceNumbers, InstanceNumbersError},
    },
    policy::InstanceName,
};
use opencode_egress_common::abi::MAX_INSTANCES;

use crate::{
    bpffs::Bpffs,
    network::{DENIED, PORT},
    sys::send_to,
    udp::udp,
    world::{World, base_policy},
};

fn names(prefix: &str, count: u32) -> Vec<InstanceName> {
    (0..count).map(|number| format!("{prefix}{number}").parse().expect("a name")).collect()
}

#[test]
fn a_file_takes_all_its_numbers_or_none() {
    let bpffs = Bpffs::mounted();
    let mut numbers = InstanceNumbers::open(bpffs.0.path()).expect("a registry");
    let few = names("few", 10);
    numbers.claim(&few.iter().collect()).expect("there is room");
    let many = names("many", MAX_INSTANCES - 10);
    let refused = numbers.claim(&many.iter().collect());
    assert!(matches!(refused, Err(InstanceNumbersError::Full { .. })), "{refused:?}");
    assert_eq!(numbers.known().len(), 10, "what is refused takes none");
    for name in &few {
        numbers.release(name).expect("it is free");
    }
    // Those of a daemon of before, and of the next.
    drop(numbers);
    let mut numbers = InstanceNumbers::open(bpffs.0.path()).expect("a registry");
    assert!(numbers.known().is_empty(), "{:?}", numbers.known());
    let all = names("all", MAX_INSTANCES - 1);
    numbers.claim(&all.iter().collect()).expect("every number is free");
    let taken: BTreeSet<_> = numbers.known().values().collect();
    assert_eq!(taken.len(), all.len(), "nobody shares one");
}

#[test]
fn a_free_number_remembers_nothing_but_its_generation() {
    let mut world = World::new(&base_policy());
    world.denies("UDP", SocketAddr::from((DENIED, PORT)), |to| send_to(&udp(to)?, b"x", 0, to).map(drop));
    let of_it = |world: &World| {
        world.loaded.maps.seen(InstanceIndex::FIRST).expect("what the kernel remembers").len()
    };
    assert!(of_it(&world) > 0 && world.denied() > 0, "something was denied");
    let generation = world.loaded.maps.current(InstanceIndex::FIRST).generation();
    world.loaded.maps.retire(&[InstanceIndex::FIRST]).expect("the policy is retired");
    world.loaded.maps.forget(&BTreeSet::from([InstanceIndex::FIRST])).expect("it is forgotten");
    assert_eq!((of_it(&world), world.denied(), world.counters().allowed.packets), (0, 0, 0));
    world.install(&base_policy());
    assert_eq!(world.loaded.maps.current(InstanceIndex::FIRST).generation(), generation + 1);
}
