//! Hellos, made by hand. The tests of the hooks have this file, too.

extern crate std;

use std::{vec, vec::Vec};

fn block16(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short one").to_be_bytes();
    [&length[..], content].concat()
}

/// An extension of a kind.
pub(crate) fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &block16(content)].concat()
}

/// The extension for server names, with entries of a kind and a name.
pub(crate) fn names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        entries.iter().flat_map(|(kind, name)| [&[*kind][..], &block16(name)].concat()).collect();
    extension(0, &block16(&list))
}

/// The extension that names a server.
pub(crate) fn sni(name: &str) -> Vec<u8> {
    names(&[(0, name.as_bytes())])
}

/// A hello without its message's header, with these extensions.
pub(crate) fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([9; 32]);
    body.extend(block16(&[0x13, 0x01, 0x13, 0x02, 0xc0, 0x2b]));
    body.extend([1, 0]);
    body.extend(block16(&extensions.concat()));
    body
}

/// The message of a hello.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short one").to_be_bytes();
    [&[1][..], &length[1..], body].concat()
}

/// A record of a content type.
pub(crate) fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &block16(content)].concat()
}

/// A hello with these extensions, in one record.
pub(crate) fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    record(22, &message(&body(extensions)))
}

/// An extension that says nothing about a server.
pub(crate) fn filler() -> Vec<u8> {
    extension(51, &[5; 100])
}
