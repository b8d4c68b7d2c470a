//! What a suggestion is made of, and what it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::policy::{
    AnyRule, destination::Destination, name::DnsName, preset::Preset, suggest::tried::Tried,
};

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
    /// When, and by whom.
    #[serde(default)]
    pub tried: Tried,
}

/// A name that an instance asked for and that no rule lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedName {
    /// The name as it was asked for.
    pub name: String,
    /// How often it was asked for.
    pub attempts: u64,
    /// When, and by whom.
    #[serde(default)]
    pub tried: Tried,
}

/// What was denied and a rule would let pass: how often, when, and who tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denials {
    /// How often.
    pub attempts: u64,
    /// When, and by whom.
    pub tried: Tried,
}

impl Denials {
    pub(super) fn of(attempts: u64, tried: &Tried) -> Self {
        Self { attempts, tried: tried.clone() }
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.tried.join(&other.tried);
    }
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
    /// What it would have let pass.
    pub denials: Denials,
}

/// Adds denials to those of the first rule that would let them pass. `false`: none does.
pub(super) fn count_to(
    rules: &mut [SuggestedRule],
    denials: &Denials,
    lets_pass: impl Fn(&AnyRule) -> bool,
) -> bool {
    let by = rules.iter_mut().find(|suggested| lets_pass(&suggested.rule));
    by.map(|suggested| suggested.denials.join(denials)).is_some()
}

/// A preset, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuggestedPreset {
    /// The preset to add to `allow`.
    pub preset: &'static Preset,
    /// The rules that it makes needless.
    pub instead_of: Vec<SuggestedRule>,
    /// What else it lets pass, that nobody asked for.
    pub unasked: Vec<AnyRule>,
}

impl SuggestedPreset {
    /// What it would have let pass.
    pub fn denials(&self) -> Denials {
        let mut all = Denials::default();
        self.instead_of.iter().for_each(|suggested| all.join(&suggested.denials));
        all
    }
}

/// What to add to a policy, and what no rule changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// Presets that stand for several rules, or for one that is all they have.
    pub presets: Vec<SuggestedPreset>,
    /// The other rules.
    pub rules: Vec<SuggestedRule>,
    /// Rules for what was tried at one time only, by programs that a shell started: the agent's, and not the server's.
    pub once: Vec<SuggestedRule>,
    /// Names for which there can be no rule.
    pub no_names: BTreeSet<String>,
    /// Names that search domains made of others.
    pub searched: BTreeSet<DnsName>,
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

impl Suggestion {
    /// Adds what there is for what is set apart.
    pub(super) fn set_apart(&mut self, apart: Self) {
        let Self {
            presets,
            rules,
            once,
            no_names,
            searched,
            by_deny_rule,
            binds,
            beyond_rules,
            allowed_by_now,
        } = apart;
        self.presets.extend(presets);
        self.once.extend(rules.into_iter().chain(once));
        self.no_names.extend(no_names);
        self.searched.extend(searched);
        self.by_deny_rule.extend(by_deny_rule);
        self.binds.extend(binds);
        for (reason, attempts) in beyond_rules {
            *self.beyond_rules.entry(reason).or_default() += attempts;
        }
        self.allowed_by_now += allowed_by_now;
    }
}
