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
}

impl Compiler {
    /// Adds the entries of rules for names, and says how many grants they have: one for each combination of protocol, ports and `tls`.
    pub(super) fn names(
        &mut self,
        rules: &[NameRule],
        entries: &mut Vec<(TrieKey, Entry)>,
    ) -> Result<(Vec<CompiledName>, u32), CompileError> {
        let mut grants: Vec<Entry> = vec![];
        let (mut names, mut known) = (vec![], BTreeSet::new());
        for rule in rules.iter().filter(|rule| known.insert(*rule)) {
            let entry = self.entry(&Class::ALL.map(|class| {
                let ranges = if rule.ports().is_empty() { &[PortRange::ALL][..] } else { rule.ports() };
                let spoken_of = rule.speaks_of_class(class);
                let ranges = ranges.iter().filter(|_| spoken_of);
                ports::merge(ranges.map(|range| ((range.first(), range.last()), Said::ALLOW)))
            }))?;
            let entry = if rule.tls() { entry.with_tls() } else { entry };
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
            names.push(CompiledName { rule: rule.clone(), id, grant });
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most `MAX_NAME_GRANTS`")]
        Ok((names, grants.len() as u32))
    }
}
