//! A stand-in for the resolver: it takes what arrives, by UDP and TCP, and sends it back.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    pipe::pipe,
};

use crate::network::Namespace;

/// It ends with the test.
pub(crate) struct Resolver {
    questions: Receiver<Vec<u8>>,
    /// Closed, it ends the thread.
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Serves a port at the loopback address of each family in a namespace, outside of every confined cgroup.
    pub(crate) fn start(unit: &Namespace, port: u16) -> Self {
        let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let (udp, tcp) = unit.enter(|| {
            let udp = addresses.map(|address| UdpSocket::bind((address, port)).expect("a socket"));
            (udp, addresses.map(|address| TcpListener::bind((address, port)).expect("a listener")))
        });
        let (ended, end) = pipe().expect("a pipe");
        let (told, questions) = mpsc::channel();
        let thread = thread::spawn(move || serve(&udp, &tcp, &ended, &told).expect("the resolver serves"));
        Self { questions, end: Some(end), thread: Some(thread) }
    }

    /// What was asked since the last call. A question that was answered is there.
    pub(crate) fn asked(&self) -> Vec<Vec<u8>> {
        self.questions.try_iter().collect()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    udp: &[UdpSocket; 2],
    tcp: &[TcpListener; 2],
    ended: &OwnedFd,
    told: &Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut data = [0; 512];
    loop {
        let sources = [udp[0].as_fd(), udp[1].as_fd(), tcp[0].as_fd(), tcp[1].as_fd(), ended.as_fd()];
        let mut fds = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut fds, None)?;
        let ready = fds.map(|fd| !fd.revents().is_empty());
        if ready[4] {
            return Ok(());
        }
        for (socket, _) in udp.iter().zip(ready).filter(|(_, ready)| *ready) {
            let (length, from) = socket.recv_from(&mut data)?;
            // When this fails, the test is over.
            let _ = told.send(data[..length].to_vec());
            socket.send_to(&data[..length], from)?;
        }
        for (listener, _) in tcp.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            // A client that says nothing goes.
            if let Ok(length @ 1..) = stream.read(&mut data) {
                let _ = told.send(data[..length].to_vec());
                stream.write_all(&data[..length])?;
            }
        }
    }
}
