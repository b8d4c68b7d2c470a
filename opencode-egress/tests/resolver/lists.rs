//! Lists that change, audit mode, and several instances.

use std::sync::atomic::{AtomicBool, Ordering};

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record, RecordType, rdata::TXT},
};
use opencode_egress::control::learned::{Counts, QueryReason, ToResolver};

use crate::{
    upstream::{Upstream, addresses_of, empty, held},
    world::{NUMBER, Sockets, World, assert_none, by_udp, instance, learns_all, question},
};

#[test]
fn an_answer_goes_with_its_name_from_the_list() {
    let world = World::new(&["*.example.net"], Upstream::of(&["192.0.2.1"], 300));
    for name in ["stays.example.net.", "goes.example.net."] {
        assert_eq!(world.ask(name, RecordType::A).answers.len(), 1);
    }
    world.daemon.instance(&["stays.example.net"], false, None);
    world.settle();
    assert_none(&world.ask("goes.example.net.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(world.ask("stays.example.net.", RecordType::A).answers.len(), 1);
    assert_eq!(world.upstream.asked().len(), 2, "it is remembered");
}

#[test]
fn a_list_that_changes_meanwhile_decides() {
    let (upstream, go) = held(|question| addresses_of(question, &["192.0.2.1"], 300));
    let world = World::new(&["api.example.org"], upstream);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| world.ask("api.example.org.", RecordType::A));
        world.daemon.heard.counts(Counts { questions: 1, ..Counts::default() });
        world.daemon.instance(&["other.example.org"], false, None);
        world.settle();
        go.send(()).expect("sent");
        assert_none(&asking.join().expect("an answer"), ResponseCode::NXDomain);
    });
    assert_eq!(world.daemon.heard.learns().len(), 0);
}

#[test]
fn audit_mode_asks_everything_and_reports_what_is_not_listed() {
    let upstream = Upstream::new(|question, _| {
        if question.queries[0].query_type != RecordType::TXT {
            return vec![addresses_of(question, &["192.0.2.1"], 300)];
        }
        let mut message = empty(question);
        let text = RData::TXT(TXT::new(vec!["text".to_owned()]));
        message.answers.push(Record::from_rdata(question.queries[0].name.clone(), 60, text));
        vec![message]
    });
    let world = World::with(&["api.example.org"], true, upstream, learns_all());
    for _ in 0..2 {
        assert_eq!(world.ask("Other.example.", RecordType::A).answers.len(), 1);
    }
    assert_eq!(world.ask("api.example.org.", RecordType::A).answers.len(), 1);
    assert_eq!(world.ask("api.example.org.", RecordType::TXT).answers.len(), 1);
    assert_eq!(world.ask("other.example.", RecordType::TXT).answers.len(), 1);
    world.daemon.heard.refused("other.example", "A", QueryReason::NameNotAllowed);
    world.daemon.heard.refused("other.example", "TXT", QueryReason::NameNotAllowed);
    world.daemon.heard.refused("api.example.org", "TXT", QueryReason::TypeNotAllowed);
    // The daemon puts only the latter in force.
    assert_eq!(world.daemon.heard.learns(), ["other.example", "api.example.org"]);
    assert_eq!(world.upstream.asked().len(), 4);
    // What was answered then is not in force: it is asked again where it is listed.
    world.daemon.instance(&["other.example"], false, None);
    world.settle();
    assert_eq!(world.ask("other.example.", RecordType::A).answers.len(), 1);
    assert_eq!(world.daemon.heard.learns(), ["other.example", "api.example.org", "other.example"]);
    assert_none(&world.ask("api.example.org.", RecordType::A), ResponseCode::NXDomain);
}

#[test]
fn addresses_that_no_name_may_bring_are_not_told() {
    static FORBID: AtomicBool = AtomicBool::new(true);
    let some = Box::new(|_: &str, addresses: &[std::net::IpAddr]| {
        let mut addresses = addresses.to_vec();
        // Another order, and one that nobody asked about.
        addresses.reverse();
        addresses.retain(|address| !address.to_string().starts_with("169.254."));
        addresses.push([203, 0, 113, 66].into());
        Some(if FORBID.load(Ordering::Relaxed) { vec![] } else { addresses })
    });
    let upstream = Upstream::of(&["192.0.2.1", "169.254.169.254", "192.0.2.2"], 300);
    let world = World::with(&["api.example.org"], false, upstream, some);
    assert_none(&world.ask("api.example.org.", RecordType::A), ResponseCode::NoError);
    FORBID.store(false, Ordering::Relaxed);
    let answer = world.ask("api.example.org.", RecordType::A);
    let told: Vec<_> = crate::world::addresses(&answer).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["192.0.2.1", "192.0.2.2"]);
    world.daemon.heard.counts(Counts { questions: 2, answered: 1, refused: 1, ..Counts::default() });
}

#[test]
fn each_instance_has_its_own_list_and_its_own_memory() {
    let world = World::new(&["api.example.org"], Upstream::of(&["192.0.2.1"], 300));
    assert_eq!(world.ask("api.example.org.", RecordType::A).answers.len(), 1);
    let other = Sockets::new();
    world.daemon.tell_with(&instance(NUMBER + 1, &["b.example"], false), &other.descriptors());
    world.settle();
    let answer = by_udp(other.address, &question("api.example.org.", RecordType::A));
    assert_none(&answer, ResponseCode::NXDomain);
    // One that goes takes nothing of the other with it.
    world.daemon.tell(&ToResolver::Gone { number: NUMBER + 1 });
    world.settle();
    assert_eq!(world.ask("api.example.org.", RecordType::A).answers.len(), 1);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(other.address).expect("connected");
    socket.send(&question("b.example.", RecordType::A).to_vec().expect("a message")).expect("sent");
    world.settle();
    socket.set_nonblocking(true).expect("set");
    assert!(socket.recv(&mut [0; 512]).is_err(), "nobody reads it");
    assert_eq!(world.upstream.asked().len(), 1);
}
