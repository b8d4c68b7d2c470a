//! How a hello may be cut, sent again, and sent otherwise than by `send`.

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, time::Instant};

use opencode_egress_common::reason::DropReason;

use super::{End, conclude, hello_to, listed, made, send_pieces, tries, world};
use crate::{
    names::Named,
    network::{DENIED, FAR, INTERFACE, PORT},
    sys::{domain, send, send_to, set, socket},
    tcp::{has_mptcp, mptcp, tcp},
};

#[test]
fn a_hello_may_be_cut_anywhere() {
    let mut named = world();
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    for to in listed() {
        for length in [1, 2, 3, 7, 100] {
            let seen = tries(&mut named, || send_pieces(to, good.chunks(length)));
            seen.check_served(&format!("pieces of {length}"), &good);
            let seen = tries(&mut named, || send_pieces(to, evil.chunks(length)));
            seen.check_denied(
                &format!("pieces of {length}"),
                DropReason::TlsNameNotAllowed,
                Some("evil.example"),
            );
            assert!(evil.starts_with(&seen.arrived), "a well-formed beginning");
            assert!(!seen.arrived.windows(12).any(|part| part == b"evil.example"), "without the whole name");
        }
    }
}

/// Segments as long as the wire takes, made by the kernel's TCP itself.
#[test]
fn without_offload_a_long_hello_passes() {
    let mut named = world();
    named.world.unit.ip(&format!("link set {INTERFACE} gso_max_segs 1 gso_max_size 1500\n"));
    let message =
        made::message(&made::body(&[made::extension(51, &[5; 15_000]), made::sni("listed.example")]));
    let good = made::record(22, &message);
    for to in listed() {
        tries(&mut named, || send_pieces(to, [&good[..]])).check_served("15 KiB", &good);
    }
    let evil = made::message(&made::body(&[made::extension(51, &[5; 15_000]), made::sni("evil.example")]));
    let evil = made::record(22, &evil);
    let seen = tries(&mut named, || send_pieces((DENIED, PORT).into(), [&evil[..]]));
    seen.check_denied("15 KiB", DropReason::TlsNameNotAllowed, Some("evil.example"));
}

/// Packets are lost on their way, behind the hook, and are sent again, alone or together with what follows.
#[test]
fn what_is_lost_is_sent_again() {
    let mut named = world();
    named.world.far.nft(
        "table inet loss {\n chain in {\n type filter hook prerouting priority -300\n \
         tcp dport 443 meta length > 60 numgen inc mod 3 < 2 drop\n}\n}\n",
    );
    let to = (DENIED, PORT).into();
    let good = [&hello_to("listed.example")[..], &[22, 3, 3, 0, 4, 16, 0, 0, 0]].concat();
    for length in [40, 150, 10_000] {
        let seen = tries(&mut named, || send_pieces(to, good.chunks(length)));
        seen.check_served(&format!("pieces of {length}, of which two of three are lost"), &good);
    }
    let evil = hello_to("evil.example");
    let seen = tries(&mut named, || send_pieces(to, evil.chunks(40)));
    let told = seen.told.iter().map(|denial| denial.reason).collect::<Vec<_>>();
    assert!(told.contains(&DropReason::TlsNameNotAllowed), "{told:?}");
    assert!(evil.starts_with(&seen.arrived) && seen.arrived.len() < evil.len(), "a beginning of it");
}

/// A world where clients send data in their SYNs, and the server takes it as this says (`tcp_fastopen`).
fn with_fast_open(server: &str) -> Named {
    let named = world();
    named.world.unit.sysctl("ipv4/tcp_fastopen", "7");
    named.world.far.sysctl("ipv4/tcp_fastopen", server);
    set(named.world.server(), libc::IPPROTO_TCP, 23, 16).expect("the server takes fast opens");
    named
}

#[test]
fn data_in_the_syn_is_read() {
    let mut named = with_fast_open("3");
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let open = |to: SocketAddr, data: &[u8]| -> io::Result<u64> {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        let since = Instant::now();
        // What is denied in the SYN is sent behind it, and denied there.
        let (first, rest) = data.split_at(data.len() / 2);
        let _ = send_to(&socket, first, libc::MSG_FASTOPEN, to);
        let _ = send(&socket, rest, 0);
        conclude(&socket, since)
    };
    for to in listed() {
        for _ in 0..2 {
            tries(&mut named, || open(to, &good)).check_served("fast open", &good);
            let seen = tries(&mut named, || open(to, b"GET / HTTP/1.1\r\n\r\n"));
            assert_eq!((seen.end, &seen.arrived[..]), (End::Reset, &b""[..]), "{seen:?}");
            assert_eq!(seen.told.first().map(|denial| denial.reason), Some(DropReason::NotTls));
            let seen = tries(&mut named, || open(to, &evil));
            assert_eq!(seen.end, End::Reset, "{seen:?}");
            assert!(
                seen.arrived.len() <= evil.len() / 2,
                "no more than its beginning: {}",
                seen.arrived.len()
            );
        }
    }
}

/// The answer to a SYN with data is lost, and the SYN sent again, without: what the server has of the hello is read.
#[test]
fn a_syn_that_is_sent_again_begins_nothing_anew() {
    // Data in a SYN is taken without a cookie, too.
    let mut named = with_fast_open("515");
    named.world.far.nft(
        "table inet loss {\n chain out {\n type filter hook output priority 0\n \
         tcp sport 443 tcp flags & (syn | ack) == syn | ack numgen inc mod 1000 < 2 drop\n}\n}\n",
    );
    let good = hello_to("listed.example");
    let (first, rest) = good.split_at(good.len() / 2);
    let to: SocketAddr = (DENIED, PORT).into();
    let seen = tries(&mut named, || {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        send_to(&socket, first, libc::MSG_FASTOPEN, to)?;
        send(&socket, rest, 0)?;
        conclude(&socket, Instant::now())
    });
    seen.check_served("a SYN that is sent again", &good);
}

/// A socket that was connected before begins anew.
#[test]
fn a_socket_is_followed_at_every_connect() {
    let mut named = world();
    named.learn("listed.example", FAR, 1000);
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let to: SocketAddr = (DENIED, PORT).into();
    let seen = tries(&mut named, || {
        let socket = tcp((FAR, PORT).into())?;
        send(&socket, &good, 0)?;
        crate::sys::disconnect(&socket)?;
        crate::sys::connect(&socket, to)?;
        let since = Instant::now();
        let _ = send(&socket, &evil, 0);
        conclude(&socket, since)
    });
    seen.check_denied("after a dissolved connection", DropReason::TlsNameNotAllowed, Some("evil.example"));
}

/// Urgent data is taken out of the stream at the other end, which then reads another one.
#[test]
fn urgent_data_is_denied() {
    let mut named = world();
    let good = hello_to("listed.example");
    for to in listed() {
        let seen = tries(&mut named, || {
            let socket = tcp(to)?;
            let since = Instant::now();
            let (one, two) = good.split_at(50);
            let _ = send(&socket, one, libc::MSG_OOB);
            let _ = send(&socket, two, 0);
            conclude(&socket, since)
        });
        seen.check_denied("urgent data", DropReason::NotTls, None);
        assert_eq!(seen.arrived, b"");
    }
}

#[test]
fn mptcp_opens_tls_in_one_piece() {
    let mut named = world();
    if !has_mptcp(&mut named.world) {
        return;
    }
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let to: SocketAddr = (DENIED, PORT).into();
    let pieces = |pieces: &[&[u8]]| {
        let socket = mptcp(to)?;
        let since = Instant::now();
        for piece in pieces {
            let _ = send(&socket, piece, 0);
        }
        conclude(&socket, since)
    };
    tries(&mut named, || pieces(&[&good])).check_served("MPTCP", &good);
    let seen = tries(&mut named, || pieces(&[&evil]));
    seen.check_denied("MPTCP", DropReason::TlsNameNotAllowed, Some("evil.example"));
}

/// A page of a file, and memory that is given to the kernel, go out without a copy.
#[test]
fn data_that_is_not_copied_is_read() {
    let mut named = world();
    let (good, evil) = (hello_to("listed.example"), hello_to("evil.example"));
    let sent = |named: &mut Named, what: &str, way: &dyn Fn(SocketAddr, &[u8]) -> io::Result<u64>| {
        let to = (DENIED, PORT).into();
        tries(named, || way(to, &good)).check_served(what, &good);
        let seen = tries(named, || way(to, &evil));
        seen.check_denied(what, DropReason::TlsNameNotAllowed, Some("evil.example"));
        assert_eq!(seen.arrived, b"", "{what}");
    };
    sent(&mut named, "sendfile", &|to, data| {
        let file = tempfile::tempfile()?;
        std::os::unix::fs::FileExt::write_all_at(&file, data, 0)?;
        let socket = tcp(to)?;
        let since = Instant::now();
        let mut offset = 0;
        // SAFETY: both descriptors are open, and the offset outlives the call.
        unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, data.len()) };
        conclude(&socket, since)
    });
    sent(&mut named, "MSG_ZEROCOPY", &|to, data| {
        let socket = tcp(to)?;
        set(&socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
        let since = Instant::now();
        let _ = send(&socket, data, libc::MSG_ZEROCOPY);
        conclude(&socket, since)
    });
}
