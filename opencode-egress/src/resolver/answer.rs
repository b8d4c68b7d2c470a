//! What clients are answered, written for the wire.

use std::{net::IpAddr, str::FromStr as _, sync::LazyLock};

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, AAAA, SOA, opt::EdnsOption},
    },
};

use crate::resolver::question::{Client, MOST_UDP};

/// For how long a client may remember that a name is refused, in seconds: lists change.
const REFUSED_TTL: u32 = 5;

/// The option of an extended error (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// Why there is no better answer, for people: no client acts on it (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The name is on no list.
    NotListed,
    /// The name is on a list, and only its addresses are.
    OnlyAddresses,
    /// Its addresses are such as no name may bring.
    ForbiddenAddress,
    /// The daemon is not there to learn addresses.
    NoDaemon,
    /// No server answered.
    NoServer,
    /// Too many questions wait.
    Busy,
}

impl Reason {
    /// The code and a text.
    const fn extended_error(self) -> (u16, &'static str) {
        /// "Blocked": by the operator of the server.
        const BLOCKED: u16 = 15;
        /// "Not Ready"
        const NOT_READY: u16 = 14;
        /// "No Reachable Authority"
        const NO_REACHABLE_AUTHORITY: u16 = 22;
        match self {
            Self::NotListed => (BLOCKED, "opencode-egress: no rule lists this name"),
            Self::OnlyAddresses => (BLOCKED, "opencode-egress: rules list the addresses of this name only"),
            Self::ForbiddenAddress => (BLOCKED, "opencode-egress: no name may bring this name's addresses"),
            Self::NoDaemon => (NOT_READY, "opencode-egress: the daemon does not answer"),
            Self::NoServer => (NO_REACHABLE_AUTHORITY, "opencode-egress: no server answers"),
            Self::Busy => (NOT_READY, "opencode-egress: too many questions wait"),
        }
    }
}

/// Where a question came from, which says how long its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl Transport {
    /// How many bytes an answer to this client may have.
    pub fn most(self, client: &Client) -> u16 {
        if self == Self::Udp { client.most_udp } else { u16::MAX }
    }
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The response code.
    pub code: ResponseCode,
    /// The name's addresses.
    pub addresses: &'a [IpAddr],
    /// How long they may be remembered, in seconds.
    pub ttl: u32,
    /// Records as they came.
    pub records: &'a [Record],
    /// For how long it may be remembered that there are none, in seconds.
    pub none_ttl: Option<u32>,
    /// Why.
    pub reason: Option<Reason>,
}

impl Default for Answer<'_> {
    fn default() -> Self {
        Self {
            code: ResponseCode::NoError,
            addresses: &[],
            ttl: 0,
            records: &[],
            none_ttl: None,
            reason: None,
        }
    }
}

impl Answer<'_> {
    /// There is no such name, as far as the client is concerned.
    pub fn no_such_name(reason: Reason) -> Self {
        Self { none_ttl: Some(REFUSED_TTL), ..Self::error(ResponseCode::NXDomain, reason) }
    }

    /// There is nothing of this type.
    pub fn nothing(reason: Option<Reason>) -> Self {
        Self { none_ttl: Some(REFUSED_TTL), reason, ..Self::default() }
    }

    /// Something went wrong; to be asked again.
    pub fn error(code: ResponseCode, reason: Reason) -> Self {
        Self { code, reason: Some(reason), ..Self::default() }
    }

    /// No answer. A client without a daemon is told that there is no such name, which none asks again; one that may ask again soon, that
    /// this failed.
    pub fn failed(reason: Reason) -> Self {
        let code = if reason == Reason::NoDaemon { ResponseCode::NXDomain } else { ResponseCode::ServFail };
        Self::error(code, reason)
    }

    /// The message, in at most so many bytes; where it has more, it says that it was cut.
    ///
    /// # Errors
    ///
    /// When even an answer without records cannot be written.
    pub fn write(&self, client: &Client, most: u16) -> Result<Vec<u8>, ProtoError> {
        let whole = self.message(client, self.addresses).to_vec()?;
        if whole.len() <= most.into() {
            return Ok(whole);
        }
        // What the message has besides, and what one address takes: a pointer to the name and ten bytes before it.
        let bare = Self { records: &[], ..*self }.message(client, &[]).to_vec()?.len();
        let each = 12 + self.addresses.first().map_or(16, |first| if first.is_ipv4() { 4 } else { 16 });
        let room = usize::from(most).saturating_sub(bare) / each;
        let mut message = self.message(client, &self.addresses[..room.min(self.addresses.len())]);
        // Some clients take what they get: part of the addresses is of use to them, part of other records is not.
        if !self.records.is_empty() {
            message.answers.clear();
        }
        message.metadata.truncation = true;
        message.to_vec()
    }

    fn message(&self, client: &Client, addresses: &[IpAddr]) -> Message {
        let mut message = Message::new(client.id, MessageType::Response, client.opcode);
        message.metadata.recursion_desired = client.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = self.code;
        if let Some(query) = &client.query {
            message.answers = addresses
                .iter()
                .map(|address| {
                    let data = match address {
                        IpAddr::V4(address) => RData::A(A(*address)),
                        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
                    };
                    Record::from_rdata(query.name.clone(), self.ttl, data)
                })
                .collect();
            if let Some(ttl) = self.none_ttl {
                message.authorities.push(start_of_authority(query.name.clone(), ttl));
            }
            message.queries.push(query.clone());
        }
        message.answers.extend_from_slice(self.records);
        if client.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MOST_UDP);
            edns.set_rcode_high(self.code.high());
            if let Some(reason) = self.reason {
                let (code, text) = reason.extended_error();
                let data = [&code.to_be_bytes(), text.as_bytes()].concat();
                edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
            }
            message.set_edns(edns);
        }
        message
    }
}

/// What makes clients remember that there is nothing (RFC 2308). The name itself stands for its zone, of which nothing is known.
fn start_of_authority(name: Name, ttl: u32) -> Record {
    static NOBODY: LazyLock<Name> =
        LazyLock::new(|| Name::from_str("nobody.invalid.").unwrap_or_else(|_| Name::root()));
    let data = SOA::new(NOBODY.clone(), NOBODY.clone(), 1, 3600, 600, 86400, ttl);
    Record::from_rdata(name, ttl, RData::SOA(data))
}
