//! An instance's sockets.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, spawn_local, yield_now},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::resolver::{
    answer::Transport,
    instance::{Instance, Step},
};

/// Questions that are longer are cut, and unreadable then: this has room for a name of 255 bytes and the options of its time.
const LONGEST: usize = 4096;
/// How many datagrams of a socket are taken in one turn.
const TURN: usize = 32;
/// How many connections an instance may have.
const CONNECTIONS: usize = 64;
/// How long one may be silent, or not take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Before a socket that failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// One for all sockets: they take turns, and none waits with it in use.
    static BUFFER: RefCell<Box<[u8; LONGEST]>> = RefCell::new(Box::new([0; LONGEST]));
}

/// The sockets on which an instance's questions come. They are read until this is dropped.
pub(super) struct Sockets {
    udp: Vec<Rc<UdpSocket>>,
    tcp: Vec<Rc<TcpListener>>,
    instance: Rc<Instance>,
    connections: Arc<Semaphore>,
    tasks: Vec<AbortHandle>,
}

impl Sockets {
    /// Reads questions from these, by pairs of UDP and TCP.
    ///
    /// # Errors
    ///
    /// When they are no such sockets.
    pub(super) fn serve(descriptors: Vec<OwnedFd>, instance: Rc<Instance>) -> io::Result<Self> {
        if descriptors.is_empty() || !descriptors.len().is_multiple_of(2) {
            let message = format!("{} sockets came, not UDP and TCP by pairs", descriptors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let mut sockets = Self { udp: vec![], tcp: vec![], instance, connections, tasks: vec![] };
        let mut descriptors = descriptors.into_iter();
        while let (Some(udp), Some(tcp)) = (descriptors.next(), descriptors.next()) {
            let (udp, tcp) = (StdUdpSocket::from(udp), StdTcpListener::from(tcp));
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            sockets.udp.push(Rc::new(UdpSocket::from_std(udp)?));
            sockets.tcp.push(Rc::new(TcpListener::from_std(tcp)?));
        }
        sockets.tasks = sockets.begin();
        Ok(sockets)
    }

    fn begin(&self) -> Vec<AbortHandle> {
        let udp = self.udp.iter().map(|socket| {
            spawn_local(read_datagrams(Rc::clone(socket), Rc::clone(&self.instance))).abort_handle()
        });
        let tcp = self.tcp.iter().map(|listener| {
            let accepting =
                accept(Rc::clone(listener), Rc::clone(&self.instance), Arc::clone(&self.connections));
            spawn_local(accepting).abort_handle()
        });
        udp.chain(tcp).collect()
    }

    /// Reads no more. Connections go on.
    pub(super) fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }

    /// Answers what came until now, for other sockets take the place of these.
    pub(super) fn drain(self) {
        // A client could send as fast as they are read.
        for socket in &self.udp {
            for _ in 0..1024 {
                if !matches!(take_datagram(socket, &self.instance), Ok(true)) {
                    break;
                }
            }
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn read_datagrams(socket: Rc<UdpSocket>, instance: Rc<Instance>) {
    let complain = Cell::new(true);
    loop {
        let turn = async {
            socket.readable().await?;
            for _ in 0..TURN {
                if !take_datagram(&socket, &instance)? {
                    return Ok(());
                }
            }
            yield_now().await;
            io::Result::Ok(())
        };
        if let Err(error) = turn.await {
            if complain.replace(false) {
                warn!("cannot read questions: {error}");
            }
            sleep(PAUSE).await;
        }
    }
}

/// Takes a question and answers it, now or later. Returns whether there was one.
fn take_datagram(socket: &Rc<UdpSocket>, instance: &Rc<Instance>) -> io::Result<bool> {
    let step = BUFFER.with_borrow_mut(|buffer| {
        let (length, source) = socket.try_recv_from(&mut buffer[..])?;
        io::Result::Ok((instance.take(&buffer[..length], source, Transport::Udp), source))
    });
    let (step, source) = match step {
        Ok(step) => step,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error),
    };
    match step {
        // An answer that finds no room is lost as others are on their way: it is asked for again.
        Step::Answer(bytes) => drop(socket.try_send_to(&bytes, source)),
        Step::Wait(waiting) => {
            let socket = Rc::clone(socket);
            spawn_local(async move {
                if let Some(bytes) = waiting.wait().await {
                    drop(socket.try_send_to(&bytes, source));
                }
            });
        }
        Step::Nothing => {}
    }
    Ok(true)
}

async fn accept(listener: Rc<TcpListener>, instance: Rc<Instance>, connections: Arc<Semaphore>) {
    let complain = Cell::new(true);
    loop {
        // It is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, source)) => {
                drop(spawn_local(converse(stream, source, Rc::clone(&instance), permit)));
            }
            // Too many open files, perhaps. Nothing of that is a reason to end.
            Err(error) => {
                if complain.replace(false) {
                    warn!("cannot take connections: {error}");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers one question after another, each in its turn. What goes wrong ends the connection, and is the client's affair.
async fn converse(
    mut stream: TcpStream,
    source: SocketAddr,
    instance: Rc<Instance>,
    _permit: OwnedSemaphorePermit,
) {
    // An answer is one write.
    let _ = stream.set_nodelay(true);
    let mut question = vec![];
    loop {
        let read = async {
            question.resize(stream.read_u16().await?.into(), 0);
            stream.read_exact(&mut question).await
        };
        if !matches!(timeout(IDLE, read).await, Ok(Ok(_))) {
            return;
        }
        let answer = match instance.take(&question, source, Transport::Tcp) {
            Step::Answer(answer) => Some(answer),
            Step::Wait(waiting) => waiting.wait().await,
            Step::Nothing => None,
        };
        let Some(answer) = answer else { return };
        // What was written has at most so many bytes.
        let Ok(length) = u16::try_from(answer.len()) else { return };
        let framed = [&length.to_be_bytes(), &answer[..]].concat();
        if !matches!(timeout(IDLE, stream.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}
