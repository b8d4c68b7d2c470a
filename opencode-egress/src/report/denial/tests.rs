use opencode_egress_common::{
    abi::{Event, GreetedEvent},
    event::DecodeError,
    flow::Address,
    reason::Hook,
};

use super::*;
use crate::policy::Listen;

/// What the kernel reports of a refused connect.
pub(crate) fn event() -> Event {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"node");
    Event {
        address: Address::from(IpAddr::from([203, 0, 113, 9])).words(),
        asked_address: [0; 4],
        attempts: 1,
        suppressed: 0,
        instance: 1,
        generation: 3,
        pid: 4242,
        uid: 987,
        comm,
        port: 443,
        asked_port: 0,
        local_port: 0,
        protocol: 6,
        family: 4,
        asked_family: 0,
        hook: Hook::Connect4 as u8,
        key_hook: Hook::Connect4 as u8,
        reason: DropReason::NotAllowed as u8,
        audit: 0,
    }
}

pub(crate) fn decode(event: &Event) -> Result<Denial, DecodeError> {
    // SAFETY: an Event has no padding, so all its bytes are initialised.
    Denial::decode(unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(event).cast(), size_of::<Event>())
    })
}

#[test]
fn the_line_is_the_documented_one() {
    let record = decode(&event()).expect("an event");
    assert_eq!(
        DenialLine::of(&record, 0).to_string(),
        "proto=tcp dst=203.0.113.9 dport=443 hook=connect4 reason=not-allowed pid=4242 comm=node uid=987 suppressed=0 exe=- via=-"
    );
}

#[test]
fn a_refused_bind_is_told_what_is_listed() {
    let listen = Listen { address: [127, 0, 0, 1].into(), port: 5173, open: false };
    let policy = Policy { listen: vec![listen], ..Policy::default() };
    let bind = Event {
        address: [0; 4],
        port: 5173,
        hook: Hook::Bind4 as u8,
        reason: DropReason::BindNotListed as u8,
        audit: 1,
        ..event()
    };
    let shown = |event: &Event| {
        let record = decode(event).expect("an event");
        DenialLine::of(&record, 0).with_hint(&policy).to_string()
    };
    assert_eq!(
        shown(&bind),
        "proto=tcp dst=0.0.0.0 dport=5173 hook=bind4 reason=bind-not-listed pid=4242 comm=node uid=987 suppressed=0 exe=- via=- hint=\"127.0.0.1:5173 is listed; bind that\" mode=audit"
    );
    assert!(!shown(&Event { port: 5173, ..event() }).contains("hint"), "no bind");
}

fn line(event: &Event) -> String {
    DenialLine::of(&decode(event).expect("an event"), 0).to_string()
}

#[test]
fn the_line_says_what_was_asked_for_and_which_port_was_tried() {
    let mut rewritten = event();
    rewritten.hook = Hook::Egress as u8;
    (rewritten.asked_address, rewritten.asked_family, rewritten.asked_port) =
        (Address::from(IpAddr::from([10, 10, 0, 2])).words(), 4, 80);
    let shown = line(&rewritten);
    assert!(shown.contains("dport=443 asked=10.10.0.2:80 hook=egress "), "{shown}");
    let v6: IpAddr = "2001:db8::1".parse().expect("an address");
    (rewritten.asked_address, rewritten.asked_family) = (Address::from(v6).words(), 6);
    let shown = line(&rewritten);
    assert!(shown.contains(" asked=[2001:db8::1]:80 "), "{shown}");
    let mut inbound = event();
    (inbound.hook, inbound.local_port) = (Hook::Ingress as u8, 5173);
    let shown = line(&inbound);
    assert!(shown.contains("dport=443 lport=5173 hook=ingress "), "{shown}");
}

#[test]
fn a_name_cannot_forge_a_field() {
    let mut forged = event();
    forged.comm = *b"x reason=ok\npid=";
    let shown = line(&forged);
    assert!(shown.contains("comm=x?reason?ok?pid? "), "{shown}");
    // What follows a right-to-left override is shown backwards.
    forged.comm = *b"a\xe2\x80\xae0=diu\0\0\0\0\0\0\0";
    let shown = line(&forged);
    assert!(shown.contains("comm=a?0?diu "), "{shown}");
}

/// As `events --json` has it, and as it comes back over the control socket.
#[test]
fn a_refused_question_is_the_documented_json() {
    let line = QuestionLine {
        query: "evil.example".to_owned(),
        qtype: "A".to_owned(),
        reason: "name-not-allowed".to_owned(),
        address: None,
        asker: Asker { uid: Some(987), ..Asker::default() },
        suppressed: 0,
        audit: false,
    };
    let event = LoggedDenial { time: 7, instance: "a".to_owned(), line: Line::Question(line) };
    let text = serde_json::to_string(&event).expect("JSON");
    let documented = r#"{"time":7,"instance":"a","query":"evil.example","type":"A","reason":"name-not-allowed","uid":987,"suppressed":0,"audit":false}"#;
    assert_eq!(text, documented);
    assert_eq!(serde_json::from_str::<LoggedDenial>(&text).expect("an event"), event);
}

#[test]
fn the_server_that_a_hello_names_is_told() {
    let greeted = |name: &str, len: u32| {
        let mut record = GreetedEvent {
            event: Event { reason: DropReason::TlsNameNotAllowed as u8, hook: Hook::Tls as u8, ..event() },
            name: [0; 256],
            name_len: len,
            tag: 7,
        };
        for (to, from) in record.name.iter_mut().zip(name.bytes().rev()) {
            *to = from;
        }
        // SAFETY: a GreetedEvent has no padding, so all its bytes are initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(&record).cast(), size_of::<GreetedEvent>())
        };
        let denial = Denial::decode(bytes).expect("an event");
        assert_eq!(denial.destination_key().server, if len == 0 || len > 255 { 0 } else { 7 });
        DenialLine::of(&denial, 0).with_name(Some("listed.example".to_owned())).to_string()
    };
    let told = greeted("evil.example", 12);
    assert!(told.contains("dport=443 name=evil.example hook=tls reason=tls-name-not-allowed "), "{told}");
    let forged = greeted("a b=c\n\u{1b}[2K", 10);
    assert!(forged.contains(" name=a?b?c??[2K hook=tls "), "{forged}");
    assert!(!greeted("", 0).contains("name="), "it names none");
    assert!(!greeted("", 300).contains("name="), "it is no longer than a name can be");
}

#[test]
fn what_is_no_event_is_refused() {
    assert_eq!(Denial::decode(&[0; 3]), Err(DecodeError::Size { found: 3 }));
    let mut unknown = event();
    unknown.reason = 200;
    let error = decode(&unknown);
    assert_eq!(error, Err(DecodeError::Number { field: "reason", number: 200 }));
}
