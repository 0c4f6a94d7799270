//! A packet's headers, validated once. After that no accessor can fail: every offset in a [`View`] lies in the packet.

use super::{Addr, Protocol, Tuple, icmp, ipv4, ipv6, tcp, udp};
use crate::verdict::DropReason;

/// What the engine needs to know of a packet. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub src: Addr,
    pub dst: Addr,
    /// Of the upper layer, past any IPv6 extension headers.
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Where the transport header starts.
    pub l4: usize,
    /// Length of the IP packet.
    pub len: usize,
    pub fragment: Option<Fragment>,
    pub transport: Transport,
}

/// The packet is part of a fragmented one.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// In bytes; 0 for the first.
    pub offset: u16,
    /// Bytes of the packet that this piece of it has. `offset + len` is at most 65535.
    pub len: u16,
    pub more: bool,
}

/// The transport header.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    Tcp(tcp::Header),
    Udp(udp::Header),
    Icmp(icmp::Kind),
    /// A later fragment: its transport header is in the first one.
    Later,
    /// A protocol that gatun does not look into.
    Other,
}

impl View {
    /// Validates the packet in `bytes`, which may be longer than the packet says it is.
    pub fn parse(bytes: &[u8]) -> Result<View, DropReason> {
        View::parse_packet(bytes, false)
    }

    /// The packet that an ICMP error quotes; its end, even most of its transport header, may be missing
    /// (RFC 792 promises 8 bytes of it). Returned with its ports, or the identifier of an ICMP query, if they are there.
    pub fn parse_quoted(bytes: &[u8]) -> Result<(View, Option<Tuple>), DropReason> {
        let view = View::parse_packet(bytes, true)?;
        Ok((view, view.quoted_ports(bytes.get(view.l4..).unwrap_or_default())))
    }

    /// The tuple, by what is there of the transport header.
    fn quoted_ports(&self, header: &[u8]) -> Option<Tuple> {
        let word = |at: usize| header.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word));
        match self.protocol {
            _ if self.fragment.is_some_and(|f| f.offset != 0) => None,
            Protocol::TCP | Protocol::UDP => Some(self.tuple(word(0)?, word(2)?)),
            Protocol::ICMP | Protocol::ICMPV6 if icmp::has_identifier(header, self.protocol, self.src) => {
                let id = word(icmp::ID)?;
                Some(self.tuple(id, id))
            }
            _ => None,
        }
    }

    /// Source and destination with ports; `None` where there are none to see. For ICMP queries both ports are the identifier.
    #[inline]
    pub fn ports(&self) -> Option<Tuple> {
        match self.transport {
            Transport::Tcp(tcp) => Some(self.tuple(tcp.sport, tcp.dport)),
            Transport::Udp(udp) => Some(self.tuple(udp.sport, udp.dport)),
            Transport::Icmp(
                icmp::Kind::EchoRequest { id }
                | icmp::Kind::EchoReply { id }
                | icmp::Kind::Query { id }
                | icmp::Kind::Answer { id },
            ) => Some(self.tuple(id, id)),
            _ => None,
        }
    }

    fn tuple(&self, sport: u16, dport: u16) -> Tuple {
        Tuple { src: self.src, dst: self.dst, sport, dport, protocol: self.protocol }
    }

    fn parse_packet(bytes: &[u8], quoted: bool) -> Result<View, DropReason> {
        let mut view = match bytes.first().map(|b| b >> 4) {
            None => return Err(DropReason::Truncated),
            Some(4) => from_ipv4(ipv4::parse(bytes, quoted)?),
            Some(6) => from_ipv6(ipv6::parse(bytes, quoted)?),
            Some(_) => return Err(DropReason::NotIp),
        };
        if !quoted {
            view.transport = parse_transport(&bytes[view.l4..view.len], &view)?;
        }
        Ok(view)
    }
}

fn from_ipv4(header: ipv4::Header) -> View {
    let is_fragment = header.more_fragments || header.fragment_offset != 0;
    let fragment = Fragment {
        id: u32::from(header.id),
        offset: header.fragment_offset,
        len: (header.total_len - header.header_len) as u16,
        more: header.more_fragments,
    };
    View {
        src: header.src,
        dst: header.dst,
        protocol: header.protocol,
        ttl: header.ttl,
        l4: header.header_len,
        len: header.total_len,
        fragment: is_fragment.then_some(fragment),
        transport: Transport::Other,
    }
}

fn from_ipv6(header: ipv6::Header) -> View {
    // An atomic fragment (RFC 6946) is a whole packet.
    let fragment = header.fragment.filter(|f| f.offset != 0 || f.more);
    View {
        src: header.src,
        dst: header.dst,
        protocol: header.protocol,
        ttl: header.hop_limit,
        l4: header.header_len,
        len: header.total_len,
        fragment: fragment.map(|f| Fragment { id: f.id, offset: f.offset, len: f.len, more: f.more }),
        transport: Transport::Other,
    }
}

fn parse_transport(bytes: &[u8], view: &View) -> Result<Transport, DropReason> {
    let is_fragment = view.fragment.is_some();
    // Nothing but the last piece may be of an odd length (RFC 791 section 3.2, RFC 8200 section 4.5), and none is empty.
    if let Some(Fragment { len, more, .. }) = view.fragment
        && (len == 0 || more && len % 8 != 0)
    {
        return Err(DropReason::BadFragment);
    }
    if let Some(fragment) = view.fragment
        && fragment.offset != 0
    {
        // It must not reach into the transport header of the first fragment (RFC 1858 section 3, RFC 3128): 8 bytes of
        // offset would overwrite TCP's flags and checksum.
        if fragment.offset < 16 && view.protocol == Protocol::TCP {
            return Err(DropReason::BadFragment);
        }
        if u32::from(fragment.offset) + u32::from(fragment.len) > u32::from(u16::MAX) {
            return Err(DropReason::BadFragment);
        }
        return Ok(Transport::Later);
    }
    // The first fragment must hold the whole transport header (RFC 7112 section 5, RFC 1858 section 3.1).
    let in_fragment =
        |reason| if is_fragment && reason == DropReason::Truncated { DropReason::BadFragment } else { reason };
    match view.protocol {
        Protocol::TCP => tcp::parse(bytes).map(Transport::Tcp),
        Protocol::UDP => udp::parse(bytes, is_fragment).map(Transport::Udp),
        Protocol::ICMP if view.src.is_v4() => icmp::parse(bytes, view.protocol).map(Transport::Icmp),
        Protocol::ICMPV6 if !view.src.is_v4() => icmp::parse(bytes, view.protocol).map(Transport::Icmp),
        _ => Ok(Transport::Other),
    }
    .map_err(in_fragment)
}
