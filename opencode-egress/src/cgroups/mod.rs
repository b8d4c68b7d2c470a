//! Control groups: where the hierarchy is mounted, which unit a process belongs to, where a unit is.

pub mod limits;
pub mod process;
pub mod watch;

use std::{
    collections::{BTreeMap, HashSet},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use crate::policy::UnitName;

/// What can be wrong with a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted; boot with systemd's unified or hybrid hierarchy, or mount one"
    )]
    NotMounted,
    /// A file of the kernel's could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process is outside the hierarchy that is visible here.
    #[error("process {pid} is in no cgroup of the hierarchy at {mount} (it says `{line}`)")]
    Outside {
        /// The process.
        pid: u32,
        /// The hierarchy.
        mount: PathBuf,
        /// Its line of `/proc/<pid>/cgroup`.
        line: String,
    },
}

impl CgroupError {
    /// Whether what was asked for is not there (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The services that have cgroups, with the paths of these below the mount.
pub type Services = BTreeMap<UnitName, Vec<PathBuf>>;

/// The cgroup2 hierarchy. On a hybrid host it is the one beside the v1 controllers.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    mount: PathBuf,
}

impl Hierarchy {
    /// Finds the mount.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mounts");
        let mounts = fs::read_to_string(path).map_err(CgroupError::io("read", path))?;
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.find(|fields| fields.get(2) == Some(&"cgroup2"));
        let mount = mount.ok_or(CgroupError::NotMounted)?[1].into();
        Ok(Self { mount })
    }

    /// The cgroup of a process, relative to the hierarchy.
    ///
    /// # Errors
    ///
    /// When the process is gone, or outside what is visible here.
    pub fn of_process(&self, pid: u32) -> Result<PathBuf, CgroupError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let lines = fs::read_to_string(&path).map_err(CgroupError::io("read", &path))?;
        let line = lines.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let relative = Path::new(line).strip_prefix("/").ok();
        match relative.filter(|path| path.components().all(|part| matches!(part, Component::Normal(_)))) {
            Some(relative) => Ok(relative.to_owned()),
            None => Err(CgroupError::Outside { pid, mount: self.mount.clone(), line: line.to_owned() }),
        }
    }

    /// Opens those of the cgroups at these paths that are still there.
    ///
    /// # Errors
    ///
    /// When one that is there cannot be opened.
    pub fn open_all(&self, paths: Option<&Vec<PathBuf>>) -> Result<Vec<Cgroup>, CgroupError> {
        let opened = paths.into_iter().flatten().map(|path| self.open(path));
        opened.filter(|cgroup| !cgroup.as_ref().is_err_and(CgroupError::is_not_found)).collect()
    }

    /// Whether one of the cgroups at these paths has this id.
    ///
    /// # Errors
    ///
    /// When one that is there cannot be looked at.
    pub fn has(&self, paths: Option<&Vec<PathBuf>>, id: u64) -> Result<bool, CgroupError> {
        for path in paths.into_iter().flatten() {
            let path = self.mount.join(path);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.ino() == id => return Ok(true),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CgroupError::io("stat the cgroup", &path)(error));
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Opens the cgroup at a path relative to the hierarchy.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn open(&self, relative: &Path) -> Result<Cgroup, CgroupError> {
        Cgroup::open(self.mount.join(relative))
    }

    /// Makes a cgroup at a path relative to the hierarchy.
    ///
    /// # Errors
    ///
    /// When it is there already, or the kernel refuses.
    pub fn create(&self, relative: &Path) -> Result<Cgroup, CgroupError> {
        let path = self.mount.join(relative);
        fs::create_dir(&path).map_err(CgroupError::io("create the cgroup", &path))?;
        Cgroup::open(path)
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Every service that has a cgroup, and where: in the root slice or any slice below it. A service that was moved to
    /// another slice has two while processes of before are left.
    ///
    /// # Errors
    ///
    /// When a slice cannot be read, which is something else than having no service.
    pub fn services(&self) -> Result<Services, CgroupError> {
        let mut services = Services::new();
        for slice in self.slices()? {
            for (name, here) in self.below(&slice)? {
                if let Some(unit) = unit_named(&name) {
                    services.entry(unit).or_default().push(here);
                }
            }
        }
        Ok(services)
    }

    /// Which of these services run in users' own managers (`systemctl --user`), and whose these are. It looks where such a
    /// manager puts them and no further, since what is below it is the user's to fill.
    ///
    /// # Errors
    ///
    /// When a slice cannot be read.
    pub fn users_services(&self, units: &[&UnitName]) -> Result<Vec<(u32, UnitName)>, CgroupError> {
        const PLACES: [&str; 4] = ["app.slice", "session.slice", "background.slice", ""];
        let mut found = vec![];
        for slice in self.slices()? {
            for (name, manager) in self.below(&slice)? {
                let Some(user) = name.to_str().and_then(user_of) else { continue };
                let runs = |unit: &&&UnitName| {
                    let place = |place| self.mount.join(&manager).join(place).join(unit.as_str());
                    PLACES.iter().any(|name| is_populated(&place(name)))
                };
                found.extend(units.iter().filter(runs).map(|unit| (user, (*unit).clone())));
            }
        }
        Ok(found)
    }

    /// The root and every slice below it.
    ///
    /// # Errors
    ///
    /// When one cannot be read.
    pub fn slices(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut slices = vec![PathBuf::new()];
        let mut next = 0;
        while let Some(slice) = slices.get(next) {
            let below = self.below(slice)?.into_iter();
            slices.extend(
                below.filter(|(name, _)| name.as_encoded_bytes().ends_with(b".slice")).map(|(_, here)| here),
            );
            next += 1;
        }
        Ok(slices)
    }

    fn below(&self, relative: &Path) -> Result<Vec<(OsString, PathBuf)>, CgroupError> {
        let path = self.mount.join(relative);
        let names = match fs::read_dir(&path) {
            // It went since its name was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            entries => entries.and_then(|entries| {
                entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
            }),
        };
        let names = names.map_err(CgroupError::io("read", &path))?;
        Ok(names.into_iter().map(|name| (name.clone(), relative.join(name))).collect())
    }
}

/// The user whose own manager a cgroup's name says it is of.
fn user_of(name: &str) -> Option<u32> {
    name.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok()
}

/// The user in whose own manager's cgroup a cgroup is, and the unit there.
pub fn users_unit_of(relative: &Path) -> Option<(u32, UnitName)> {
    let mut names = relative.iter();
    let user = names.find_map(|name| name.to_str().and_then(user_of))?;
    names.find_map(unit_named).map(|unit| (user, unit))
}

/// The unit that a cgroup is named after. systemd puts `_` before a name that the kernel could take for a file of its own
/// (`cg_needs_escape`, as for `memory.service`).
fn unit_named(name: &OsStr) -> Option<UnitName> {
    let name = name.to_str()?;
    name.strip_prefix('_').unwrap_or(name).parse().ok()
}

/// The unit to which a cgroup belongs, and that unit's own cgroup: the first service on the way down.
/// What a unit calls its own sub-groups therefore does not matter.
pub fn unit_of(relative: &Path) -> Option<(UnitName, PathBuf)> {
    let mut unit_cgroup = PathBuf::new();
    for part in relative {
        unit_cgroup.push(part);
        if let Some(unit) = unit_named(part) {
            return Some((unit, unit_cgroup));
        }
    }
    None
}

/// Whether there is a cgroup at a path, and a process in it or below it.
fn is_populated(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// An open cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let directory = File::open(&path).map_err(CgroupError::io("open the cgroup", &path))?;
        // The inode number is the id that the kernel has in its storage keys and link information.
        let id = directory.metadata().map_err(CgroupError::io("stat the cgroup", &path))?.ino();
        Ok(Self { path, directory, id })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's id for it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether a process is in it or below it.
    pub fn is_populated(&self) -> bool {
        is_populated(&self.path)
    }

    /// Opens `cgroup.procs`: the process whose id is written to it moves here.
    ///
    /// # Errors
    ///
    /// When the cgroup is gone.
    pub fn entrance(&self) -> Result<File, CgroupError> {
        let path = self.path.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(CgroupError::io("open", &path))
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Vec<u32> {
        fn collect(directory: &Path, pids: &mut Vec<u32>) {
            let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    collect(&entry.path(), pids);
                }
            }
        }
        let mut pids = vec![];
        collect(&self.path, &mut pids);
        pids
    }

    /// The ids of this cgroup and of those below it.
    pub fn ids(&self) -> HashSet<u64> {
        fn collect(directory: &Path, ids: &mut HashSet<u64>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ids.extend(entry.metadata().map(|metadata| metadata.ino()));
                    collect(&entry.path(), ids);
                }
            }
        }
        let mut ids = HashSet::from([self.id]);
        collect(&self.path, &mut ids);
        ids
    }

    /// Removes it and what is below it; it must have no processes.
    ///
    /// # Errors
    ///
    /// When a process is in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        fn remove(directory: &Path) -> io::Result<()> {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove(&entry.path())?;
                }
            }
            fs::remove_dir(directory)
        }
        remove(&self.path).map_err(CgroupError::io("remove the cgroup", &self.path))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_on_the_way_is_the_unit() {
        let check = |path: &str, expect: Option<(&str, &str)>| {
            let found = unit_of(Path::new(path));
            let found = found.as_ref().map(|(unit, at)| (unit.as_str(), at.to_str().expect("text")));
            assert_eq!(found, expect, "{path}");
        };
        let a = Some(("opencode-a.service", "system.slice/opencode-a.service"));
        check("system.slice/opencode-a.service", a);
        check("system.slice/opencode-a.service/.control", a);
        // A unit cannot pass for another one by naming a sub-group after it.
        check("system.slice/opencode-a.service/opencode-b.service", a);
        check("user.slice/user-0.slice/session-1.scope", None);
        check("system.slice/_memory.service", Some(("memory.service", "system.slice/_memory.service")));
        let escaped = "system.slice/opencode-my\\x2dproject.service";
        check(escaped, Some(("opencode-my\\x2dproject.service", escaped)));
    }

    #[test]
    fn a_users_unit_is_told_from_the_systems() {
        let user = "user.slice/user-1000.slice/user@1000.service";
        let found = users_unit_of(&Path::new(user).join("app.slice/opencode-a.service"));
        assert_eq!(found, Some((1000, "opencode-a.service".parse().expect("a name"))));
        assert_eq!(users_unit_of(Path::new(user)), None);
        assert_eq!(users_unit_of(Path::new("system.slice/opencode-a.service")), None);
    }
}
