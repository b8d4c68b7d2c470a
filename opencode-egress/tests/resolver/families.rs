//! One family of a name's addresses without the other.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    upstream::{Upstream, addresses_of, empty, nothing},
    world::{World, addresses, assert_none, learns_all},
};

/// Some servers refuse to say anything of AAAA. musl asks for both families, and waits five seconds for one that failed.
#[test]
fn a_server_that_refuses_one_family_keeps_nobody_from_the_other() {
    let world = World::new(
        &["*.example.net"],
        Upstream::new(|question, _| {
            let query = &question.queries[0];
            let own = query.name.to_ascii();
            let refused = || {
                let mut message = empty(question);
                message.metadata.response_code = ResponseCode::ServFail;
                vec![message]
            };
            match (own.split('.').next().expect("a label"), query.query_type) {
                ("both" | "slow", RecordType::AAAA) | ("both", _) => {
                    std::thread::sleep(Duration::from_millis(30));
                    refused()
                }
                (_, RecordType::AAAA) => refused(),
                ("absent", _) => vec![nothing(question, ResponseCode::NXDomain, 30)],
                ("without", _) => vec![nothing(question, ResponseCode::NoError, 30)],
                ("slow", _) => {
                    std::thread::sleep(Duration::from_millis(300));
                    vec![addresses_of(question, &["192.0.2.1"], 0)]
                }
                _ => vec![addresses_of(question, &["192.0.2.1"], 60)],
            }
        }),
    );
    let code = |message: &Message| message.metadata.response_code;
    let v6 = |name: &str| world.ask(name, RecordType::AAAA);
    // Nobody asked for the other, and with what is not there the one that failed may be.
    assert_eq!(code(&v6("api.example.net.")), ResponseCode::ServFail);
    assert_eq!(addresses(&world.ask("without.example.net.", RecordType::A)), [] as [IpAddr; 0]);
    assert_eq!(code(&v6("without.example.net.")), ResponseCode::ServFail);
    // It is known.
    assert_eq!(addresses(&world.ask("api.example.net.", RecordType::A)), [IpAddr::from([192, 0, 2, 1])]);
    let asked = world.upstream.asked().len();
    for _ in 0..2 {
        let answer = v6("api.example.net.");
        assert!(code(&answer) == ResponseCode::NoError && answer.answers.is_empty(), "{answer}");
        assert!(answer.authorities.iter().all(|record| record.ttl == 0), "not to be remembered: {answer}");
    }
    assert!(world.upstream.asked().len() >= asked + 4, "nor is it remembered here");
    // Of a name that is not there nothing is.
    assert_none(&world.ask("absent.example.net.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(code(&v6("absent.example.net.")), ResponseCode::NXDomain);
    // Both at once, as musl asks: in either order, also where the answer is not to be remembered.
    for families in [[RecordType::A, RecordType::AAAA], [RecordType::AAAA, RecordType::A]] {
        let world = &world;
        let codes = |name: &'static str| {
            let messages = std::thread::scope(|scope| {
                let asked = families.map(|family| {
                    let answer = scope.spawn(move || world.ask(name, family));
                    std::thread::sleep(Duration::from_millis(20));
                    answer
                });
                asked.map(|answer| answer.join().expect("an answer"))
            });
            messages.map(|message| code(&message))
        };
        let begin = Instant::now();
        let _ =
            codes("slow.example.net.").map(|code| assert_eq!(code, ResponseCode::NoError, "{families:?}"));
        let _ = codes("both.example.net.").map(|code| assert_eq!(code, ResponseCode::ServFail));
        assert!(begin.elapsed() < Duration::from_secs(1), "they wait for each other: {:?}", begin.elapsed());
    }
}

/// In audit mode everything is asked, and whoever looks for text is not to hear that there is none.
#[test]
fn what_is_asked_of_a_name_besides_its_addresses_fails_for_itself() {
    let upstream = Upstream::new(|question, _| {
        if question.queries[0].query_type == RecordType::A {
            return vec![addresses_of(question, &["192.0.2.1"], 60)];
        }
        let mut message = empty(question);
        message.metadata.response_code = ResponseCode::ServFail;
        vec![message]
    });
    let world = World::with(&["api.example.org"], true, upstream, learns_all());
    for name in ["api.example.org.", "other.example."] {
        assert_eq!(addresses(&world.ask(name, RecordType::A)).len(), 1);
        for (qtype, code) in [
            (RecordType::TXT, ResponseCode::ServFail),
            (RecordType::MX, ResponseCode::ServFail),
            (RecordType::AAAA, ResponseCode::NoError),
        ] {
            assert_eq!(world.ask(name, qtype).metadata.response_code, code, "{name} {qtype}");
        }
    }
}
