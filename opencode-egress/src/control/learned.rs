//! What crosses the socket between the daemon and the resolver: JSON, one message a line, both ways and at any time.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::control::places::beside;

/// The longest line that the daemon reads, with its newline. The resolver reads what agents write, so it is not believed to be short.
pub const MAX_FROM_RESOLVER: usize = 64 * 1024;

/// The longest line that the resolver reads, with its newline: names for an instance with the largest of lists.
pub const MAX_TO_RESOLVER: usize = 16 * 1024 * 1024;

/// The most addresses that an answer brings; [`FromResolver::Learn`] has room for them in a line.
pub const MAX_ADDRESSES: usize = 1000;

/// The longest time to live that a client is told, in seconds.
pub const MAX_TTL: u32 = 3600;

/// Where the resolver of the daemon with this control socket connects: `resolver.sock` beside `control.sock`.
pub fn resolver_socket(control: &Path) -> PathBuf {
    beside(control, "resolver")
}

/// What the daemon tells the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToResolver {
    /// Whom to ask.
    Upstream {
        /// In this order. None: those of the host's `resolv.conf`, as it is at each question.
        servers: Vec<SocketAddr>,
    },
    /// An instance is there, or its names are others.
    ///
    /// Its sockets come with the line (unix(7), `SCM_RIGHTS`), at the first time and whenever they are others: UDP and TCP at an IPv4
    /// address, and then, maybe, at an IPv6 one; those for TCP listen.
    Instance {
        /// Its number, the same on a later connection.
        number: u32,
        /// Names and patterns that may be asked for, as text.
        names: Vec<String>,
        /// More of them, each for a time: until which second since boot (`CLOCK_BOOTTIME`).
        leased: Vec<(String, u64)>,
        /// Ask for everything, and report what is not listed.
        audit: bool,
        /// Until which second since boot; `None`: until another list comes.
        audit_until: Option<u64>,
    },
    /// An instance is there no more. Its sockets are closed.
    Gone {
        /// Its number.
        number: u32,
    },
    /// Every instance was told since the connection began. One that is known from an earlier connection alone is there no more.
    AllTold,
    /// The answer to [`FromResolver::Learn`], once the kernel lets flows to these addresses pass.
    Learned {
        /// That of the question.
        id: u64,
        /// Which of them may be told. None: the answer is refused, as [`QueryReason::ForbiddenAddress`].
        addresses: Vec<IpAddr>,
    },
}

/// What the resolver tells the daemon, which has to check all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromResolver {
    /// An answer for a listed name, or in audit mode for any, which waits for [`ToResolver::Learned`].
    Learn {
        /// Of the resolver's choice, and another one for each.
        id: u64,
        /// Whose question it was.
        instance: u32,
        /// The name that was asked for, in lower case and without a final dot.
        name: String,
        /// What it has, at most [`MAX_ADDRESSES`].
        addresses: Vec<IpAddr>,
        /// What the client will be told, in seconds: at most [`MAX_TTL`].
        ttl: u32,
        /// Who asked; where several wait for the same answer, the first of them.
        source: SocketAddr,
    },
    /// A question was refused, or in audit mode would have been.
    Refused {
        /// Whose question it was.
        instance: u32,
        /// The name, in lower case and without a final dot, `.` for the root, bytes other than printable ASCII escaped as in zone files (RFC 1035, 5.1);
        /// empty where it could not be read.
        name: String,
        /// The type, as in `TXT`, or `TYPE65535` where it has no name (RFC 3597, 5); empty where it could not be read.
        qtype: String,
        /// Why.
        reason: QueryReason,
        /// Who asked.
        source: SocketAddr,
    },
    /// What happened since the last one, at most once a second for each instance.
    Counts(Counts),
}

/// How many questions an instance asked, and what became of them. The latter four add up to the first, but for those that are still
/// waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// The instance.
    pub instance: u32,
    /// All that came.
    pub questions: u64,
    /// Answered from memory.
    pub cached: u64,
    /// Answered, after somebody was asked: with addresses, or that there are none.
    pub answered: u64,
    /// Refused, whether or not a [`FromResolver::Refused`] found room.
    pub refused: u64,
    /// Neither: no server answered, the daemon was gone, or too many questions waited.
    pub failed: u64,
    /// [`FromResolver::Refused`] that found no room and were not sent.
    pub lost: u64,
}

/// Why a question was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryReason {
    /// No rule lists the name.
    NameNotAllowed,
    /// A rule lists the name, and the question is for something else than its addresses.
    TypeNotAllowed,
    /// Every address of the name is one that no name may bring. The daemon finds that, and is not told.
    ForbiddenAddress,
    /// It is no question of one name, class IN.
    Unreadable,
}

impl QueryReason {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::NameNotAllowed, Self::TypeNotAllowed, Self::ForbiddenAddress, Self::Unreadable];

    /// As it is written in lines and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NameNotAllowed => "name-not-allowed",
            Self::TypeNotAllowed => "type-not-allowed",
            Self::ForbiddenAddress => "forbidden-address",
            Self::Unreadable => "unreadable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_in_one_directory_have_sockets_of_their_own() {
        let of = |control: &str| resolver_socket(Path::new(control)).display().to_string();
        assert_eq!(of("/run/opencode-egress/control.sock"), "/run/opencode-egress/resolver.sock");
        assert_eq!(of("/run/opencode-egress/trial.sock"), "/run/opencode-egress/trial-resolver.sock");
        assert_eq!(of("other"), "other-resolver.sock");
    }

    #[test]
    fn messages_are_written_as_documented() {
        let written = |message: &FromResolver| serde_json::to_string(message).expect("JSON");
        assert_eq!(
            written(&FromResolver::Refused {
                instance: 3,
                name: "evil.example".into(),
                qtype: "A".into(),
                reason: QueryReason::NameNotAllowed,
                source: "127.0.0.1:4242".parse().expect("an address"),
            }),
            r#"{"refused":{"instance":3,"name":"evil.example","qtype":"A","reason":"name-not-allowed","source":"127.0.0.1:4242"}}"#
        );
        assert_eq!(
            written(&FromResolver::Learn {
                id: 7,
                instance: 3,
                name: "api.example.org".into(),
                addresses: vec![[192, 0, 2, 1].into()],
                ttl: 60,
                source: "127.0.0.1:4242".parse().expect("an address"),
            }),
            r#"{"learn":{"id":7,"instance":3,"name":"api.example.org","addresses":["192.0.2.1"],"ttl":60,"source":"127.0.0.1:4242"}}"#
        );
        assert_eq!(
            written(&FromResolver::Counts(Counts {
                instance: 3,
                questions: 1,
                cached: 1,
                ..Counts::default()
            })),
            r#"{"counts":{"instance":3,"questions":1,"cached":1,"answered":0,"refused":0,"failed":0,"lost":0}}"#
        );
        for reason in QueryReason::ALL {
            let text = serde_json::to_string(&reason).expect("JSON");
            assert_eq!(text, format!("\"{}\"", reason.as_str()));
        }
    }

    #[test]
    fn the_most_addresses_find_room_in_a_line() {
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().expect("an address");
        let learn = FromResolver::Learn {
            id: u64::MAX,
            instance: u32::MAX,
            name: "a".repeat(253),
            addresses: vec![address; MAX_ADDRESSES],
            ttl: MAX_TTL,
            source: SocketAddr::new(address, u16::MAX),
        };
        assert!(serde_json::to_vec(&learn).expect("JSON").len() < MAX_FROM_RESOLVER);
    }
}
