//! Open TCP connections, as the kernel's socket diagnosis has them (sock_diag(7)), and resetting them.
//!
//! What a policy denies is refused packet by packet, but a TCP socket takes what is written and would only retry in silence. So
//! it is reset (`SOCK_DESTROY`), and the program gets `ECONNABORTED` at once.
//!
//! Messages are those of `netlink-packet-sock-diag`. The socket is rustix's: another crate for it would add nothing, and here
//! it may come from another process.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Nla as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage, TCP_SYN_SENT,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use opencode_egress_common::{
    abi::Reset,
    flow::{Address, Flow, Protocol},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
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
    /// Whether it is a part of an MPTCP connection. Its program is told of a reset of all parts only when
    /// `net.mptcp.close_timeout` is over.
    pub mptcp: bool,
    family: u8,
    id: SocketId,
}

/// Attributes of a socket that the crate has no names for, of <linux/inet_diag.h>.
const INET_DIAG_ULP_INFO: u16 = 19;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// The kernel's socket diagnosis, in one network namespace.
#[derive(Debug)]
pub struct SocketDiagnosis {
    socket: OwnedFd,
    /// The number of the last request.
    sequence: AtomicU32,
}

impl SocketDiagnosis {
    /// That of the namespace of this process.
    ///
    /// # Errors
    ///
    /// When the kernel has none.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self { socket, sequence: AtomicU32::new(0) })
    }

    /// That of the namespace in which another process opened it.
    ///
    /// # Errors
    ///
    /// When the socket is something else.
    pub fn opened_elsewhere(socket: OwnedFd) -> io::Result<Self> {
        let is_one = sockopt::socket_domain(&socket)? == AddressFamily::NETLINK
            && sockopt::socket_protocol(&socket)? == Some(netlink::SOCK_DIAG);
        if is_one {
            Ok(Self { socket, sequence: AtomicU32::new(0) })
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no socket of the kernel's socket diagnosis",
            ))
        }
    }

    /// The descriptor, to hand it to another process.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The number of its network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not say; it takes CAP_NET_ADMIN.
    pub fn namespace(&self) -> io::Result<u64> {
        const SIOCGSKNS: libc::Ioctl = 0x894c;
        // SAFETY: the call takes no argument and returns a new descriptor, or -1.
        let namespace = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCGSKNS) };
        if namespace < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        let namespace = unsafe { OwnedFd::from_raw_fd(namespace) };
        Ok(rustix::fs::fstat(namespace.as_fd())?.st_ino)
    }

    /// Every connection that can still send.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn connections(&self) -> io::Result<Vec<Connection>> {
        let open = StateFlags::ESTABLISHED
            | StateFlags::SYN_SENT
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT
            | StateFlags::LAST_ACK
            | StateFlags::CLOSING;
        let mut connections = vec![];
        for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let found = self.ask(NLM_F_DUMP, request(family, open.clone(), any))?;
            connections.extend(found.iter().filter_map(connection));
        }
        Ok(connections)
    }

    /// Resets a connection. Returns whether it was still there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reset(&self, connection: &Connection) -> io::Result<bool> {
        self.destroy(connection.family, connection.id.clone())
    }

    /// Resets the socket that a program asks to reset. Returns whether it is in this namespace. `search` says whether one
    /// that is not where the packet says may be looked for among all sockets that are about to connect.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reset_requested(&self, reset: &Reset, search: bool) -> io::Result<bool> {
        let (family, id) = named(reset);
        if reset.cookie != 0 {
            return self.destroy(family, id);
        }
        // Only a packet was seen. Anybody can write one, in a namespace of his own, so it ends no connection that is there.
        let about_to_connect =
            |found: &InetResponse| found.header.state == TCP_SYN_SENT && found.header.family == family;
        let found = match self.ask(0, request(family, StateFlags::all(), id.clone())) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => vec![],
            found => found?,
        };
        if let Some(found) = found.iter().find(|found| about_to_connect(found)) {
            return self.destroy(family, found.header.socket_id.clone());
        }
        if !search {
            return Ok(false);
        }
        // Its destination may have been rewritten on the packet's way.
        let from = SocketId { destination_port: 0, ..id.clone() };
        let found = self.ask(NLM_F_DUMP, request(family, StateFlags::SYN_SENT, from))?;
        let mut from_there = found.iter().filter(|found| {
            let found = &found.header.socket_id;
            found.source_port == id.source_port && found.source_address == id.source_address
        });
        match (from_there.next(), from_there.next()) {
            (Some(found), None) => self.destroy(family, found.header.socket_id.clone()),
            _ => Ok(false),
        }
    }

    /// The user of the socket that has its own end at `source` and its other one, if it has one, at `destination`: one for datagrams or of a
    /// connection. `None`: there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn user_of(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<Option<u32>> {
        let family = if source.is_ipv4() { AF_INET } else { AF_INET6 };
        let id = |own: SocketAddr, other: SocketAddr| SocketId {
            source_port: own.port(),
            destination_port: other.port(),
            source_address: own.ip(),
            destination_address: other.ip(),
            interface_id: 0,
            cookie: ANY,
        };
        // Of UDP the kernel looks for the socket at the destination ("src and dst are swapped for historical reasons", `udp_dump_one`,
        // <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/udp_diag.c#L41>). It answers both alike.
        for (protocol, id) in [(IPPROTO_UDP, id(destination, source)), (IPPROTO_TCP, id(source, destination))]
        {
            match self.ask(0, request_of(protocol, family, StateFlags::all(), id)) {
                Ok(found) => {
                    let mut its = found.iter().map(|found| &found.header);
                    if let Some(its) = its.find(|header| header.socket_id.source_port == source.port()) {
                        return Ok(Some(its.uid));
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn destroy(&self, family: u8, id: SocketId) -> io::Result<bool> {
        let request = SockDiagDestroy::new(request(family, StateFlags::all(), id));
        match self.converse(NLM_F_ACK, request) {
            Ok(_) => Ok(true),
            // It ended by itself meanwhile, or is elsewhere.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(&self, flags: u16, request: SockDiagMessage) -> io::Result<Vec<InetResponse>> {
        self.converse(flags, request)
    }

    /// Sends a request and takes what the kernel answers. It answers before the call returns, or goes on when it is
    /// read, so nothing is waited for.
    fn converse<M: NetlinkSerializable>(&self, flags: u16, request: M) -> io::Result<Vec<InetResponse>>
    where
        NetlinkPayload<M>: From<M>,
    {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::DONTWAIT)?;
        let many = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = vec![];
        // The kernel's dumps fill at most 32 KiB at a time.
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (len, _) = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let message: NetlinkMessage<SockDiagMessage> =
                    NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
                rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                        answers.push(*answer)
                    }
                    _ => {}
                }
            }
            if !many && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }
}

/// `INET_DIAG_NOCOOKIE`: any socket in that place.
const ANY: [u8; 8] = [0xff; 8];

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    request_of(IPPROTO_TCP, family, states, socket_id)
}

fn request_of(protocol: u8, family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    // With it the kernel also says what is above TCP (`inet_sk_diag_fill`, INET_DIAG_ULP_INFO).
    let extensions = ExtensionFlags::INFO;
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states, socket_id })
}

/// The socket of a request, as the diagnosis names it.
fn named(reset: &Reset) -> (u8, SocketId) {
    let address = |words: [u32; 4]| -> IpAddr {
        match reset.family {
            4 => Address::v4(words[0]).into(),
            _ => std::net::Ipv6Addr::from(
                words.map(u32::to_ne_bytes).as_flattened().try_into().unwrap_or([0; 16]),
            )
            .into(),
        }
    };
    let id = SocketId {
        source_port: reset.source_port,
        destination_port: reset.destination_port,
        source_address: address(reset.source),
        destination_address: address(reset.destination),
        interface_id: reset.interface,
        cookie: if reset.cookie == 0 { ANY } else { cookie(reset.cookie) },
    };
    (if reset.family == 4 { AF_INET } else { AF_INET6 }, id)
}

/// The kernel's number of a socket as two words, the lower one first.
fn cookie(number: u64) -> [u8; 8] {
    #[expect(clippy::cast_possible_truncation, reason = "each is a half")]
    let halves = [number as u32, (number >> 32) as u32].map(u32::to_ne_bytes);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(halves.as_flattened());
    bytes
}

fn connection(found: &InetResponse) -> Option<Connection> {
    let attribute = |kind| {
        let attribute = found.nlas.iter().find(|nla| nla.kind() == kind)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        Some(value)
    };
    let cgroup = u64::from_ne_bytes(attribute(INET_DIAG_CGROUP_ID)?.try_into().ok()?);
    // The name of what is above TCP is in it.
    let above = attribute(INET_DIAG_ULP_INFO).unwrap_or_default();
    let id = found.header.socket_id.clone();
    let flow =
        Flow { address: id.destination_address.into(), protocol: Protocol::TCP, port: id.destination_port };
    let mptcp = above.windows(5).any(|name| name == b"mptcp");
    Some(Connection { flow, local_port: id.source_port, cgroup, mptcp, family: found.header.family, id })
}
