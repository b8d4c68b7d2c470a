//! Open TCP connections that a new policy denies.
//!
//! Their packets are refused from the first one on, but a TCP socket takes what is written and would only retry
//! in silence. So the connection is reset: the program gets `ECONNABORTED` at once. This asks the kernel's socket
//! diagnosis (sock_diag(7), `SOCK_DESTROY`), which sees the network namespace of this process; a unit with one of
//! its own is only refused.

use std::io;

use opencode_egress_common::flow::{Address, Flow, Protocol};
use rustix::{
    fd::OwnedFd,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with},
};

/// An open connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its remote address and port.
    pub flow: Flow,
    /// Its local port.
    pub local_port: u16,
    /// The cgroup of its socket.
    pub cgroup: u64,
    family: u8,
    /// The kernel's `struct inet_diag_sockid`, to name it by.
    id: [u8; SOCKET_ID],
}

// Sizes and offsets of <linux/netlink.h> and <linux/inet_diag.h>.
const HEADER: usize = 16;
const SOCKET_ID: usize = 48;
const DIAG_MESSAGE: usize = 72;

// Message types.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
// Flags.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;

/// Attribute with the cgroup's id.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Every state of a connection that can still send: not listening, not over.
const OPEN_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Resets the connections that `denied` names, and returns them.
///
/// # Errors
///
/// When the kernel has no socket diagnosis, or refuses.
pub fn reset(denied: impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
    let diag = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut reset = vec![];
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        #[expect(clippy::cast_possible_truncation, reason = "2 and 10")]
        for connection in list(&diag, family.as_raw() as u8)? {
            if denied(&connection) {
                destroy(&diag, &connection)?;
                reset.push(connection);
            }
        }
    }
    Ok(reset)
}

fn list(diag: &OwnedFd, family: u8) -> io::Result<Vec<Connection>> {
    send(diag, &request(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, family, &[0; SOCKET_ID]), SendFlags::empty())?;
    let mut connections = vec![];
    loop {
        for (kind, body) in messages(&receive(diag)?) {
            match kind {
                NLMSG_DONE => return Ok(connections),
                NLMSG_ERROR => answered(&body)?,
                _ => connections.extend(connection(&body)),
            }
        }
    }
}

fn destroy(diag: &OwnedFd, connection: &Connection) -> io::Result<()> {
    let message = request(SOCK_DESTROY, REQUEST | ACK, connection.family, &connection.id);
    send(diag, &message, SendFlags::empty())?;
    for (kind, body) in messages(&receive(diag)?) {
        if kind == NLMSG_ERROR {
            return match answered(&body) {
                // It ended by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                result => result,
            };
        }
    }
    Ok(())
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut body = vec![family, Protocol::TCP.0, 0, 0];
    body.extend(OPEN_STATES.to_ne_bytes());
    body.extend(id);
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = vec![];
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port; there is one conversation on this socket.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn receive(diag: &OwnedFd) -> io::Result<Vec<u8>> {
    // The kernel's dumps fill at most 32 KiB at a time.
    let mut buffer = vec![0; 64 * 1024];
    let (len, _) = recv(diag, &mut buffer[..], RecvFlags::empty())?;
    buffer.truncate(len);
    Ok(buffer)
}

/// The messages in a datagram: type and what is behind the header.
fn messages(mut datagram: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut messages = vec![];
    while let (Some(len), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
        let len = len as usize;
        let Some(body) = datagram.get(HEADER..len) else { break };
        messages.push((kind, body.to_vec()));
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// What an NLMSG_ERROR says; 0 is success.
fn answered(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn connection(body: &[u8]) -> Option<Connection> {
    let id: [u8; SOCKET_ID] = body.get(4..4 + SOCKET_ID)?.try_into().ok()?;
    let family = body[0];
    let word = |offset| u32_at(&id, offset);
    let address = match family {
        2 => Address::v4(word(20)?),
        _ => Address::v6([word(20)?, word(24)?, word(28)?, word(32)?]),
    };
    let flow = Flow { address, protocol: Protocol::TCP, port: u16::from_be(u16_at(&id, 2)?) };
    let mut attributes = body.get(DIAG_MESSAGE..)?;
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        if kind == INET_DIAG_CGROUP_ID {
            let cgroup = u64::from_ne_bytes(attributes.get(4..12)?.try_into().ok()?);
            return Some(Connection { flow, local_port: u16::from_be(u16_at(&id, 0)?), cgroup, family, id });
        }
        attributes = attributes.get(usize::from(len.max(4)).next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}
