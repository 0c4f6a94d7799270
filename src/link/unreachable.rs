//! "Host unreachable", for a packet whose neighbour does not answer (RFC 1122 section 2.3.2.2, RFC 4861 section 7.2.2).
//!
//! The error quotes the packet as it was to leave, and is addressed to its source, as if a router on the segment had
//! refused it. It is the engine that knows whom the packet came from before it was translated: the error goes there, and
//! on like any other.

use crate::time::Instant;
use crate::wire::{Addr, PacketBuf, Protocol, Transport, View, checksum, icmp, ipv4, ipv6};

/// Code of both families' "destination unreachable": host unreachable (RFC 792), address unreachable (RFC 4443).
const V4_HOST: u8 = 1;
const V6_ADDRESS: u8 = 3;
/// Bytes of the error at most (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c).
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;
/// Errors a second, and as many at once: what Linux allows a host (`net.ipv4.icmp_msgs_per_sec`).
const PER_SECOND: u64 = 1000;

/// The error about `packet`, from `from`; `None` for what gets none (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).
pub fn error(packet: &[u8], from: Addr) -> Option<PacketBuf> {
    let view = View::parse(packet).ok()?;
    let unfit = matches!(view.transport, Transport::Later | Transport::Icmp(icmp::Kind::Error | icmp::Kind::Other));
    if unfit || view.src.is_martian_source() || from.is_v4() != view.src.is_v4() {
        return None;
    }
    let (v4, header) = if from.is_v4() { (true, ipv4::MIN_LEN) } else { (false, ipv6::LEN) };
    let room = if v4 { MAX_V4 } else { MAX_V6 } - header - icmp::LEN;
    let quoted = &packet[..view.len.min(room)];
    let mut error = vec![0; header + icmp::LEN];
    error.extend_from_slice(quoted);
    let (ip, message) = error.split_at_mut(header);
    (message[0], message[1]) = if v4 { (icmp::V4_UNREACHABLE, V4_HOST) } else { (icmp::V6_UNREACHABLE, V6_ADDRESS) };
    let begun = match v4 {
        true => 0,
        false => checksum::pseudo_header(from, view.src, Protocol::ICMPV6.0, message.len()),
    };
    let sum = checksum::finish(begun, message);
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    match v4 {
        true => ipv4::emit(ip.first_chunk_mut()?, from, view.src, Protocol::ICMP, 0xc0, message.len()),
        false => ipv6::emit(ip.first_chunk_mut()?, from, view.src, Protocol::ICMPV6, message.len()),
    }
    Some(PacketBuf::from_packet(&error))
}

/// How many errors may still be sent.
#[derive(Debug)]
pub struct Allowance {
    left: u64,
    filled: Instant,
}

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance { left: PER_SECOND, filled: Instant::ZERO }
    }
}

impl Allowance {
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = now.since(self.filled).as_micros().min(1_000_000) as u64 * PER_SECOND / 1_000_000;
        if earned > 0 {
            self.left = (self.left + earned).min(PER_SECOND);
            self.filled = now;
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}
