//! Socket calls as the kernel has them, where std has less: flags, options and control messages.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
};

use libc::{c_int, c_void};

/// An address as system calls take it.
#[derive(Clone, Copy)]
pub(crate) struct RawAddress {
    bytes: [u8; 28],
    len: libc::socklen_t,
}

impl RawAddress {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let mut bytes = [0; 28];
        let family = u16::try_from(domain(address)).expect("a family");
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => bytes[4..8].copy_from_slice(&v4.ip().octets()),
            SocketAddr::V6(v6) => {
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        Self { bytes, len: if address.is_ipv4() { 16 } else { 28 } }
    }

    /// The same address under another family's number.
    pub(crate) fn with_family(mut self, family: c_int) -> Self {
        self.bytes[..2].copy_from_slice(&u16::try_from(family).expect("a family").to_ne_bytes());
        self
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        self.bytes.as_ptr().cast()
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }
}

/// The address family in which a socket reaches this destination.
pub(crate) fn domain(to: SocketAddr) -> c_int {
    if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    check(fd as isize)?;
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn connect(socket: &impl AsRawFd, to: impl Into<RawAddress>) -> io::Result<()> {
    let to = to.into();
    // SAFETY: the address is `len` readable bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), to.as_ptr(), to.len()) } as isize).map(|_| ())
}

pub(crate) fn bind(socket: &impl AsRawFd, to: impl Into<RawAddress>) -> io::Result<()> {
    let to = to.into();
    // SAFETY: the address is `len` readable bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), to.as_ptr(), to.len()) } as isize).map(|_| ())
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}

/// Dissolves a connection or a datagram socket's peer: `connect()` to `AF_UNSPEC`.
pub(crate) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    connect(socket, RawAddress { bytes: [0; 28], len: 16 })
}

pub(crate) fn send(socket: &impl AsRawFd, data: &[u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: the data is readable.
    check(unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

pub(crate) fn send_to(
    socket: &impl AsRawFd,
    data: &[u8],
    flags: c_int,
    to: impl Into<RawAddress>,
) -> io::Result<usize> {
    let to = to.into();
    let (fd, len) = (socket.as_raw_fd(), data.len());
    // SAFETY: the data and the address are readable.
    check(unsafe { libc::sendto(fd, data.as_ptr().cast(), len, flags, to.as_ptr(), to.len()) })
}

/// Receives, and says what and where from.
pub(crate) fn receive_from(socket: &impl AsRawFd) -> io::Result<(Vec<u8>, SocketAddr)> {
    let (mut data, mut address) = ([0_u8; 512], [0_u8; 28]);
    let mut len: libc::socklen_t = 28;
    let fd = socket.as_raw_fd();
    let from: *mut libc::sockaddr = address.as_mut_ptr().cast();
    let received = uninterrupted(|| {
        // SAFETY: the kernel writes at most as many bytes as it is told.
        check(unsafe { libc::recvfrom(fd, data.as_mut_ptr().cast(), data.len(), 0, from, &raw mut len) })
    })?;
    Ok((data[..received].to_vec(), parse(&address)?))
}

/// The same by `recvmsg`.
pub(crate) fn receive_message(socket: &impl AsRawFd) -> io::Result<(Vec<u8>, SocketAddr)> {
    let (mut data, mut address) = ([0_u8; 512], [0_u8; 28]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: all zeros is a msghdr without address, data and control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = 28;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    let received = uninterrupted(|| {
        // SAFETY: what the header points to lives until the call returns, and is as long as it says.
        check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) })
    })?;
    Ok((data[..received].to_vec(), parse(&address)?))
}

/// Waits again where a wait was interrupted: one with a time-out ends when the kernel has other work for the thread, as io_uring leaves some behind.
pub(crate) fn uninterrupted<T>(mut wait: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match wait() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The peer, as the socket says.
pub(crate) fn peer(socket: &impl AsRawFd) -> io::Result<SocketAddr> {
    let mut address = [0_u8; 28];
    let mut len: libc::socklen_t = 28;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getpeername(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    check(result as isize)?;
    parse(&address)
}

/// Reads an address as the kernel writes it.
fn parse(bytes: &[u8; 28]) -> io::Result<SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let address: IpAddr = match c_int::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
        libc::AF_INET => <[u8; 4]>::try_from(&bytes[4..8]).expect("four").into(),
        libc::AF_INET6 => <[u8; 16]>::try_from(&bytes[8..24]).expect("sixteen").into(),
        family => return Err(io::Error::other(format!("an address of family {family}"))),
    };
    Ok(SocketAddr::new(address, port))
}

/// An option whose value is a number.
pub(crate) fn get(socket: &impl AsRawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let (mut value, mut len): (c_int, libc::socklen_t) = (0, 4);
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    check(result as isize).map(|_| value)
}

/// Sends messages in one call, and says how many.
pub(crate) fn send_messages(socket: &impl AsRawFd, messages: &[Message]) -> io::Result<usize> {
    let mut headers: Vec<_> =
        messages.iter().map(|message| libc::mmsghdr { msg_hdr: message.header, msg_len: 0 }).collect();
    let count = libc::c_uint::try_from(headers.len()).expect("a few");
    // SAFETY: everything that the headers point to is in the messages.
    check(unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) } as isize)
}

/// Sets an option whose value is a number.
pub(crate) fn set(socket: &impl AsRawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_bytes(socket, level, name, &value.to_ne_bytes())
}

/// Sets an option.
pub(crate) fn set_bytes(socket: &impl AsRawFd, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).expect("a short value");
    // SAFETY: the value is `len` readable bytes.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    check(result as isize).map(|_| ())
}

/// Lets a bound TCP socket accept connections.
pub(crate) fn listening(socket: OwnedFd) -> io::Result<TcpListener> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) } as isize)?;
    Ok(socket.into())
}

/// The port that a socket has.
pub(crate) fn local_port(socket: &impl AsRawFd) -> io::Result<u16> {
    let mut address = [0_u8; 28];
    let mut len: libc::socklen_t = 28;
    // SAFETY: the kernel writes at most `len` bytes.
    let result = unsafe { libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    check(result as isize)?;
    Ok(u16::from_be_bytes([address[2], address[3]]))
}

/// A control message's level, type and value.
pub(crate) type Control<'a> = (c_int, c_int, &'a [u8]);

/// A message with one control message, in the memory that `msghdr` points to.
pub(crate) struct Message {
    header: libc::msghdr,
    _parts: Box<Parts>,
}

struct Parts {
    address: RawAddress,
    data: Vec<u8>,
    iov: libc::iovec,
    /// Aligned as control messages have to be.
    control: Vec<u64>,
}

impl Message {
    pub(crate) fn new(to: Option<RawAddress>, data: &[u8], control: Option<Control<'_>>) -> Self {
        let address = to.unwrap_or(RawAddress { bytes: [0; 28], len: 0 });
        let iov = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut parts = Box::new(Parts { address, data: data.to_vec(), iov, control: vec![] });
        parts.iov = libc::iovec { iov_base: parts.data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: all zeros is a msghdr without address, data and control messages.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        if to.is_some() {
            header.msg_name = parts.address.bytes.as_mut_ptr().cast();
            header.msg_namelen = parts.address.len;
        }
        header.msg_iov = &raw mut parts.iov;
        header.msg_iovlen = 1;
        if let Some((level, kind, value)) = control {
            let len = u32::try_from(value.len()).expect("a short value");
            // SAFETY: computes lengths only.
            let (space, len) = unsafe { (libc::CMSG_SPACE(len) as usize, libc::CMSG_LEN(len) as usize) };
            parts.control = vec![0; space.div_ceil(8)];
            header.msg_control = parts.control.as_mut_ptr().cast();
            header.msg_controllen = space as _;
            // SAFETY: the control buffer has room for the header and the value, and is aligned.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = level;
                (*first).cmsg_type = kind;
                (*first).cmsg_len = len as _;
                std::ptr::copy_nonoverlapping(value.as_ptr(), libc::CMSG_DATA(first), value.len());
            }
        }
        Self { header, _parts: parts }
    }

    pub(crate) fn as_ptr(&self) -> *const libc::msghdr {
        &raw const self.header
    }

    pub(crate) fn send(&self, socket: &impl AsRawFd, flags: c_int) -> io::Result<usize> {
        // SAFETY: everything that the header points to is in `parts`.
        check(unsafe { libc::sendmsg(socket.as_raw_fd(), self.as_ptr(), flags) })
    }
}

const _: () = assert!(size_of::<*const c_void>() == 8, "control messages are aligned for 64-bit machines");
