//! What is logged of a ring buffer's denial, the names of processes and files in it being the agent's own choice: one line of the
//! documented fields, whatever the bytes are.

#![no_main]

use opencode_egress::{
    control::request::Reply,
    report::{
        caller::Caller,
        denial::{DenialLine, Line, LoggedDenial},
    },
};
use opencode_egress_common::{
    abi::{CalledEvent, Event, GreetedEvent},
    event::{self, Denial},
};

const FIELDS: [&str; 11] =
    ["proto", "dst", "dport", "hook", "reason", "pid", "comm", "uid", "suppressed", "exe", "via"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let sizes = [size_of::<Event>(), size_of::<GreetedEvent>(), size_of::<CalledEvent>()];
    assert!(
        sizes.contains(&bytes.len()) || Denial::decode(bytes).is_err(),
        "a denial has one of three sizes"
    );
    let mut record = bytes.to_vec();
    record.resize(sizes.into_iter().find(|size| bytes.len() <= *size).unwrap_or(sizes[2]), 0);
    let Ok(denial) = Denial::decode(&record) else { return };
    let caller = event::caller(&record).map(|caller| Caller::of(&caller)).unwrap_or_default();
    let shown = DenialLine::of(&denial, denial.event.suppressed).with_caller(caller);
    let line = shown.to_string();
    assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{line:?}");
    let fields: Vec<_> = line.split(' ').map(|field| field.split_once('=').expect("a field")).collect();
    let (flow, rest) = FIELDS.split_at(3);
    let (asked, local_port) = (shown.asked.map(|_| "asked"), shown.lport.map(|_| "lport"));
    let name = shown.name.as_ref().map(|_| "name");
    let cgroup = shown.caller.cgroup.as_ref().map(|_| "cgroup");
    let mode = shown.audit.then_some("mode");
    let expected: Vec<_> = flow
        .iter()
        .copied()
        .chain(asked)
        .chain(local_port)
        .chain(name)
        .chain(rest.iter().copied())
        .chain(cgroup)
        .chain(mode)
        .collect();
    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "{line:?}");
    assert!(fields.iter().all(|(_, value)| !value.is_empty() && !value.contains('=')), "{line:?}");
    let value = |name| fields.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    assert_eq!(value("pid"), Some(denial.event.pid.to_string()));
    assert_eq!(value("uid"), Some(denial.event.uid.to_string()));

    let event = LoggedDenial {
        time: denial.event.attempts,
        instance: "my-project".to_owned(),
        line: Line::Flow(shown),
    };
    let reply = serde_json::to_vec(&Reply::Event(Box::new(event.clone()))).expect("an event can be written");
    assert!(!reply.contains(&b'\n'), "an answer is one line");
    match serde_json::from_slice(&reply) {
        Ok(Reply::Event(read)) => assert_eq!(*read, event),
        other => panic!("{other:?} instead of {event:?}"),
    }
});
