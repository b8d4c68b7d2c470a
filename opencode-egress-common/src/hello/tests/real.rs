//! Hellos that real programs made. `cargo xtask hellos` makes them anew; each file says by what.

extern crate std;

use std::{string::String, vec::Vec};

/// The server that all of them name.
pub(crate) const NAME: &str = "hello.example.org";

macro_rules! hellos {
    ($($file:literal)*) => {
        /// What made each, and its bytes.
        pub(crate) fn hellos() -> Vec<(&'static str, Vec<u8>)> {
            [$(($file, include_str!(concat!("real/", $file, ".txt")))),*]
                .into_iter()
                .map(|(file, text)| (file, bytes(text)))
                .collect()
        }
    };
}

hellos!(
    "openssl" "openssl-tls12" "node" "gnutls" "nss" "go" "java" "rustls" "boringssl-bun" "boringssl-chromium"
);

fn bytes(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs =
        digits.as_bytes().chunks(2).map(|pair| core::str::from_utf8(pair).expect("hexadecimal digits"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal digits")).collect()
}
