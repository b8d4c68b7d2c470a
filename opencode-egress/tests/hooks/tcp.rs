//! TCP, whatever opens it.

use std::{io, net::SocketAddr};

use crate::{
    sys::{connect, disconnect, domain, send, send_to, set, socket},
    world::{ALLOWED, DENIED, PORT, World, base_policy},
};

fn tcp_connect(to: SocketAddr) -> io::Result<()> {
    connect(&socket(domain(to), libc::SOCK_STREAM, 0)?, to)
}

#[test]
fn connect_is_judged() {
    World::new(&base_policy()).judges("TCP connect", tcp_connect);
}
