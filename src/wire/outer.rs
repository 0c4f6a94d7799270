//! The outer headers of tunnelled packets: IP-in-IP (RFC 2003, RFC 4213, RFC 2473) and GUE (draft-ietf-intarea-gue, in
//! the form of Linux, `net/ipv4/fou_core.c`), in all four combinations of address families.

use std::fmt;

use super::Addr;

/// The UDP port of GUE unless the configuration has another (IANA, `gue`).
pub const GUE_PORT: u16 = 6080;

/// How packets are wrapped on their way to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// The inner packet follows the outer IP header: protocol 4 or 41.
    #[default]
    Ipip,
    /// Outer IP, UDP, four bytes of GUE, the inner packet. `port` is the destination.
    Gue { port: u16 },
}

impl Encapsulation {
    /// The word in config and outputs.
    pub const fn word(self) -> &'static str {
        match self {
            Encapsulation::Ipip => "ipip",
            Encapsulation::Gue { .. } => "gue",
        }
    }
}

impl fmt::Display for Encapsulation {
    /// `ipip`, `gue`, or with another than the usual port `gue:7000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Encapsulation::Gue { port } if port != GUE_PORT => write!(f, "gue:{port}"),
            other => f.write_str(other.word()),
        }
    }
}

/// One end of a tunnel to the other: what the outer header of every packet of a flow has in common. DF, TOS and the
/// protocol follow from the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Of one family, which need not be that of the inner packet.
    pub src: Addr,
    pub dst: Addr,
    pub encapsulation: Encapsulation,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Of the first outer IPv4 header without DF; counts up from piece to piece (RFC 6864).
    pub id: u16,
    /// Tells flows apart where the network spreads by UDP ports: the source port of GUE is made of it.
    pub entropy: u16,
}

/// A packet that is to be wrapped when it is written, since it does not leave in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrap {
    pub outer: Outer,
    /// Bytes that a packet may have on the way to the tunnel's end, outer headers included: 68 to 65535.
    pub mtu: u16,
}
impl Outer {
    pub fn overhead(&self) -> usize {
        20
    }
    pub fn wrap(&self, _buf: &mut super::PacketBuf, _view: &super::View) -> Result<(), crate::verdict::DropReason> {
        Ok(())
    }
}
pub struct QuotedOuter {
    pub src: Addr,
    pub dst: Addr,
    pub encapsulation: Encapsulation,
    pub inner: usize,
}
pub fn parse_quoted_outer(
    _bytes: &[u8],
    _gue_ports: impl Fn(u16) -> bool,
) -> Result<Option<QuotedOuter>, crate::verdict::DropReason> {
    Ok(None)
}
