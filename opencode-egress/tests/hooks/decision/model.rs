//! What must become of a packet: its headers as the RFCs have them, and the policy rule by rule.

use std::net::{IpAddr, Ipv6Addr};

use opencode_egress_common::{
    abi::RESOLVER_PORTS,
    decide::Verdict,
    flow::{Address, Flow, Protocol},
    reason::DropReason,
    reason::Hook,
};

use super::{names::Host, packets::Frame, reference};
use crate::policy::{Loopback, Policy};

/// What must become of a packet.
pub(crate) struct Expected {
    pub(crate) verdict: Verdict,
    /// Whether it passes by name alone.
    pub(crate) by_name: bool,
    /// Whether it counts as sent when it passes.
    pub(crate) counted: bool,
    /// What a denial tells.
    pub(crate) flow: Flow,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Judges a packet at one of the two packet hooks.
pub(crate) fn judge(
    hook: Hook,
    policy: Option<&Policy>,
    host: &Host,
    loopback: bool,
    frame: &Frame,
) -> Expected {
    let nothing = Flow { address: Address::v4(0), protocol: Protocol(0), port: 0 };
    let counted = hook == Hook::Egress;
    let headers = match read(frame) {
        Ok(headers) => headers,
        Err(reason) => {
            return Expected { verdict: Verdict::Deny(reason), by_name: false, counted, flow: nothing };
        }
    };
    let flow = headers.flow(if hook == Hook::Egress { headers.destination } else { headers.source });
    let judge = |host| match hook {
        Hook::Egress => outbound(policy, host, &headers, &flow, loopback),
        _ => inbound(policy, host, &headers, &flow, loopback),
    };
    let verdict = judge(host);
    let without = Host { resolver: host.resolver, brought: vec![] };
    let by_name = verdict == Verdict::Allow && judge(&without) != Verdict::Allow;
    Expected { verdict, by_name, counted, flow }
}

fn outbound(policy: Option<&Policy>, host: &Host, headers: &Headers, to: &Flow, loopback: bool) -> Verdict {
    let Some(policy) = policy else { return Verdict::Deny(DropReason::NoPolicy) };
    let (_, port) = headers.source;
    if headers.opens && policy.listen.iter().any(|listen| listen.port == port) {
        return Verdict::Deny(DropReason::ListenerPort);
    }
    if let Some(verdict) = host.judge_resolver(to) {
        // By another interface the same address is somebody else's.
        return if loopback { verdict } else { Verdict::Deny(DropReason::OtherResolver) };
    }
    // The test run's socket is nobody's.
    let verdict = reference::judge(policy, to).settle(|| false);
    if loopback && is_own_segment(policy, headers, to, verdict) {
        return Verdict::Allow;
    }
    if headers.may_be_named(port) { host.turn(verdict, to) } else { verdict }
}

/// Whether a segment passes to a place of loopback where nobody listens, so that its sender is told.
fn is_own_segment(policy: &Policy, headers: &Headers, to: &Flow, verdict: Verdict) -> bool {
    use DropReason::{NotAllowed, PortNotAllowed, ProtocolNotAllowed};
    let unspoken = matches!(verdict, Verdict::Deny(NotAllowed | PortNotAllowed | ProtocolNotAllowed));
    let (address, port) = headers.destination;
    let reached = match address {
        IpAddr::V4(v4) => v4.is_loopback() && ![[127, 0, 0, 0], [127, 255, 255, 255]].contains(&v4.octets()),
        IpAddr::V6(v6) => v6.is_loopback(),
    };
    let resolvers = (RESOLVER_PORTS.0..=RESOLVER_PORTS.1).contains(&port);
    policy.loopback == Loopback::Own
        && to.protocol == Protocol::TCP
        && headers.plain
        && !headers.data
        && unspoken
        && reached
        && !resolvers
        && (port != 53 || policy.names.is_empty())
}

fn inbound(policy: Option<&Policy>, host: &Host, headers: &Headers, back: &Flow, loopback: bool) -> Verdict {
    let tcp = headers.protocol == 6;
    // Of a connection that was judged when it was opened.
    if tcp && !headers.opens {
        return Verdict::Allow;
    }
    let Some(policy) = policy else { return Verdict::Deny(DropReason::NoPolicy) };
    let verdict =
        host.judge_resolver(back).unwrap_or_else(|| reference::judge(policy, back).settle(|| false));
    let by_name = headers.plain && headers.protocol == 17 && host.turn(verdict, back) == Verdict::Allow;
    // With own loopback a connection must be the instance's own, which nothing here is.
    let from_peer = !tcp || loopback && policy.loopback == Loopback::Listed;
    if from_peer && verdict == Verdict::Allow || by_name {
        return Verdict::Allow;
    }
    let (address, port) = headers.destination;
    let takes = |at: IpAddr| match at {
        IpAddr::V4(v4) if v4.is_unspecified() => address.is_ipv4(),
        // It takes IPv4 too (ipv6(7)).
        IpAddr::V6(v6) if v6.is_unspecified() => true,
        at => at == address,
    };
    let reached: Vec<_> =
        policy.listen.iter().filter(|listen| listen.port == port && takes(listen.address)).collect();
    if reached.iter().any(|listen| loopback || listen.open) {
        return Verdict::Allow;
    }
    Verdict::Deny(match (reached.is_empty(), tcp) {
        (false, _) => DropReason::ListenerNotOpen,
        (true, true) => DropReason::NotAListener,
        (true, false) => DropReason::PeerNotAllowed,
    })
}

type Endpoint = (IpAddr, u16);

struct Headers {
    source: Endpoint,
    destination: Endpoint,
    protocol: u8,
    /// A TCP segment with SYN and without ACK.
    opens: bool,
    /// Without options and extension headers. Others do not pass by name, nor as own loopback: no rule promises it, and few send them.
    plain: bool,
    /// Of TCP: with more than headers.
    data: bool,
}

impl Headers {
    /// Whether a packet that leaves is of a flow that its socket may have by name. A datagram has its socket's port, which is 0 here.
    fn may_be_named(&self, port: u16) -> bool {
        self.plain && (self.protocol == 6 || self.protocol == 17 && port == 0)
    }

    fn flow(&self, (address, port): Endpoint) -> Flow {
        Flow { address: address.into(), protocol: Protocol(self.protocol), port }
    }
}

fn read(frame: &Frame) -> Result<Headers, DropReason> {
    match frame.ethertype {
        0x0800 => ipv4(&frame.packet),
        0x86dd => ipv6(&frame.packet),
        _ => Err(DropReason::UnreadableHeader),
    }
}

/// RFC 791.
fn ipv4(packet: &[u8]) -> Result<Headers, DropReason> {
    let fixed: &[u8; 20] = packet.first_chunk().ok_or(DropReason::UnreadableHeader)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    if fixed[0] >> 4 != 4 || header_len < 20 {
        return Err(DropReason::UnreadableHeader);
    }
    let more_fragments = fixed[6] & 0x20 != 0;
    let offset = u16::from_be_bytes([fixed[6] & 0x1f, fixed[7]]);
    if more_fragments || offset != 0 {
        return Err(DropReason::Fragment);
    }
    let (header, behind) = packet.split_at_checked(header_len).ok_or(DropReason::UnreadableHeader)?;
    let mut options = &header[20..];
    while let Some(kind) = options.first() {
        // The programs read four bytes at once. Only a packet that ends with its header has fewer.
        if options.len() + behind.len() < 4 {
            return Err(DropReason::UnreadableHeader);
        }
        let len = match kind {
            0 => break,
            1 => 1,
            // Denial route, timestamp, security, commercial security, stream identifier, router alert.
            7 | 68 | 130 | 134 | 136 | 148 => match options.get(1) {
                Some(len) if *len >= 2 => usize::from(*len),
                _ => return Err(DropReason::UnreadableHeader),
            },
            _ => return Err(DropReason::Ipv4Option),
        };
        // One that goes on behind the header.
        options = options.get(len..).unwrap_or_default();
    }
    let address = |at: usize| IpAddr::from([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    transport(fixed[9], behind, address(12), address(16), header_len == 20)
}

/// RFC 8200.
fn ipv6(packet: &[u8]) -> Result<Headers, DropReason> {
    let (fixed, mut behind) = packet.split_first_chunk::<40>().ok_or(DropReason::UnreadableHeader)?;
    if fixed[0] >> 4 != 6 {
        return Err(DropReason::UnreadableHeader);
    }
    let (mut next, whole) = (fixed[6], behind.len());
    // Nine headers are looked at; the ninth must be the transport's.
    for _ in 0..9 {
        match next {
            43 => return Err(DropReason::RoutingHeader),
            44 => return Err(DropReason::Fragment),
            50 | 51 | 135 | 139 | 140 | 253 | 254 => return Err(DropReason::ExtensionHeader),
            0 | 60 => {
                let [following, len] = *behind.first_chunk().ok_or(DropReason::UnreadableHeader)?;
                let len = (usize::from(len) + 1) * 8;
                behind = behind.get(len..).ok_or(DropReason::UnreadableHeader)?;
                next = following;
            }
            _ => {
                let address = |at: usize| -> IpAddr {
                    let octets: [u8; 16] = fixed[at..at + 16].try_into().expect("sixteen");
                    Ipv6Addr::from(octets).to_canonical()
                };
                return transport(next, behind, address(8), address(24), behind.len() == whole);
            }
        }
    }
    Err(DropReason::ExtensionHeader)
}

fn transport(
    protocol: u8,
    bytes: &[u8],
    source: IpAddr,
    destination: IpAddr,
    plain: bool,
) -> Result<Headers, DropReason> {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (needed, ports) = match protocol {
        6 => (16, true),
        17 | 136 => (4, true),
        _ => (0, false),
    };
    if bytes.len() < needed {
        return Err(DropReason::UnreadableHeader);
    }
    let (from, to) = if ports { (port(0), port(2)) } else { (0, 0) };
    let opens = protocol == 6 && bytes[13] & (SYN | ACK) == SYN;
    let data = protocol == 6 && bytes.len() > usize::from(bytes[12] >> 4) * 4;
    Ok(Headers { source: (source, from), destination: (destination, to), protocol, opens, plain, data })
}
