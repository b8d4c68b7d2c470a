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
    /// Those without `tls` come first: the first grant that allows a flow says whether it must open TLS.
    pub(super) fn names<'a>(
        &mut self,
        rules: impl Iterator<Item = (&'a NameRule, Option<u64>)>,
        entries: &mut Vec<(TrieKey, Entry)>,
    ) -> Result<(Vec<CompiledName>, u32), CompileError> {
        let (mut of_rules, mut known) = (vec![], BTreeSet::new());
        for (rule, until) in rules.filter(|(rule, _)| known.insert(*rule)) {
            of_rules.push((rule, until, self.entry_of_name(rule)?));
        }
        let mut grants: Vec<Entry> = vec![];
        for tls in [false, true] {
            for (.., entry) in of_rules.iter().filter(|(rule, ..)| rule.tls() == tls) {
                if !grants.contains(entry) {
                    grants.push(*entry);
                }
            }
        }
        let count = u32::try_from(grants.len()).ok().filter(|count| *count <= MAX_NAME_GRANTS);
        let count = count.ok_or(CompileError::NameGrants)?;
        entries.extend((0..).zip(&grants).map(|(number, entry)| (TrieKey::name_grant(number), *entry)));
        entries.extend(of_rules.iter().map(|(rule, _, entry)| (TrieKey::name_rule(rule.id()), *entry)));
        let names = of_rules.into_iter().map(|(rule, until, entry)| {
            // It is among them.
            let grant = (0..).zip(&grants).find_map(|(number, known)| (*known == entry).then_some(number));
            CompiledName { rule: rule.clone(), id: rule.id(), grant: grant.unwrap_or(count), until }
        });
        Ok((names.collect(), count))
    }
}
