//! The same bytes, as rustls reads them. The fuzz target of hellos has this file, too.

extern crate std;

use std::{string::String, string::ToString as _, vec::Vec};

use rustls::server::Acceptor;

use super::{Followed, Hello, Number, ServerName, Source, Standing, WINDOW, judge};

/// What rustls makes of the beginning of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Theirs {
    /// A whole hello, which names this server.
    Hello(Option<String>),
    /// More has to come.
    More,
    /// It is none, or none that it takes.
    Refused,
}

pub(crate) fn theirs(stream: &[u8]) -> Theirs {
    let (mut acceptor, mut left) = (Acceptor::default(), stream);
    loop {
        let before = left.len();
        let read = acceptor.read_tls(&mut left);
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Theirs::Hello(accepted.client_hello().server_name().map(str::to_string));
            }
            Ok(None) if read.is_ok() && left.len() < before && !left.is_empty() => {}
            Ok(None) => return Theirs::More,
            Err(_) => return Theirs::Refused,
        }
    }
}

/// What the reader makes of it, where any name of a host is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ours {
    Refused,
    /// It passes. The name is the one that was asked about, if one was.
    Passes {
        name: Option<String>,
        followed_on: bool,
    },
}

pub(crate) fn ours(stream: &[u8]) -> Ours {
    struct Slice<'a>(&'a [u8]);
    impl Source for Slice<'_> {
        fn copy(&self, offset: u32, count: u32, to: &[Number<u8>; WINDOW + 8]) -> bool {
            let (from, count) = (offset as usize, count as usize);
            let Some(bytes) = self.0.get(from..from + count) else { return false };
            bytes.iter().zip(to).for_each(|(byte, to)| to.set(*byte));
            true
        }
    }
    let (hello, mut name) = (Hello::default(), None);
    hello.begin(false);
    hello.come(0, u32::try_from(stream.len()).expect("a short one"));
    let judged = judge(&hello, &Slice(stream), |server: &ServerName| {
        name = Some((0..server.len()).rev().map(|index| server.byte(index) as char).collect());
        true
    });
    match judged {
        Followed::Passes => Ours::Passes { name, followed_on: hello.standing() == Standing::Followed },
        _ => Ours::Refused,
    }
}

/// Fails where something passes that rustls takes for a hello to a server that was not asked about, or of which it expects more while
/// the reader looks no more. Returns whether both have seen the same hello.
pub(crate) fn compare(stream: &[u8]) -> bool {
    match (ours(stream), theirs(stream)) {
        (Ours::Refused, _)
        | (_, Theirs::Refused)
        | (Ours::Passes { followed_on: true, .. }, Theirs::More) => false,
        (Ours::Passes { name: Some(ours), .. }, Theirs::Hello(Some(theirs)))
            if ours.eq_ignore_ascii_case(&theirs) =>
        {
            true
        }
        (ours, theirs) => panic!("{ours:?} is {theirs:?} to rustls: {:02x?}", Vec::from(stream)),
    }
}
