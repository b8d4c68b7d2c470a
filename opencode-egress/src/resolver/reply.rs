//! What servers answer, read from the wire.

use std::{collections::BTreeSet, net::IpAddr};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use crate::control::learned::{MAX_ADDRESSES, MAX_TTL};

/// How many names a chain may have after the first.
pub const LONGEST_CHAIN: usize = 16;

/// For how long it is remembered that there is nothing, in seconds, where the server does not say, and at most.
const NOTHING_TTL: u32 = 5;
const LONGEST_NOTHING_TTL: u32 = 30;

/// A server's answer to a question for addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// There are some.
    Addresses {
        /// In the server's order, each once.
        addresses: Vec<IpAddr>,
        /// The shortest in the chain, in seconds.
        ttl: u32,
    },
    /// The name is another's, and of that one it says nothing.
    Alias {
        /// The last one of the chain.
        name: Name,
        /// How many names it has after the first.
        length: usize,
        /// The shortest in the chain, in seconds.
        ttl: u32,
    },
    /// There are none.
    Nothing {
        /// Of this type; otherwise there is not even the name.
        exists: bool,
        /// For how long that may be remembered, in seconds.
        ttl: u32,
    },
}

/// Why there is no reply in a message that is one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReplyError {
    /// The server's own word.
    #[error("it answers {0}")]
    Code(ResponseCode),
    /// It leads in a circle, or on and on.
    #[error("its aliases do not end within {LONGEST_CHAIN} names")]
    Chain,
}

/// The message, if it is an answer to this question: nothing else is believed. One that could not read the question may have none in it.
pub fn answers(bytes: &[u8], id: u16, query: &Query) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let matches = message.metadata.message_type == MessageType::Response
        && message.metadata.op_code == OpCode::Query
        && message.metadata.id == id
        && (message.queries == [query.clone()]
            || message.queries.is_empty() && message.metadata.response_code == ResponseCode::FormErr);
    matches.then_some(message)
}

/// Whether a server did what it was asked.
///
/// # Errors
///
/// When it did not.
pub fn success(message: &Message) -> Result<(), ReplyError> {
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(()),
        code => Err(ReplyError::Code(code)),
    }
}

/// What a message says of a name's addresses, for which the type stands.
///
/// # Errors
///
/// When it says nothing of that.
pub fn addresses(message: &Message, name: &Name, qtype: RecordType) -> Result<Reply, ReplyError> {
    success(message)?;
    let (mut name, mut ttl, mut length) = (name, MAX_TTL, 0);
    let of = |name: &Name, record: &&Record| record.name == *name && record.dns_class == DNSClass::IN;
    while let Some((next, its)) = message.answers.iter().filter(|record| of(name, record)).find_map(alias) {
        length += 1;
        if length > LONGEST_CHAIN {
            return Err(ReplyError::Chain);
        }
        (name, ttl) = (next, ttl.min(its));
    }
    let mut seen = BTreeSet::new();
    let mut addresses = vec![];
    for record in message.answers.iter().filter(|record| of(name, record) && record.record_type() == qtype) {
        if let Some(address) = record.data.ip_addr()
            && addresses.len() < MAX_ADDRESSES
            && seen.insert(address)
        {
            addresses.push(address);
            ttl = ttl.min(seconds(record.ttl));
        }
    }
    if !addresses.is_empty() {
        return Ok(Reply::Addresses { addresses, ttl });
    }
    let authority = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let exists = message.metadata.response_code == ResponseCode::NoError;
    // A server that follows aliases says by whose authority there is nothing.
    if exists && length > 0 && authority.is_none() {
        return Ok(Reply::Alias { name: name.clone(), length, ttl });
    }
    let nothing = authority.map_or(NOTHING_TTL, seconds).min(LONGEST_NOTHING_TTL);
    Ok(Reply::Nothing { exists, ttl: nothing.min(ttl) })
}

fn alias(record: &Record) -> Option<(&Name, u32)> {
    match &record.data {
        RData::CNAME(target) => Some((&target.0, seconds(record.ttl))),
        _ => None,
    }
}

/// With the first bit set, none (RFC 2181, 8).
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX.cast_unsigned() { 0 } else { ttl.min(MAX_TTL) }
}
