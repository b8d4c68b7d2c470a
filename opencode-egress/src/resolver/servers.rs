//! Whom to ask.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::SystemTime,
};

use resolv_conf::ScopedIp;
use tracing::warn;

/// The port of DNS.
const PORT: u16 = 53;

/// The host's servers, or those that the daemon told.
#[derive(Debug)]
pub(super) struct Servers {
    told: Vec<SocketAddr>,
    file: PathBuf,
    /// Of the file that was read; another one is read again.
    mark: Option<Mark>,
    read: Vec<SocketAddr>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Servers {
    /// Those of a `resolv.conf`, unless others are told.
    pub(super) fn of_file(file: PathBuf) -> Self {
        Self { told: vec![], file, mark: None, read: vec![] }
    }

    /// Has these asked; with none of them, those of the file again.
    pub(super) fn tell(&mut self, servers: Vec<SocketAddr>) {
        self.told = servers;
    }

    /// Those to ask now.
    pub(super) fn now(&mut self) -> &[SocketAddr] {
        if !self.told.is_empty() {
            return &self.told;
        }
        let metadata = fs::metadata(&self.file).ok();
        let mark = metadata.map(|metadata| Mark {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata.modified().ok(),
        });
        if self.read.is_empty() || mark != self.mark {
            match fs::read(&self.file) {
                Ok(text) => self.read = parse(&text),
                // As it was, or as with an empty one.
                Err(error) => {
                    warn!("cannot read servers in {}: {error}", self.file.display());
                    if self.read.is_empty() {
                        self.read.push(of_this_machine());
                    }
                }
            }
            self.mark = mark;
        }
        &self.read
    }
}

/// The servers of a `resolv.conf`; without any, this machine's (resolv.conf(5)). As in the C library, a line that cannot be read is none:
/// the parser would have the whole file be none.
fn parse(text: &[u8]) -> Vec<SocketAddr> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"nameserver"));
    let configs = lines.filter_map(|line| match resolv_conf::Config::parse(line) {
        Ok(config) => Some(config),
        Err(error) => {
            warn!("not asking the server of `{}`: {error}", line.escape_ascii());
            None
        }
    });
    let mut servers: Vec<_> = configs.flat_map(|config| config.nameservers).filter_map(server).collect();
    if servers.is_empty() {
        servers.push(of_this_machine());
    }
    servers
}

fn of_this_machine() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

fn server(server: ScopedIp) -> Option<SocketAddr> {
    let (address, name) = match server {
        ScopedIp::V6(address, Some(scope)) => (address, scope),
        other => return Some((IpAddr::from(other), PORT).into()),
    };
    let index = name.parse().ok().or_else(|| interface(&name));
    if index.is_none() {
        warn!("not asking the server {address}%{name}: there is no such interface");
    }
    Some(SocketAddrV6::new(address, PORT, 0, index?).into())
}

/// An interface's number.
fn interface(name: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    name_to_index(any, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("resolv.conf");
        let mut servers = Servers::of_file(path.clone());
        assert_eq!(servers.now(), [of_this_machine()], "there is no file");
        let text =
            "search lan\nnameserver 192.0.2.53\n# one\nnameserver fe80::1%lo\nnameserver fe80::1%no-such\n";
        fs::write(&path, text).expect("a file");
        let first: SocketAddr = "192.0.2.53:53".parse().expect("an address");
        assert_eq!(servers.now(), [first, "[fe80::1%1]:53".parse().expect("an address")]);
        // As programs replace it.
        let other = directory.path().join("new");
        fs::write(&other, "nameserver 192.0.2.54\n").expect("a file");
        fs::rename(&other, &path).expect("its place");
        let second: SocketAddr = "192.0.2.54:53".parse().expect("an address");
        assert_eq!(servers.now(), [second]);
        fs::remove_file(&path).expect("gone");
        assert_eq!(servers.now(), [second], "while it is gone");
        let told: SocketAddr = "127.0.0.1:5353".parse().expect("an address");
        servers.tell(vec![told]);
        assert_eq!(servers.now(), [told]);
        servers.tell(vec![]);
        assert_eq!(servers.now(), [second]);
    }
}
