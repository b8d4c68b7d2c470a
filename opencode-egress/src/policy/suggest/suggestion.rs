//! What a suggestion is made of, and what it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::policy::{AnyRule, destination::Destination};

/// A destination that was denied to an instance for a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedDestination {
    /// Where to; for a bind, where.
    #[serde(flatten)]
    pub destination: Destination,
    /// Why: a drop reason's name.
    pub reason: String,
    /// How often.
    pub attempts: u64,
    /// A name whose answer brought the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A name that an instance asked for and that no rule lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedName {
    /// The name as it was asked for.
    pub name: String,
    /// How often it was asked for.
    pub attempts: u64,
}

/// The widest rules to suggest.
#[derive(Clone, Copy, Debug)]
pub struct Widest {
    /// Networks of IPv4, as a prefix length.
    pub v4: u8,
    /// Networks of IPv6, as a prefix length.
    pub v6: u8,
    /// Of several names below one that somebody registered, every name below that.
    pub wildcards: bool,
}

/// A rule, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuggestedRule {
    /// The rule to add to `allow`.
    pub rule: AnyRule,
    /// Denials that it would have let pass.
    pub attempts: u64,
}

/// What to add to a policy, and what no rule changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// The rules.
    pub rules: Vec<SuggestedRule>,
    /// Names for which there can be no rule.
    pub no_names: BTreeSet<String>,
    /// Destinations that a deny rule of the policy covers.
    pub by_deny_rule: Vec<Destination>,
    /// Binds that the policy does not list, and how often they were denied.
    pub binds: Vec<(Destination, u64)>,
    /// How often something else was denied that no rule for a destination lets pass, by drop reason: inbound
    /// connections, datagrams from strangers, sockets, headers.
    pub beyond_rules: BTreeMap<String, u64>,
    /// How many of what was denied the policy lets pass by now.
    pub allowed_by_now: usize,
}
