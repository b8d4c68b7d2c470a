//! What is pinned on the bpffs, and where.
//!
//! ```text
//! /sys/fs/bpf/opencode-egress/v6/CURRENT …             maps
//!                               /NAMES                 which instance has which number
//!                               /links/<unit>/<cgroup id>/<hook>
//!                                                        /late   a directory: it ran before it was confined
//!                                                        /other-network  a directory: its unit has one of its own
//! ```
//!
//! A dot cannot be in a name there, so a unit's dots are commas, which no unit name has.

mod links;

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::maps::MapData;
use opencode_egress_common::{abi::ABI_VERSION, reason::Hook};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

pub use self::links::LinkDirectory;
use crate::policy::UnitName;

/// What can go wrong with pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A file or directory could not be read or changed.
    #[error("cannot {action} the pin {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory cannot have pins.
    #[error("cannot use {path} for pins")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        #[source]
        source: io::Error,
    },
    /// Others than root could change what is pinned here.
    #[error("others than root could change what is pinned: {why}")]
    Unsafe {
        /// What is wrong with which directory, and the command that mends it.
        why: String,
    },
    /// Another daemon has the right to change the pins.
    #[error(
        "another opencode-egress keeps what is pinned in {path}; stop it first (systemctl stop opencode-egress), or choose another directory with --pins"
    )]
    Taken {
        /// The directory.
        path: PathBuf,
    },
    /// A pin that this program did not make.
    #[error("{path} is not a link of {hook} to the cgroup that it is named after; remove it by hand after finding out who made it", hook = hook.name())]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it should be.
        hook: Hook,
    },
}

/// The pins of one ABI version.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

/// The right to change what is pinned below a base directory, by whatever version. It ends with this value.
#[derive(Debug)]
pub struct PinLock(File);

impl PinLock {
    /// Whether this is the right to change `pins`: their base directory is the one that was locked.
    pub fn is_of(&self, pins: &Pins) -> bool {
        let identity =
            |metadata: io::Result<fs::Metadata>| metadata.ok().map(|data| (data.dev(), data.ino()));
        let locked = identity(self.0.metadata());
        locked.is_some() && locked == identity(fs::metadata(pins.base()))
    }
}

const DIRECTORY_PREFIX: &str = "v";
/// The directory of links, below that of the maps.
const LINKS: &str = "links";

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { action, path, source }
}

impl Pins {
    /// The pins below a base directory.
    ///
    /// # Errors
    ///
    /// When the path is relative, and there is no working directory.
    pub fn below(base: &Path) -> Result<Self, PinError> {
        let base = std::path::absolute(base)
            .map_err(|source| PinError::Directory { path: base.to_owned(), source })?;
        Ok(Self(base.join(format!("{DIRECTORY_PREFIX}{ABI_VERSION}"))))
    }

    /// The base directory, whose pins one daemon at a time has.
    pub fn base(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
    }

    /// Makes the base directory, and takes the right to change what is below it.
    ///
    /// # Errors
    ///
    /// When it is not on a BPF file system, others than root could change it or have made something in it, or another process
    /// has that right.
    pub fn lock(&self) -> Result<PinLock, PinError> {
        let base = self.base();
        prepare(base)?;
        refuse_others_pins(base)?;
        let directory = File::open(base).map_err(io_error("open", base))?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(PinLock(directory)),
            Err(Errno::WOULDBLOCK) => Err(PinError::Taken { path: base.to_owned() }),
            Err(errno) => Err(io_error("lock", base)(errno.into())),
        }
    }

    /// The pins of other ABI versions beside these: what a daemon of another build left.
    ///
    /// # Errors
    ///
    /// When the base directory cannot be read.
    pub fn of_other_versions(&self) -> Result<Vec<Self>, PinError> {
        let names = names(self.base())?.into_iter().filter(|name| {
            let number = name.strip_prefix(DIRECTORY_PREFIX);
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        Ok(names.map(|name| Self(self.base().join(name))).filter(|pins| pins.0 != self.0).collect())
    }

    /// Removes the maps, unless there may be a link that needs them.
    ///
    /// # Errors
    ///
    /// When it cannot be found out, or one cannot be removed.
    pub fn remove_if_unused(&self) -> Result<(), PinError> {
        if !names(&self.0.join(LINKS))?.is_empty() {
            return Ok(());
        }
        fs::remove_dir_all(&self.0).map_err(io_error("remove", &self.0))
    }

    /// The directory of the maps.
    pub fn maps(&self) -> &Path {
        &self.0
    }

    /// Where the links of a unit's cgroup are, made if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn links(&self, unit: &UnitName, cgroup: u64) -> Result<LinkDirectory, PinError> {
        let path = self.0.join(LINKS).join(unit.as_str().replace('.', ",")).join(cgroup.to_string());
        make_directory(&path).map_err(io_error("create", &path))?;
        Ok(LinkDirectory { unit: unit.clone(), cgroup, path })
    }

    /// Every directory of links.
    ///
    /// # Errors
    ///
    /// When a directory cannot be read, which is something else than having none.
    pub fn all_links(&self) -> Result<Vec<LinkDirectory>, PinError> {
        let links = self.0.join(LINKS);
        let mut all = vec![];
        for name in names(&links)? {
            let directory = links.join(&name);
            let Ok(unit) = name.replace(',', ".").parse::<UnitName>() else { continue };
            // What somebody else pinned there.
            if directory.is_file() {
                continue;
            }
            for name in names(&directory)? {
                if let Ok(cgroup) = name.parse() {
                    all.push(LinkDirectory { unit: unit.clone(), cgroup, path: directory.join(name) });
                }
            }
        }
        Ok(all)
    }
}

/// The pinned maps, held so that one whose pin is removed can be pinned again.
pub struct MapPins(Vec<(PathBuf, MapData)>);

impl MapPins {
    /// Those that are pinned now.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self, PinError> {
        let paths = names(pins.maps())?.into_iter().map(|name| pins.maps().join(name));
        let maps = paths.filter(|path| path.is_file()).map(|path| {
            let map = MapData::from_pin(&path);
            let map = map.map_err(|error| io_error("open", &path)(io::Error::other(error)))?;
            Ok((path, map))
        });
        Ok(Self(maps.collect::<Result<_, _>>()?))
    }

    /// Pins those again whose pins are gone, and returns how many.
    ///
    /// # Errors
    ///
    /// When one cannot be pinned.
    pub fn restore(&self) -> Result<usize, PinError> {
        let gone = self.0.iter().filter(|(path, _)| !path.exists());
        let restored = gone.map(|(path, map)| {
            let directory = path.parent().unwrap_or(path);
            make_directory(directory).map_err(io_error("create", directory))?;
            map.pin(path).map_err(|error| io_error("make", path)(io::Error::other(error)))
        });
        Ok(restored.collect::<Result<Vec<_>, _>>()?.len())
    }
}

/// Removes the pin of a map from a directory of maps, if it is there.
pub(crate) fn remove_map(directory: &Path, name: &str) -> Result<(), PinError> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// What is in a directory; nothing if it is not there.
fn names(directory: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(io_error("read", directory))?,
    };
    entries
        .map(|entry| {
            Ok(entry.map_err(io_error("read", directory))?.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

/// Makes a directory, and those above it, that root alone may enter, whatever the umask.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a directory for pins, on a BPF file system and out of others' reach.
pub(crate) fn prepare(directory: &Path) -> Result<(), PinError> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let unusable = |source| PinError::Directory { path: directory.to_owned(), source };
    let directory = std::path::absolute(directory).map_err(unusable)?;
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if rustix::fs::statfs(existing).map_err(|errno| unusable(errno.into()))?.f_type as i64 != BPF_FS_MAGIC {
        return Err(unusable(io::Error::other(format!(
            "{} is not on a BPF file system; mount one: mount -t bpf -o mode=700 bpf /sys/fs/bpf",
            existing.display()
        ))));
    }
    let device = fs::metadata(existing).map_err(unusable)?.dev();
    for path in existing.ancestors() {
        let metadata = fs::symlink_metadata(path).map_err(unusable)?;
        if metadata.is_symlink() {
            let why = format!("{} is a symbolic link; name the directory itself with --pins", path.display());
            return Err(PinError::Unsafe { why });
        }
        // Above the file system's own root.
        if metadata.dev() != device {
            break;
        }
        refuse_others(path, &metadata, "chown root:root")?;
    }
    make_directory(&directory).map_err(unusable)
}

/// Who may write to a directory, sticky or not, can make what root then takes for its own.
fn refuse_others(path: &Path, metadata: &fs::Metadata, mend: &str) -> Result<(), PinError> {
    let (shown, owner) = (path.display(), metadata.uid());
    let why = if owner != 0 {
        format!("{shown} is user {owner}'s; find out what made it, then: {mend} {shown}")
    } else if metadata.is_dir() && metadata.mode() & 0o022 != 0 {
        format!("{shown} has mode {:o}; close it: chmod 700 {shown}", metadata.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(PinError::Unsafe { why })
}

/// Nothing below a directory was made by others than root, while they could.
fn refuse_others_pins(directory: &Path) -> Result<(), PinError> {
    for name in names(directory)? {
        let path = directory.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(io_error("look at", &path))?,
        };
        refuse_others(&path, &metadata, "rm -r")?;
        if metadata.is_dir() {
            refuse_others_pins(&path)?;
        }
    }
    Ok(())
}
