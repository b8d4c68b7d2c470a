//! What servers answer, and what becomes of it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use opencode_egress::control::learned::{Counts, ToResolver};

use crate::{
    upstream::{Upstream, Via, address_record, addresses_of, alias, empty, held, nothing},
    world::{World, addresses, assert_none, by_tcp, by_udp, extended_error, learns_all, question, with_edns},
};

const LISTED: [&str; 2] = ["api.example.org", "*.example.net"];
const ASKED: &str = "api.example.org.";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn an_answer_is_flat_and_as_short_lived_as_its_shortest_part() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let mut message = empty(question);
            // Not in order, and with what does not belong there.
            message.answers = vec![
                address_record("end.cdn.example.", "192.0.2.1", 600),
                alias("two.cdn.example.", "END.cdn.example.", 7),
                address_record("other.example.", "198.51.100.1", 600),
                alias("API.example.org.", "one.cdn.example.", 300),
                alias("one.cdn.example.", "two.cdn.example.", 60),
                address_record("end.cdn.example.", "192.0.2.2", 500),
                address_record("end.cdn.example.", "192.0.2.1", 600),
                address_record("end.cdn.example.", "2001:db8::1", 600),
            ];
            vec![message]
        }),
    );
    let answer = world.ask(ASKED, RecordType::A);
    assert_eq!(addresses(&answer), [ip("192.0.2.1"), ip("192.0.2.2")]);
    assert!(answer.answers.iter().all(|record| record.name.to_ascii() == ASKED && record.ttl == 7));
    assert_eq!(world.daemon.heard.learns(), ["api.example.org"]);
}

#[test]
fn aliases_are_followed_where_the_server_does_not() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let own = question.queries[0].name.to_ascii();
            let mut message = empty(question);
            message.answers.push(match own.as_str() {
                "api.example.org." => alias(&own, "One.cdn.example.", 300),
                "one.cdn.example." => alias(&own, "two.cdn.example.", 9),
                "two.cdn.example." => address_record(&own, "192.0.2.1", 100),
                _ => alias(&own, &format!("x{own}"), 300),
            });
            vec![message]
        }),
    );
    let answer = world.ask(ASKED, RecordType::A);
    assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec![ip("192.0.2.1")], 9));
    // Without end.
    let begin = Instant::now();
    let answer = by_udp(world.sockets.address, &with_edns(question("a.example.net.", RecordType::A), 1232));
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&answer).expect("why").0, 22);
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(world.upstream.asked().len() <= 3 + 17, "{:?}", world.upstream.asked());
    world.daemon.heard.counts(Counts { questions: 2, answered: 1, failed: 1, ..Counts::default() });
}

/// It answers as servers do that are older than EDNS, of which some send the question back, and some do not.
#[test]
fn a_server_without_edns_is_asked_without() {
    for (code, with_question) in
        [(ResponseCode::FormErr, true), (ResponseCode::FormErr, false), (ResponseCode::NotImp, true)]
    {
        let upstream = Upstream::new(move |question, _| {
            if question.edns.is_none() {
                return vec![addresses_of(question, &["192.0.2.1"], 60)];
            }
            let mut message = empty(question);
            message.metadata.response_code = code;
            message.queries.truncate(usize::from(with_question));
            vec![message]
        });
        let world = World::new(&LISTED, upstream);
        assert_eq!(
            addresses(&world.ask(ASKED, RecordType::A)),
            [ip("192.0.2.1")],
            "{code:?} {with_question}"
        );
        assert_eq!(world.upstream.asked().len(), 2, "{code:?} {with_question}");
    }
}

#[test]
fn aliases_of_sixteen_names_are_followed() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let own = question.queries[0].name.to_ascii();
            let number: u32 = own
                .strip_prefix('c')
                .map_or(0, |own| own[..own.len() - ".cdn.example.".len()].parse().expect("a number"));
            let mut message = empty(question);
            message.answers.push(match number {
                16 => address_record(&own, "192.0.2.1", 100),
                _ => alias(&own, &format!("c{}.cdn.example.", number + 1), 300),
            });
            vec![message]
        }),
    );
    assert_eq!(addresses(&world.ask(ASKED, RecordType::A)), [ip("192.0.2.1")]);
}

#[test]
fn aliases_in_a_circle_end() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let mut message = empty(question);
            message.answers =
                vec![alias(ASKED, "one.example.", 300), alias("one.example.", "api.example.org.", 300)];
            vec![message]
        }),
    );
    assert_eq!(world.ask(ASKED, RecordType::A).metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_is_too_long_for_udp_comes_by_tcp_on_both_sides() {
    let many: Vec<String> = (0..200).map(|number| format!("192.0.2.{number}")).collect();
    let world = World::new(
        &LISTED,
        Upstream::new(move |question, via| {
            let many: Vec<_> = many.iter().map(String::as_str).collect();
            let mut message = addresses_of(question, if via == Via::Udp { &many[..3] } else { &many }, 60);
            message.metadata.truncation = via == Via::Udp;
            vec![message]
        }),
    );
    let by_both = |edns: Option<u16>| {
        let message = question(ASKED, RecordType::A);
        let message = edns.map_or_else(|| message.clone(), |size| with_edns(message.clone(), size));
        let (udp, tcp) = (by_udp(world.sockets.address, &message), by_tcp(world.sockets.address, &message));
        assert!(udp.metadata.truncation && !tcp.metadata.truncation);
        assert_eq!(addresses(&tcp).len(), 200);
        assert_eq!(addresses(&tcp)[..udp.answers.len()], addresses(&udp), "those that there is room for");
        udp.to_vec().expect("a message").len()
    };
    for (edns, most) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(65535), 1232)] {
        let length = by_both(edns);
        assert!(length <= most && length + 16 > most, "{edns:?}: {length}");
    }
    let asked: Vec<_> = world.upstream.asked().into_iter().map(|(_, _, via)| via).collect();
    assert_eq!(asked, [Via::Udp, Via::Tcp], "and no more, for it is remembered");
}

#[test]
fn that_there_is_nothing_is_passed_on_and_remembered_for_a_while() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let code = match question.queries[0].query_type {
                RecordType::AAAA => ResponseCode::NoError,
                _ => ResponseCode::NXDomain,
            };
            vec![nothing(question, code, 86400)]
        }),
    );
    for _ in 0..2 {
        assert_none(&world.ask(ASKED, RecordType::A), ResponseCode::NXDomain);
        assert_none(&world.ask(ASKED, RecordType::AAAA), ResponseCode::NoError);
    }
    assert_eq!(world.upstream.asked().len(), 2);
    assert_eq!(world.daemon.heard.learns().len(), 0);
    world.daemon.heard.counts(Counts { questions: 4, answered: 2, cached: 2, ..Counts::default() });
}

#[test]
fn nothing_at_the_end_of_an_alias_is_nothing() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let mut message = nothing(question, ResponseCode::NoError, 60);
            message.answers.push(alias(ASKED, "one.cdn.example.", 300));
            vec![message]
        }),
    );
    assert_none(&world.ask(ASKED, RecordType::AAAA), ResponseCode::NoError);
    assert_eq!(world.upstream.asked().len(), 1);
}

#[test]
fn what_lives_for_no_time_is_asked_each_time() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 0));
    for _ in 0..3 {
        let answer = world.ask(ASKED, RecordType::A);
        assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec![ip("192.0.2.1")], 0));
    }
    assert_eq!(world.upstream.asked().len(), 3);
    assert_eq!(world.daemon.heard.learns().len(), 3);
}

#[test]
fn no_time_is_longer_than_an_hour() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let long = question.queries[0].name.to_ascii() == ASKED;
            vec![addresses_of(question, &["192.0.2.1"], if long { 86400 } else { 1 << 31 })]
        }),
    );
    assert_eq!(world.ask(ASKED, RecordType::A).answers[0].ttl, 3600);
    assert_eq!(world.ask("negative.example.net.", RecordType::A).answers[0].ttl, 0, "RFC 2181, 8");
}

#[test]
fn the_same_question_is_asked_once_at_a_time() {
    let (upstream, go) = held(|question| addresses_of(question, &["192.0.2.1"], 0));
    let world = World::new(&LISTED, upstream);
    std::thread::scope(|scope| {
        let ask = || scope.spawn(|| world.ask(ASKED, RecordType::A));
        let all = [ask(), ask(), ask(), ask()];
        let other = scope.spawn(|| world.ask(ASKED, RecordType::AAAA));
        // Counted when they were read; the answer is not there yet.
        world.daemon.heard.counts(Counts { questions: 5, ..Counts::default() });
        world.upstream.wait(2);
        (0..2).for_each(|_| go.send(()).expect("sent"));
        for answer in all {
            assert_eq!(answer.join().expect("an answer").answers.len(), 1);
        }
        other.join().expect("an answer");
    });
    world.daemon.heard.counts(Counts { questions: 5, answered: 5, ..Counts::default() });
}

#[test]
fn what_is_no_answer_to_the_question_is_not_believed() {
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            let forged = |change: fn(&mut Message)| {
                let mut message = addresses_of(question, &["203.0.113.66"], 300);
                change(&mut message);
                message
            };
            vec![
                forged(|message| message.metadata.id ^= 1),
                forged(|message| message.queries[0].name = crate::world::name("other.example.")),
                forged(|message| message.queries[0].query_type = RecordType::TXT),
                forged(|message| message.queries.clear()),
                question.clone(),
                addresses_of(question, &["192.0.2.1"], 300),
            ]
        }),
    );
    assert_eq!(addresses(&world.ask(ASKED, RecordType::A)), [ip("192.0.2.1")]);
    assert_eq!(world.upstream.asked().len(), 1);
}

#[test]
fn each_question_comes_from_a_port_and_with_a_number_of_its_own() {
    let world = World::new(&LISTED, Upstream::of(&["192.0.2.1"], 0));
    (0..50).for_each(|_| drop(world.ask(ASKED, RecordType::A)));
    let asked = world.upstream.raw();
    let mut ports: Vec<_> = asked.iter().map(|(_, _, from)| from.port()).collect();
    let mut numbers: Vec<_> = asked.iter().map(|(bytes, ..)| [bytes[0], bytes[1]]).collect();
    for distinct in [
        {
            ports.sort_unstable();
            ports.dedup();
            ports.len()
        },
        {
            numbers.sort_unstable();
            numbers.dedup();
            numbers.len()
        },
    ] {
        assert!(distinct >= 45, "{distinct} of 50");
    }
}

#[test]
fn a_server_that_is_dead_or_refuses_gives_way_to_the_next() {
    for (code, patience) in [(None, 3), (Some(ResponseCode::ServFail), 1), (Some(ResponseCode::Refused), 1)] {
        let first = Upstream::new(move |question, _| {
            let answer = code.map(|code| {
                let mut message = empty(question);
                message.metadata.response_code = code;
                message
            });
            answer.into_iter().collect()
        });
        let second = Upstream::of(&["192.0.2.1"], 0);
        let servers = vec![first.address, second.address];
        let world = World::without_upstream(&LISTED, false, first, learns_all());
        world.daemon.tell(&ToResolver::Upstream { servers });
        let begin = Instant::now();
        assert_eq!(addresses(&world.ask(ASKED, RecordType::A)), [ip("192.0.2.1")], "{code:?}");
        assert!(begin.elapsed() < Duration::from_secs(patience), "{code:?}: {:?}", begin.elapsed());
        // It is asked first from now on.
        let begin = Instant::now();
        assert_eq!(addresses(&world.ask(ASKED, RecordType::A)), [ip("192.0.2.1")], "{code:?}");
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!((world.upstream.asked().len(), second.asked().len()), (1, 2), "{code:?}");
    }
}

#[test]
fn without_a_server_the_client_is_told_before_it_gives_up() {
    let world = World::new(&LISTED, Upstream::new(|_, _| vec![]));
    let begin = Instant::now();
    let message = with_edns(question(ASKED, RecordType::A), 1232);
    let answer = by_udp(world.sockets.address, &message);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&answer).expect("why"), (22, "opencode-egress: no server answers".to_owned()));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(world.upstream.asked().len(), 3, "what is lost on the way is asked again");
    // Nobody listens there: the system says so at once.
    let nobody: SocketAddr = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.local_addr().expect("an address")
    };
    world.daemon.tell(&ToResolver::Upstream { servers: vec![nobody] });
    world.settle();
    let begin = Instant::now();
    let answer = by_udp(world.sockets.address, &message);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(begin.elapsed() < Duration::from_secs(1));
    world.daemon.heard.counts(Counts { questions: 2, failed: 2, ..Counts::default() });
}

#[test]
fn more_questions_than_may_wait_fail_at_once_and_what_is_known_is_answered() {
    static HELD: AtomicUsize = AtomicUsize::new(0);
    let world = World::new(
        &LISTED,
        Upstream::new(|question, _| {
            if question.queries[0].name.to_ascii() == ASKED {
                return vec![addresses_of(question, &["192.0.2.1"], 300)];
            }
            HELD.fetch_add(1, Ordering::Relaxed);
            vec![]
        }),
    );
    assert_eq!(world.ask(ASKED, RecordType::A).answers.len(), 1);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(world.sockets.address).expect("connected");
    let ask = |number: u32| {
        let text = format!("n{number}.example.net.");
        let message = with_edns(question(&text, RecordType::A), 1232);
        socket.send(&message.to_vec().expect("a message")).expect("sent");
    };
    // As many as the socket has room for, again and again.
    for number in 0..300 {
        ask(number);
        if number % 50 == 0 {
            world.settle();
        }
    }
    let mut buffer = [0; 2048];
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
    let length = socket.recv(&mut buffer).expect("an answer");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(extended_error(&answer).expect("why").1, "opencode-egress: too many questions wait");
    let begin = Instant::now();
    assert_eq!(world.ask(ASKED, RecordType::A).answers.len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(1));
}
