//! What the resolver makes of what an instance's program sends to its port: a question that is of one name and type, an error that can
//! be read, or nothing.

#![no_main]

use hickory_proto::{
    op::{Message, MessageType},
    rr::DNSClass,
};
use opencode_egress::resolver::{
    answer::{Answer, Reason},
    question::{MOST_UDP, Question, Unreadable, escaped, text},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match Question::read(bytes) {
        Ok(question) => {
            let whole = Message::from_vec(bytes).expect("what is a question is a message");
            assert_eq!(whole.queries.len(), 1);
            assert_eq!(whole.queries[0].query_class, DNSClass::IN);
            assert!(whole.answers.is_empty() && whole.authorities.is_empty());
            let shown = escaped(&question.name);
            assert!(
                shown.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()),
                "{shown}"
            );
            match &question.text {
                Some(text) => assert_eq!(*text, shown),
                None => assert!(text(&question.name).is_none()),
            }
            let addresses = vec![[192, 0, 2, 1].into(); 300];
            for answer in [
                Answer::no_such_name(Reason::NotListed),
                Answer::nothing(Some(Reason::OnlyAddresses)),
                Answer { addresses: &addresses, ttl: 60, ..Answer::default() },
            ] {
                let client = &question.client;
                assert!((512..=MOST_UDP).contains(&client.most_udp));
                let written = answer.write(client, client.most_udp).expect("an answer");
                assert!(written.len() <= client.most_udp.into(), "{}", written.len());
                let read = Message::from_vec(&written).expect("what is written can be read");
                assert_eq!(read.metadata.message_type, MessageType::Response);
                assert_eq!(read.metadata.id, client.id);
                assert!(read.queries[0].name.eq_case(&question.name), "{}", read.queries[0].name);
                assert_eq!(read.edns.is_some(), client.edns);
            }
        }
        Err(unreadable) => {
            if let Unreadable::Error(client, code) = unreadable {
                let answer = Answer { code, ..Answer::default() };
                let written = answer.write(&client, client.most_udp).expect("an answer");
                let read = Message::from_vec(&written).expect("what is written can be read");
                assert_eq!(read.metadata.id, client.id);
                assert!(read.answers.is_empty());
            }
        }
    }
});
