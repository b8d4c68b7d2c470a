//! The decision: one pure function for the kernel and for user space.

use crate::{
    abi::{Entry, Grant, Listener, MAX_LISTENERS, PolicyHeader, TrieKey},
    flow::{Address, Flow},
    reason::DropReason,
};

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is denied, and why.
    Deny(DropReason),
}

/// What the rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All that there is to say.
    Settled(Verdict),
    /// It passes where the socket that would take it is the instance's own, and is denied for this reason otherwise. Only who
    /// can ask for that socket can tell.
    OwnOnly(DropReason),
}

impl Decision {
    const ALLOW: Self = Self::Settled(Verdict::Allow);

    const fn deny(reason: DropReason) -> Self {
        Self::Settled(Verdict::Deny(reason))
    }

    /// The verdict, with `is_own` to ask whether the socket that would take the flow is the instance's own.
    #[inline(always)]
    pub fn settle(self, is_own: impl FnOnce() -> bool) -> Verdict {
        match self {
            Self::Settled(verdict) => verdict,
            Self::OwnOnly(_) if is_own() => Verdict::Allow,
            Self::OwnOnly(reason) => Verdict::Deny(reason),
        }
    }
}

/// A compiled policy's entries: the trie in the kernel, or a copy of it.
pub trait Rules {
    /// The entry of the longest prefix that covers `key`.
    fn entry(&self, key: &TrieKey) -> Option<Entry>;
}

/// Judges a flow.
///
/// Precedence, merged into the entries when the policy was compiled: the instance's own listeners, if their sockets are its own;
/// then deny; then any rule that allows, whatever its prefix; then nothing, which denies.
#[inline(always)]
pub fn decide(rules: &impl Rules, flow: &Flow) -> Decision {
    let Some(entry) = rules.entry(&TrieKey::address(&flow.address)) else {
        return Decision::deny(DropReason::NotAllowed);
    };
    match entry.grant(flow.class()) {
        Grant::ALLOW => Decision::ALLOW,
        Grant::DENY => Decision::deny(DropReason::DenyRule),
        Grant::NONE => Decision::deny(DropReason::ProtocolNotAllowed),
        set => match rules.entry(&TrieKey::port(set, flow.port)) {
            Some(ports) if ports.grants[0] == Grant::ALLOW => Decision::ALLOW,
            Some(ports) if ports.grants[0] == Grant::DENY => Decision::deny(DropReason::DenyRule),
            Some(ports) if ports.grants[0] == Grant::OWN => Decision::OwnOnly(DropReason::PortNotAllowed),
            Some(ports) if ports.grants[0] == Grant::OWN_OVER_DENY => Decision::OwnOnly(DropReason::DenyRule),
            _ => Decision::deny(DropReason::PortNotAllowed),
        },
    }
}

/// Judges a flow whose port is not known yet, as the join of a multicast group is one: it passes when some port would.
#[inline(always)]
pub fn decide_for_some_port(rules: &impl Rules, flow: &Flow) -> Verdict {
    let Some(entry) = rules.entry(&TrieKey::address(&flow.address)) else {
        return Verdict::Deny(DropReason::NotAllowed);
    };
    match entry.grant(flow.class()) {
        Grant::ALLOW => Verdict::Allow,
        Grant::DENY => Verdict::Deny(DropReason::DenyRule),
        Grant::NONE => Verdict::Deny(DropReason::ProtocolNotAllowed),
        set => match rules.entry(&TrieKey::port_prefix(set, 0, 0)) {
            Some(ports) if ports.some_port_is_allowed() => Verdict::Allow,
            _ => Verdict::Deny(DropReason::PortNotAllowed),
        },
    }
}

impl Listener {
    #[inline(always)]
    fn is_at(&self, address: &Address) -> bool {
        self.family == address.family() as u16 && self.address == address.words()
    }

    #[inline(always)]
    fn is_wildcard(&self) -> bool {
        self.address == [0; 4]
    }

    /// Whether a connection to `local` would reach this listener: it is there, or it listens on a
    /// wildcard that takes the family. `::` takes IPv4 too (ipv6(7), `IPV6_V6ONLY`).
    #[inline(always)]
    fn takes(&self, local: &Address) -> bool {
        self.is_at(local)
            || (self.is_wildcard() && (self.family == 6 || self.family == local.family() as u16))
    }
}

impl PolicyHeader {
    #[inline(always)]
    fn find(&self, port: u16, mut pick: impl FnMut(&Listener) -> bool) -> Option<&Listener> {
        let mut index = 0;
        while index < MAX_LISTENERS {
            // A count beyond the array, which no compiler writes, is cut by the loop's own bound.
            if index >= self.listener_count as usize {
                break;
            }
            let listener = &self.listeners[index];
            if listener.port == port && pick(listener) {
                return Some(listener);
            }
            index += 1;
        }
        None
    }

    /// Whether some listener has this port.
    #[inline(always)]
    pub fn listens_on(&self, port: u16) -> bool {
        self.find(port, |_| true).is_some()
    }

    /// Judges an explicit bind: only exactly what is configured.
    #[inline(always)]
    pub fn judge_bind(&self, address: &Address, port: u16) -> Verdict {
        match self.find(port, |listener| listener.is_at(address)) {
            Some(_) => Verdict::Allow,
            None => Verdict::Deny(DropReason::BindNotListed),
        }
    }

    /// Judges a new inbound connection to `local`; `loopback` says that it came over the loopback
    /// interface.
    #[inline(always)]
    pub fn judge_inbound(&self, local: &Address, port: u16, loopback: bool) -> Verdict {
        let mut known = false;
        let found = self.find(port, |listener| {
            let takes = listener.takes(local);
            known |= takes;
            takes && (loopback || listener.open != 0)
        });
        match (found, known) {
            (Some(_), _) => Verdict::Allow,
            (None, true) => Verdict::Deny(DropReason::ListenerNotOpen),
            (None, false) => Verdict::Deny(DropReason::NotAListener),
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::flow::Protocol;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn head(listeners: &[(&str, u16, bool)]) -> PolicyHeader {
        let mut head = PolicyHeader::default();
        for (slot, (at, port, open)) in head.listeners.iter_mut().zip(listeners) {
            let at = address(at);
            *slot = Listener {
                address: at.words(),
                family: at.family() as u16,
                port: *port,
                open: u32::from(*open),
            };
            head.listener_count += 1;
        }
        head
    }

    /// One entry for every address; ports of the first set are 443 alone.
    struct Fixed(Entry);

    impl Rules for Fixed {
        fn entry(&self, key: &TrieKey) -> Option<Entry> {
            if key.space == 4_u32.to_be() {
                Some(self.0)
            } else {
                (*key == TrieKey::port(Grant(Grant::FIRST_SET), 443)).then_some(Entry::uniform(Grant::ALLOW))
            }
        }
    }

    #[test]
    fn each_grant_has_its_verdict() {
        let grants = [Grant(Grant::FIRST_SET), Grant::ALLOW, Grant::DENY, Grant::NONE];
        let rules = Fixed(Entry { grants });
        let judge = |dst, protocol, port| {
            decide(&rules, &Flow { address: address(dst), protocol, port }).settle(|| false)
        };
        use DropReason as R;
        assert_eq!(judge("192.0.2.1", Protocol::TCP, 443), Verdict::Allow);
        assert_eq!(judge("192.0.2.1", Protocol::TCP, 80), Verdict::Deny(R::PortNotAllowed));
        assert_eq!(judge("192.0.2.1", Protocol::UDP, 53), Verdict::Allow);
        assert_eq!(judge("192.0.2.1", Protocol::ICMP, 0), Verdict::Deny(R::DenyRule));
        assert_eq!(judge("192.0.2.1", Protocol(132), 0), Verdict::Deny(R::ProtocolNotAllowed));
        assert_eq!(judge("2001:db8::1", Protocol::UDP, 53), Verdict::Deny(R::NotAllowed));
        assert_eq!(judge("::ffff:192.0.2.1", Protocol::UDP, 53), Verdict::Allow);
    }

    #[test]
    fn a_bind_is_exact() {
        let head = head(&[("127.0.0.1", 8787, false), ("::", 9000, true)]);
        let judge = |at, port| head.judge_bind(&address(at), port) == Verdict::Allow;
        assert!(judge("127.0.0.1", 8787));
        assert!(judge("::ffff:127.0.0.1", 8787));
        assert!(judge("::", 9000));
        assert!(!judge("0.0.0.0", 8787));
        assert!(!judge("127.0.0.1", 8788));
        assert!(!judge("0.0.0.0", 9000));
    }

    #[test]
    fn inbound_reaches_only_listeners_and_beyond_loopback_only_open_ones() {
        let head = head(&[("127.0.0.1", 8787, false), ("0.0.0.0", 8788, false), ("::", 8789, true)]);
        let judge = |to, port, loopback| head.judge_inbound(&address(to), port, loopback);
        use DropReason as R;
        assert_eq!(judge("127.0.0.1", 8787, true), Verdict::Allow);
        assert_eq!(judge("127.0.0.2", 8787, true), Verdict::Deny(R::NotAListener));
        assert_eq!(judge("192.0.2.1", 8788, true), Verdict::Allow);
        assert_eq!(judge("192.0.2.1", 8788, false), Verdict::Deny(R::ListenerNotOpen));
        assert_eq!(judge("2001:db8::1", 8788, true), Verdict::Deny(R::NotAListener));
        assert_eq!(judge("192.0.2.1", 8789, false), Verdict::Allow);
        assert_eq!(judge("2001:db8::1", 8789, false), Verdict::Allow);
        assert_eq!(judge("127.0.0.1", 22, true), Verdict::Deny(R::NotAListener));
    }

    #[test]
    fn a_listener_count_beyond_the_array_reads_no_further() {
        let mut head = head(&[("127.0.0.1", 8787, false)]);
        head.listener_count = u32::MAX;
        assert!(!head.listens_on(1));
    }
}
