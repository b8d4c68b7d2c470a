//! What the resolver makes of what a server answers, or somebody in its place: the first two bytes are the question's number, so that
//! what comes after them gets that far.

#![no_main]

use std::str::FromStr as _;

use hickory_proto::{
    op::Query,
    rr::{Name, RData, Record, RecordType},
};
use opencode_egress::{
    control::learned::{MAX_ADDRESSES, MAX_TTL},
    resolver::reply::{LONGEST_CHAIN, Reply, addresses, answers},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((id, _)) = bytes.split_first_chunk() else { return };
    let name = Name::from_str("api.example.org.").expect("a name");
    for qtype in [RecordType::A, RecordType::AAAA] {
        let query = Query::query(name.clone(), qtype);
        let Some(message) = answers(bytes, u16::from_be_bytes(*id), &query) else { continue };
        match addresses(&message, &name, qtype) {
            Ok(Reply::Addresses { addresses, ttl }) => {
                assert!(!addresses.is_empty() && addresses.len() <= MAX_ADDRESSES && ttl <= MAX_TTL);
                assert!(addresses.iter().all(|address| address.is_ipv4() == (qtype == RecordType::A)));
            }
            Ok(Reply::Alias { name: next, length, ttl }) => {
                assert!(length > 0 && length <= LONGEST_CHAIN && ttl <= MAX_TTL);
                let leads =
                    |record: &Record| matches!(&record.data, RData::CNAME(target) if target.0 == next);
                assert!(message.answers.iter().any(leads));
            }
            Ok(Reply::Nothing { ttl, .. }) => assert!(ttl <= 30),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
