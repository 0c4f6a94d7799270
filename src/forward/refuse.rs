//! The answer to a packet that cannot be forwarded: a TCP RST, an ICMP or ICMPv6 error. Built in the packet's own buffer.
//!
//! Never an answer to a RST, an ICMP error, a later fragment, or a source that is no single host (RFC 1122 section 3.2.2,
//! RFC 4443 section 2.4); and no more a second than the rate limit lets through.

use super::compose::Segment;
use crate::time::Instant;
use crate::wire::tcp::Header;
use crate::wire::{
    Addr, Options, PacketBuf, Protocol, Transport, Tuple, View, VnetHdr, checksum, icmp, ipv4, ipv6, tcp,
};

/// Bytes of the ICMP error at most, IP header included (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// The same for ICMPv6: the minimum MTU (RFC 4443 section 2.4 c).
const MAX_V6: usize = 1280;
/// Internetwork control, as Linux marks its ICMP errors.
const TOS: u8 = 0xc0;

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A RST for TCP, port unreachable for anything else.
    Closed,
    /// A port unreachable, for TCP as well.
    PortUnreachable,
    /// It is not allowed to go on: communication administratively prohibited.
    Prohibited,
    /// The TTL or hop limit ended here.
    TimeExceeded,
    /// The server cannot be reached.
    HostUnreachable,
    /// No more than `mtu` bytes go through, 68 to 65535.
    TooBig { mtu: u16 },
    /// The byte of the IP header at `pointer`, below 40, begins something that cannot be.
    ParameterProblem { pointer: u8 },
}

/// Whether there is an answer to such a packet at all.
pub fn is_answerable(view: &View, refusal: Refusal) -> bool {
    if view.fragment.is_some_and(|f| f.offset != 0) || view.src.is_martian_source() {
        return false;
    }
    match view.transport {
        Transport::Icmp(icmp::Kind::Error | icmp::Kind::Other) | Transport::Later => false,
        Transport::Tcp(tcp) => refusal != Refusal::Closed || !tcp.has(tcp::RST),
        _ => true,
    }
}

/// Replaces the packet by the refusal, from `from` to the packet's source; only where it [`is_answerable`]. `false`: the
/// buffer has no room for it.
#[must_use]
pub fn refuse(buf: &mut PacketBuf, view: &View, refusal: Refusal, from: Addr) -> bool {
    if let (Refusal::Closed, Transport::Tcp(tcp)) = (refusal, view.transport) {
        return reset(buf, view, &tcp, from);
    }
    let message = match (refusal, view.src.is_v4()) {
        // The pointer is the first byte of the field that it stands in, or in ICMPv6 the whole.
        (Refusal::ParameterProblem { pointer }, true) => (icmp::V4_PARAMETER_PROBLEM, 0, u32::from(pointer) << 24),
        (Refusal::ParameterProblem { pointer }, false) => (icmp::V6_PARAMETER_PROBLEM, 0, u32::from(pointer)),
        (Refusal::Closed | Refusal::PortUnreachable, true) => (icmp::V4_UNREACHABLE, icmp::V4_PORT_UNREACHABLE, 0),
        (Refusal::Closed | Refusal::PortUnreachable, false) => (icmp::V6_UNREACHABLE, icmp::V6_PORT_UNREACHABLE, 0),
        (Refusal::Prohibited, true) => (icmp::V4_UNREACHABLE, icmp::V4_PROHIBITED, 0),
        (Refusal::Prohibited, false) => (icmp::V6_UNREACHABLE, icmp::V6_PROHIBITED, 0),
        (Refusal::TimeExceeded, true) => (icmp::V4_TIME_EXCEEDED, 0, 0),
        (Refusal::TimeExceeded, false) => (icmp::V6_TIME_EXCEEDED, 0, 0),
        (Refusal::HostUnreachable, true) => (icmp::V4_UNREACHABLE, icmp::V4_HOST_UNREACHABLE, 0),
        (Refusal::HostUnreachable, false) => (icmp::V6_UNREACHABLE, icmp::V6_ADDRESS_UNREACHABLE, 0),
        (Refusal::TooBig { mtu }, true) => (icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED, mtu.into()),
        (Refusal::TooBig { mtu }, false) => (icmp::V6_PACKET_TOO_BIG, 0, mtu.into()),
    };
    error(buf, view, message, from)
}

/// A RST that the sender of `tcp` accepts (RFC 9293 section 3.10.7.1).
fn reset(buf: &mut PacketBuf, view: &View, tcp: &tcp::Header, from: Addr) -> bool {
    let Header { sport, dport, .. } = *tcp;
    let tuple = Tuple { src: from, dst: view.src, sport: dport, dport: sport, protocol: Protocol::TCP };
    // The answer is never longer than what it answers: both IP headers are minimal, the segment is too.
    match tcp.has(tcp::ACK) {
        true => put_reset(buf, &tuple, tcp.ack, None),
        false => put_reset(buf, &tuple, 0, Some(tcp.seq_end())),
    }
}

/// Puts a RST where the packet in the buffer was. `false`: there is no room.
pub(super) fn put_reset(buf: &mut PacketBuf, tuple: &Tuple, seq: u32, ack: Option<u32>) -> bool {
    Segment { tuple, seq, ack, flags: tcp::RST, window: 0, options: Options::default() }.replace(buf)
}

/// An ICMP or ICMPv6 error that quotes as much of the packet as fits.
/// `word` is the second one of the header; an MTU stands in its last two bytes (RFC 1191 section 4, RFC 4443 section 3.2).
fn error(buf: &mut PacketBuf, view: &View, (kind, code, word): (u8, u8, u32), from: Addr) -> bool {
    let (protocol, limit) = match view.src.is_v4() {
        true => (Protocol::ICMP, MAX_V4 - ipv4::MIN_LEN - icmp::LEN),
        false => (Protocol::ICMPV6, MAX_V6 - ipv6::LEN - icmp::LEN),
    };
    buf.truncate(limit);
    buf.vnet = VnetHdr::default();
    let Some(header) = buf.prepend(icmp::LEN) else { return false };
    header.fill(0);
    (header[0], header[1]) = (kind, code);
    header[4..].copy_from_slice(&word.to_be_bytes());
    let len = buf.len();
    let begun = match protocol {
        Protocol::ICMP => 0,
        _ => checksum::pseudo_header(from, view.src, protocol.0, len),
    };
    let sum = checksum::finish(begun, buf.packet());
    buf.packet_mut()[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    prepend_ip(buf, from, view.src, protocol, TOS)
}

pub(super) fn prepend_ip(buf: &mut PacketBuf, src: Addr, dst: Addr, protocol: Protocol, tos: u8) -> bool {
    let payload = buf.len();
    if src.is_v4() {
        let room = buf.prepend(ipv4::MIN_LEN).and_then(|room| room.first_chunk_mut());
        room.map(|room| ipv4::emit(room, src, dst, protocol, tos, payload)).is_some()
    } else {
        let room = buf.prepend(ipv6::LEN).and_then(|room| room.first_chunk_mut());
        room.map(|room| ipv6::emit(room, src, dst, protocol, payload)).is_some()
    }
}

/// A token bucket: so many a second, and as many at once.
#[derive(Clone, Debug)]
pub struct RateLimit {
    tokens: u64,
    filled: Instant,
}

impl RateLimit {
    pub fn new(per_second: u32) -> RateLimit {
        RateLimit { tokens: u64::from(per_second), filled: Instant::ZERO }
    }

    /// Whether one more may go at `now`.
    pub fn allows(&mut self, now: Instant, per_second: u32) -> bool {
        let rate = u64::from(per_second);
        if rate == 0 {
            return false;
        }
        let earned = (now - self.filled).as_micros().min(1_000_000) as u64 * rate / 1_000_000;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(rate);
            self.filled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}
