//! Asking servers.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use crate::resolver::{
    question::MOST_UDP,
    reply::{self, LONGEST_CHAIN, Reply, ReplyError},
    servers::Servers,
};

/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long all of them together are: clients give up after five seconds.
const PATIENCE_IN_ALL: Duration = Duration::from_millis(4500);

/// The servers, and which of them answered last.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: RefCell<Servers>,
    answered: Cell<usize>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It did not get through.
    #[error("{server} cannot be asked")]
    Io {
        /// The server.
        server: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It did not answer.
    #[error("{server} does not answer")]
    Silent {
        /// The server.
        server: SocketAddr,
    },
    /// It has no answer.
    #[error("{server} has no answer")]
    Reply {
        /// The server.
        server: SocketAddr,
        /// What it says.
        #[source]
        source: ReplyError,
    },
    /// The aliases of several answers lead in a circle, or on and on.
    #[error("the aliases of {name} do not end within {LONGEST_CHAIN} names")]
    Chain {
        /// The name.
        name: Name,
    },
    /// It cannot be written.
    #[error("the question cannot be written")]
    Question(#[from] hickory_proto::ProtoError),
}

impl Upstream {
    /// These servers.
    pub(super) fn new(servers: Servers) -> Self {
        Self { servers: RefCell::new(servers), answered: Cell::new(0) }
    }

    /// Has these asked; with none of them, the host's.
    pub(super) fn tell(&self, servers: Vec<SocketAddr>) {
        self.servers.borrow_mut().tell(servers);
        self.answered.set(0);
    }

    /// The addresses of a name, of the type's family. Follows aliases where the server does not.
    ///
    /// # Errors
    ///
    /// When no server has an answer.
    pub(super) async fn addresses(&self, name: &Name, qtype: RecordType) -> Result<Reply, AskError> {
        let deadline = Instant::now() + PATIENCE_IN_ALL;
        let (mut at, mut names, mut shortest) = (name.to_lowercase(), 0, u32::MAX);
        loop {
            let (message, server) = self.ask_until(&at, qtype, deadline).await?;
            let read = reply::addresses(&message, &at, qtype);
            match read.map_err(|source| AskError::Reply { server, source })? {
                Reply::Alias { name: next, length, ttl } => {
                    (at, names, shortest) = (next.to_lowercase(), names + length, shortest.min(ttl));
                    if names > LONGEST_CHAIN {
                        return Err(AskError::Chain { name: name.clone() });
                    }
                }
                Reply::Addresses { addresses, ttl } => {
                    return Ok(Reply::Addresses { addresses, ttl: ttl.min(shortest) });
                }
                Reply::Nothing { exists, ttl } => {
                    return Ok(Reply::Nothing { exists, ttl: ttl.min(shortest) });
                }
            }
        }
    }

    /// What a server answers to a question of any type.
    ///
    /// # Errors
    ///
    /// When none has an answer.
    pub(super) async fn ask(&self, name: &Name, qtype: RecordType) -> Result<Message, AskError> {
        let (message, _) =
            self.ask_until(&name.to_lowercase(), qtype, Instant::now() + PATIENCE_IN_ALL).await?;
        Ok(message)
    }

    /// Asks one server after another, the one first that answered last.
    async fn ask_until(
        &self,
        name: &Name,
        qtype: RecordType,
        deadline: Instant,
    ) -> Result<(Message, SocketAddr), AskError> {
        let servers = self.servers.borrow_mut().now().to_vec();
        let query = Query::query(name.clone(), qtype);
        let first = self.answered.get();
        // One that is alone is asked again, for what was lost on the way.
        let last = first + servers.len().max(2);
        let mut attempt = first;
        loop {
            let index = attempt % servers.len();
            let server = servers[index];
            let patience = deadline.min(Instant::now() + PATIENCE);
            let exchanged = exchange(server, &query, patience).await.and_then(|message| {
                reply::success(&message).map_err(|source| AskError::Reply { server, source })?;
                Ok(message)
            });
            match exchanged {
                Ok(message) => {
                    self.answered.set(index);
                    return Ok((message, server));
                }
                Err(error) if attempt == last || Instant::now() >= deadline => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }
}

/// One question to one server: once more without EDNS where the server does not know that.
async fn exchange(server: SocketAddr, query: &Query, deadline: Instant) -> Result<Message, AskError> {
    let exchange = async {
        let message = exchange_once(server, query, true).await?;
        // RFC 6891, section 7; others say that they have not implemented it.
        match message.metadata.response_code {
            ResponseCode::FormErr | ResponseCode::NotImp => exchange_once(server, query, false).await,
            _ => Ok(message),
        }
    };
    timeout_at(deadline, exchange).await.unwrap_or(Err(AskError::Silent { server }))
}

/// By UDP, and by TCP where the answer is too long for that.
async fn exchange_once(server: SocketAddr, query: &Query, edns: bool) -> Result<Message, AskError> {
    let failed = |source| AskError::Io { server, source };
    let id = random_id().map_err(failed)?;
    let question = question(id, query, edns)?;
    let message = by_udp(server, id, query, &question).await.map_err(failed)?;
    if !message.metadata.truncation {
        return Ok(message);
    }
    by_tcp(server, id, query, &question).await.map_err(failed)
}

/// Of the client's question it has name and type alone: whatever else that has could carry data.
fn question(id: u16, query: &Query, edns: bool) -> Result<Vec<u8>, AskError> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(query.clone());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MOST_UDP);
        message.set_edns(edns);
    }
    Ok(message.to_vec()?)
}

/// Each question has a socket of its own, so a port that nobody knows, and the kernel takes datagrams of this server alone.
async fn by_udp(server: SocketAddr, id: u16, query: &Query, question: &[u8]) -> io::Result<Message> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Somebody else's, or forged: the server's may come yet.
        if let Some(message) = reply::answers(&buffer[..length], id, query) {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, id: u16, query: &Query, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    let other =
        || io::Error::new(io::ErrorKind::InvalidData, "what came by TCP is no answer to the question");
    reply::answers(&message, id, query).ok_or_else(other)
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    // So few bytes are never cut short (getrandom(2)).
    getrandom(&mut id, GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(id))
}
