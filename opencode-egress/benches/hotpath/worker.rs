//! The process that is measured: batches of one operation, on demand.
//!
//! A socket belongs to the cgroup in which it was made, and a policy counts from its links on, so nothing is
//! made before the first command comes.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::net::{
    AddressFamily, SendFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::networks::DENIED;

/// Where the measuring side listens.
pub(crate) const SOCKET: &str = "/run/bench/socket";
/// Where the receivers listen, for TCP and UDP.
pub(crate) const PORT: u16 = 4000;

/// Asks for sockets of the worker's own where the receivers would be.
pub(crate) const SERVE: &str = "serve";

/// The name that policies with names list, and hellos name.
pub(crate) const NAME: &str = "bench.example";

/// A hello to a server, of the length that browsers' have.
fn hello(name: &str) -> Vec<u8> {
    let block = |content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&length[..], content].concat()
    };
    let host = block(&[&[0][..], &block(name.as_bytes())].concat());
    let shares = [&[0, 51][..], &block(&[7; 1200])].concat();
    let others: Vec<u8> =
        (0x0a0a..0x0a1a_u16).flat_map(|kind| [&kind.to_be_bytes()[..], &block(&[1; 8])].concat()).collect();
    let extensions = [&[0, 0][..], &block(&host), &shares, &others].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &block(&[0x13, 1]), &[1, 0], &block(&extensions)].concat();
    let message = [&[1, 0][..], &block(&body)].concat();
    [&[22, 3, 1][..], &block(&message)].concat()
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// socket(), connect(), close() of TCP.
    Connect,
    /// The same, and send() of a TLS hello before the close.
    Hello,
    /// send() of a TCP socket whose connection is open and began with a hello.
    Stream,
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
    pub(crate) const ALL: [Self; 7] =
        [Self::Connect, Self::Hello, Self::Stream, Self::Sendto, Self::Send, Self::Denied, Self::GiveUp];
    /// What is measured in every round.
    pub(crate) const ROUND: [Self; 6] =
        [Self::Connect, Self::Hello, Self::Stream, Self::Sendto, Self::Send, Self::Denied];

    /// How many in a batch: a few milliseconds' worth, so that a disturbance spoils few of many batches.
    pub(crate) fn batch(self) -> u32 {
        match self {
            Self::Connect | Self::Hello => 100,
            Self::Stream | Self::Sendto | Self::Send => 500,
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
    let (mut sockets, mut servers) = (None, vec![]);
    while let Some(command) = commands.next().transpose()? {
        if command == SERVE {
            let server = (TcpListener::bind(("0.0.0.0", PORT))?, UdpSocket::bind(("0.0.0.0", PORT))?);
            writeln!(stream, "{} {}", server.0.as_raw_fd(), server.1.as_raw_fd())?;
            servers.push(server);
            continue;
        }
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
    hello: Vec<u8>,
    /// Open, with the hello behind it. The first connection that the receiver gets.
    stream: TcpStream,
    /// Never connected: it is what is denied.
    denied: OwnedFd,
}

impl Sockets {
    fn new(destination: Ipv4Addr) -> io::Result<Self> {
        let destination = SocketAddrV4::new(destination, PORT);
        let unconnected = UdpSocket::bind("0.0.0.0:0")?;
        let connected = UdpSocket::bind("0.0.0.0:0")?;
        connected.connect(destination)?;
        let hello = hello(NAME);
        let mut stream = TcpStream::connect(destination)?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello)?;
        // Another message than a hello: whoever follows the stream does so no more.
        stream.write_all(&[22, 3, 3, 0, 4, 16, 0, 0, 0])?;
        Ok(Self { destination, unconnected, connected, hello, stream, denied: stream_socket()? })
    }

    fn run(&self, operation: Operation, count: u32) -> io::Result<()> {
        let payload = [0x55; 64];
        let denied = SocketAddrV4::new(DENIED, PORT);
        for _ in 0..count {
            match operation {
                Operation::Connect => connect(&stream_socket()?, self.destination)?,
                Operation::Hello => {
                    let socket = stream_socket()?;
                    connect(&socket, self.destination)?;
                    rustix::net::send(&socket, &self.hello, SendFlags::empty())?;
                }
                Operation::Stream => (&self.stream).write_all(&payload)?,
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
