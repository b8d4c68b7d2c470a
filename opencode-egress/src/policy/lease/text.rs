//! What an operator types beside a lease's rule: for how long, and why.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::policy::Invalid;

/// For how long a lease is granted, in seconds: at most a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct LeaseTime(u64);

impl LeaseTime {
    /// The longest, in seconds.
    pub const LONGEST: u64 = 24 * 60 * 60;

    /// In seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for LeaseTime {
    type Error = Invalid;

    fn try_from(seconds: u64) -> Result<Self, Invalid> {
        match seconds {
            0 => Err(Invalid("a lease of no time grants nothing; write at least `1s`".to_owned())),
            1..=Self::LONGEST => Ok(Self(seconds)),
            _ => Err(Invalid(
                "24 hours at most; what is needed for longer belongs into the policy file".to_owned(),
            )),
        }
    }
}

impl From<LeaseTime> for u64 {
    fn from(time: LeaseTime) -> Self {
        time.0
    }
}

impl FromStr for LeaseTime {
    type Err = Invalid;

    /// Numbers with units, the larger ones first: `30m`, `1h30m`, `1d`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let none = || {
            Invalid(format!(
                "`{text}` is no time for a lease; write numbers with the units `s`, `m`, `h` or `d`, as in `30m`, `1h30m` or `1d`"
            ))
        };
        let (mut seconds, mut rest, mut last) = (0_u64, text, u64::MAX);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| none())?;
            let unit = match rest.as_bytes().get(digits) {
                Some(b's') => 1,
                Some(b'm') => 60,
                Some(b'h') => 60 * 60,
                Some(b'd') => 24 * 60 * 60,
                _ => return Err(none()),
            };
            if unit >= last {
                return Err(none());
            }
            (last, rest) = (unit, &rest[digits + 1..]);
            seconds = seconds.saturating_add(number.saturating_mul(unit));
        }
        if text.is_empty() { Err(none()) } else { seconds.try_into() }
    }
}

/// Why a lease is granted, or who says so: a line of text, which goes into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reason(String);

impl Reason {
    /// How many bytes it can have.
    const LONGEST: usize = 400;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reason {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Invalid("an empty reason says nothing; leave it out".to_owned()));
        }
        if text.len() > Self::LONGEST {
            return Err(Invalid(format!(
                "a reason has at most {} bytes, and this one has {}",
                Self::LONGEST,
                text.len()
            )));
        }
        // What would make a line of the log look like two, or like another.
        let is_hidden = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        if text.contains(is_hidden) {
            return Err(Invalid(
                "a reason is one line, without control characters and others that nobody sees".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Reason {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
