//! Loaded programs, and attaching them to a cgroup.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramError},
};
use opencode_egress_common::reason::Hook;

use crate::{
    cgroups::Cgroup,
    kernel::{
        features::Features,
        holders::{self, Holder},
        hooks::{Needs, to_attach},
        links::{CgroupLink, CgroupLinkInfo, attach_for_good},
    },
};

/// Why a link was not made.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {} to {cgroup}", hook.name())]
pub struct AttachError {
    hook: Hook,
    cgroup: PathBuf,
    #[source]
    source: AttachCause,
}

/// What is behind that.
#[derive(Debug, thiserror::Error)]
enum AttachCause {
    /// Somebody else's program.
    #[error("{0}")]
    Held(Holder),
    /// What the system said.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Loaded programs; dropping it unloads those that no link holds.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    /// The kernel's ids of them.
    pub(super) ids: BTreeMap<Hook, u32>,
    pub(super) features: Features,
    /// What the program for what leaves finds that for TLS in.
    pub(super) _follower: Option<ProgramArray<MapData>>,
}

impl Programs {
    /// The hooks at which links are made for an instance whose policy has these needs, in that order.
    pub fn hooks(&self, needs: Needs) -> impl Iterator<Item = Hook> + use<> {
        to_attach(&self.features, needs)
    }

    /// What the kernel may do, as the programs were told.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The program of a hook. `None`: the object has none.
    pub fn program(&self, hook: Hook) -> Option<&Program> {
        self.ebpf.program(program_of(hook, self.features))
    }

    /// Whether a hook's link has the program that this process loaded.
    pub fn is_in(&self, hook: Hook, link: &CgroupLinkInfo) -> bool {
        self.ids.get(&hook) == Some(&link.program)
    }

    /// Puts this load's program into a link that an earlier one made, so that a new build judges what runs already. `cgroup` is
    /// for the message.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn renew(&self, hook: Hook, link: &CgroupLink, cgroup: &Path) -> Result<(), AttachError> {
        let renew = || match self.program(hook).map(Program::fd) {
            _ if self.is_in(hook, &link.info()?) => Ok(()),
            Some(Ok(program)) => link.update(program.as_fd()),
            _ => Err(io::Error::other("the program is not loaded")),
        };
        renew().map_err(|error| AttachError { hook, cgroup: cgroup.to_owned(), source: error.into() })
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
        let error = |error: io::Error| {
            let holder = match error.kind() {
                io::ErrorKind::PermissionDenied => holders::find(hook, cgroup.path()),
                _ => None,
            };
            let source = holder.map_or(AttachCause::System(error), AttachCause::Held);
            AttachError { hook, cgroup: cgroup.path().to_owned(), source }
        };
        let Some(Ok(program)) = self.program(hook).map(Program::fd) else {
            return Err(error(io::Error::other("the program is not loaded")));
        };
        attach(program.as_fd(), cgroup.as_fd(), hook).map_err(error)
    }
}

/// The name of a hook's program in the object.
pub(super) fn program_of(hook: Hook, features: Features) -> &'static str {
    match hook {
        Hook::Egress if !features.egress_calls_tls => "egress_alone",
        hook => hook.name(),
    }
}

/// How often a program is loaded that a signal keeps from it.
const LOAD_ATTEMPTS: u32 = 5;

/// Loads a program. The kernel's verifier gives up with EAGAIN when there is a signal for the thread, whatever becomes of the signal
/// (`do_check`, <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/verifier.c>), and libbpf tries as often.
pub(super) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    for _ in 1..LOAD_ATTEMPTS {
        match load_once(program) {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            result => return result,
        }
    }
    load_once(program)
}

fn load_once(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
