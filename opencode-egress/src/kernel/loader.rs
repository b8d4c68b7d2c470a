//! From the eBPF object to loaded programs and maps, in memory or pinned.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapData, ProgramArray},
    programs::ProgramError,
};
use aya_log::EbpfLogger;
use opencode_egress_common::{
    abi::{CallerLayout, MAX_INSTANCES, MAX_POLICIES},
    cache::TAG_KEYS,
    reason::Hook,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kernel::{
    features::{self, Features, KernelError},
    hooks,
    layout::{self, LayoutError},
    maps::{self, Maps, MapsError},
    pins::{self, PinError},
    programs::{Programs, load_program, program_of},
    ring::{self, Events, Resets},
    shapes::{MapShape, PINNED_MAPS},
};

/// Why the programs and maps could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel lacks something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The object cannot be read, or the kernel did not create its maps.
    #[error("cannot create the eBPF maps")]
    Object(#[source] Box<EbpfError>),
    /// The kernel did not accept a program.
    #[error("the kernel refuses the program for {}", hook.name())]
    Program {
        /// The hook whose program it is.
        hook: Hook,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program is not in the object.
    #[error("the eBPF object has no program for {}; it was built from other sources, build both again", .0.name())]
    MissingProgram(Hook),
    /// A map is not in the object, or is another one.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The program that follows TLS cannot be called.
    #[error(
        "the program for {} cannot go on with that for {}, which the kernel refuses where it compiled one of the two and not the other; report it with the version of this kernel, and use another one meanwhile",
        Hook::Egress.name(),
        Hook::Tls.name()
    )]
    Follower(#[source] Box<aya::maps::MapError>),
    /// Something else is pinned under a map's name.
    #[error(
        "{path} is pinned already and is not the map that this version of opencode-egress makes; find out who made it, then remove it"
    )]
    ForeignPin {
        /// The pin.
        path: PathBuf,
    },
    /// The directory for pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinError),
}

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

/// The loaded programs and the open maps.
pub struct Loaded {
    /// Debug messages.
    pub debug_log: DebugLog,
    /// The programs.
    pub programs: Programs,
    /// The maps.
    pub maps: Maps,
    /// The ring buffer of denied flows.
    pub events: Events,
    /// The ring buffer of sockets to be reset.
    pub resets: Resets,
    /// Whether the programs tell who asked, or why not.
    pub callers: Result<(), LayoutError>,
}

/// How long what is loaded lives.
pub enum Lifetime<'a> {
    /// It ends with the process, and has room for one instance.
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
    load_for(lifetime, Features::of_this_kernel())
}

/// The same for a kernel that may do this, and perhaps more.
///
/// # Errors
///
/// As of [`load`].
pub fn load_for(lifetime: &Lifetime<'_>, features: Features) -> Result<Loaded, LoadError> {
    // Before Linux 5.11 maps count as locked memory. Where it matters and this fails, creating them fails.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    features::check()?;
    let mut keys = [0_u64; TAG_KEYS];
    fill_random(&mut keys);
    let paths;
    let mut loader = EbpfLoader::new();
    loader.override_global("VERDICT_TAG_KEYS", &keys, true);
    let hooks: Vec<_> = hooks::to_load(&features).collect();
    let flags = [
        ("SETSOCKOPT_KNOWS_CALLER", features.setsockopt_knows_caller),
        ("PACKET_KNOWS_CALLER", features.packet_knows_caller),
        ("SENDMSG_JUDGES", !features.packet_knows_caller),
        ("SENDMSG_MAY_MARK", features.sendmsg_may_mark),
        ("CALL_MAY_SET_ERROR", features.call_may_set_error),
    ]
    .map(|(name, set)| (name, u32::from(set)));
    for (name, set) in &flags {
        loader.override_global(name, set, true);
    }
    let (layout, callers) = match layout::of_this_kernel(&features) {
        Ok(layout) => (layout, Ok(())),
        Err(error) => (CallerLayout::default(), Err(error)),
    };
    loader.override_global("CALLER_LAYOUT", &layout, true);
    match lifetime {
        Lifetime::Process => {
            for name in ["CURRENT", "ALLOWED", "DENIED", "TAKEN", "SOCKETS"] {
                loader.map_max_entries(name, 2);
            }
            for name in ["HEADS", "TRIES", "TLS_NAMES"] {
                loader.map_max_entries(name, 4);
            }
            loader.map_max_entries("LEARNED", 1 << 16);
            for name in ["LISTED_PORTS", "CONFINED"] {
                loader.map_max_entries(name, 64);
            }
        }
        Lifetime::Pinned(directory) => {
            // A descriptor for each policy's rules. Where too few may be open, making one too many says so.
            let files = getrlimit(Resource::Nofile);
            let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
            pins::prepare(directory)?;
            paths = PINNED_MAPS.map(|(name, shape)| (name, shape, directory.join(name)));
            if !directory.join(SCOPES).exists() {
                // Its programs are for the map that was there, and the kernel takes none for another beside them (`bpf_prog_map_compatible`,
                // <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/core.c>).
                pins::remove_map(directory, FOLLOWER)?;
            }
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
    for hook in hooks {
        let program = ebpf.program_mut(program_of(hook, features)).ok_or(LoadError::MissingProgram(hook))?;
        let refused = |error| LoadError::Program { hook, source: Box::new(error) };
        load_program(program).map_err(refused)?;
        ids.insert(hook, program.info().map_err(refused)?.id());
    }
    let follower = features.egress_calls_tls.then(|| set_follower(&mut ebpf)).transpose()?;
    let maps = Maps::open(&mut ebpf)?;
    let (events, resets) = ring::open(&mut ebpf, &maps)?;
    // An object without messages has no map for them, which is an error here and the rule there.
    let debug_log = DebugLog(EbpfLogger::init(&mut ebpf).ok());
    Ok(Loaded {
        debug_log,
        programs: Programs { ebpf, ids, features, _follower: follower },
        maps,
        events,
        resets,
        callers,
    })
}

/// The map of confined cgroups, and that of the program that follows TLS.
const SCOPES: &str = "SCOPES";
const FOLLOWER: &str = "FOLLOWER";

/// Gives the programs for what leaves, those of an earlier load too, the program for TLS that they go on with. The kernel takes it away
/// from them with the last descriptor of the map, or pin. It takes no compiled program beside one that is not, so there is none of those here.
fn set_follower(ebpf: &mut Ebpf) -> Result<ProgramArray<MapData>, LoadError> {
    let mut follower: ProgramArray<MapData> = maps::take(ebpf, FOLLOWER)?;
    let program = ebpf.program(Hook::Tls.name()).ok_or(LoadError::MissingProgram(Hook::Tls))?;
    let refused = |source| LoadError::Program { hook: Hook::Tls, source: Box::new(source) };
    let program = program.fd().map_err(refused)?;
    follower.set(0, program, 0).map_err(|error| LoadError::Follower(Box::new(error)))?;
    Ok(follower)
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
