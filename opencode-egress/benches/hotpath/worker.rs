//! The process that is measured: batches of one operation, on demand.
//!
//! A socket belongs to the cgroup in which it was made, and a policy counts from its links on, so nothing is
//! made before the first command comes.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::net::{
    AddressFamily, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::networks::DENIED;

/// Where the measuring side listens.
pub(crate) const SOCKET: &str = "/run/bench/socket";
/// Where the receivers listen, for TCP and UDP.
pub(crate) const PORT: u16 = 4000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// socket(), connect(), close() of TCP.
    Connect,
    /// sendto() of an unconnected UDP socket.
    Sendto,
    /// send() of a connected UDP socket.
    Send,
    /// connect() of a TCP socket that is denied.
    Denied,
    /// connect() of a TCP socket whose packets are dropped without an error, until it gives up after two seconds.
    GiveUp,
}

impl Operation {
    pub(crate) const ALL: [Self; 5] = [Self::Connect, Self::Sendto, Self::Send, Self::Denied, Self::GiveUp];
    /// What is measured in every round.
    pub(crate) const ROUND: [Self; 4] = [Self::Connect, Self::Sendto, Self::Send, Self::Denied];

    /// How many in a batch: a few milliseconds' worth, so that a disturbance spoils few of many batches.
    pub(crate) fn batch(self) -> u32 {
        match self {
            Self::Connect => 100,
            Self::Sendto | Self::Send => 500,
            Self::Denied => 200,
            Self::GiveUp => 1,
        }
    }
}

/// Runs batches until the other side hangs up.
pub(crate) fn serve(name: &str, destination: Ipv4Addr) -> Result<()> {
    let mut stream = UnixStream::connect(SOCKET)?;
    writeln!(stream, "{name} {}", std::process::id())?;
    let mut commands = BufReader::new(stream.try_clone()?).lines();
    let mut sockets = None;
    while let Some(command) = commands.next().transpose()? {
        let (operation, count) = command.split_once(' ').context("a command of two words")?;
        let count: u32 = count.parse()?;
        let Some(operation) = Operation::ALL.into_iter().find(|known| format!("{known:?}") == operation)
        else {
            bail!("unknown operation {operation}");
        };
        let sockets = match &mut sockets {
            Some(sockets) => sockets,
            none => none.insert(Sockets::new(destination)?),
        };
        // Brings code and data back into the caches, after the others' turns.
        sockets.run(operation, count / 20)?;
        let start = Instant::now();
        sockets.run(operation, count)?;
        writeln!(stream, "{}", start.elapsed().as_nanos())?;
    }
    Ok(())
}

struct Sockets {
    destination: SocketAddrV4,
    unconnected: UdpSocket,
    connected: UdpSocket,
    /// Never connected: it is what is denied.
    denied: OwnedFd,
}

impl Sockets {
    fn new(destination: Ipv4Addr) -> io::Result<Self> {
        let destination = SocketAddrV4::new(destination, PORT);
        let unconnected = UdpSocket::bind("0.0.0.0:0")?;
        let connected = UdpSocket::bind("0.0.0.0:0")?;
        connected.connect(destination)?;
        Ok(Self { destination, unconnected, connected, denied: stream_socket()? })
    }

    fn run(&self, operation: Operation, count: u32) -> io::Result<()> {
        let payload = [0x55; 64];
        let denied = SocketAddrV4::new(DENIED, PORT);
        for _ in 0..count {
            match operation {
                Operation::Connect => connect(&stream_socket()?, self.destination)?,
                Operation::Sendto => {
                    self.unconnected.send_to(&payload, SocketAddr::V4(self.destination))?;
                }
                Operation::Send => {
                    self.connected.send(&payload)?;
                }
                Operation::Denied => match connect(&self.denied, denied) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    other => return Err(io::Error::other(format!("not denied: {other:?}"))),
                },
                Operation::GiveUp => {
                    let socket = stream_socket()?;
                    set_socket_timeout(&socket, Timeout::Send, Some(Duration::from_secs(2)))?;
                    if connect(&socket, denied).is_ok() {
                        return Err(io::Error::other("not denied"));
                    }
                }
            }
        }
        Ok(())
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?)
}

fn connect(socket: &OwnedFd, to: SocketAddrV4) -> io::Result<()> {
    Ok(rustix::net::connect(socket, &to)?)
}
