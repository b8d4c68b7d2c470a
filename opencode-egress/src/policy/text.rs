//! A rule as text, the same wherever one is typed or printed: a network or a name, then maybe `:PORTS`, then maybe
//! `/PROTOCOL`. An IPv6 network stands in brackets before ports. Behind a name there may be `/tls` or `/notls`, and one that may bring
//! private addresses ends with `/private`.

use std::{fmt, net::IpAddr, str::FromStr};

use crate::policy::{
    Cidr, Invalid, NameRule, PortRange, Rule, RuleProtocol,
    name::{NO_TLS, NamePattern, PRIVATE, TLS},
};

/// A rule for a network or for a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AnyRule {
    /// For a network.
    Network(Rule),
    /// For a name.
    Name(NameRule),
}

impl fmt::Display for AnyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(rule) => rule.fmt(f),
            Self::Name(rule) => rule.fmt(f),
        }
    }
}

impl FromStr for AnyRule {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // What a list of a million has.
        if let Some(network) = Cidr::parse(text) {
            return Ok(Self::Network(Rule::any(network)));
        }
        let (place, rest) = split_place(text)?;
        let Rest { ports, protocol, tls, private } =
            Rest::parse(text, rest, matches!(place, Place::Name(_)))?;
        match place {
            Place::Network(network) => {
                Rule::new(network.parse()?, protocol.unwrap_or_default(), ports).map(Self::Network)
            }
            Place::Name(name) => NameRule::new(name.parse()?, protocol, ports, tls, private).map(Self::Name),
        }
    }
}

impl FromStr for Rule {
    type Err = Invalid;

    /// For a network alone: `deny` has no others.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse()? {
            AnyRule::Network(rule) => Ok(rule),
            AnyRule::Name(rule) => Err(rule.pattern().instead_of_deny()),
        }
    }
}

impl NamePattern {
    /// Why there is no rule that denies a name, and what to do.
    pub(super) fn instead_of_deny(&self) -> Invalid {
        Invalid(format!(
            "`{self}` is a name, and only networks can be denied: the addresses behind a name change, have other names too, and can be had without asking. A name that `allow` does not list is not reached by name; to deny where it is, write its network, as in `192.0.2.0/24`"
        ))
    }
}

/// Where a rule leads, as text.
enum Place<'a> {
    Network(&'a str),
    Name(&'a str),
}

/// The place, and what stands behind it: empty, or from its `:` or `/` on.
fn split_place(text: &str) -> Result<(Place<'_>, &str), Invalid> {
    if let Some((_, host)) = text.split_once("://") {
        return Err(instead_of_url(text, host));
    }
    let without_length = |address: IpAddr, rest: &str| {
        let host = Cidr::host(address).to_string();
        let host = if rest.starts_with(':') && host.contains(':') { format!("[{host}]") } else { host };
        Err(Invalid(format!("`{text}` has no prefix length; write `{host}{rest}` for this one address")))
    };
    if let Some(bracket) = text.strip_prefix('[') {
        let Some((network, rest)) = bracket.split_once(']') else {
            return Err(Invalid(format!("`{text}` has no `]`; write it as in `[2001:db8::/32]:443`")));
        };
        return match network.parse() {
            Ok(address) => without_length(address, rest),
            Err(_) => Ok((Place::Network(network), rest)),
        };
    }
    let (before, after) = text.split_at(text.find('/').unwrap_or(text.len()));
    let address: Result<IpAddr, _> = before.parse();
    let digits = after.bytes().skip(1).take_while(u8::is_ascii_digit).count();
    match address {
        Ok(address) if digits == 0 => return without_length(address, after),
        Ok(address) => {
            let (network, rest) = text.split_at(before.len() + 1 + digits);
            if address.is_ipv6() && rest.starts_with(':') {
                return Err(Invalid(format!(
                    "`{text}` has an IPv6 network before ports; put it into brackets: `[{network}]{rest}`"
                )));
            }
            return Ok((Place::Network(network), rest));
        }
        // No name has so many: it is meant for an IPv6 network.
        Err(_) if before.matches(':').count() > 1 => return Ok((Place::Network(text), "")),
        Err(_) => {}
    }
    let (name, rest) = text.split_at(text.find([':', '/']).unwrap_or(text.len()));
    match name.parse() {
        Ok(address) => without_length(address, rest),
        // Meant for an IPv4 network: no name is of digits alone.
        Err(_) if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            Ok((Place::Network(text), ""))
        }
        Err(_) => Ok((Place::Name(name), rest)),
    }
}

/// The rule that somebody means who writes a URL.
fn instead_of_url(url: &str, after_scheme: &str) -> Invalid {
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        _ => (place, ""),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = match (port, url.split_once(':').map(|(scheme, _)| scheme)) {
        ("", Some("http" | "ws")) => "80",
        ("", Some("ssh")) => "22",
        ("", Some("git")) => "9418",
        ("", _) => "443",
        (port, _) => port,
    };
    let rule = match host.parse::<IpAddr>() {
        Ok(address @ IpAddr::V6(_)) => format!("[{}]:{port}", Cidr::host(address)),
        Ok(address) => format!("{}:{port}", Cidr::host(address)),
        Err(_) => format!("{host}:{port}"),
    };
    match rule.parse::<AnyRule>() {
        Ok(rule) => Invalid(format!(
            "`{url}` is a URL; a rule has the name and maybe ports, and is for all that is there: write `{rule}`"
        )),
        Err(_) => Invalid(format!("`{url}` is a URL; write its name, as in `api.example.org`")),
    }
}

/// What stands behind a rule's place.
struct Rest {
    ports: Vec<PortRange>,
    protocol: Option<RuleProtocol>,
    tls: Option<bool>,
    private: bool,
}

impl Rest {
    fn parse(text: &str, rest: &str, of_name: bool) -> Result<Self, Invalid> {
        let (ports, words) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let ports = match ports.strip_prefix(':') {
            Some(ports) => ports.split(',').map(str::parse).collect::<Result<_, _>>()?,
            None if ports.is_empty() => vec![],
            None => {
                return Err(Invalid(format!(
                    "`{text}` has `{ports}` where only `:` and ports, or `/` and a protocol, can be"
                )));
            }
        };
        let mut words = words.split('/').skip(1).peekable();
        let is_of_name = |word: &str| of_name && [TLS, NO_TLS, PRIVATE].contains(&word);
        let mut protocol = None;
        if let Some(word) = words.next_if(|word| !is_of_name(word)) {
            protocol = Some(word.parse().map_err(|Invalid(invalid): Invalid| {
                let path = if of_name { "; a rule has no path, and is for all that is there" } else { "" };
                Invalid(format!("{invalid}{path}"))
            })?);
        }
        let tls = words.next_if(|word| is_of_name(word) && *word != PRIVATE).map(|word| word == TLS);
        let private = words.next_if(|word| is_of_name(word) && *word == PRIVATE).is_some();
        match words.next() {
            None => Ok(Self { ports, protocol, tls, private }),
            Some(word) => Err(Invalid(format!(
                "`{text}` has `/{word}` at its end, where nothing more can be; leave it out"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
