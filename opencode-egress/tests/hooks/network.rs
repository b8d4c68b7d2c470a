//! Two hosts on one wire: network namespaces, their addresses, and how they are joined.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The name of the wire's end, in both namespaces.
pub(crate) const INTERFACE: &str = "wire";

pub(crate) const UNIT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const UNIT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// Addresses of the witness; [`base_policy`] allows the first of each family.
pub(crate) const ALLOWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const ALLOWED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub(crate) const DENIED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3);
/// Where the witness takes TCP connections and UDP datagrams, at all its addresses.
pub(crate) const PORT: u16 = 443;

/// An allowed and a denied destination, for each way to write an address.
pub(crate) const PAIRS: [(IpAddr, IpAddr); 4] = [
    (IpAddr::V4(ALLOWED), IpAddr::V4(DENIED)),
    (IpAddr::V4(ALLOWED), IpAddr::V4(FAR)),
    (IpAddr::V6(ALLOWED6), IpAddr::V6(DENIED6)),
    (IpAddr::V6(ALLOWED.to_ipv6_mapped()), IpAddr::V6(DENIED.to_ipv6_mapped())),
];

/// The allowed destination of the same form.
pub(crate) fn allowed_like(to: SocketAddr) -> SocketAddr {
    let address = match to.ip() {
        IpAddr::V4(_) => ALLOWED.into(),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => ALLOWED.to_ipv6_mapped().into(),
        IpAddr::V6(_) => IpAddr::V6(ALLOWED6),
    };
    SocketAddr::new(address, PORT)
}

/// A network namespace, with a name in /run/netns.
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    pub(crate) fn create(name: String) -> Self {
        ip(&["netns", "add", &name], "");
        let file = File::open(Path::new("/run/netns").join(&name)).expect("the namespace is there");
        Self { name, file }
    }

    /// Takes the name away; the namespace goes with the last socket in it. When that fails, another run
    /// was quicker.
    pub(crate) fn remove(name: &str) {
        let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Does something in the namespace; sockets made there stay there.
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let body = || {
            move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).expect("the namespace");
            body()
        };
        // A thread of its own: a namespace is a thread's, and this one's stays as it was.
        thread::scope(|scope| scope.spawn(body).join()).expect("it succeeds in the namespace")
    }

    /// Sets a sysctl below /proc/sys/net.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys/net").join(name);
        self.enter(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Runs `ip` in the namespace, one command a line.
    pub(crate) fn ip(&self, commands: &str) {
        ip(&["-n", &self.name, "-batch", "-"], commands);
    }
}

impl Namespace {
    /// Runs `ip xfrm` in the namespace. Returns whether the kernel took it.
    pub(crate) fn xfrm(&self, arguments: &[&str]) -> bool {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "xfrm"]).args(arguments).stderr(Stdio::null());
        command.status().expect("`ip` of the package iproute2 is needed").success()
    }

    /// Loads rules of nftables in the namespace.
    pub(crate) fn nft(&self, rules: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("`ip` of the package iproute2 is needed");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(rules.as_bytes()).expect("`nft` of the package nftables reads its rules");
        drop(stdin);
        assert!(child.wait().expect("`nft` ends").success(), "nft fails: {rules}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        Self::remove(&self.name);
    }
}

fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("`ip` of the package iproute2 is needed");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("`ip` reads its commands");
    drop(stdin);
    assert!(child.wait().expect("`ip` ends").success(), "ip {arguments:?} fails (root is needed): {input}");
}

/// Joins the namespaces by a wire. Addresses and neighbours are fixed, so that nothing is sent but what a
/// test sends.
pub(crate) fn join(unit: &Namespace, far: &Namespace) {
    let wire = |own: &str, addresses: &str| {
        let mut commands = format!("link set lo up\nlink set {INTERFACE} addrgenmode none address {own}\n");
        for address in addresses.split_whitespace() {
            let options = if address.contains(':') { "nodad" } else { "broadcast +" };
            commands += &format!("addr add {address} dev {INTERFACE} {options}\n");
        }
        commands + &format!("link set {INTERFACE} up\n")
    };
    let neighbours = |mac: &str, addresses: &str| {
        let neighbour = |address| format!("neigh add {address} lladdr {mac} nud permanent dev {INTERFACE}\n");
        addresses.split_whitespace().map(neighbour).collect::<String>()
    };
    let (unit_mac, far_mac) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
    unit.ip(&format!("link add {INTERFACE} type veth peer name {INTERFACE} netns {}\n", far.name()));
    unit.sysctl(&format!("ipv6/conf/{INTERFACE}/router_solicitations"), "0");
    far.ip(&wire(
        far_mac,
        "192.0.2.2/24 192.0.2.3/24 192.0.2.254/24 198.51.100.9/32 \
         2001:db8:1::2/64 2001:db8:1::3/64 2001:db8:1::254/64 fe80::2/64 fe80::3/64",
    ));
    unit.ip(&wire(unit_mac, "192.0.2.1/24 2001:db8:1::1/64 fe80::1/64"));
    far.ip(&neighbours(unit_mac, "192.0.2.1 2001:db8:1::1 fe80::1"));
    unit.ip(&neighbours(
        far_mac,
        "192.0.2.2 192.0.2.3 192.0.2.254 2001:db8:1::2 2001:db8:1::3 2001:db8:1::254 fe80::2 fe80::3",
    ));
    unit.ip(&format!(
        "route add default via 192.0.2.254\nroute add default via 2001:db8:1::254 dev {INTERFACE}\n"
    ));
}
