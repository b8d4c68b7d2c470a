//! Hellos of every form.

use opencode_egress_common::reason::DropReason;

use super::{
    hello_to, listed,
    made::{body, extension, filler, hello, message, names, record, sni},
    send_pieces, tries, world,
};
use crate::network::{DENIED, PORT};

#[test]
fn names_are_found_and_compared() {
    let mut named = world();
    let to = (DENIED, PORT).into();
    for name in ["listed.example", "LISTED.Example", "a.below.example.net", "A.b.BELOW.example.net"] {
        let good = hello_to(name);
        tries(&mut named, || send_pieces(to, [&good[..]])).check_served(name, &good);
    }
    for name in
        ["below.example.net", "listed.example.", "x.listed.example", "192.0.2.3", "a\0.below.example.net"]
    {
        let bad = hello_to(name);
        let seen = tries(&mut named, || send_pieces(to, [&bad[..]]));
        seen.check_denied(name, DropReason::TlsNameNotAllowed, Some(name));
        assert_eq!(seen.arrived, b"");
    }
    let longest = format!(
        "{}.below.example.net",
        ["n".repeat(63), "n".repeat(63), "n".repeat(63), "n".repeat(43)].join(".")
    );
    assert_eq!(longest.len(), 253);
    let good = hello_to(&longest);
    tries(&mut named, || send_pieces(to, [&good[..]])).check_served(&longest, &good);
    let none = hello(&[filler()]);
    let seen = tries(&mut named, || send_pieces(to, [&none[..]]));
    seen.check_denied("no name", DropReason::TlsNameNotAllowed, None);
}

#[test]
fn what_is_no_hello_is_reset_at_its_first_byte() {
    let mut named = world();
    let good = hello_to("listed.example");
    let twice = hello(&[sni("listed.example"), sni("listed.example")]);
    let two = hello(&[names(&[(0, b"listed.example"), (0, b"evil.example")])]);
    let coalesced = record(
        22,
        &[message(&body(&[sni("listed.example")])), message(&body(&[sni("evil.example")]))].concat(),
    );
    for to in listed() {
        for (what, sent) in [
            ("HTTP", &b"GET / HTTP/1.1\r\nHost: listed.example\r\n\r\n"[..]),
            ("a byte", b"\0"),
            ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
            ("two extensions", &twice),
            ("two names", &two),
            ("two hellos in a record", &coalesced),
            ("two hellos at once", &[&good[..], &good].concat()),
        ] {
            let seen = tries(&mut named, || send_pieces(to, [sent]));
            seen.check_denied(what, DropReason::NotTls, None);
            assert_eq!(seen.arrived, b"", "{what}");
        }
    }
}

#[test]
fn hellos_come_in_any_records_and_extensions_in_any_order() {
    let mut named = world();
    let to = (DENIED, PORT).into();
    let large = extension(51, &[5; 1200]);
    for extensions in [
        vec![sni("listed.example"), large.clone()],
        vec![large.clone(), sni("listed.example")],
        vec![extension(0x5a5a, &[]), large.clone(), sni("listed.example"), extension(65281, &[0])],
    ] {
        let message = message(&body(&extensions));
        for length in [20, 100, 700, 16_384] {
            let sent: Vec<u8> = message.chunks(length).flat_map(|part| record(22, part)).collect();
            let pieces = sent.chunks(200);
            tries(&mut named, || send_pieces(to, pieces))
                .check_served(&format!("records of {length}"), &sent);
        }
    }
    // Post-quantum shares and more.
    let message = message(&body(&[extension(51, &[5; 16_300]), sni("listed.example"), filler()]));
    let sent: Vec<u8> = message.chunks(16_384).flat_map(|part| record(22, part)).collect();
    tries(&mut named, || send_pieces(to, [&sent[..]])).check_served("16 KiB", &sent);
}

/// The server has asked for it. The test's one says nothing, so the client sends it unasked, but not at once.
#[test]
fn a_second_hello_names_a_listed_server_too() {
    let mut named = world();
    let to = (DENIED, PORT).into();
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let change = record(20, &[1]);
    let seen = tries(&mut named, || send_pieces(to, [&good[..], &change, &good, &record(23, &[7; 50])]));
    seen.check_served("a second hello", &[&good[..], &change, &good, &record(23, &[7; 50])].concat());
    let seen = tries(&mut named, || send_pieces(to, [&good[..], &change, &evil]));
    seen.check_denied("to another server", DropReason::TlsNameNotAllowed, Some("evil.example"));
    assert_eq!(seen.arrived, [&good[..], &change].concat(), "nothing of the second one arrives");
    // Behind early data.
    let early = hello(&[sni("listed.example"), extension(42, &[])]);
    let data = record(23, &[0; 900]);
    let seen = tries(&mut named, || send_pieces(to, [&early[..], &data, &evil]));
    seen.check_denied("behind early data", DropReason::TlsNameNotAllowed, Some("evil.example"));
    assert_eq!(seen.arrived, [&early[..], &data].concat());
}
