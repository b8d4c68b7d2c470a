//! The requests and replies that cross the control socket, and how they are written.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    control::places::beside,
    policy::{
        explain::Explanation,
        lease::{LeaseKind, LeaseStatus, LeaseTime, Reason},
        suggest::{DeniedDestination, DeniedName},
        target::Target,
    },
    report::{denial::LoggedDenial, lease::LeaseEvent, status::Status, why::Why},
};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Confine the calling unit.
    Attach {
        /// The instance that it says it belongs to.
        instance: String,
    },
    /// Remember, for `status`, that the calling unit was not confined, because `attach` did not ask for it.
    AttachFailed {
        /// The instance that it says it belongs to.
        instance: String,
        /// Why not.
        why: String,
    },
    /// Everything that `status` shows.
    Status,
    /// Say which verdict a flow gets, and why.
    Explain {
        /// The instance.
        instance: String,
        /// The flow.
        destination: Target,
    },
    /// The last denials, and with `follow` those to come.
    Events {
        /// Only this instance's.
        instance: Option<String>,
        /// Go on as they come.
        follow: bool,
        /// Also what becomes of leases, as [`Reply::Lease`].
        #[serde(default)]
        leases: bool,
    },
    /// Every destination that was denied to an instance, as far as the kernel remembers.
    RememberedDenials {
        /// The instance.
        instance: String,
    },
    /// The names that are known to an instance, and their addresses.
    Names {
        /// The instance.
        instance: String,
    },
    /// Apply the policy file again.
    Reload,
    /// Take an instance's links away.
    Detach {
        /// The instance.
        instance: String,
    },
    /// Grant a lease, or grant one anew that is in force.
    Allow {
        /// The instance.
        instance: String,
        /// What to grant.
        grants: LeaseKind,
        /// For how long, in seconds.
        time: LeaseTime,
        /// Its end ends what began under it, too.
        hard: bool,
        /// Why.
        reason: Option<Reason>,
        /// `SUDO_USER` of the client.
        sudo_user: Option<Reason>,
    },
    /// End a lease, and what began under it.
    Revoke {
        /// The instance.
        instance: String,
        /// What it grants.
        grants: LeaseKind,
        /// `SUDO_USER` of the client.
        sudo_user: Option<Reason>,
    },
    /// The leases in force.
    Leases {
        /// Only this instance's.
        instance: Option<String>,
    },
}

/// Why what a client sent is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More than the daemon reads.
    #[error("the request is not over after {MAX_REQUEST} bytes, and a longer one is not read")]
    TooLong,
    /// It is no JSON, or none that this version knows as a request.
    #[error("this is no request")]
    Malformed(#[from] serde_json::Error),
}

impl Request {
    /// The request in what a client sent, up to its first newline and at most [`MAX_REQUEST`] bytes of it.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(line: &[u8]) -> Result<Self, RequestError> {
        if line.len() as u64 >= MAX_REQUEST && line.last() != Some(&b'\n') {
            return Err(RequestError::TooLong);
        }
        Ok(serde_json::from_slice(line)?)
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The unit is confined.
    Attached {
        /// The unit.
        unit: String,
        /// The generation of its policy.
        generation: u32,
    },
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`Request::Explain`].
    Explained(Box<Explanation>),
    /// One denial; an answer to [`Request::Events`] has one for each.
    Event(Box<LoggedDenial>),
    /// What became of a lease, in an answer to [`Request::Events`].
    Lease(Box<LeaseEvent>),
    /// The end of an answer to [`Request::Events`] without `follow`; also the answer where there is nothing to tell.
    End,
    /// Every destination that was denied, as far as the kernel remembers.
    RememberedDenials(RememberedDenials),
    /// The answer to [`Request::Names`].
    Names(Vec<NameAddresses>),
    /// The file was applied: what changed, a line each.
    Reloaded {
        /// `+` and `-` lines.
        changes: Vec<String>,
        /// What is open and denied now, and was not reset: what to know of it, a line each.
        not_reset: Vec<String>,
    },
    /// Links were taken away.
    Detached {
        /// The units that are not confined any more.
        units: Vec<String>,
    },
    /// What whoever connects to the socket for it may know: see [`why_socket`].
    Why(Box<Why>),
    /// The answer to [`Request::Allow`].
    Granted {
        /// The lease.
        lease: LeaseStatus,
        /// There was one with the same rule, which it takes the place of.
        replaced: bool,
        /// What to know of it, a line each.
        notes: Vec<String>,
    },
    /// The answer to [`Request::Revoke`].
    Revoked {
        /// The lease that there was.
        lease: LeaseStatus,
        /// What began under it may go on until its next packet.
        #[serde(default)]
        until_next_packet: bool,
        /// What is open and denied now, and was not reset, a line each.
        not_reset: Vec<String>,
    },
    /// The answer to [`Request::Leases`]: by instance, those that end first in front.
    Leases(BTreeMap<String, Vec<LeaseStatus>>),
    /// The daemon did not do what was asked: why, and what to do.
    Error(String),
}

/// A name that answers are known of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameAddresses {
    /// The name.
    pub name: String,
    /// The addresses that they brought.
    pub addresses: Vec<AddressTime>,
}

/// An address that a name brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressTime {
    /// The address.
    pub address: IpAddr,
    /// For how many seconds new flows may begin; 0: none may any more.
    pub seconds: u64,
}

/// What the kernel remembers of an instance's denials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedDenials {
    /// The instance's denied destinations, why and how often.
    pub destinations: Vec<DeniedDestination>,
    /// The names that it asked for in vain.
    pub names: Vec<DeniedName>,
    /// How many denials they are: a destination counts for each hook and reason.
    pub remembered: usize,
}

/// Where confined processes ask of the daemon with this control socket what they may reach: `why.sock` beside `control.sock`. To connect is to
/// ask; nothing is read, and the answer is a [`Reply`] in a line.
pub fn why_socket(control: &Path) -> PathBuf {
    beside(control, "why")
}

/// The longest request that the daemon reads, in bytes.
pub const MAX_REQUEST: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_cut_off_is_called_too_long() {
        let longest = usize::try_from(MAX_REQUEST).expect("a length");
        let cut = vec![b' '; longest];
        assert!(matches!(Request::parse(&cut), Err(RequestError::TooLong)));
        let mut whole = cut;
        whole[..8].copy_from_slice(b"\"status\"");
        whole[longest - 1] = b'\n';
        assert!(matches!(Request::parse(&whole), Ok(Request::Status)));
        assert!(matches!(Request::parse(b"\xff\n"), Err(RequestError::Malformed(_))));
    }
}
