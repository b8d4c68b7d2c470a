//! The rules of a policy file. Each is made as soon as it is read: a file may have a million of them, and what the JSON of
//! one takes in memory is several times what the rule does.

use std::{collections::HashSet, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::policy::{
    AnyRule, NameRule, PortRange, Rule, RuleProtocol,
    file::form::{DetailedRule, Misplaced, PlaceForm, PortForm, RuleForm, Text},
    name::NamePattern,
    preset::preset,
};

/// A list of rules, or what is wrong with the first that is none.
pub(super) struct Rules(pub(super) Result<Listed, Misplaced>);

/// The rules of a list.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) networks: Vec<Rule>,
    /// Each once.
    pub(super) names: Vec<NameRule>,
    /// Where the first name is, and what to do where there can be none.
    pub(super) first_name: Option<Misplaced>,
    known_names: HashSet<NameRule>,
    pool: PortLists,
}

impl Default for Rules {
    fn default() -> Self {
        Self(Ok(Listed::default()))
    }
}

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesVisitor;

        impl<'de> Visitor<'de> for RulesVisitor {
            type Value = Rules;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a list of rules, as in ["10.10.0.0/16", "api.example.org"]"#)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut forms: A) -> Result<Rules, A::Error> {
                let mut rules = Ok(Listed::default());
                // The rest is read all the same: an error of the JSON itself comes first.
                while let Some(form) = forms.next_element()? {
                    if let Ok(list) = &mut rules
                        && let Err(misplaced) = list.add(&form)
                    {
                        rules = Err(misplaced);
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
    fn one_for_all(&mut self, ports: &[PortRange]) -> Arc<[PortRange]> {
        if let Some(same) = self.0.get(ports) {
            return Arc::clone(same);
        }
        let ports: Arc<[_]> = if ports.is_empty() { Arc::default() } else { ports.into() };
        self.0.insert(Arc::clone(&ports));
        ports
    }
}

impl Listed {
    fn add(&mut self, form: &RuleForm) -> Result<(), Misplaced> {
        match form {
            RuleForm::Plain(text) => self.add_rule(text.parse()?, text),
            RuleForm::Detailed(detailed) => self.add_detailed(detailed)?,
        }
        Ok(())
    }

    fn add_rule(&mut self, rule: AnyRule, at: &Text) {
        match rule {
            AnyRule::Network(mut rule) => {
                if !rule.ports.is_empty() {
                    rule.ports = self.pool.one_for_all(&rule.ports);
                }
                self.networks.push(rule);
            }
            AnyRule::Name(rule) => {
                self.first_name.get_or_insert_with(|| at.wrong(rule.pattern().instead_of_deny()));
                if self.known_names.insert(rule.clone()) {
                    self.names.push(rule);
                }
            }
        }
    }

    fn add_detailed(&mut self, form: &DetailedRule) -> Result<(), Misplaced> {
        let DetailedRule { place, protocol, ports, tls, private } = form;
        let protocol_value = protocol.as_ref().map(Text::parse::<RuleProtocol>).transpose()?;
        let range = |form: &PortForm| match form {
            PortForm::Number(port) => Ok(PortRange::one(*port)),
            PortForm::Text(text) => Text::parse::<PortRange>(text),
        };
        let ports_value: Vec<_> = ports.iter().map(range).collect::<Result<_, _>>()?;
        match place {
            PlaceForm::Cidr(cidr) if private.is_some() => Err(cidr.wrong(
                "`private` is for rules with a `name`; a network is reached whatever it is, so leave it out",
            )),
            PlaceForm::Cidr(cidr) if tls.is_some() => Err(cidr.wrong(
                "`tls` is for rules with a `name`, which a server must be; behind a network there is whatever answers, so leave it out",
            )),
            PlaceForm::Cidr(cidr) => {
                // Where a number stands is not known.
                let place = match ports.first() {
                    Some(PortForm::Text(text)) => text,
                    _ => cidr,
                };
                let ports = self.pool.one_for_all(&ports_value);
                let rule = Rule::new(cidr.parse()?, protocol_value.unwrap_or_default(), ports);
                self.networks.push(rule.map_err(|invalid| place.wrong(invalid))?);
                Ok(())
            }
            PlaceForm::Name(name) => {
                let private = private.unwrap_or_default();
                let rule = NameRule::new(parse_name(name)?, protocol_value, ports_value, *tls, private);
                let place = protocol.as_ref().unwrap_or(name);
                self.add_rule(AnyRule::Name(rule.map_err(|invalid| place.wrong(invalid))?), name);
                Ok(())
            }
            PlaceForm::Preset(name)
                if protocol.is_some() || !ports.is_empty() || tls.is_some() || private.is_some() =>
            {
                Err(name.wrong("a preset has protocols and ports of its own; leave everything else out, or list its names"))
            }
            PlaceForm::Preset(name) => {
                let preset = preset(&name.value).map_err(|invalid| name.wrong(invalid))?;
                preset.allow.iter().for_each(|rule| self.add_rule(rule.clone(), name));
                Ok(())
            }
        }
    }
}

/// A name, of which somebody may have written the whole rule.
fn parse_name(text: &Text) -> Result<NamePattern, Misplaced> {
    text.parse().map_err(|_| match text.value.parse() {
        Ok(AnyRule::Name(rule)) => text.wrong(format!(
            "`{}` has more than a name; write `\"name\": \"{}\"`, and the rest as `ports` and `protocol`",
            text.value,
            rule.pattern()
        )),
        Ok(AnyRule::Network(rule)) => {
            text.wrong(format!("`{}` is a network; write `\"cidr\": \"{}\"`", text.value, rule.cidr()))
        }
        Err(invalid) => text.wrong(invalid),
    })
}
