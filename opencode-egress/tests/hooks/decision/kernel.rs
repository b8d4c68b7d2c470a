//! The kernel's own test run of the loaded programs (`BPF_PROG_TEST_RUN`,
//! <https://docs.kernel.org/bpf/bpf_prog_run.html>).
//!
//! There the program gets a cgroup storage of its own, all zeros, so the instance is number 0, which no cgroup of the
//! product's has and for which no policy is ever in force. This load's maps are the test's alone; through the ids that
//! the kernel tells of them it points number 0 to the policy of the first instance.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::Program,
};
use opencode_egress::{
    kernel::{
        instance::InstanceIndex,
        loader::Loaded,
        maps::{LearnedAddress, LoadedPolicy},
    },
    policy::compile::CompiledPolicy,
};
use opencode_egress_common::{
    abi::{Counter, Counters, Current, Denied, Learned, LearnedKey},
    reason::Hook,
};
use rustix::net::netdevice::name_to_index;

use super::{names::Host, packets::Frame};
use crate::network::INTERFACE;

/// The instance in a test run.
const NOBODY: u32 = 0;

pub(crate) struct Kernel {
    egress: u32,
    ingress: u32,
    interface: u32,
    current: Array<MapData, u64>,
    allowed: PerCpuArray<MapData, Counter>,
    denied: Array<MapData, Denied>,
    learned: HashMap<MapData, LearnedKey, Learned>,
}

impl Kernel {
    /// The programs and maps of this load, and the interface of the namespace that the thread is in.
    pub(crate) fn of(loaded: &Loaded) -> Self {
        let program = |hook| loaded.programs.program(hook).expect("a program");
        let ids = program(Hook::Egress).info().expect("its info").map_ids().expect("ids").expect("its maps");
        let map = |name: &str| {
            let opened = ids.iter().map(|id| MapData::from_id(*id).expect("a map of the program"));
            let mut named = opened.filter(|map| map.info().expect("its info").name_as_str() == Some(name));
            named.next().unwrap_or_else(|| panic!("no map {name}"))
        };
        let fd = |hook| descriptor(program(hook));
        let any_socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        Self {
            egress: fd(Hook::Egress),
            ingress: fd(Hook::Ingress),
            interface: name_to_index(any_socket, INTERFACE).expect("the interface"),
            current: Array::try_from(Map::Array(map("CURRENT"))).expect("words"),
            allowed: PerCpuArray::try_from(Map::PerCpuArray(map("ALLOWED"))).expect("counters"),
            denied: Array::try_from(Map::Array(map("DENIED"))).expect("counters"),
            learned: HashMap::try_from(Map::HashMap(map("LEARNED"))).expect("addresses"),
        }
    }

    /// Puts a policy in force with what the host has for its names, or none.
    pub(crate) fn put_in_force(&mut self, loaded: &mut Loaded, policy: Option<&CompiledPolicy>, host: &Host) {
        let maps = &mut loaded.maps;
        // Those of before are nobody's.
        maps.forget_expired().expect("a step");
        match policy {
            Some(policy) => LoadedPolicy::load(policy).and_then(|mut loaded| {
                loaded.with_names(host.resolver, 0, vec![]);
                maps.put_in_force(vec![(InstanceIndex::FIRST, loaded)])
            }),
            None => maps.retire(&[InstanceIndex::FIRST]),
        }
        .expect("the kernel takes it");
        let Current(word) = maps.current(InstanceIndex::FIRST);
        self.current.set(NOBODY, word, 0).expect("the word is written");
        let learned = policy.map_or_else(Vec::new, |policy| host.learned(policy));
        for LearnedAddress { address, grant, learned } in learned {
            let generation = Current(word).generation();
            let key = LearnedKey::new(NOBODY, generation, grant, &address.into());
            let before = self.learned.get(&key, 0).map_or(0, |before| before.until);
            let learned = Learned { until: learned.until.max(before), ..learned };
            self.learned.insert(key, learned, 0).expect("the address is written");
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        let cpus = self.allowed.get(&NOBODY, 0).expect("counters");
        let allowed = cpus.iter().fold(Counter::default(), |sum, cpu| Counter {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        });
        Counters { allowed, denied: self.denied.get(&NOBODY, 0).expect("counters") }
    }

    /// Whether the packet passes the last time. `None`: the kernel runs no program on such a short one.
    pub(crate) fn run(&self, hook: Hook, frame: &Frame, loopback: bool, times: u32) -> Option<bool> {
        let program = if hook == Hook::Egress { self.egress } else { self.ingress };
        let data = frame.ethernet();
        match test_run(program, &data, if loopback { 0 } else { self.interface }, times) {
            Ok(result) => Some(result == 1),
            // Newer kernels do not take what has not even a whole IP header.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && frame.len() < 40 => None,
            Err(error) => panic!("the kernel runs no {hook:?} on {frame:02x?}: {error}"),
        }
    }
}

fn descriptor(program: &Program) -> u32 {
    let fd = program.fd().expect("it is loaded");
    u32::try_from(fd.as_fd().as_raw_fd()).expect("a descriptor")
}

/// What the program returns on a frame that comes through an interface, 0 for loopback.
fn test_run(program: u32, data: &[u8], interface: u32, repeat: u32) -> io::Result<u32> {
    const BPF_PROG_TEST_RUN: i32 = 10;
    /// `union bpf_attr`, up to what this needs.
    #[repr(C)]
    struct Attr {
        program: u32,
        result: u32,
        data_len: u32,
        out_len: u32,
        data: u64,
        out: u64,
        repeat: u32,
        duration: u32,
        context_len: u32,
        context_out_len: u32,
        context: u64,
        context_out: u64,
    }
    // `struct __sk_buff` up to `ifindex`.
    let mut context = [0_u32; 11];
    context[10] = interface;
    let len = |bytes: usize| u32::try_from(bytes).expect("a short one");
    let mut attr = Attr {
        program,
        result: 0,
        data_len: len(data.len()),
        out_len: 0,
        data: data.as_ptr().expose_provenance() as u64,
        out: 0,
        repeat,
        duration: 0,
        context_len: len(size_of_val(&context)),
        context_out_len: 0,
        context: context.as_ptr().expose_provenance() as u64,
        context_out: 0,
    };
    // SAFETY: the layout of BPF_PROG_TEST_RUN; data and context are as long as it says and outlive the call, which
    // writes nothing but the attributes.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<Attr>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(attr.result) }
}
