//! The parts of a policy file's JSON, with the places of what can turn out to be wrong later.

use std::{fmt, marker::PhantomData, str::FromStr};

use opencode_egress_common::abi::RESOLVER_PORTS;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use crate::policy::{Invalid, resolver::DEFAULT_MARK};

pub(super) enum RuleForm {
    Plain(Text),
    Detailed(DetailedRule),
}

/// A rule as an object.
#[derive(Deserialize)]
#[serde(try_from = "RuleObject")]
pub(super) struct DetailedRule {
    pub(super) place: PlaceForm,
    pub(super) protocol: Option<Text>,
    pub(super) ports: Vec<PortForm>,
    pub(super) tls: Option<bool>,
    pub(super) private: Option<bool>,
}

/// Where a rule leads.
pub(super) enum PlaceForm {
    Cidr(Text),
    Name(Text),
    Preset(Text),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleObject {
    cidr: Option<Text>,
    name: Option<Text>,
    preset: Option<Text>,
    protocol: Option<Text>,
    #[serde(default, deserialize_with = "ports")]
    ports: Vec<PortForm>,
    tls: Option<bool>,
    private: Option<bool>,
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortForm>, D::Error> {
    list(deserializer, r#"a list of ports, as in [443, "8000-8100"]"#)
}

impl TryFrom<RuleObject> for DetailedRule {
    type Error = &'static str;

    fn try_from(object: RuleObject) -> Result<Self, &'static str> {
        let RuleObject { cidr, name, preset, protocol, ports, tls, private } = object;
        let place = match (cidr, name, preset) {
            (Some(cidr), None, None) => PlaceForm::Cidr(cidr),
            (None, Some(name), None) => PlaceForm::Name(name),
            (None, None, Some(preset)) => PlaceForm::Preset(preset),
            (None, None, None) => return Err("a rule needs a `cidr`, a `name` or a `preset`"),
            _ => return Err("a rule has one of `cidr`, `name` and `preset`; write a rule for each"),
        };
        Ok(Self { place, protocol, ports, tls, private })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenForm {
    pub(super) address: Text,
    pub(super) port: Port,
    #[serde(default)]
    pub(super) open: bool,
}

impl Example for ListenForm {
    const EXPECTED: &'static str = r#"a listener, as in {"address": "127.0.0.1", "port": 8787}"#;
}

/// An error about the text that starts at this address of the source.
pub(super) struct Misplaced {
    pub(super) at: Option<usize>,
    pub(super) message: String,
}

/// A string of the source, with where it stands.
pub(super) struct Text {
    pub(super) value: String,
    /// Address of its first byte, inside the quotes. `None`: it has escapes in it, so that it was copied.
    pub(super) at: Option<usize>,
}

impl Text {
    pub(super) fn wrong(&self, message: impl fmt::Display) -> Misplaced {
        // The quote before it.
        Misplaced { at: self.at.map(|at| at - 1), message: message.to_string() }
    }

    pub(super) fn parse<T: FromStr<Err = Invalid>>(&self) -> Result<T, Misplaced> {
        self.value.parse().map_err(|invalid: Invalid| self.wrong(invalid))
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text, E> {
        Ok(Text { value: text.to_owned(), at: Some(text.as_ptr().addr()) })
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text { value: text.to_owned(), at: None })
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for RuleForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RuleVisitor;

        impl<'de> Visitor<'de> for RuleVisitor {
            type Value = RuleForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a rule such as \"10.10.0.0/16\" or \"api.example.org\", or {\"cidr\": …, \"protocol\": …, \"ports\": […]}, or one with \"name\" instead of \"cidr\", or {\"preset\": …}",
                )
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<RuleForm, E> {
                TextVisitor.visit_borrowed_str(text).map(RuleForm::Plain)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RuleForm, E> {
                TextVisitor.visit_str(text).map(RuleForm::Plain)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RuleForm, A::Error> {
                DetailedRule::deserialize(de::value::MapAccessDeserializer::new(map)).map(RuleForm::Detailed)
            }
        }

        deserializer.deserialize_any(RuleVisitor)
    }
}

/// A port as a number, or a port or a range as text.
pub(super) enum PortForm {
    Number(u16),
    Text(Text),
}

impl<'de> Deserialize<'de> for PortForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;

        impl<'de> Visitor<'de> for PortVisitor {
            type Value = PortForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 443, or a range such as \"8000-8100\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortForm, E> {
                port(number).map(PortForm::Number)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortForm, E> {
                port(number).map(PortForm::Number)
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<PortForm, E> {
                TextVisitor.visit_borrowed_str(text).map(PortForm::Text)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortForm, E> {
                TextVisitor.visit_str(text).map(PortForm::Text)
            }
        }

        deserializer.deserialize_any(PortVisitor)
    }
}

fn port<E: de::Error>(number: impl TryInto<u16> + Copy + fmt::Display) -> Result<u16, E> {
    match number.try_into() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(E::custom(format!("{number} is no port; write one from 1 to 65535"))),
    }
}

/// A listener's port: from 1 to 65535, and none of those at which others would look for the listener in vain.
pub(super) struct Port(pub(super) u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (first, last) = RESOLVER_PORTS;
        match port(number(deserializer, "a port, as in 8787")?)? {
            resolvers if (first..=last).contains(&resolvers) => Err(de::Error::custom(format!(
                "{resolvers} is among the ports {first} to {last} of instances' resolvers, so that no other instance could reach a listener there; choose another"
            ))),
            port => Ok(Self(port)),
        }
    }
}

/// One bit of a socket's mark.
pub(super) struct Mark(pub(super) u32);

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = number(deserializer, format_args!("one bit of a mark, as in {DEFAULT_MARK}"))?;
        match u32::try_from(number) {
            Ok(mark) if mark.is_power_of_two() => Ok(Self(mark)),
            _ => Err(de::Error::custom(format!(
                "{number} is not one bit of a mark; write a power of two, as in {DEFAULT_MARK}, which is {DEFAULT_MARK:#x}"
            ))),
        }
    }
}

/// A number from 1 to a million.
pub(super) struct Count(pub(super) u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = number(deserializer, "a number from 1 to 1000000")?;
        match u32::try_from(number) {
            Ok(count @ 1..=1_000_000) => Ok(Self(count)),
            _ => Err(de::Error::custom(format!("{number} is out of range; write one from 1 to 1000000"))),
        }
    }
}

/// A JSON object in the order of the file, keys that come twice included.
pub(super) struct Pairs<T>(pub(super) Vec<(Text, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"an object, as in {"my-project": {"units": ["opencode-my-project.service"]}}"#)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = vec![];
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// What the file has as an object.
pub(super) trait Example {
    /// What it is, and how one is written, for the error about anything else.
    const EXPECTED: &'static str;
}

/// An object: serde's derived code takes arrays in its place, too.
#[derive(Default)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de> + Example> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Example> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A list; `expected` says what it is, and how one is written.
pub(super) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
) -> Result<Vec<T>, D::Error> {
    struct ListVisitor<T>(&'static str, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = vec![];
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(ListVisitor(expected, PhantomData))
}

/// A whole number; `expected` says what it is, and how one is written.
pub(super) fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: impl fmt::Display,
) -> Result<i128, D::Error> {
    struct NumberVisitor<E>(E);

    impl<E: fmt::Display> Visitor<'_> for NumberVisitor<E> {
        type Value = i128;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }

        fn visit_u64<Error>(self, number: u64) -> Result<i128, Error> {
            Ok(number.into())
        }

        fn visit_i64<Error>(self, number: i64) -> Result<i128, Error> {
            Ok(number.into())
        }
    }

    deserializer.deserialize_any(NumberVisitor(expected))
}
