//! What an operator asks about: a flow to an address, or to a name.

use std::{fmt, str::FromStr};

use opencode_egress_common::flow::{Address, Flow, Protocol};
use serde::{Deserialize, Serialize};

use crate::policy::{
    Invalid, NameRule, Rule,
    destination::{Destination, protocol_name, protocol_named},
    name::DnsName,
};

/// A flow as an operator writes it: `DEST[:PORT][/PROTO]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// To an address.
    Address(Destination),
    /// To a name.
    Name(NamedDestination),
}

/// A flow to a name: TCP 443 unless there is a port or a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct NamedDestination {
    /// The name.
    #[serde(serialize_with = "as_text")]
    pub name: DnsName,
    /// The port, not 0.
    pub port: u16,
    /// The IP protocol's number: TCP's or UDP's.
    pub protocol: u8,
}

/// A flow to a name as a request has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    name: String,
    port: u16,
    protocol: u8,
}

impl TryFrom<Parts> for NamedDestination {
    type Error = Invalid;

    fn try_from(Parts { name, port, protocol }: Parts) -> Result<Self, Invalid> {
        Self::new(&name, port, Protocol(protocol))
    }
}

fn as_text<S: serde::Serializer>(name: &DnsName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

impl NamedDestination {
    fn new(name: &str, port: u16, protocol: Protocol) -> Result<Self, Invalid> {
        if port == 0 || !matches!(protocol, Protocol::TCP | Protocol::UDP) {
            return Err(Invalid(format!(
                "a name is reached by TCP or UDP, and at a port; write it as in `{name}`, which is TCP 443, or `{name}:53/udp`"
            )));
        }
        Ok(Self { name: name.parse()?, port, protocol: protocol.0 })
    }

    /// The flow, to no address in particular.
    fn flow(&self) -> Flow {
        let nowhere = Address::from(std::net::IpAddr::from([0, 0, 0, 0]));
        Flow { address: nowhere, protocol: Protocol(self.protocol), port: self.port }
    }

    /// Whether a rule is for its protocol and port.
    pub(super) fn is_spoken_of_by(&self, rule: &NameRule) -> bool {
        rule.speaks_of(&self.flow())
    }

    /// Whether a rule for networks is for its protocol and port.
    pub(super) fn is_denied_by(&self, rule: &Rule) -> bool {
        rule.speaks_of(&self.flow())
    }

    /// Whether a rule is for its protocol.
    pub(super) fn has_protocol_of(&self, rule: &NameRule) -> bool {
        rule.speaks_of_class(self.flow().class())
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = match text.parse() {
            Ok(destination) => return Ok(Self::Address(destination)),
            Err(invalid) => invalid,
        };
        let (place, protocol) = match text.split_once('/') {
            Some((place, protocol)) => (place, Some(protocol)),
            None => (text, None),
        };
        let (name, port) = match place.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (place, None),
        };
        // What is meant for an address is told as one.
        let of_address = |c: char| c.is_ascii_digit() || "[].".contains(c);
        if name.chars().all(of_address) || place.matches(':').count() > 1 {
            return Err(invalid);
        }
        name.parse::<DnsName>()?;
        let port = match port.map(|port| port.parse::<u16>().map_err(|_| port)) {
            Some(Ok(port)) => port,
            Some(Err(port)) => {
                return Err(Invalid(format!("`{port}` is no port; write one from 1 to 65535")));
            }
            None => {
                if protocol.is_none() {
                    443
                } else {
                    0
                }
            }
        };
        let protocol = match protocol {
            None => Protocol::TCP,
            Some(word) => protocol_named(word)
                .ok_or_else(|| Invalid(format!("`{word}` is no protocol; write `tcp` or `udp`")))?,
        };
        NamedDestination::new(name, port, protocol).map(Self::Name)
    }
}

impl fmt::Display for NamedDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port, protocol } = self;
        write!(f, "{name}:{port}/{}", protocol_name(Protocol(*protocol)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(destination) => destination.fmt(f),
            Self::Name(named) => named.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Target>().map_or_else(|invalid| invalid.to_string(), |target| target.to_string())
    }

    #[test]
    fn targets_are_addresses_or_names() {
        let check = |text: &str, expect: &str| {
            let shown = shown(text);
            assert!(shown.starts_with(expect), "{text}: {shown}");
        };
        check("10.10.0.1:443", "10.10.0.1:443/tcp");
        check("2001:db8::1", "2001:db8::1/icmpv6");
        check("api.example.org", "api.example.org:443/tcp");
        check("API.example.org.:8443", "api.example.org:8443/tcp");
        check("bücher.example:53/udp", "xn--bcher-kva.example:53/udp");
        check("beef.example:443", "beef.example:443/tcp");
        check("api.example.org/udp", "a name is reached by TCP or UDP, and at a port; write it as in");
        check("api.example.org/icmp", "a name is reached by TCP or UDP");
        check("api.example.org:0", "a name is reached by TCP or UDP");
        check("api.example.org:https", "`https` is no port; write one from 1 to 65535");
        check("api.example.org:443/http", "`http` is no protocol; write `tcp` or `udp`");
        check("*.example.org", "`*.example.org` is no name: it has a `*`");
        check("https://api.example.org", "`` is no port");
        check("10.10.0.256:443", "no address, or no port");
        check("2001:db8:::1", "no address, or no port");
        check("", "no address, or no port");
    }

    #[test]
    fn json_has_an_address_or_a_name() {
        for (text, json) in [
            ("10.10.0.1:443", r#"{"address":"10.10.0.1","port":443,"protocol":6}"#),
            ("api.example.org:53/udp", r#"{"name":"api.example.org","port":53,"protocol":17}"#),
        ] {
            let target: Target = text.parse().expect("a target");
            assert_eq!(serde_json::to_string(&target).expect("JSON"), json);
            assert_eq!(serde_json::from_str::<Target>(json).expect("a target"), target);
        }
        for json in [
            r#"{"name":"a.example.org","port":0,"protocol":6}"#,
            r#"{"name":"a b","port":443,"protocol":6}"#,
            r#"{"name":"a.example.org","port":443,"protocol":1}"#,
            r#"{"name":"a.example.org","address":"10.10.0.1","port":443,"protocol":6}"#,
        ] {
            assert!(serde_json::from_str::<Target>(json).is_err(), "{json}");
        }
    }
}
