//! The sockets at which an instance's questions arrive. The daemon has them, so that no question that waits is lost when the resolver ends; and
//! systemd has them for the daemon (sd_notify(3), `FDSTORE=1`).

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use opencode_egress_common::abi::RESOLVER_PORTS;
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with},
};

use crate::policy::InstanceName;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// The first of the descriptors that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;
/// What the descriptors of this daemon are called, before the instance's name.
const PREFIX: &str = "resolver-";

/// An instance's sockets, all at one port of loopback: UDP and TCP, for IPv4 and, where the machine has it, for IPv6.
pub(crate) struct ResolverSockets {
    port: u16,
    /// In the order in which the resolver takes them.
    sockets: Vec<OwnedFd>,
}

impl ResolverSockets {
    /// Sockets at a port where nobody else is: the one with this number, or one after it.
    ///
    /// # Errors
    ///
    /// When every port is taken, or the system refuses.
    pub(crate) fn bind(number: u32) -> io::Result<Self> {
        let (first, last) = RESOLVER_PORTS;
        let count = u32::from(last - first) + 1;
        for offset in 0..count {
            let port = u32::from(first) + (number + offset) % count;
            let port = u16::try_from(port).map_err(io::Error::other)?;
            match Self::bind_at(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("every port from {first} to {last} of loopback is taken"),
        ))
    }

    fn bind_at(port: u16) -> io::Result<Self> {
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let mut sockets = vec![open(v4, SocketType::DGRAM)?, open(v4, SocketType::STREAM)?];
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        match open(v6, SocketType::DGRAM) {
            Ok(udp) => sockets.extend([udp, open(v6, SocketType::STREAM)?]),
            // A machine without IPv6 has no such address, or no such sockets.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { port, sockets })
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The sockets, in the order in which the resolver takes them.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }

    /// The sockets that an earlier daemon left with systemd, by instance. What is none of them is closed.
    pub(crate) fn passed() -> BTreeMap<String, Self> {
        let mut sockets: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
        for (socket, name) in passed_descriptors() {
            if let Some(instance) = name.strip_prefix(PREFIX) {
                sockets.entry(instance.to_owned()).or_default().push(socket);
            }
        }
        let whole = |(instance, sockets): (String, Vec<OwnedFd>)| Some((instance, Self::of(sockets)?));
        sockets.into_iter().filter_map(whole).collect()
    }

    /// These sockets in their order; `None`: they are not what an instance has.
    fn of(sockets: Vec<OwnedFd>) -> Option<Self> {
        let mut placed = BTreeMap::new();
        for socket in sockets {
            let address = SocketAddr::try_from(getsockname(&socket).ok()?).ok()?;
            let kind = rustix::net::sockopt::socket_type(&socket).ok()?;
            placed.insert((address.is_ipv6(), kind == SocketType::STREAM), (address, socket));
        }
        let port = placed.values().next()?.0.port();
        let (first, last) = RESOLVER_PORTS;
        let whole = matches!(placed.len(), 2 | 4)
            && (first..=last).contains(&port)
            && placed.values().all(|(address, _)| address.port() == port && is_loopback(address.ip()));
        whole.then(|| Self { port, sockets: placed.into_values().map(|(_, socket)| socket).collect() })
    }

    /// Leaves them with systemd for a later daemon. Without systemd, or where it takes none, a later daemon has other ones, at another port.
    pub(crate) fn leave_with_systemd(&self, instance: &InstanceName) {
        let sockets: Vec<_> = self.descriptors().collect();
        let name = format!("{PREFIX}{instance}");
        let state = [sd_notify::NotifyState::FdStore, sd_notify::NotifyState::FdName(&name)];
        let _ = sd_notify::notify_with_fds(&state, &sockets);
    }

    /// Has systemd let go of those of an instance that has none any more.
    pub(crate) fn take_from_systemd(instance: &str) {
        let name = format!("{PREFIX}{instance}");
        let state = [sd_notify::NotifyState::FdStoreRemove, sd_notify::NotifyState::FdName(&name)];
        let _ = sd_notify::notify(&state);
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if kind == SocketType::STREAM {
        // What an earlier daemon's connections left behind is nobody who listens.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// The descriptors that systemd passed to this process, and their names (sd_listen_fds(3)).
fn passed_descriptors() -> Vec<(OwnedFd, String)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count,
        _ => return vec![],
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    (FIRST_PASSED..)
        .take(usize::try_from(count).unwrap_or(0))
        .zip(names.split(':').map(str::to_owned))
        .map(|(fd, name)| {
            // SAFETY: systemd passed this descriptor to this process, as the variables say, and nobody else takes it: this is called once.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let _ = fcntl_setfd(&socket, FdFlags::CLOEXEC);
            (socket, name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn all_sockets_are_at_one_port_and_keep_their_order() {
        let sockets = ResolverSockets::bind(2000).expect("sockets");
        let other = ResolverSockets::bind(2000).expect("others");
        assert_ne!(sockets.port(), other.port());
        let mut shuffled: Vec<_> =
            sockets.descriptors().map(|socket| socket.try_clone_to_owned().expect("a copy")).collect();
        let count = shuffled.len();
        shuffled.reverse();
        let again = ResolverSockets::of(shuffled).expect("an instance's sockets");
        assert_eq!((again.port(), again.sockets.len()), (sockets.port(), count));
        let kinds: Vec<_> = again
            .descriptors()
            .map(|socket| rustix::net::sockopt::socket_type(socket).expect("a type") == SocketType::STREAM)
            .collect();
        assert_eq!(kinds, [false, true, false, true][..count]);
    }

    #[test]
    fn what_is_no_instances_sockets_is_not_taken() {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
        assert!(ResolverSockets::of(vec![udp.into(), tcp.into()]).is_none());
        assert!(ResolverSockets::of(vec![]).is_none());
    }
}
