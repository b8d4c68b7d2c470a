//! What rules for names become. Which addresses their names have is learned while the policy is in force; what is
//! compiled is what each lets pass there.

use std::collections::BTreeSet;

use opencode_egress_common::{
    abi::{Entry, MAX_NAME_GRANTS, NameRuleId, TrieKey},
    flow::Class,
};

use crate::policy::{
    NameRule, PortRange,
    compile::{CompileError, Compiler, ports, ports::Said},
};

/// A rule for a name, and what the kernel knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledName {
    /// The rule.
    pub rule: NameRule,
    /// The key of its entry is [`TrieKey::name_rule`] of this.
    pub id: NameRuleId,
    /// The grant under which its addresses are learned: [`TrieKey::name_grant`] of this has the same entry.
    pub grant: u32,
    /// The first second since boot at which it brings no address any more: it is a lease's.
    pub until: Option<u64>,
}

impl Compiler {
    /// What a rule for a name allows at the addresses that it has.
    pub(super) fn entry_of_name(&mut self, rule: &NameRule) -> Result<Entry, CompileError> {
        let entry = self.entry_for(rule.ports(), |class| rule.speaks_of_class(class))?;
        Ok(if rule.tls() { entry.with_tls() } else { entry })
    }

    /// What allows these ports, of which none are all, to some classes of flows.
    pub(super) fn entry_for(
        &mut self,
        ports: &[PortRange],
        speaks_of: impl Fn(Class) -> bool,
    ) -> Result<Entry, CompileError> {
        self.entry(&Class::ALL.map(|class| {
            let ranges = if ports.is_empty() { &[PortRange::ALL][..] } else { ports };
            let ranges = ranges.iter().filter(|_| speaks_of(class));
            ports::merge(ranges.map(|range| ((range.first(), range.last()), Said::ALLOW)))
        }))
    }

    /// Adds the entries of rules for names, and says how many grants they have: one for each combination of protocol, ports and `tls`.
    pub(super) fn names<'a>(
        &mut self,
        rules: impl Iterator<Item = (&'a NameRule, Option<u64>)>,
        entries: &mut Vec<(TrieKey, Entry)>,
    ) -> Result<(Vec<CompiledName>, u32), CompileError> {
        let mut grants: Vec<Entry> = vec![];
        let (mut names, mut known) = (vec![], BTreeSet::new());
        for (rule, until) in rules.filter(|(rule, _)| known.insert(*rule)) {
            let entry = self.entry_of_name(rule)?;
            let same = (0..).zip(&grants).find_map(|(number, known)| (*known == entry).then_some(number));
            let grant = match (same, u32::try_from(grants.len())) {
                (Some(number), _) => number,
                (None, Ok(number)) if number < MAX_NAME_GRANTS => {
                    grants.push(entry);
                    entries.push((TrieKey::name_grant(number), entry));
                    number
                }
                _ => return Err(CompileError::NameGrants),
            };
            let id = rule.id();
            entries.push((TrieKey::name_rule(id), entry));
            names.push(CompiledName { rule: rule.clone(), id, grant, until });
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most `MAX_NAME_GRANTS`")]
        Ok((names, grants.len() as u32))
    }
}
