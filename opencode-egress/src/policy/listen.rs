//! Where an instance listens, and what that means for others and for itself.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};
use opencode_egress_common::{
    abi::PolicyHeader,
    decide::Verdict,
    loopback::{FIRST_OWN_PORT, SEVERAL_OWNERS},
};

use crate::policy::{InstanceName, Loopback, Policy, PolicySet, destination::Destination};

/// Where an instance listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; `0.0.0.0` and `::` are wildcards.
    pub address: IpAddr,
    /// The port, not 0.
    pub port: u16,
    /// Whether peers beyond loopback may connect.
    pub open: bool,
}

impl Listen {
    /// The address with the port.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Whether some address reaches both, so that the one's clients could find themselves at the other. `::` takes
    /// IPv4 too (ipv6(7), `IPV6_V6ONLY`).
    pub fn overlaps(&self, other: &Self) -> bool {
        let takes = |wildcard: IpAddr, address: IpAddr| {
            wildcard.is_unspecified() && (wildcard.is_ipv6() || address.is_ipv4())
        };
        let (one, two) = (self.address, other.address);
        self.port == other.port && (one == two || takes(one, two) || takes(two, one))
    }

    /// The networks in which a connection to the port is one of the instance to itself, which takes no rule: those of
    /// loopback that the listener takes. Any other address takes a rule: it may be another machine's, and that an
    /// instance lists it does not make it the instance's own.
    pub fn own_networks(&self) -> impl Iterator<Item = IpNet> {
        let loopback = [
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
        ];
        let Self { address, .. } = *self;
        loopback.into_iter().filter_map(move |loopback| match address {
            IpAddr::V4(at) if at.is_unspecified() => loopback.addr().is_ipv4().then_some(loopback),
            IpAddr::V6(at) if at.is_unspecified() => Some(loopback),
            at => loopback.contains(&at).then_some(IpNet::from(at)),
        })
    }

    /// Whether a connection to an address and this port is one of the instance to itself.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own_networks().any(|network| network.contains(&address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = if self.open { " open" } else { "" };
        write!(f, "{}{open}", self.socket_address())
    }
}

/// Whether a compiled policy lets its instance bind there: to a listener's place, or for itself where none of `others` is, the ports that
/// other instances list. Whether it would share the port with somebody else's socket only the kernel knows.
pub fn may_bind(header: &PolicyHeader, at: Destination, others: &BTreeSet<u16>) -> bool {
    let owner = others.contains(&at.port).then_some(SEVERAL_OWNERS);
    let address = at.address.into();
    header.judge_bind(&address, at.port) == Verdict::Allow || header.is_own_place(&address, at.port, owner, 0)
}

impl PolicySet {
    /// The ports that other instances than this one list.
    pub fn ports_of_others(&self, name: &InstanceName) -> BTreeSet<u16> {
        let others = self.instances.iter().filter(|(other, _)| *other != name);
        others.flat_map(|(_, policy)| &policy.listen).map(|listen| listen.port).collect()
    }
}

impl Policy {
    /// What to do about a bind to this port that the policy refuses: a listener is listed with its address, and a bind
    /// must be to exactly that.
    pub fn instead_of_bind(&self, port: u16) -> String {
        let listed = self.listen.iter().filter(|listen| listen.port == port);
        let listed: Vec<_> = listed.map(|listen| listen.socket_address().to_string()).collect();
        match &listed[..] {
            [] if self.loopback == Loopback::Own => {
                format!(
                    "no listener with port {port} is listed; for itself the instance may bind 127.0.0.1 or ::1, from port {FIRST_OWN_PORT} on where no other instance lists the port"
                )
            }
            [] => format!("no listener with port {port} is listed"),
            [one] => format!("{one} is listed; bind that"),
            several => format!("{} are listed; bind one of them", several.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Listen {
        let at: SocketAddr = text.parse().expect("an address and a port");
        Listen { address: at.ip().to_canonical(), port: at.port(), open: false }
    }

    #[test]
    fn listeners_overlap_where_one_address_reaches_both() {
        let check = |one: &str, two: &str, expect: bool| {
            let (one, two) = (listen(one), listen(two));
            assert_eq!((one.overlaps(&two), two.overlaps(&one)), (expect, expect), "{one} and {two}");
        };
        check("127.0.0.1:80", "127.0.0.1:80", true);
        check("127.0.0.1:80", "127.0.0.1:81", false);
        check("127.0.0.1:80", "127.0.0.2:80", false);
        check("0.0.0.0:80", "127.0.0.1:80", true);
        check("0.0.0.0:80", "192.0.2.1:80", true);
        check("0.0.0.0:80", "[::1]:80", false);
        check("0.0.0.0:80", "[::]:80", true);
        check("[::]:80", "192.0.2.1:80", true);
        check("[::]:80", "[2001:db8::1]:80", true);
        check("[::]:80", "[::]:80", true);
        check("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true);
        check("[::ffff:0.0.0.0]:80", "127.0.0.1:80", true);
        check("[::1]:80", "[2001:db8::1]:80", false);
    }

    #[test]
    fn only_loopback_is_an_instances_own() {
        let check = |at: &str, expect: &[&str]| {
            let shown: Vec<_> = listen(at).own_networks().map(|network| network.to_string()).collect();
            assert_eq!(shown, expect, "{at}");
        };
        check("127.0.0.1:80", &["127.0.0.1/32"]);
        check("127.0.0.2:80", &["127.0.0.2/32"]);
        check("[::1]:80", &["::1/128"]);
        check("0.0.0.0:80", &["127.0.0.0/8"]);
        check("[::]:80", &["127.0.0.0/8", "::1/128"]);
        check("192.0.2.1:80", &[]);
        check("203.0.113.2:80", &[]);
        check("[2001:db8::1]:80", &[]);
    }

    #[test]
    fn a_refused_bind_is_told_what_to_bind() {
        let check = |listed: &[&str], expect: &str| {
            let policy =
                Policy { listen: listed.iter().map(|text| listen(text)).collect(), ..Policy::default() };
            let policy = Policy { loopback: Loopback::Listed, ..policy };
            assert_eq!(policy.instead_of_bind(5173), expect);
        };
        let own = Policy::default().instead_of_bind(80);
        assert!(
            own.starts_with("no listener with port 80 is listed; for itself the instance may bind"),
            "{own}"
        );
        check(&["127.0.0.1:5173", "127.0.0.1:80"], "127.0.0.1:5173 is listed; bind that");
        check(&["127.0.0.1:5173", "[::1]:5173"], "127.0.0.1:5173, [::1]:5173 are listed; bind one of them");
        check(&["127.0.0.1:80"], "no listener with port 5173 is listed");
    }
}
