//! What clients write, and what of it goes anywhere.

use std::net::{IpAddr, Shutdown, TcpStream};

use hickory_proto::{
    op::{MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RecordType,
        rdata::opt::{ClientSubnet, EdnsOption},
    },
};
use opencode_egress::control::learned::{Counts, QueryReason};

use crate::{
    upstream::{Upstream, Via},
    world::{
        PATIENCE, World, addresses, assert_none, by_tcp, by_udp, extended_error, name, question, question_of,
        raw_by_udp, receive_by_tcp, send_by_tcp, with_edns,
    },
};

const LISTED: [&str; 2] = ["api.example.org", "*.example.net"];

#[test]
fn a_listed_name_is_asked_in_lower_case_and_answered_in_the_clients() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1", "192.0.2.2", "2001:db8::1"], 300));
    for server in [world.sockets.address, world.sockets.address_v6] {
        let answer = by_udp(server, &question("aPi.ExAmPlE.oRg.", RecordType::A));
        assert_eq!(answer.metadata.id, 0x4242);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
        assert_eq!(answer.queries[0].name.to_ascii(), "aPi.ExAmPlE.oRg.");
        assert_eq!(
            addresses(&answer),
            ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().expect("one"))
        );
        assert!(answer.answers.iter().all(|record| record.name.to_ascii() == "aPi.ExAmPlE.oRg."));
        assert!((299..=300).contains(&answer.answers[0].ttl));
        assert!(answer.edns.is_none(), "the client has none");
    }
    let answer = world.ask("a.b.example.net.", RecordType::AAAA);
    assert_eq!(addresses(&answer), ["2001:db8::1".parse::<IpAddr>().expect("one")]);
    let asked = [
        ("api.example.org.".to_owned(), RecordType::A, Via::Udp),
        ("a.b.example.net.".to_owned(), RecordType::AAAA, Via::Udp),
    ];
    assert_eq!(world.upstream.asked(), asked);
    assert_eq!(world.daemon.heard.learns(), ["api.example.org", "a.b.example.net"]);
    world.daemon.heard.counts(Counts { questions: 3, answered: 2, cached: 1, ..Counts::default() });
}

#[test]
fn a_name_off_the_list_is_asked_of_nobody_however_it_comes() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    let long = format!("{}.{}.{}.{}.", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(60));
    let names = [
        "evil.example.",
        "eViL.eXaMpLe.",
        "example.net.",
        "api.example.org.lan.",
        "x.api.example.org.",
        "localhost.",
        "1.0.0.127.in-addr.arpa.",
        "api.",
        ".",
        r"api\.example.org.",
        "*.example.net.",
        &long,
    ];
    let mut refused = 0;
    for text in names {
        for qtype in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::ANY] {
            let answer = world.ask(text, qtype);
            assert_none(&answer, ResponseCode::NXDomain);
            refused += 1;
        }
        let answer = by_tcp(world.sockets.address_v6, &with_edns(question(text, RecordType::A), 4096));
        assert_none(&answer, ResponseCode::NXDomain);
        let (code, said) = extended_error(&answer).expect("why");
        assert_eq!((code, said.as_str()), (15, "opencode-egress: no rule lists this name"));
        refused += 1;
    }
    // Bytes that no rule has, below a wildcard.
    for (label, shown) in [(&b"a.b"[..], r"a\.b"), (b"\0\xff x", r"\000\255\032x"), (b"A\"\\", r#"a\"\\"#)] {
        let odd = Name::from_labels([label, b"example", b"net"]).expect("a name");
        let answer = by_udp(world.sockets.address, &question_of(odd, RecordType::A));
        assert_none(&answer, ResponseCode::NXDomain);
        world.daemon.heard.refused(&format!("{shown}.example.net"), "A", QueryReason::NameNotAllowed);
        refused += 1;
    }
    world.daemon.heard.refused("evil.example", "A", QueryReason::NameNotAllowed);
    world.daemon.heard.refused(r"api\.example.org", "TXT", QueryReason::NameNotAllowed);
    world.daemon.heard.refused(".", "ANY", QueryReason::NameNotAllowed);
    world.daemon.heard.counts(Counts { questions: refused, refused, ..Counts::default() });
    assert_eq!(world.upstream.asked(), []);
}

#[test]
fn of_a_listed_name_only_addresses_are_asked_for() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    for text in ["api.example.org.", "a.example.net."] {
        for qtype in [RecordType::HTTPS, RecordType::SVCB] {
            let answer = by_udp(world.sockets.address, &with_edns(question(text, qtype), 1232));
            assert_none(&answer, ResponseCode::NoError);
            assert_eq!(extended_error(&answer), None, "nothing is wrong");
        }
        for qtype in [RecordType::TXT, RecordType::MX, RecordType::CNAME, RecordType::Unknown(65280)] {
            let answer = by_udp(world.sockets.address, &with_edns(question(text, qtype), 1232));
            assert_none(&answer, ResponseCode::NoError);
            assert_eq!(extended_error(&answer).expect("why").0, 15);
        }
    }
    world.daemon.heard.refused("a.example.net", "TXT", QueryReason::TypeNotAllowed);
    world.daemon.heard.refused("a.example.net", "TYPE65280", QueryReason::TypeNotAllowed);
    world.daemon.heard.counts(Counts { questions: 12, answered: 4, refused: 8, ..Counts::default() });
    assert_eq!(world.upstream.asked(), []);
}

#[test]
fn what_a_client_writes_besides_goes_nowhere() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    let mut message = with_edns(question("API.example.org.", RecordType::A), 65535);
    let edns = message.edns.as_mut().expect("it");
    edns.set_dnssec_ok(true);
    let options = edns.options_mut();
    options.insert(EdnsOption::Unknown(10, b"secretcookie".to_vec()));
    options.insert(EdnsOption::Unknown(65001, b"exfiltrated".to_vec()));
    options.insert(EdnsOption::Subnet(ClientSubnet::new([198, 51, 100, 7].into(), 32, 0)));
    message.metadata.checking_disabled = true;
    message.metadata.authentic_data = true;
    let answer = by_udp(world.sockets.address, &message);
    assert_eq!(answer.answers.len(), 1);
    let edns = answer.edns.expect("the client has it");
    assert_eq!((edns.max_payload(), edns.options().as_ref().len()), (1232, 0));
    let asked = world.upstream.raw();
    let [(bytes, Via::Udp, _)] = &asked[..] else { panic!("{asked:?}") };
    let mut expected = question("api.example.org.", RecordType::A);
    expected.metadata.id = u16::from_be_bytes([bytes[0], bytes[1]]);
    assert_eq!(bytes, &with_edns(expected, 1232).to_vec().expect("a message"));
}

#[test]
fn what_is_no_question_of_one_name_is_refused_at_once() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    world.settle();
    let listed = || question("api.example.org.", RecordType::A);
    let mut several = listed();
    several.queries.push(Query::query(name("evil.example."), RecordType::A));
    let none = {
        let mut message = listed();
        message.queries.clear();
        message
    };
    let mut other_class = listed();
    other_class.queries[0].query_class = DNSClass::CH;
    let mut with_answer = listed();
    with_answer.answers.push(crate::upstream::address_record("api.example.org.", "192.0.2.1", 1));
    let mut update = listed();
    update.metadata.op_code = OpCode::Notify;
    let mut version = with_edns(listed(), 1232);
    version.edns.as_mut().expect("it").set_version(1);
    for (message, code) in [
        (&several, ResponseCode::FormErr),
        (&none, ResponseCode::FormErr),
        (&with_answer, ResponseCode::FormErr),
        (&other_class, ResponseCode::Refused),
        (&update, ResponseCode::NotImp),
        (&version, ResponseCode::BADVERS),
    ] {
        for answer in [by_udp(world.sockets.address, message), by_tcp(world.sockets.address, message)] {
            assert_eq!(u16::from(answer.metadata.response_code), u16::from(code), "{message}");
            assert_eq!((answer.metadata.id, answer.answers.len()), (0x4242, 0));
        }
    }
    // The header alone, a name that points to itself, a label too long, two options records.
    let header = [0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let circle = [&header[..], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let too_long = [&header[..], &[0x80; 200]].concat();
    let mut two_options = with_edns(listed(), 1232).to_vec().expect("a message");
    let options = two_options[two_options.len() - 11..].to_vec();
    two_options.extend(options);
    two_options[11] = 2;
    for bytes in [&header[..], &circle[..], &too_long[..], &two_options[..]] {
        let answer = raw_by_udp(world.sockets.address, bytes).expect("an answer");
        assert_eq!((&answer[..2], answer[3] & 15), (&[0x42, 0x42][..], 1), "{bytes:?}");
    }
    // What has no whole header or is an answer itself gets none; the socket is read in order, so the next one's answer comes first.
    let mut an_answer = listed();
    an_answer.metadata.message_type = MessageType::Response;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(world.sockets.address).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let an_answer = an_answer.to_vec().expect("a message");
    for bytes in [&header[..11], &[][..], &an_answer[..]] {
        socket.send(bytes).expect("sent");
    }
    let mut last = question("evil.example.", RecordType::A);
    last.metadata.id = 99;
    socket.send(&last.to_vec().expect("a message")).expect("sent");
    let mut buffer = [0; 512];
    socket.recv(&mut buffer).expect("an answer");
    assert_eq!(buffer[..2], [0, 99]);
    world.daemon.heard.refused("api.example.org", "A", QueryReason::Unreadable);
    world.daemon.heard.refused("", "", QueryReason::Unreadable);
    assert_eq!(world.upstream.asked(), []);
}

#[test]
fn a_connection_takes_one_question_after_another() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 300));
    let mut stream = TcpStream::connect(world.sockets.address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    // Both before either is answered, and in pieces.
    let (mut first, mut second) =
        (question("api.example.org.", RecordType::A), question("evil.example.", RecordType::A));
    (first.metadata.id, second.metadata.id) = (1, 2);
    let mut both = vec![];
    for message in [&first, &second] {
        let bytes = message.to_vec().expect("a message");
        both.extend(u16::try_from(bytes.len()).expect("short").to_be_bytes());
        both.extend(bytes);
    }
    stream.set_nodelay(true).expect("set");
    for piece in both.chunks(7) {
        std::io::Write::write_all(&mut stream, piece).expect("sent");
    }
    let (one, two) = (receive_by_tcp(&mut stream).expect("one"), receive_by_tcp(&mut stream).expect("two"));
    assert_eq!((one.metadata.id, one.answers.len()), (1, 1));
    assert_eq!((two.metadata.id, two.metadata.response_code), (2, ResponseCode::NXDomain));
    // One that has no more to say is answered still.
    send_by_tcp(&mut stream, &first.to_vec().expect("a message"));
    stream.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(receive_by_tcp(&mut stream).expect("three").answers.len(), 1);
    assert!(receive_by_tcp(&mut stream).is_err(), "its end");
}
