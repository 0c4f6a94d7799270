//! ICMP errors from the way to a server of method `tunnel`: what they say of the path MTU is noted, and what concerns the
//! client is told to the client (RFC 2003 section 4, RFC 2473 section 8).
//!
//! An error from *outside* is about one of the gateway's own outer packets, and addressed to the gateway. An error from
//! *inside* is about the client's packet, beyond the tunnel's end, and addressed to the client.
//!
//! Anybody can forge such an error. It is believed when it quotes a packet that the gateway can have sent (RFC 5927): of a
//! flow, for TCP with a sequence number of that flow, and for "too big" a packet that was larger than what is told. Some
//! routers quote only eight bytes behind the outer header (RFC 792); of them a path MTU is believed that common links have.

use super::refuse::Refusal;
use crate::service::{Method, Server};
use crate::time::Instant;
use crate::wire::outer::parse_quoted_outer;
use crate::wire::{Addr, Encapsulation, Outer, PacketBuf, Protocol, Tuple, View, checksum, icmp, ipv4};

/// Less than this is no sensible path MTU, and a handy lever for who forges errors (Linux, `ip_rt_min_pmtu`).
const LEAST_V4: u16 = 552;
/// RFC 8201 section 4.
const LEAST_V6: u16 = 1280;
/// What is believed at least from who does not prove to have seen a packet.
const LEAST_UNPROVEN: u16 = 1280;
/// What common links carry (RFC 1191 section 7.1), for routers that do not tell what fits.
const PLATEAUS: [u16; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 576, LEAST_V4];

/// An error from outside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelError {
    pub kind: u8,
    pub code: u8,
    /// The last two bytes of the ICMP header, or all four over IPv6: the MTU, if it is that kind of error.
    mtu: u32,
    pub outer_src: Addr,
    pub outer_dst: Addr,
    is_gue: bool,
    /// Length of the outer packet that it quotes.
    outer_len: usize,
    /// The client's packet in it, and its sequence number if it is TCP; `None` when too little of it is quoted.
    pub inner: Option<(Tuple, Option<u32>)>,
    /// Where that packet starts, from the ICMP error's IP header on.
    pub inner_at: usize,
    v4: bool,
}

/// Checksums that are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChecksum;

/// Reads an ICMP error that may quote an outer packet; `None` when it quotes something else, or too little.
pub fn read(buf: &PacketBuf, view: &View, gue_ports: impl Fn(u16) -> bool) -> Option<Result<TunnelError, BadChecksum>> {
    let message = buf.packet().get(view.l4..view.len)?;
    let quoted = message.get(icmp::LEN..)?;
    let outer = parse_quoted_outer(quoted, gue_ports).ok()??;
    if outer.src != view.dst {
        return None;
    }
    let begun = match view.protocol {
        Protocol::ICMP => 0,
        _ => checksum::pseudo_header(view.src, view.dst, view.protocol.0, message.len()),
    };
    if !buf.vnet.is_partial(view.l4) && checksum::finish(begun, message) != 0 {
        return Some(Err(BadChecksum));
    }
    let (outer_view, _) = View::parse_quoted(quoted).ok()?;
    let inner = quoted.get(outer.inner..).and_then(inner_packet);
    let v4 = view.src.is_v4();
    let mtu =
        if v4 { u32::from(word(message, 6)) } else { u32::from(word(message, 4)) << 16 | u32::from(word(message, 6)) };
    Some(Ok(TunnelError {
        kind: message[0],
        code: message[1],
        mtu,
        outer_src: outer.src,
        outer_dst: outer.dst,
        is_gue: outer.encapsulation != Encapsulation::Ipip,
        outer_len: outer_view.len,
        inner,
        inner_at: view.l4 + icmp::LEN + outer.inner,
        v4,
    }))
}

/// The tuple of a quoted packet, and of TCP its sequence number.
fn inner_packet(quoted: &[u8]) -> Option<(Tuple, Option<u32>)> {
    let (view, tuple) = View::parse_quoted(quoted).ok()?;
    let sequence =
        quoted.get(view.l4 + 4..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
    Some((tuple?, sequence.filter(|_| view.protocol == Protocol::TCP)))
}

/// Notes what an error that quotes too little of the client's packet says of the way to `server`.
pub fn note_unproven(now: Instant, server: &Server, error: &TunnelError) {
    if let Some(mtu) = error.told_mtu().filter(|mtu| *mtu >= LEAST_UNPROVEN) {
        server.path.learn_mtu(now, mtu);
    }
}

impl TunnelError {
    /// Whether it says that the tunnel's end cannot be reached, or is none.
    pub fn is_unreachable(&self) -> bool {
        match self.v4 {
            true => self.kind == icmp::V4_UNREACHABLE && self.code != icmp::V4_FRAGMENTATION_NEEDED,
            false => self.kind == icmp::V6_UNREACHABLE,
        }
    }

    /// The path MTU that it tells, which the packet that it quotes must not have fitted.
    fn told_mtu(&self) -> Option<u16> {
        let told = match (self.v4, self.kind, self.code) {
            (true, icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED) => told_v4(self.mtu as u16, self.outer_len),
            (false, icmp::V6_PACKET_TOO_BIG, _) => u16::try_from(self.mtu).ok().filter(|mtu| *mtu >= LEAST_V6),
            _ => None,
        };
        told.filter(|mtu| usize::from(*mtu) < self.outer_len)
    }
}

/// Notes what the error says of the way to `server`; returns what the client is told, `None` for nothing.
pub fn note(now: Instant, server: &Server, error: &TunnelError) -> Option<Refusal> {
    use icmp::{
        V4_FRAGMENTATION_NEEDED, V4_PORT_UNREACHABLE, V4_SOURCE_ROUTE_FAILED, V4_TIME_EXCEEDED, V4_UNREACHABLE,
        V6_PACKET_TOO_BIG, V6_PARAMETER_PROBLEM, V6_PORT_UNREACHABLE, V6_TIME_EXCEEDED, V6_UNKNOWN_NEXT_HEADER,
        V6_UNREACHABLE,
    };
    match (error.v4, error.kind, error.code) {
        (true, V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED) | (false, V6_PACKET_TOO_BIG, _) => {
            let mtu = error.told_mtu()?;
            server.path.learn_mtu(now, mtu);
            Some(too_big(server, error, mtu))
        }
        // Of an IP-in-IP packet nobody can say that (RFC 2003 section 4.1); of GUE it means that nobody takes packets there.
        (true, V4_UNREACHABLE, V4_PORT_UNREACHABLE) | (false, V6_UNREACHABLE, V6_PORT_UNREACHABLE) if !error.is_gue => {
            None
        }
        // About the outer header's own options.
        (true, V4_UNREACHABLE, V4_SOURCE_ROUTE_FAILED) => None,
        // Nothing at the tunnel's end takes the packets (protocol or port unreachable), or nothing leads there; to the
        // client all of that, a loop on the way included, is a host that is not there (RFC 2003 sections 4.1, 4.4).
        (true, V4_UNREACHABLE | V4_TIME_EXCEEDED, _)
        | (false, V6_UNREACHABLE | V6_TIME_EXCEEDED, _)
        | (false, V6_PARAMETER_PROBLEM, V6_UNKNOWN_NEXT_HEADER) => Some(Refusal::HostUnreachable),
        _ => None,
    }
}

/// An error from inside the tunnel, about a packet of a flow to `server`: `packet` is the ICMP error.
pub fn learn_from_inside(now: Instant, server: &Server, packet: &[u8], view: &View) {
    if server.method != Method::Tunnel {
        return;
    }
    let Some(message) = packet.get(view.l4..view.len).filter(|message| message.len() > icmp::LEN) else { return };
    let told = match (view.src.is_v4(), message[0], message[1]) {
        (true, icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED) => {
            let length = message.get(icmp::LEN + ipv4::TOTAL_LEN..).filter(|rest| rest.len() >= 2);
            told_v4(word(message, 6), length.map_or(0, |rest| usize::from(word(rest, 0))))
        }
        (false, icmp::V6_PACKET_TOO_BIG, _) => Some(word(message, 6)).filter(|mtu| *mtu >= LEAST_V6),
        _ => None,
    };
    if let Some(mtu) = told {
        server.path.learn_mtu(now, mtu.saturating_add(overhead(server) as u16));
    }
}

fn too_big(server: &Server, error: &TunnelError, mtu: u16) -> Refusal {
    let inside = mtu.saturating_sub(overhead(server) as u16);
    // RFC 2473 section 7.1: an IPv6 sender is never told less than what every link carries.
    let is_v4 = error.inner.is_some_and(|(inner, _)| inner.src.is_v4());
    Refusal::TooBig { mtu: if is_v4 { inside } else { inside.max(LEAST_V6) } }
}

/// The MTU that a router told, which may be none: then the next common one below the packet that did not fit.
fn told_v4(mtu: u16, packet: usize) -> Option<u16> {
    match mtu {
        0 => PLATEAUS.into_iter().find(|plateau| usize::from(*plateau) < packet),
        // RFC 1191 section 3: less than 68 is none.
        1..68 => None,
        mtu => Some(mtu.max(LEAST_V4)),
    }
}

fn overhead(server: &Server) -> usize {
    let source = server.source.unwrap_or(server.address);
    let encapsulation = server.encapsulation;
    Outer { src: source, dst: server.address, encapsulation, ttl: 0, id: 0, entropy: 0 }.overhead()
}

/// The two bytes at `at`, which must be there.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
