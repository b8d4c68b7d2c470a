//! An address that a name brought.

use std::net::IpAddr;

use crate::policy::name::DnsName;

/// An address that an answer for a name brought to a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnedName {
    /// The name that was asked for.
    pub name: DnsName,
    /// The address, no IPv4-mapped one.
    pub address: IpAddr,
    /// How many seconds new flows may go to it; 0: no more.
    pub seconds: u64,
}
