//! From the eBPF object to loaded programs and maps, in memory or pinned.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapData, MapError, MapType, RingBuf},
    programs::{Program, ProgramError},
};
use aya_log::EbpfLogger;
use opencode_egress_common::{
    abi::{
        Counter, Denied, Head, Limits, MAX_INSTANCES, MAX_POLICIES, RING_BYTES, SEEN_ENTRIES, Scope, Seen,
        SeenKey,
    },
    cache::TAG_KEYS,
    reason::Hook,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    cgroups::Cgroup,
    kernel::{
        features::{self, KernelError},
        links::{CgroupLink, CgroupLinkInfo, attach_for_good},
        maps::{Maps, MapsError, take_events},
        pins::{self, PinError},
    },
};

/// The maps that outlive the daemon, with what a pin must be to be one of them. The others belong to one
/// load of the programs.
#[rustfmt::skip]
const PINNED_MAPS: [(&str, MapShape); 9] = [
    ("CURRENT", MapShape::of::<u32, u64>(MapType::Array, MAX_INSTANCES)),
    ("HEADS", MapShape::of::<u32, Head>(MapType::Array, MAX_POLICIES)),
    ("TRIES", MapShape::of::<u32, u32>(MapType::ArrayOfMaps, MAX_POLICIES)),
    ("ALLOWED", MapShape::of::<u32, Counter>(MapType::PerCpuArray, MAX_INSTANCES)),
    ("DENIED", MapShape::of::<u32, Denied>(MapType::Array, MAX_INSTANCES)),
    ("SEEN", MapShape::of::<SeenKey, Seen>(MapType::LruHash, SEEN_ENTRIES)),
    ("LIMITS", MapShape::of::<u32, Limits>(MapType::Array, 1)),
    ("EVENTS", MapShape::of::<(), ()>(MapType::RingBuf, RING_BYTES)),
    ("SCOPES", MapShape::of::<u64, Scope>(MapType::CgroupStorage, 0)),
];

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
struct MapShape {
    map_type: MapType,
    key: usize,
    value: usize,
    entries: u32,
}

impl MapShape {
    const fn of<K, V>(map_type: MapType, entries: u32) -> Self {
        Self { map_type, key: size_of::<K>(), value: size_of::<V>(), entries }
    }

    fn of_pin(path: &Path) -> Result<Self, MapError> {
        let info = MapData::from_pin(path)?.info()?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { map_type: info.map_type()?, key, value, entries: info.max_entries() })
    }
}

/// Whether what is pinned at a path is a map as this version makes it under that name. A layout that changes gets another
/// size or another name, so of what another version made this is enough to know how to read it.
pub(crate) fn is_as_ours(name: &str, path: &Path) -> bool {
    let ours = PINNED_MAPS.iter().find(|(known, _)| *known == name);
    ours.is_some_and(|(_, shape)| MapShape::of_pin(path).ok() == Some(*shape))
}

/// Why the kernel side could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel lacks something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The object or its maps.
    #[error("cannot create the eBPF maps")]
    Object(#[source] Box<EbpfError>),
    /// A program.
    #[error("the kernel refuses the program for {}", hook.name())]
    Program {
        /// The hook whose program it is.
        hook: Hook,
        /// What it said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program is not in the object.
    #[error("the eBPF object has no program for {}; it was built from other sources, build both again", .0.name())]
    MissingProgram(Hook),
    /// A map is not in the object, or is another one.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// A pin that is not ours.
    #[error(
        "{path} is pinned already and is not the map that this version of opencode-egress makes; find out who made it, then remove it"
    )]
    ForeignPin {
        /// The pin.
        path: PathBuf,
    },
    /// No pins here.
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// Why a link was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {} to {cgroup}", hook.name())]
pub struct AttachError {
    hook: Hook,
    cgroup: PathBuf,
    #[source]
    source: io::Error,
}

/// Loaded programs; dropping it unloads those that no link holds.
pub struct Programs {
    ebpf: Ebpf,
    /// The kernel's ids of them.
    ids: BTreeMap<Hook, u32>,
}

/// The order in which links are made. `sock_create` lets nearly everything pass whatever the policy is,
/// so it can come before the scope is written, and its link makes the scope's storage.
pub const ATTACH_ORDER: [Hook; 10] = [
    Hook::SockCreate,
    Hook::Egress,
    Hook::Ingress,
    Hook::Connect4,
    Hook::Connect6,
    Hook::Sendmsg4,
    Hook::Sendmsg6,
    Hook::Bind4,
    Hook::Bind6,
    Hook::Setsockopt,
];

/// Debug messages of the programs, which only an object built with `cargo xtask build-ebpf --log` has.
pub struct DebugLog(Option<EbpfLogger<&'static dyn log::Log>>);

impl DebugLog {
    /// Passes on what the programs said.
    pub fn flush(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}

/// The kernel side, loaded.
pub struct Loaded {
    /// Debug messages.
    pub debug_log: DebugLog,
    /// The programs.
    pub programs: Programs,
    /// The maps.
    pub maps: Maps,
    /// The ring buffer of denied flows.
    pub events: RingBuf<MapData>,
}

/// How the kernel side is loaded.
pub enum Lifetime<'a> {
    /// It goes with the process; room for one instance.
    Process,
    /// Maps are pinned in this directory of a bpffs, and reused where they are there already.
    Pinned(&'a Path),
}

/// Loads the programs and opens the maps.
///
/// # Errors
///
/// When the kernel lacks something or refuses; nothing is left half made but pinned maps without links.
pub fn load(lifetime: &Lifetime<'_>) -> Result<Loaded, LoadError> {
    // Before Linux 5.11 maps count as locked memory. Where it matters and this fails, creating them fails.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    features::check()?;
    let mut keys = [0_u64; TAG_KEYS];
    fill_random(&mut keys);
    let paths;
    let mut loader = EbpfLoader::new();
    loader.override_global("VERDICT_TAG_KEYS", &keys, true);
    let knows_caller = u32::from(features::setsockopt_knows_caller());
    loader.override_global("SETSOCKOPT_KNOWS_CALLER", &knows_caller, true);
    match lifetime {
        Lifetime::Process => {
            for name in ["CURRENT", "ALLOWED", "DENIED"] {
                loader.map_max_entries(name, 2);
            }
            for name in ["HEADS", "TRIES"] {
                loader.map_max_entries(name, 4);
            }
        }
        Lifetime::Pinned(directory) => {
            // A descriptor for each policy's rules. Where too few may be open, making one too many says so.
            let files = getrlimit(Resource::Nofile);
            let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
            pins::prepare(directory)?;
            paths = PINNED_MAPS.map(|(name, shape)| (name, shape, directory.join(name)));
            for (name, shape, path) in &paths {
                if path.exists() && MapShape::of_pin(path).ok() != Some(*shape) {
                    return Err(LoadError::ForeignPin { path: path.clone() });
                }
                loader.map_pin_path(name, path.as_path());
            }
        }
    }
    const { assert!(MAX_POLICIES == 2 * MAX_INSTANCES) };
    let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))?;
    let mut ids = BTreeMap::new();
    for hook in ATTACH_ORDER {
        let program = ebpf.program_mut(hook.name()).ok_or(LoadError::MissingProgram(hook))?;
        let refused = |error| LoadError::Program { hook, source: Box::new(error) };
        load_program(program).map_err(refused)?;
        ids.insert(hook, program.info().map_err(refused)?.id());
    }
    let events = take_events(&mut ebpf)?;
    let maps = Maps::open(&mut ebpf)?;
    // An object without messages has no map for them, which is an error here and the rule there.
    let debug_log = DebugLog(EbpfLogger::init(&mut ebpf).ok());
    Ok(Loaded { debug_log, programs: Programs { ebpf, ids }, maps, events })
}

static OBJECT: &[u8] = include_bytes_aligned!(env!("OPENCODE_EGRESS_EBPF_OBJECT"));

fn fill_random(keys: &mut [u64]) {
    for key in keys {
        let mut bytes = [0; 8];
        // Asking for up to 256 bytes is neither interrupted nor cut short (getrandom(2)). Should it fail,
        // zeros turn the cache off, which costs time and nothing else.
        if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_ok() {
            *key = u64::from_ne_bytes(bytes);
        }
    }
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

impl Programs {
    /// The program of a hook. `None`: the object has none.
    pub fn program(&self, hook: Hook) -> Option<&Program> {
        self.ebpf.program(hook.name())
    }

    /// Whether a hook's link has this load's program.
    pub fn is_in(&self, hook: Hook, link: &CgroupLinkInfo) -> bool {
        self.ids.get(&hook) == Some(&link.program)
    }

    /// Puts this load's program into a link that an earlier one made, so that a new build judges what runs already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn renew(&self, hook: Hook, link: &CgroupLink, cgroup: &Cgroup) -> Result<(), AttachError> {
        let renew = || match self.program(hook).map(Program::fd) {
            _ if self.is_in(hook, &link.info()?) => Ok(()),
            Some(Ok(program)) => link.update(program.as_fd()),
            _ => Err(io::Error::other("the program is not loaded")),
        };
        renew().map_err(|source| AttachError { hook, cgroup: cgroup.path().to_owned(), source })
    }

    /// Attaches one hook to a cgroup. Children of the cgroup are judged too, whatever they attach.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&self, hook: Hook, cgroup: &Cgroup) -> Result<CgroupLink, AttachError> {
        self.with(hook, cgroup, CgroupLink::create)
    }

    /// Attaches one hook to a cgroup until the cgroup is removed, whatever becomes of this process.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach_for_good(&self, hook: Hook, cgroup: &Cgroup) -> Result<(), AttachError> {
        self.with(hook, cgroup, attach_for_good)
    }

    fn with<T>(
        &self,
        hook: Hook,
        cgroup: &Cgroup,
        attach: fn(BorrowedFd<'_>, BorrowedFd<'_>, Hook) -> io::Result<T>,
    ) -> Result<T, AttachError> {
        let error = |source| AttachError { hook, cgroup: cgroup.path().to_owned(), source };
        let Some(Ok(program)) = self.program(hook).map(Program::fd) else {
            return Err(error(io::Error::other("the program is not loaded")));
        };
        attach(program.as_fd(), cgroup.as_fd(), hook).map_err(error)
    }
}
