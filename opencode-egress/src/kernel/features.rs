//! Whether the running kernel has what the programs and maps take. One that does not is refused, naming what it lacks.

use std::{io, sync::OnceLock};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported},
    util::KernelVersion,
};

use crate::{
    kernel::tail_calls,
    policy::{Errno, Policy},
};

/// The oldest kernel on which everything works: shared cgroup storage is of 5.9, inner maps of any size
/// and the checks on them of 5.10.
const OLDEST: KernelVersion = KernelVersion::new(5, 10, 0);

/// The first kernel whose sendmsg programs may set socket options.
const SENDMSG_MARKS: KernelVersion = KernelVersion::new(5, 12, 0);

/// Types of programs that a kernel with bpf(2) may have been built without. The others come with bpf(2).
const PROGRAMS: [(ProgramType, &str); 4] = [
    (ProgramType::CgroupSkb, "cgroup_skb programs"),
    (ProgramType::CgroupSock, "cgroup_sock programs"),
    (ProgramType::CgroupSockAddr, "cgroup_sock_addr programs"),
    (ProgramType::CgroupSockopt, "cgroup_sockopt programs"),
];

/// Why this kernel will not do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel is too old.
    #[error("this kernel is {found}; opencode-egress needs 5.10 or newer and does not run in a weaker mode")]
    Old {
        /// The running kernel.
        found: String,
    },
    /// It has no eBPF.
    #[error("this kernel has no bpf(2); opencode-egress needs one with CONFIG_BPF_SYSCALL")]
    NoBpf,
    /// A part of eBPF is not there.
    #[error("this kernel has no {0}; opencode-egress needs one with CONFIG_CGROUP_BPF")]
    Lacks(&'static str),
    /// The kernel has eBPF, and this process may not use it.
    #[error(
        "this process may not use bpf(2) for {0}; run it as root (CAP_BPF and CAP_NET_ADMIN), outside of user \
         namespaces and of seccomp filters that forbid it"
    )]
    NotPermitted(&'static str),
    /// Programs of calls cannot choose the error.
    #[error(
        "this kernel denies calls with EPERM alone, and the policy has `\"errno\": \"{0}\"`, which takes a newer one (bpf_set_retval() in connect, sendmsg and bind programs; 6.1 has it); leave out `errno`, or use such a kernel"
    )]
    FixedErrno(&'static str),
    /// Programs cannot go on with others.
    #[error(
        "this kernel cannot follow a TLS hello, as the rule `{0}` has it: that takes its compiler of eBPF programs (net.core.bpf_jit_enable = 1), on arm64 of Linux 6.0 or newer; it is looked for when the daemon starts. Say `\"tls\": false`, or `/notls`, in the policy's rules for names, or use such a kernel"
    )]
    NoTailCalls(String),
    /// The kernel answered with an error that says nothing about the feature.
    #[error("cannot find out whether this kernel has {feature}")]
    Unknown {
        /// What was asked for.
        feature: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Finds out whether this kernel has what the programs and maps take.
///
/// # Errors
///
/// When it has not, naming the first thing that is not there.
pub(crate) fn check() -> Result<(), KernelError> {
    // Where the version cannot be read, the questions below decide.
    if let Ok(version) = KernelVersion::current() {
        new_enough(version, &rustix::system::uname().release().to_string_lossy())?;
    }
    for (program, name) in PROGRAMS {
        judge(name, is_program_supported(program).map_err(program_error))?;
    }
    let storage = is_map_supported(MapType::CgroupStorage);
    judge("cgroup_storage maps", storage.map_err(|SyscallError { io_error, .. }| io_error))
}

fn new_enough(version: KernelVersion, release: &str) -> Result<(), KernelError> {
    if version < OLDEST { Err(KernelError::Old { found: release.to_owned() }) } else { Ok(()) }
}

fn program_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => io::Error::other(other),
    }
}

fn judge(feature: &'static str, supported: io::Result<bool>) -> Result<(), KernelError> {
    match supported.map_err(|error| (error.raw_os_error(), error)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(KernelError::Lacks(feature)),
        Err((Some(libc::ENOSYS), _)) => Err(KernelError::NoBpf),
        Err((Some(libc::EPERM | libc::EACCES), _)) => Err(KernelError::NotPermitted(feature)),
        Err((_, source)) => Err(KernelError::Unknown { feature, source }),
    }
}

/// What a kernel may do or not; the programs do with either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// It tells a setsockopt program which process calls, which Linux 5.10 does not: what they refuse there is told without
    /// the process.
    pub setsockopt_knows_caller: bool,
    /// It tells a packet's program which process runs. Linux 6.18 does, 6.12 does not.
    pub packet_knows_caller: bool,
    /// It lets a sendmsg program set a socket's mark: Linux 5.12 and newer
    /// (<https://github.com/torvalds/linux/commit/357490601621>).
    pub sendmsg_may_mark: bool,
    /// It lets the programs of connect, sendmsg and bind choose the error that the caller gets.
    pub call_may_set_error: bool,
    /// It lets a program that has functions go on with another one, as the program for what leaves does with that for TLS.
    pub egress_calls_tls: bool,
    /// It lets all programs that know the process read what it is, by helpers that take CAP_PERFMON.
    pub programs_may_read_kernel: bool,
}

impl Features {
    /// What the running kernel may do, as it was found when this process asked first: what it loaded then was made for that.
    pub fn of_this_kernel() -> Self {
        static FOUND: OnceLock<Features> = OnceLock::new();
        *FOUND.get_or_init(Self::ask)
    }

    /// Asks the running kernel.
    pub fn ask() -> Self {
        let has = |program, helpers: &[BpfHelper]| {
            helpers.iter().all(|helper| is_helper_supported(program, *helper).unwrap_or(false))
        };
        let identity = [BpfHelper::BPF_FUNC_get_current_pid_tgid, BpfHelper::BPF_FUNC_get_current_comm];
        let knows_caller = |program| has(program, &identity);
        let reads = [
            BpfHelper::BPF_FUNC_get_current_task,
            BpfHelper::BPF_FUNC_probe_read_kernel,
            BpfHelper::BPF_FUNC_probe_read_kernel_str,
        ];
        Self {
            setsockopt_knows_caller: knows_caller(ProgramType::CgroupSockopt),
            packet_knows_caller: knows_caller(ProgramType::CgroupSkb),
            // The answer differs with the hook, and aya asks for the first one alone.
            sendmsg_may_mark: KernelVersion::current().is_ok_and(|version| version >= SENDMSG_MARKS),
            call_may_set_error: is_helper_supported(
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_set_retval,
            )
            .unwrap_or(false),
            egress_calls_tls: tail_calls::are_possible(),
            programs_may_read_kernel: PROGRAMS.iter().all(|(program, _)| has(*program, &reads)),
        }
    }

    /// Finds out whether a policy can be in force, with what is leased beside it.
    ///
    /// # Errors
    ///
    /// When it has another error than `EPERM` for denied calls, or a rule with `tls`, and the kernel does not do that.
    pub fn check(&self, policy: &Policy) -> Result<(), KernelError> {
        if policy.errno != Errno::default() && !self.call_may_set_error {
            return Err(KernelError::FixedErrno(policy.errno.name()));
        }
        match policy.all_names().find(|(rule, _)| rule.tls()) {
            Some((rule, _)) if !self.egress_calls_tls => Err(KernelError::NoTailCalls(rule.to_string())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let check = |supported, words: &[&str]| {
            let error = judge("cgroup_skb programs", supported).expect_err("an error").to_string();
            for word in words {
                assert!(error.contains(word), "{error}");
            }
        };
        let errno = |number| Err(io::Error::from_raw_os_error(number));
        check(Ok(false), &["no cgroup_skb programs", "CONFIG_CGROUP_BPF"]);
        check(errno(libc::ENOSYS), &["CONFIG_BPF_SYSCALL"]);
        check(errno(libc::EPERM), &["cgroup_skb programs", "CAP_BPF"]);
        check(errno(libc::EIO), &["cgroup_skb programs"]);
        assert!(judge("cgroup_skb programs", Ok(true)).is_ok());
    }

    #[test]
    fn an_old_kernel_is_told_its_version_and_what_it_takes() {
        let check =
            |version: KernelVersion, release| new_enough(version, release).map_err(|error| error.to_string());
        assert_eq!(
            check(KernelVersion::new(5, 9, 255), "5.9.255-distribution"),
            Err("this kernel is 5.9.255-distribution; opencode-egress needs 5.10 or newer and does not run in a weaker mode".to_owned())
        );
        assert_eq!(check(KernelVersion::new(5, 10, 0), "5.10.0"), Ok(()));
    }
}
