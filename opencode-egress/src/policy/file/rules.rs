//! The rules of a policy file. Each is made as soon as it is read: a file may have a million of them, and what the JSON of
//! one takes in memory is several times what the rule does.

use std::{collections::HashSet, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::policy::{
    Cidr, PortRange, Rule, RuleProtocol,
    file::form::{DetailedRule, Misplaced, PortForm, RuleForm, Text},
};

/// A list of rules, or what is wrong with the first that is none.
pub(super) struct Rules(pub(super) Result<Vec<Rule>, Misplaced>);

impl Default for Rules {
    fn default() -> Self {
        Self(Ok(vec![]))
    }
}

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesVisitor;

        impl<'de> Visitor<'de> for RulesVisitor {
            type Value = Rules;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rules")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut forms: A) -> Result<Rules, A::Error> {
                let (mut rules, mut pool) = (Ok(vec![]), PortLists::default());
                // The rest is read all the same: an error of the JSON itself comes first.
                while let Some(form) = forms.next_element()? {
                    if let Ok(list) = &mut rules {
                        match rule(&form, &mut pool) {
                            Ok(rule) => list.push(rule),
                            Err(misplaced) => rules = Err(misplaced),
                        }
                    }
                }
                Ok(Rules(rules))
            }
        }

        deserializer.deserialize_seq(RulesVisitor)
    }
}

/// Lists of ports, each once.
#[derive(Default)]
struct PortLists(HashSet<Arc<[PortRange]>>);

impl PortLists {
    fn one_for_all(&mut self, ports: Vec<PortRange>) -> Arc<[PortRange]> {
        if let Some(same) = self.0.get(&ports[..]) {
            return Arc::clone(same);
        }
        let ports: Arc<[_]> = if ports.is_empty() { Arc::default() } else { ports.into() };
        self.0.insert(Arc::clone(&ports));
        ports
    }
}

fn rule(form: &RuleForm, pool: &mut PortLists) -> Result<Rule, Misplaced> {
    match form {
        RuleForm::Plain(cidr) => Ok(Rule::any(cidr.parse::<Cidr>()?)),
        RuleForm::Detailed(DetailedRule { cidr, protocol, ports }) => {
            let protocol_value = match protocol {
                Some(text) => text.parse()?,
                None => RuleProtocol::Any,
            };
            let range = |form: &PortForm| match form {
                PortForm::Number(port) => Ok(PortRange::one(*port)),
                PortForm::Text(text) => Text::parse::<PortRange>(text),
            };
            let ports_value = ports.iter().map(range).collect::<Result<_, _>>()?;
            // Where a number stands is not known.
            let place = match ports.first() {
                Some(PortForm::Text(text)) => text,
                _ => cidr,
            };
            Rule::new(cidr.parse()?, protocol_value, pool.one_for_all(ports_value))
                .map_err(|invalid| place.wrong(invalid))
        }
    }
}
