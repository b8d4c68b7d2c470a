//! The same calls by io_uring, with and without a kernel thread that submits them.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use io_uring::{IoUring, opcode, squeue, types};

use crate::{
    network::{PAIRS, PORT},
    probe::Outcome,
    sys::{Message, RawAddress, connect, domain, socket},
    udp::udp,
    world::{World, base_policy},
};

/// How long the kernel's submitting thread spins before it sleeps, in milliseconds.
const SPIN: u32 = 100;

/// Submits an operation and waits for its result.
pub(crate) fn submit(polled: bool, entry: &squeue::Entry) -> io::Result<i32> {
    let mut builder = IoUring::<squeue::Entry>::builder();
    if polled {
        builder.setup_sqpoll(SPIN);
    }
    let mut ring = builder.build(2)?;
    // SAFETY: what the entry points to lives until its completion, which this function waits for.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?.result();
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn tcp_connect(polled: bool) -> impl Fn(SocketAddr) -> io::Result<()> {
    move |to| {
        let socket = socket(domain(to), libc::SOCK_STREAM, 0)?;
        let address = RawAddress::new(to);
        let fd = types::Fd(socket.as_raw_fd());
        submit(polled, &opcode::Connect::new(fd, address.as_ptr(), address.len()).build()).map(drop)
    }
}

fn udp_sendmsg(polled: bool) -> impl Fn(SocketAddr) -> io::Result<()> {
    move |to| {
        let socket: OwnedFd = udp(to)?;
        let message = Message::new(Some(to.into()), b"data", None);
        submit(polled, &opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), message.as_ptr()).build())
            .map(drop)
    }
}

fn udp_send(polled: bool) -> impl Fn(SocketAddr) -> io::Result<()> {
    move |to| {
        let socket = udp(to)?;
        connect(&socket, to)?;
        let data = b"data";
        submit(polled, &opcode::Send::new(types::Fd(socket.as_raw_fd()), data.as_ptr(), 4).build()).map(drop)
    }
}

#[test]
fn io_uring_is_judged() {
    let mut world = World::new(&base_policy());
    if let (Outcome::Errno(error @ (libc::ENOSYS | libc::EPERM)), _) = world.run(|| IoUring::new(2).map(drop))
    {
        eprintln!("skipped: no io_uring in this kernel (error {error})");
        return;
    }
    for polled in [false, true] {
        world.judges("TCP connect by io_uring", tcp_connect(polled));
        world.judges("UDP by io_uring sendmsg", udp_sendmsg(polled));
        world.judges("UDP by io_uring send", udp_send(polled));
    }
}

/// io_uring connects again from a worker when the socket would block.
#[test]
fn io_uring_of_a_socket_that_does_not_wait_is_judged() {
    let mut world = World::new(&base_policy());
    for (allowed, denied) in PAIRS {
        let technique = |to: SocketAddr| {
            let socket = socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
            let address = RawAddress::new(to);
            let connect =
                opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr(), address.len());
            match submit(false, &connect.build().flags(squeue::Flags::ASYNC)) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                result => result.map(drop),
            }
        };
        world.passes("TCP connect by an io_uring worker", (allowed, PORT), technique);
        world.denies("TCP connect by an io_uring worker", (denied, PORT), technique);
    }
}
