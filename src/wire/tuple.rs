//! The tuple: what names one direction of a flow.

use std::fmt;

use super::Addr;

/// A transport protocol by its IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Protocol = Protocol(1);
    /// An IPv4 packet in another packet (RFC 2003).
    pub const IPV4: Protocol = Protocol(4);
    pub const TCP: Protocol = Protocol(6);
    pub const UDP: Protocol = Protocol(17);
    /// An IPv6 packet in another packet (RFC 4213, RFC 2473).
    pub const IPV6: Protocol = Protocol(41);
    pub const ICMPV6: Protocol = Protocol(58);

    /// The name as conntrack-tools and `/etc/protocols` have it; `unknown` for what gatun does not forward.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::ICMP => "icmp",
            Protocol::TCP => "tcp",
            Protocol::UDP => "udp",
            Protocol::ICMPV6 => "icmpv6",
            _ => "unknown",
        }
    }

    pub const fn is_icmp(self) -> bool {
        matches!(self, Protocol::ICMP | Protocol::ICMPV6)
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "unknown" => write!(f, "proto-{}", self.0),
            name => f.write_str(name),
        }
    }
}

/// Source and destination of one direction of a flow. Ports are in host order; for ICMP queries both hold the identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    pub protocol: Protocol,
}

impl Tuple {
    /// The same exchange seen from the other end.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, protocol: self.protocol }
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |addr: Addr, port: u16| std::net::SocketAddr::new(addr.ip(), port);
        write!(f, "{:?} {} > {}", self.protocol, side(self.src, self.sport), side(self.dst, self.dport))
    }
}
