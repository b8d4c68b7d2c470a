//! What opens a TLS stream: whatever it is, nothing passes that rustls takes for a hello to a server that was not asked about.

#![no_main]

pub use opencode_egress_common::hello::{
    Followed, Hello, Number, ServerName, Source, Standing, WINDOW, judge,
};

#[path = "../../opencode-egress-common/src/hello/tests/compared.rs"]
mod compared;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    compared::compare(bytes);
});
