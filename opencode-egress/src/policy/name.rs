//! Names, as they stand in rules: one, or every name below one.

mod learned;
mod rule;

use std::{fmt, net::IpAddr, str::FromStr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use psl::Psl as _;

pub use learned::LearnedName;
pub use rule::NameRule;
pub(super) use rule::{NO_TLS, PRIVATE, TLS};

use crate::policy::{Cidr, Invalid};

/// The longest label, and the longest name without its final dot, in bytes. RFC 1035, section 2.3.4, of which the length
/// of a name counts a byte for each label and one at the end.
const LONGEST: (usize, usize) = (63, 253);

/// A name of the DNS as it is asked: in A-labels (RFC 5890) and lower case, without the final dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(String);

impl DnsName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is sold or given away as one: the name itself, or the name above it, right below a public suffix. `None` for a
    /// public suffix and above.
    pub fn registrable(&self) -> Option<Self> {
        let domain = psl::List.domain(self.0.as_bytes())?;
        Some(Self(str::from_utf8(domain.as_bytes()).ok()?.to_owned()))
    }

    /// The name that is this one without `domain` at its end.
    pub fn before(&self, domain: &Self) -> Option<Self> {
        self.0.strip_suffix(domain.as_str())?.strip_suffix('.')?.parse().ok()
    }

    /// What anybody may register names below, from this name on: itself, or with another label before it, where every name right below it is one
    /// (`*.np`, `*.compute.amazonaws.com`).
    fn public_suffix(&self) -> Option<String> {
        // Without an entry in the list the last label counts as one; nobody registers names below such a label, a
        // network of one's own has them (`corp`, `internal`).
        let is_one = |name: &str| {
            psl::List.suffix(name.as_bytes()).is_some_and(|suffix| suffix.is_known() && suffix == name)
        };
        if is_one(&self.0) {
            return Some(self.0.clone());
        }
        is_one(&format!("x.{self}")).then(|| format!("com.{self}"))
    }

    fn last_label(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DnsName {
    type Err = Invalid;

    /// Takes upper case, letters beyond ASCII (UTS #46), underscores, and a final dot.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &str| Err(Invalid(format!("`{text}` is no name: {why}")));
        let ascii =
            Uts46::new().to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore);
        let Ok(ascii) = ascii else {
            return wrong("IDNA has no form of it for the DNS; check its spelling");
        };
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        let good = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
        if let Some(bad) = name.chars().find(|c| !good(c)) {
            return wrong(&format!(
                "it has a `{}`, where only letters, digits, `-`, `_` and dots can be; write one as in `api.example.org`",
                bad.escape_debug()
            ));
        }
        if name.is_empty() {
            return wrong("there is nothing in it; write one as in `api.example.org`");
        }
        if let Some(below) = name.strip_prefix('.')
            && below.parse::<Self>().is_ok()
        {
            return wrong(&format!(
                "it begins with a dot; write `*.{below}` for every name below `{below}`, or `{below}` for that name"
            ));
        }
        if name.split('.').any(str::is_empty) {
            return wrong("there is nothing between two of its dots; write one dot between two labels");
        }
        if let Some(label) = name.split('.').find(|label| label.len() > LONGEST.0) {
            return wrong(&format!(
                "its label `{label}` has {} bytes, and {} is the most; check its spelling",
                label.len(),
                LONGEST.0
            ));
        }
        if name.len() > LONGEST.1 {
            return wrong(&format!(
                "it has {} bytes, and {} is the most; check its spelling",
                name.len(),
                LONGEST.1
            ));
        }
        if let Ok(address) = name.parse::<IpAddr>() {
            let host = Cidr::host(address);
            return wrong(&format!("it is an address; write `{host}` as a rule for a network"));
        }
        let name = Self(name.to_owned());
        // What ends so is an address to programs, and in no zone: <https://url.spec.whatwg.org/#ends-in-a-number-checker>.
        let last = name.last_label();
        if last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return wrong(
                "it ends with a number, as an address does, and is none; write an address as in `192.0.2.1/32`, a name as in `api.example.org`",
            );
        }
        Ok(name)
    }
}

/// Which names a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamePattern {
    /// This name.
    Exact(DnsName),
    /// Every name below this one, at any depth, and not itself: `*.example.org`.
    Below(DnsName),
}

impl NamePattern {
    /// Whether a name is one of these.
    pub fn matches(&self, name: &DnsName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(above) => {
                name.0.strip_suffix(above.as_str()).is_some_and(|below| below.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl FromStr for NamePattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "*" {
            return Err(Invalid(
                "`*` is every name; list names, as in `api.example.org` or `*.example.org`, or networks: all of them are `0.0.0.0/0` and `::/0`".into(),
            ));
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if name.contains('*') {
            let write = match name.rsplit_once('*').and_then(|(_, after)| after.split_once('.')) {
                Some((_, rest)) if rest.contains('.') => format!("write `*.{rest}`"),
                _ => "list each of the names, or write a wildcard as in `*.example.org`".to_owned(),
            };
            return Err(Invalid(format!(
                "`{text}` is no name: `*` can only be the whole first label, and is every name below the rest, at any depth; {write}"
            )));
        }
        let name: DnsName = name.parse()?;
        if name.last_label() == "localhost" {
            return Err(Invalid(format!(
                "`{text}` is this machine, which no name may bring; write `127.0.0.1/32:PORT` or `[::1/128]:PORT`"
            )));
        }
        match below {
            true => match name.public_suffix() {
                Some(suffix) => Err(Invalid(format!(
                    "`{text}` is every name that anybody registers below `{suffix}`; list each of the names, or write a wildcard below one of them, as in `*.example.{suffix}`"
                ))),
                None => Ok(Self::Below(name)),
            },
            false if !name.0.contains('.') => Err(Invalid(format!(
                "`{text}` is no full name: it has no dot. Programs make one of it with a search domain of `resolv.conf`; write that one, as in `{name}.example.org`"
            ))),
            false => Ok(Self::Exact(name)),
        }
    }
}

#[cfg(test)]
mod tests;
