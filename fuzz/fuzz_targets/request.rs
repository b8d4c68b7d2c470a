//! What the daemon makes of the bytes of a request, which any process with the socket in reach can send.

#![no_main]

use opencode_egress::{
    control::request::{Reply, Request},
    policy::target::Target,
    report::human::error_chain,
};

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    match Request::parse(line) {
        Ok(request) => {
            let written = serde_json::to_vec(&request).expect("a request can be written");
            let read = Request::parse(&written).expect("what is written can be read");
            assert_eq!(read, request);
            // `icmp` is read as the one of the address' family.
            let foreign =
                |to: &Target| matches!(to, Target::Address(to) if to.protocol == 1 && to.address.is_ipv6());
            if let Request::Explain { destination, .. } = request
                && !foreign(&destination)
            {
                let shown = destination.to_string();
                assert_eq!(shown.parse::<Target>(), Ok(destination), "{shown}");
            }
        }
        Err(error) => {
            let text = error_chain(&error);
            let reply = serde_json::to_vec(&Reply::Error(text.clone())).expect("an answer can be written");
            assert!(!reply.contains(&b'\n'), "an answer is one line");
            match serde_json::from_slice(&reply) {
                Ok(Reply::Error(read)) => assert_eq!(read, text),
                other => panic!("{other:?} instead of {text}"),
            }
        }
    }
});
