//! What is pinned on the bpffs, and where.
//!
//! ```text
//! /sys/fs/bpf/opencode-egress/v1/CURRENT …             maps
//!                               /NAMES                 which instance has which number
//!                               /links/<unit>/<cgroup id>/<hook>
//! ```
//!
//! A dot cannot be in a name there, so a unit's dots are commas, which no unit name has.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use opencode_egress_common::{abi::ABI_VERSION, reason::Hook};

use crate::{
    links::{CgroupLink, attach_type},
    loader::ATTACH_ORDER,
    policy::UnitName,
};

/// What can go wrong with pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A file operation.
    #[error("cannot {action} the pin {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
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

const DIRECTORY_PREFIX: &str = "v";

/// The pinned links of one cgroup of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkDirectory {
    /// The unit.
    pub unit: UnitName,
    /// The cgroup's id.
    pub cgroup: u64,
    path: PathBuf,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { action, path, source }
}

impl Pins {
    /// The pins below a base directory.
    pub fn below(base: &Path) -> Self {
        Self(base.join(format!("{DIRECTORY_PREFIX}{ABI_VERSION}")))
    }

    /// The pins of other ABI versions beside these: what a daemon of another build left.
    pub fn of_other_versions(&self) -> Vec<Self> {
        let base = self.0.parent().unwrap_or(&self.0);
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY_PREFIX));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        versions.map(|entry| Self(entry.path())).filter(|pins| pins.0 != self.0).collect()
    }

    /// Removes the maps, unless a link is still there that needs them.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn remove_if_unused(&self) -> Result<(), PinError> {
        if !self.all_links().is_empty() {
            return Ok(());
        }
        fs::remove_dir_all(&self.0).map_err(io_error("remove", &self.0))
    }

    /// Where maps are.
    pub fn maps(&self) -> &Path {
        &self.0
    }

    /// Where the links of a unit's cgroup are, made if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn links(&self, unit: &UnitName, cgroup: u64) -> Result<LinkDirectory, PinError> {
        let path = self.0.join("links").join(unit.as_str().replace('.', ",")).join(cgroup.to_string());
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(LinkDirectory { unit: unit.clone(), cgroup, path })
    }

    /// Every directory of links.
    pub fn all_links(&self) -> Vec<LinkDirectory> {
        let mut all = vec![];
        for unit_directory in fs::read_dir(self.0.join("links")).into_iter().flatten().flatten() {
            let name = unit_directory.file_name().to_string_lossy().replace(',', ".");
            let Ok(unit) = name.parse::<UnitName>() else { continue };
            for entry in fs::read_dir(unit_directory.path()).into_iter().flatten().flatten() {
                if let Ok(cgroup) = entry.file_name().to_string_lossy().parse() {
                    all.push(LinkDirectory { unit: unit.clone(), cgroup, path: entry.path() });
                }
            }
        }
        all
    }
}

impl LinkDirectory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are of the same cgroup of the same unit.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        self.unit == other.unit && self.cgroup == other.cgroup
    }

    /// A hook's link, if it is pinned here.
    ///
    /// # Errors
    ///
    /// When something else is.
    pub fn link(&self, hook: Hook) -> Result<Option<CgroupLink>, PinError> {
        let path = self.path.join(hook.name());
        let foreign = || PinError::Foreign { path: path.clone(), hook };
        let opened = CgroupLink::open(&path).and_then(|link| Ok((link.info()?, link)));
        let (info, link) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(foreign()),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        // Somebody took the link off its cgroup and left the pin.
        if info.attach_type == attach_type(hook) && info.cgroup == 0 {
            return Ok(None);
        }
        if info.attach_type != attach_type(hook) || info.cgroup != self.cgroup {
            return Err(foreign());
        }
        Ok(Some(link))
    }

    /// How many hooks' links are pinned here.
    pub fn count(&self) -> usize {
        ATTACH_ORDER.iter().filter(|hook| matches!(self.link(**hook), Ok(Some(_)))).count()
    }

    /// Pins a link, in the place of one that is attached no more.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin(&self, hook: Hook, link: &CgroupLink) -> Result<(), PinError> {
        let path = self.path.join(hook.name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(error));
            }
            _ => {}
        }
        link.pin(&path).map_err(io_error("make", &path))
    }

    /// Removes the links, the last one first, which detaches them. The unit's directory goes with its last
    /// cgroup.
    ///
    /// # Errors
    ///
    /// When one cannot be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        for hook in ATTACH_ORDER.iter().rev() {
            let path = self.path.join(hook.name());
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        fs::remove_dir(&self.path).map_err(io_error("remove", &self.path))?;
        if let Some(unit_directory) = self.path.parent() {
            // Not empty: another cgroup of the unit is confined.
            let _ = fs::remove_dir(unit_directory);
        }
        Ok(())
    }
}
