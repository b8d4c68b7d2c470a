extern crate std;

use std::{format, string::String, string::ToString as _, vec, vec::Vec};

use super::*;

mod compared;
mod made;
mod programs;
mod random;
mod real;

use made::*;

struct Slice<'a>(&'a [u8]);

impl Source for Slice<'_> {
    fn copy(&self, offset: u32, count: u32, to: &[Number<u8>; WINDOW + 8]) -> bool {
        let (from, count) = (offset as usize, count as usize);
        assert!((1..=WINDOW).contains(&count), "{count} bytes at once");
        let Some(bytes) = self.0.get(from..from + count) else { return false };
        bytes.iter().zip(to).for_each(|(byte, to)| to.set(*byte));
        true
    }
}

/// What became of a stream: the first piece that did not pass, or how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Over,
    OtherName(String),
    NoName,
    NotTls,
}
use Outcome::{NoName, NotTls, Open, Over};

fn other(name: &str) -> Outcome {
    Outcome::OtherName(name.to_string())
}

const LISTED: [&str; 2] = ["registry.example.org", "a.example"];
const BELOW: &str = "below.example.net";

fn is_listed(name: &ServerName) -> bool {
    let key = name.to_key();
    let exact = LISTED.iter().any(|listed| ServerNameKey::exact(listed).covers(&key));
    exact || ServerNameKey::below(BELOW).covers(&key)
}

fn text(name: &ServerName) -> String {
    (0..name.len()).rev().map(|index| name.byte(index) as char).collect()
}

fn follow_with<'a>(hello: &Hello, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    for piece in pieces {
        // Something before it, which is not to be read.
        let packet = [&[22; 20][..], piece].concat();
        let end = u32::try_from(packet.len()).expect("a short one");
        hello.come(20, end);
        match judge(hello, &Slice(&packet), is_listed) {
            Followed::Passes if hello.standing() == Standing::Over => return Over,
            Followed::Passes => assert_eq!(hello.standing(), Standing::Followed),
            denied => {
                assert_eq!(hello.standing(), Standing::Denied(denied));
                return match denied {
                    Followed::OtherName => other(&text(&hello.name)),
                    Followed::NoName => NoName,
                    _ => NotTls,
                };
            }
        }
    }
    Open
}

fn follow<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let hello = Hello::default();
    assert_eq!(hello.standing(), Standing::Over);
    hello.begin(false);
    follow_with(&hello, pieces)
}

fn once(stream: &[u8]) -> Outcome {
    let whole = follow([stream]);
    // Wherever it is cut, the same comes of it.
    assert_eq!(follow(stream.chunks(1)), whole, "in pieces of a byte");
    for cut in 1..stream.len().min(600) {
        let (one, other) = stream.split_at(cut);
        assert_eq!(follow([one, other]), whole, "cut at {cut}");
    }
    whole
}

#[test]
fn the_name_is_found_wherever_it_stands() {
    let good = sni("registry.example.org");
    for extensions in [
        vec![good.clone()],
        vec![good.clone(), filler()],
        vec![filler(), good.clone()],
        vec![extension(23, &[]), good.clone(), extension(65281, &[0]), filler()],
        vec![extension(23, &[]), good.clone(), extension(23, &[])],
    ] {
        assert_eq!(once(&hello(&extensions)), Open, "{extensions:?}");
    }
    assert_eq!(once(&hello(&[filler(), sni("evil.example"), filler()])), other("evil.example"));
    assert_eq!(once(&hello(&[filler()])), NoName);
    assert_eq!(once(&hello(&[])), NoName);
    let without_extensions = &body(&[])[..2 + 32 + 33 + 8 + 2];
    assert_eq!(once(&record(22, &message(without_extensions))), NoName);
}

#[test]
fn names_are_compared_as_the_dns_does() {
    let named = |name: &str| once(&hello(&[sni(name)]));
    assert_eq!(named("Registry.EXAMPLE.org"), Open);
    assert_eq!(named("x.below.example.net"), Open);
    assert_eq!(named("X.Y_z-0.below.example.net"), Open);
    for name in [
        "below.example.net",
        "xbelow.example.net",
        "registry.example.or",
        "egistry.example.org",
        "xregistry.example.org",
        "x.registry.example.org",
        "registry.example.org.evil.example",
        "192.0.2.1",
        "org",
        // Labels that no host has.
        ".below.example.net",
        "x..below.example.net",
        "x.below.example.net.",
        "registry.example.org.",
        "evil\0.below.example.net",
        "evil .below.example.net",
        "evil/.below.example.net",
        "evil*.below.example.net",
        "registry.example.org\0",
        "[::1]",
        ".",
    ] {
        assert_eq!(named(name), other(&name.to_ascii_lowercase()), "{name:?}");
    }
    assert_eq!(once(&hello(&[names(&[(0, b"\xff.below.example.net")])])), other("\u{ff}.below.example.net"));
    for length in [1, 7, 8, 9, 247, 248, 249, 252, 253] {
        let long = "n".repeat(length);
        assert_eq!(named(&long), other(&long));
        if let Some(label) = length.checked_sub(BELOW.len() + 1).filter(|label| *label > 0) {
            assert_eq!(named(&format!("{}.{BELOW}", "n".repeat(label))), Open, "{length}");
        }
    }
    assert_eq!(named(&"n".repeat(254)), NotTls);
    assert_eq!(named(&"n".repeat(10_000)), NotTls);
    assert_eq!(named(""), NotTls);
}

#[test]
fn there_is_one_name() {
    let good = b"registry.example.org";
    for extensions in [
        vec![names(&[(0, good), (0, good)])],
        vec![names(&[(0, good), (0, b"evil.example")])],
        vec![names(&[(1, b"evil.example"), (0, good)])],
        vec![names(&[(0, good), (1, b"evil.example")])],
        vec![names(&[(1, good)])],
        vec![names(&[])],
        vec![extension(0, &[])],
        vec![sni("registry.example.org"), sni("registry.example.org")],
        vec![sni("registry.example.org"), filler(), sni("evil.example")],
    ] {
        assert_eq!(once(&hello(&extensions)), NotTls, "{extensions:?}");
    }
    // It is denied by the first one, before the second has come.
    assert_eq!(once(&hello(&[sni("evil.example"), filler()])), other("evil.example"));
    assert_eq!(follow([&hello(&[sni("evil.example"), filler()])[..130]]), other("evil.example"));
}

#[test]
fn what_is_no_hello_is_denied_at_its_first_wrong_byte() {
    let good = hello(&[filler(), sni("registry.example.org"), filler()]);
    for text in ["GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n", "\0", "\u{1}"] {
        assert_eq!(once(text.as_bytes()), NotTls, "{text:?}");
    }
    // SSLv2's, an alert, a record of data, of another version, an empty one, one that is too long.
    for begin in [
        &[0x80, 0x2e, 1, 3, 1][..],
        &[21, 3, 1, 0, 2],
        &[20, 3, 3, 0, 1],
        &[23, 3, 3, 0, 2],
        &[22, 2, 0, 0, 9],
        &[22, 4, 1, 0, 9],
        &[22, 3, 5, 0, 9],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0x40, 1],
        &[22, 3, 1, 0, 9, 2],
        &[22, 3, 1, 0, 9, 0],
        &[22, 3, 1, 0, 9, 1, 1, 0, 0],
    ] {
        assert_eq!(once(&[begin, &[0; 8]].concat()), NotTls, "{begin:?}");
    }
    // Each length of the message, one less and one more than it is.
    let (version, session, suites) = (9, 9 + 2 + 32, 9 + 2 + 32 + 33 + 1);
    let (compression, extensions) = (suites + 7, suites + 7 + 3);
    for (place, values) in [
        (4, &[good[4] - 1, good[4] + 1][..]),
        (8, &[good[8] - 1, good[8] + 1]),
        (version, &[2, 4]),
        (version + 1, &[0, 5]),
        (session, &[31, 33, 255]),
        (suites, &[0, 5, 7, 255]),
        (compression, &[0, 2, 255]),
        (extensions, &[good[extensions] - 1, good[extensions] + 1]),
        (extensions + 4, &[99, 101]),
    ] {
        for value in values {
            let mut bad = good.clone();
            bad[place] = *value;
            assert!(!matches!(once(&[&bad[..], &[0; 4]].concat()), Over), "{value} at {place}");
            assert_ne!(follow([&bad[..], &[0; 300]]), Open, "{value} at {place}");
        }
    }
}

/// What is before the extensions is read at once, where it is there.
#[test]
fn a_beginning_is_read_where_it_is() {
    let (good, evil) = (sni("registry.example.org"), sni("evil.example"));
    let length = |length: usize| u16::try_from(length).expect("a short one").to_be_bytes();
    // Too little for an extension.
    for extensions in [&[0][..], &[0, 0], &[0, 0, 0]] {
        assert_eq!(once(&hello(&[extensions.to_vec()])), NotTls);
    }
    // A hello without extensions, with a record's header among its random bytes. Who takes that for random bytes, too, finds extensions where the
    // suites are.
    let suites = [&good[..], &extension(0x5a5a, &[0])].concat();
    let random = [&[7; 27][..], &[0, 0, 2, 1, 1]].concat();
    let body = [&[3, 3][..], &random, &[1, 1], &length(suites.len()), &suites, &[2, 0, 0], &[0, 0]].concat();
    let message = message(&body);
    let (first, rest) = message.split_at(4 + 2 + 10);
    assert_eq!(once(&[record(22, first), record(22, rest)].concat()), NoName);
    // An extension that would be one.
    let inner = [&good[..], &[0x5a, 0x5a], &length(evil.len())].concat();
    let looks_so = [&[7; 30][..], &[0, 0, 2, 1, 1, 1, 0], &length(inner.len() + evil.len()), &inner].concat();
    let early = extension(42, &[]);
    let stream = hello(&[early.clone(), early, extension(0x0303, &looks_so), evil.clone()]);
    let (first, rest) = stream.split_at(stream.len() - evil.len() - looks_so.len() - 12);
    let (second, third) = rest.split_at(rest.len() - evil.len() - 1);
    assert_eq!(follow([first, second, third]), other("evil.example"));
    assert_eq!(once(&stream), other("evil.example"));
}

#[test]
fn a_hello_may_come_in_several_records() {
    let message = message(&body(&[filler(), sni("registry.example.org"), filler()]));
    let evil = self::message(&body(&[filler(), sni("evil.example"), filler()]));
    let cut =
        |message: &[u8], length| message.chunks(length).flat_map(|part| record(22, part)).collect::<Vec<_>>();
    for length in [16, 33, 64, 100, 16_384] {
        assert_eq!(once(&cut(&message, length)), Open, "{length}");
        assert_eq!(once(&cut(&evil, length)), other("evil.example"), "{length}");
    }
    // More turns than are taken at once, and as many as one likes in pieces.
    assert_eq!(follow([&cut(&message, 1)[..]]), NotTls);
    for length in 1..16 {
        assert_eq!(follow(cut(&message, length).chunks(50)), Open, "{length}");
    }
    for between in [record(20, &[1]), record(21, &[1, 0]), record(23, &[0; 5]), record(22, &[])] {
        let (one, two) = message.split_at(90);
        assert_eq!(once(&[record(22, one), between, record(22, two)].concat()), NotTls);
    }
    // Behind the hello, in its record.
    assert_eq!(once(&record(22, &[&message[..], &[0]].concat())), NotTls);
    assert_eq!(once(&record(22, &[&message[..], &evil].concat())), NotTls);
}

#[test]
fn extensions_may_be_many_and_long() {
    let many = |count: usize| {
        let mut extensions: Vec<_> = (0..count).map(|_| extension(0x5a5a, &[])).collect();
        extensions.push(sni("registry.example.org"));
        hello(&extensions)
    };
    assert_eq!(once(&many(45)), Open);
    assert_eq!(follow([&many(100)[..]]), Open);
    let mut long = vec![extension(0x5a5a, &[1; 300]); 24];
    long.push(sni("registry.example.org"));
    assert_eq!(follow([&hello(&long)[..]]), Open);
    assert_eq!(follow([&many(1000)[..]]), NotTls);
    assert_eq!(follow(many(1000).chunks(100)), Open);
    // The longest name among others.
    let long = format!("{}.example.net", "b".repeat(241));
    let mut around = vec![extension(0x5a5a, &[1; 8]); 40];
    around.insert(20, sni(&long));
    assert_eq!(once(&hello(&around)), other(&long));
    // With shares of a key exchange that is large, in two records.
    let large = message(&body(&[extension(51, &[5; 16_000]), sni("registry.example.org"), filler()]));
    let stream: Vec<u8> = large.chunks(16_384).flat_map(|part| record(22, part)).collect();
    assert_eq!(follow([&stream[..]]), Open);
    assert_eq!(follow(stream.chunks(1)), Open);
    assert_eq!(follow(stream.chunks(1448)), Open);
    let longest = message(&body(&[extension(51, &[5; 65_400]), sni("a.example")]));
    assert!(longest.len() <= 4 + 0xffff);
    assert_eq!(
        follow(longest.chunks(16_384).map(|part| record(22, part)).collect::<Vec<_>>().concat().chunks(1448)),
        Open
    );
}

#[test]
fn following_ends_behind_the_hello() {
    let good = hello(&[sni("registry.example.org")]);
    let evil = hello(&[sni("evil.example")]);
    let behind = |records: &[Vec<u8>]| once(&[&good[..], &records.concat()].concat());
    assert_eq!(behind(&[record(22, &[16, 0, 0, 2, 1, 1])]), Over);
    assert_eq!(behind(&[record(20, &[1]), record(23, &[1; 53])]), Over);
    assert_eq!(behind(&[record(24, &[1; 3])]), Over);
    assert_eq!(behind(&[record(20, &[1])]), Open);
    assert_eq!(behind(&[record(22, &[])]), NotTls);
    // A second hello comes for an answer, not with the first.
    let pieces = |pieces: &[&[u8]]| follow(pieces.iter().copied());
    assert_eq!(pieces(&[&[&good[..], &good].concat()]), NotTls);
    assert_eq!(pieces(&[&good, &good]), Open);
    assert_eq!(pieces(&[&good, &evil]), other("evil.example"));
    assert_eq!(pieces(&[&good, &hello(&[filler()])]), NoName);
    assert_eq!(pieces(&[&good, &[record(20, &[1]), evil.clone()].concat()]), other("evil.example"));
    assert_eq!(pieces(&[&good, &record(21, &[1, 90]), &evil]), other("evil.example"));
    assert_eq!(pieces(&[&good, &good, &evil]), other("evil.example"));
    assert_eq!(pieces(&[&good, &good, &record(23, &[0; 9])]), Over);
    // Early data may come before it, where the first one announced some.
    let early = hello(&[sni("registry.example.org"), extension(42, &[])]);
    let data = record(23, &[0; 1000]);
    let with_data = [early, record(20, &[1]), data.clone(), data.clone()].concat();
    assert_eq!(once(&with_data), Open);
    assert_eq!(pieces(&[&with_data, &data, &evil]), other("evil.example"));
    let small = |count| record(23, &[0; 17]).repeat(count);
    assert_eq!(pieces(&[&with_data, &small(32), &evil]), other("evil.example"));
    assert_eq!(pieces(&[&with_data, &small(100)]), NotTls, "so many records at once");
    let endless = record(23, &[0; 16_384]).repeat(70);
    assert_eq!(follow([&with_data[..]].into_iter().chain(endless.chunks(60_000))), Over);
}

#[test]
fn a_hello_that_must_come_whole_does() {
    let good = hello(&[sni("registry.example.org")]);
    let whole = |pieces: &[&[u8]]| {
        let hello = Hello::default();
        hello.begin(true);
        follow_with(&hello, pieces.iter().copied())
    };
    assert_eq!(whole(&[&good]), Open);
    assert_eq!(whole(&[&good, &good]), Open);
    assert_eq!(whole(&[&good[..50], &good[50..]]), NotTls);
    assert_eq!(whole(&[&hello(&[sni("evil.example")])]), other("evil.example"));
}

#[test]
fn keys_list_one_name_or_those_below_it() {
    let longest = ["n".repeat(63), "n".repeat(63), "n".repeat(63), "n".repeat(61)].join(".");
    assert_eq!(longest.len(), 253);
    for (listed, name, found) in [
        (ServerNameKey::exact("a.example"), "a.example", true),
        (ServerNameKey::exact("a.example"), "b.a.example", false),
        (ServerNameKey::exact("a.example"), "example", false),
        (ServerNameKey::below("example"), "a.example", true),
        (ServerNameKey::below("example"), "b.a.example", true),
        (ServerNameKey::below("example"), "example", false),
        (ServerNameKey::below("example"), "anexample", false),
        (ServerNameKey::exact(&longest), &longest, true),
    ] {
        assert_eq!(listed.covers(&ServerNameKey::exact(name)), found, "{name}");
    }
    // The kernel's tries take no longer key.
    assert_eq!(size_of::<ServerNameKey>(), 4 + 256);
}
