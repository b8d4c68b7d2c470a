//! What clients ask, read from the wire.

use std::fmt::Write as _;

use hickory_proto::{
    op::{Header, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

/// Without EDNS, an answer by UDP has at most so many bytes (RFC 1035, 4.2.1).
const PLAIN_UDP: u16 = 512;

/// With EDNS, whatever the client says that it takes: what passes every link in one piece (RFC 9715).
pub const MOST_UDP: u16 = 1232;

/// What of a question its answer needs.
#[derive(Clone, Debug)]
pub struct Client {
    /// The message's number.
    pub id: u16,
    /// What it asked for, which is a query unless the answer is that this is all that is known.
    pub opcode: OpCode,
    /// Said again in the answer.
    pub recursion_desired: bool,
    /// The question with the client's upper and lower case; `None` where it could not be read.
    pub query: Option<Query>,
    /// It has EDNS, so its answer has.
    pub edns: bool,
    /// How long an answer by UDP may be.
    pub most_udp: u16,
}

/// A question that can be judged: one name and type, class IN.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the answer needs.
    pub client: Client,
    /// In the client's case.
    pub name: Name,
    /// The type.
    pub qtype: RecordType,
    /// The name as rules write it; `None` where no rule could.
    pub text: Option<String>,
}

/// What is no such question.
#[derive(Debug)]
pub enum Unreadable {
    /// Nothing to answer: an answer itself, or without a whole header.
    Nothing,
    /// To be answered with an error at once.
    Error(Client, ResponseCode),
}

impl Question {
    /// Reads what came by UDP or TCP.
    ///
    /// # Errors
    ///
    /// When it is no question, or none of one name of class IN.
    pub fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| Unreadable::Nothing)?;
        let (metadata, counts) = (header.metadata, header.counts);
        if metadata.message_type == MessageType::Response {
            return Err(Unreadable::Nothing);
        }
        let mut client = Client {
            id: metadata.id,
            opcode: metadata.op_code,
            recursion_desired: metadata.recursion_desired,
            query: None,
            edns: false,
            most_udp: PLAIN_UDP,
        };
        if metadata.op_code != OpCode::Query {
            return Err(Unreadable::Error(client, ResponseCode::NotImp));
        }
        let malformed = |client: &Client| Unreadable::Error(client.clone(), ResponseCode::FormErr);
        // Several questions: nothing of them is read.
        if (counts.queries, counts.answers, counts.authorities) != (1, 0, 0) {
            return Err(malformed(&client));
        }
        let query = Query::read(&mut decoder).map_err(|_| malformed(&client))?;
        client.query = Some(query.clone());
        let additional =
            Message::read_records(&mut decoder, counts.additionals.into(), true, metadata.op_code);
        let (_, edns, _) = additional.map_err(|_| malformed(&client))?;
        if let Some(edns) = edns {
            client.edns = true;
            client.most_udp = edns.max_payload().clamp(PLAIN_UDP, MOST_UDP);
            if edns.version() > 0 {
                return Err(Unreadable::Error(client, ResponseCode::BADVERS));
            }
        }
        if query.query_class != DNSClass::IN {
            return Err(Unreadable::Error(client, ResponseCode::Refused));
        }
        Ok(Self { client, qtype: query.query_type, text: text(&query.name), name: query.name })
    }
}

/// A name in lower case without a final dot, if it has only letters, digits, hyphens and underscores: no rule has others.
pub fn text(name: &Name) -> Option<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let is_plain = name.iter().all(|label| label.iter().all(plain));
    is_plain.then(|| escaped(name))
}

/// Any name, in lower case and without a final dot, but for the root, which is `.`. What is not printable, and a dot within a label, is
/// escaped (RFC 1035, 5.1).
pub fn escaped(name: &Name) -> String {
    if name.is_root() {
        return ".".to_owned();
    }
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'.' | b'\\' | b'"' => text.extend(['\\', char::from(*byte)]),
                b'!'..=b'~' => text.push(byte.to_ascii_lowercase().into()),
                // Writing to a string does not fail.
                other => drop(write!(text, "\\{other:03}")),
            }
        }
    }
    text
}

/// A type as `AAAA`; one that has no name by its number (RFC 3597, 5).
pub fn type_text(qtype: RecordType) -> String {
    match qtype {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_types_without_names_have_a_text() {
        assert_eq!(escaped(&Name::root()), ".");
        assert_eq!(escaped(&Name::from_ascii("Evil.example.").expect("a name")), "evil.example");
        assert_eq!(type_text(RecordType::from(65535)), "TYPE65535");
        assert_eq!(type_text(RecordType::AAAA), "AAAA");
    }
}
