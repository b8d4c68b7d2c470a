//! How listed names are looked up.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::policy::Invalid;

/// Which servers answer for listed names, and how flows to these are known, the same for every instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// In the order in which they are asked; none: those of the host's `resolv.conf`.
    pub upstream: Vec<SocketAddr>,
    /// The bit of a socket's mark (`SO_MARK`) by which a second lock, as the NixOS module's nftables table is one, knows flows by name.
    pub mark: u32,
}

/// [`Resolver::mark`] where the policy file has none.
pub(super) const DEFAULT_MARK: u32 = 1 << 25;

impl Default for Resolver {
    fn default() -> Self {
        Self { upstream: vec![], mark: DEFAULT_MARK }
    }
}

/// How many upstream servers there can be.
pub(super) const MAX_UPSTREAM: usize = 8;

impl Resolver {
    /// An upstream server: an address, maybe with a port; 53 without.
    ///
    /// # Errors
    ///
    /// When the text is none, or nobody can be asked there.
    pub fn parse_upstream(text: &str) -> Result<SocketAddr, Invalid> {
        let server = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(address), _) => SocketAddr::new(address, 53),
            (_, Ok(server)) => server,
            _ => {
                return Err(Invalid(format!(
                    "`{text}` is no server's address; write one, maybe with a port, as in `192.0.2.53`, `192.0.2.53:5353` or `[2001:db8::53]:53`"
                )));
            }
        };
        let address = server.ip().to_canonical();
        if server.port() == 0 {
            return Err(Invalid(format!("`{text}` has port 0; write one from 1 to 65535, or none for 53")));
        }
        if address.is_unspecified() || address.is_multicast() {
            return Err(Invalid(format!(
                "`{text}` is the address of no server; write the resolver's own, `127.0.0.1` for one on this machine"
            )));
        }
        Ok(SocketAddr::new(address, server.port()))
    }
}

impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.upstream[..] {
            [] => f.write_str("upstream from the host's resolv.conf"),
            servers => {
                let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
                write!(f, "upstream {}", servers.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_servers_say_what_to_write_instead() {
        let check = |text: &str, expect: &str| {
            let shown = Resolver::parse_upstream(text).map(|server| server.to_string());
            let shown = shown.unwrap_or_else(|invalid| invalid.to_string());
            assert!(shown.contains(expect), "{text}: {shown}");
        };
        check("192.0.2.53", "192.0.2.53:53");
        check("2001:db8::53", "[2001:db8::53]:53");
        check("::ffff:192.0.2.53", "192.0.2.53:53");
        check("[2001:db8::53]:5353", "[2001:db8::53]:5353");
        check("192.0.2.53:0", "has port 0; write one from 1 to 65535, or none for 53");
        check("dns.example.org", "is no server's address; write one, maybe with a port");
        check("192.0.2.53/32", "is no server's address");
        check("0.0.0.0", "is the address of no server; write the resolver's own, `127.0.0.1`");
        check("224.0.0.251:5353", "is the address of no server");
    }
}
