//! What is logged of a ring buffer's record, the process' name in it being the process' own choice: one line of the
//! documented fields, whatever the bytes are.

#![no_main]

use opencode_egress::{
    control::request::Reply,
    report::denial::{DeniedFlow, LoggedEvent},
};
use opencode_egress_common::{abi::Event, event::Record};

const FIELDS: [&str; 9] = ["proto", "dst", "dport", "hook", "reason", "pid", "comm", "uid", "suppressed"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(bytes.len() == size_of::<Event>() || Record::decode(bytes).is_err(), "a record has one size");
    let mut record = bytes.to_vec();
    record.resize(size_of::<Event>(), 0);
    let Ok(record) = Record::decode(&record) else { return };
    let flow = DeniedFlow::of(&record, record.event.suppressed);
    let line = flow.to_string();
    assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{line:?}");
    let fields: Vec<_> = line.split(' ').map(|field| field.split_once('=').expect("a field")).collect();
    let mut expected: Vec<_> = FIELDS.to_vec();
    expected.extend(flow.audit.then_some("mode"));
    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "{line:?}");
    assert!(fields.iter().all(|(_, value)| !value.is_empty() && !value.contains('=')), "{line:?}");
    assert_eq!(fields[5].1, record.event.pid.to_string());
    assert_eq!(fields[7].1, record.event.uid.to_string());

    let event = LoggedEvent { time: record.event.attempts, instance: "my-project".to_owned(), flow };
    let reply = serde_json::to_vec(&Reply::Event(event.clone())).expect("an event can be written");
    assert!(!reply.contains(&b'\n'), "an answer is one line");
    match serde_json::from_slice(&reply) {
        Ok(Reply::Event(read)) => assert_eq!(read, event),
        other => panic!("{other:?} instead of {event:?}"),
    }
});
