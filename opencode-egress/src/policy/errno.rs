//! The error that a program gets where its call is denied.

use std::{fmt, str::FromStr};

use crate::policy::Invalid;

/// An error number that connect(2), send(2) and bind(2) may return for a denied flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Errno {
    /// "Operation not permitted", which every kernel has.
    #[default]
    Eperm,
    /// "Connection refused".
    Econnrefused,
    /// "No route to host".
    Ehostunreach,
    /// "Network is unreachable".
    Enetunreach,
}

impl Errno {
    const ALL: [Self; 4] = [Self::Eperm, Self::Econnrefused, Self::Ehostunreach, Self::Enetunreach];

    /// Its name in C, policies and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Econnrefused => "ECONNREFUSED",
            Self::Ehostunreach => "EHOSTUNREACH",
            Self::Enetunreach => "ENETUNREACH",
        }
    }

    /// Its number, as the kernel has it.
    pub const fn number(self) -> i32 {
        match self {
            Self::Eperm => libc::EPERM,
            Self::Econnrefused => libc::ECONNREFUSED,
            Self::Ehostunreach => libc::EHOSTUNREACH,
            Self::Enetunreach => libc::ENETUNREACH,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Errno {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|errno| errno.name() == text).ok_or_else(|| {
            Invalid(format!(
                "`{text}` is no error that a denied call can have; write `EPERM`, `ECONNREFUSED`, `EHOSTUNREACH` or `ENETUNREACH`"
            ))
        })
    }
}
