//! What is compared.

use std::fmt;

use crate::Args;

/// What confines the measured process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    None,
    /// The same as `None`: how far off its ratio is from 1 says how far the others may be.
    NoneAgain,
    Floor,
    /// The same at the hooks of calls too, where policies with names have programs.
    FloorOfCalls,
    Ours(usize),
    /// Ours, with a rule for a name that brought the destination, and none for its network.
    Named,
    /// The same with TLS to be opened by TCP.
    NamedTls,
    /// Ours, with a rule for the destination's network, and one for another name.
    BesideNames,
    /// Ours, to a server of the instance's own that no rule lists.
    Own,
    /// The same with a rule.
    OwnListed,
    Systemd(usize),
    Nftables(usize),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::NoneAgain => write!(f, "none-again"),
            Self::Floor => write!(f, "floor"),
            Self::FloorOfCalls => write!(f, "floor-of-calls"),
            Self::Ours(rules) => write!(f, "ours-{rules}"),
            Self::Named => write!(f, "named"),
            Self::NamedTls => write!(f, "named-tls"),
            Self::BesideNames => write!(f, "beside-names"),
            Self::Own => write!(f, "own"),
            Self::OwnListed => write!(f, "own-listed"),
            Self::Systemd(rules) => write!(f, "systemd-{rules}"),
            Self::Nftables(rules) => write!(f, "nftables-{rules}"),
        }
    }
}

/// Numbers of rules.
const SIZES: [usize; 4] = [1, 1_000, 10_000, 100_000];

impl Subject {
    pub(crate) fn chosen(args: &Args) -> Vec<Self> {
        let fixed = [
            Self::None,
            Self::NoneAgain,
            Self::Floor,
            Self::FloorOfCalls,
            Self::Named,
            Self::NamedTls,
            Self::BesideNames,
            Self::Own,
            Self::OwnListed,
        ];
        let sized = [Self::Ours, Self::Systemd, Self::Nftables].map(|kind| SIZES.map(kind));
        let all = fixed.into_iter().chain(sized.into_iter().flatten());
        let wanted = |subject: &Self| {
            args.only.is_empty() || args.only.iter().any(|only| subject.to_string().starts_with(only))
        };
        all.filter(|subject| *subject == Self::None || wanted(subject)).collect()
    }

    /// Whether the server is the instance's own.
    pub(crate) fn has_own_server(self) -> bool {
        matches!(self, Self::Own | Self::OwnListed)
    }

    pub(crate) fn rules(self) -> usize {
        match self {
            Self::Ours(rules) | Self::Systemd(rules) | Self::Nftables(rules) => rules,
            _ => 1,
        }
    }
}
