//! What a TCP segment carries: other payload, other numbers, in place, with every length and checksum that covers them.

use std::ops::Range;

use super::checksum::{self, Delta};
use super::{MAX_PACKET, PacketBuf, Transport, View, VnetHdr, ipv4, ipv6, tcp};

const URGENT: usize = 18;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMPS: u8 = 8;

/// The bytes that the segment carries; empty for all that is no TCP. `view` must be of this packet.
pub fn payload<'a>(packet: &'a [u8], view: &View) -> &'a [u8] {
    match view.transport {
        Transport::Tcp(header) => packet.get(view.l4 + header.header_len..view.len).unwrap_or_default(),
        _ => &[],
    }
}

/// Whether the checksum of a whole segment is right, as far as can be told: a partial one is for the device to complete.
pub fn has_right_sum(buf: &PacketBuf, view: &View) -> bool {
    if buf.vnet.is_partial(view.l4) {
        return true;
    }
    let segment = &buf.packet()[view.l4..view.len];
    checksum::finish(checksum::pseudo_header(view.src, view.dst, view.protocol.0, segment.len()), segment) == 0
}

/// Replaces sequence and acknowledgement number. `buf` may hold a first fragment.
pub fn set_numbers(buf: &mut PacketBuf, view: &View, seq: u32, ack: u32) {
    let is_partial = buf.vnet.is_partial(view.l4);
    let segment = &mut buf.packet_mut()[view.l4..];
    set_long(segment, tcp::SEQ, seq, is_partial);
    set_long(segment, tcp::ACK_NUMBER, ack, is_partial);
}

/// Replaces the window field.
pub fn set_window(buf: &mut PacketBuf, view: &View, window: u16) {
    let is_partial = buf.vnet.is_partial(view.l4);
    set_word(&mut buf.packet_mut()[view.l4..], tcp::WINDOW, window, is_partial);
}

/// Lets the urgent pointer point `pointer` bytes behind the sequence number.
pub fn set_urgent(buf: &mut PacketBuf, view: &View, pointer: u16) {
    let is_partial = buf.vnet.is_partial(view.l4);
    set_word(&mut buf.packet_mut()[view.l4..], URGENT, pointer, is_partial);
}

/// The urgent pointer, if there is one.
pub fn urgent(packet: &[u8], view: &View) -> Option<u16> {
    let Transport::Tcp(header) = view.transport else { return None };
    let field = packet.get(view.l4 + URGENT..)?.first_chunk::<2>()?;
    header.has(tcp::URG).then(|| u16::from_be_bytes(*field))
}

/// Maps the edges of every block of the SACK option (RFC 2018 section 3), `left` first. A block of which nothing is left
/// takes the whole option with it: what a receiver says there is advice (RFC 2018 section 8).
pub fn map_sacks(buf: &mut PacketBuf, view: &View, map: impl Fn(u32, u32) -> (u32, u32)) {
    let Transport::Tcp(header) = view.transport else { return };
    let is_partial = buf.vnet.is_partial(view.l4);
    let segment = &mut buf.packet_mut()[view.l4..];
    let Some(option) = option(segment, header.header_len, OPTION_SACK) else { return };
    let blocks = (option.start + 2..option.end).step_by(8).filter(|block| block + 8 <= option.end);
    let mut mapped = blocks.map(|block| {
        let (left, right) = map(long(segment, block), long(segment, block + 4));
        (block, left, right)
    });
    let mut found = [(0, 0, 0); 4];
    let count = found.iter_mut().map_while(|place| mapped.next().map(|block| *place = block)).count();
    let found = &found[..count];
    if found.iter().any(|(_, left, right)| right.wrapping_sub(*left) as i32 <= 0) {
        option.for_each(|byte| set_byte(segment, byte, OPTION_NOP, is_partial));
        return;
    }
    for (block, left, right) in found {
        set_long(segment, *block, *left, is_partial);
        set_long(segment, block + 4, *right, is_partial);
    }
}

/// Maps the timestamps option (RFC 7323 section 3.2): its value, and what it echoes.
pub fn map_timestamps(buf: &mut PacketBuf, view: &View, map: impl Fn(u32, u32) -> (u32, u32)) {
    let Transport::Tcp(header) = view.transport else { return };
    let is_partial = buf.vnet.is_partial(view.l4);
    let segment = &mut buf.packet_mut()[view.l4..];
    let found = option(segment, header.header_len, OPTION_TIMESTAMPS);
    let Some(at) = found.filter(|option| option.len() == 10).map(|option| option.start) else { return };
    let (value, echo) = map(long(segment, at + 2), long(segment, at + 6));
    set_long(segment, at + 2, value, is_partial);
    set_long(segment, at + 6, echo, is_partial);
}

/// Where the first option of this kind stands, kind and length included.
fn option(segment: &[u8], header_len: usize, wanted: u8) -> Option<Range<usize>> {
    let options = segment.get(..header_len)?;
    let mut at = tcp::MIN_LEN;
    while at + 2 <= header_len {
        let (kind, len) = (options[at], usize::from(options[at + 1]));
        match kind {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            _ if len < 2 || at + len > header_len => return None,
            _ if kind == wanted => return Some(at..at + len),
            _ => at += len,
        }
    }
    None
}

/// Replaces a sequence or acknowledgement number (which stands at `at`) of a segment that an ICMP error quotes, as far as it is
/// there, and its checksum, if that is.
pub fn set_quoted(quoted: &mut [u8], at: usize, value: u32) {
    if quoted.len() >= at + 4 {
        let has_no_sum = quoted.len() < tcp::CHECKSUM + 2;
        set_long(quoted, at, value, has_no_sum);
    }
}

/// Clears flags of a whole segment.
pub fn clear_flags(buf: &mut PacketBuf, view: &View, flags: u8) {
    let is_partial = buf.vnet.is_partial(view.l4);
    let segment = &mut buf.packet_mut()[view.l4..];
    set_byte(segment, tcp::FLAGS, segment[tcp::FLAGS] & !flags, is_partial);
}

/// Lets the segment carry `payload`. Its checksum was right: see [`has_right_sum`]. `false`, and nothing has changed: the
/// packet would be longer than packets can be.
#[must_use]
pub fn set_payload(buf: &mut PacketBuf, view: &View, payload: &[u8]) -> bool {
    let Transport::Tcp(header) = view.transport else { return false };
    let at = view.l4 + header.header_len;
    let len = at + payload.len();
    if len > MAX_PACKET || at > buf.len() {
        return false;
    }
    buf.replace_from(at, payload);
    set_lengths(buf.packet_mut(), view.src.is_v4(), len);
    finish(buf, view);
    true
}

/// Cuts what goes beyond `len` bytes off the packet and returns it as a segment of its own, which comes behind it. `None`:
/// nothing does. The checksum must have been right.
pub fn split_off(buf: &mut PacketBuf, view: &View, len: usize) -> Option<PacketBuf> {
    let Transport::Tcp(header) = view.transport else { return None };
    let headers = view.l4 + header.header_len;
    let (first, rest) = (len.checked_sub(headers).filter(|first| *first > 0)?, buf.packet().get(len..)?.to_vec());
    if rest.is_empty() {
        return None;
    }
    let mut behind = PacketBuf::from_packet(&buf.packet()[..headers]);
    behind.hop = buf.hop;
    // A small packet is no super-packet, and of an only partial checksum nothing remains.
    behind.vnet = VnetHdr::default();
    behind.replace_from(headers, &rest);
    let seq = long(&buf.packet()[view.l4..], tcp::SEQ).wrapping_add(first as u32);
    behind.packet_mut()[view.l4 + tcp::SEQ..view.l4 + tcp::ACK_NUMBER].copy_from_slice(&seq.to_be_bytes());
    set_lengths(behind.packet_mut(), view.src.is_v4(), headers + rest.len());
    finish(&mut behind, view);

    buf.truncate(len);
    buf.packet_mut()[view.l4 + tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
    set_lengths(buf.packet_mut(), view.src.is_v4(), len);
    finish(buf, view);
    Some(behind)
}

fn set_lengths(packet: &mut [u8], is_v4: bool, len: usize) {
    if is_v4 {
        let old = word(packet, ipv4::TOTAL_LEN);
        packet[ipv4::TOTAL_LEN..ipv4::ID].copy_from_slice(&(len as u16).to_be_bytes());
        let sum = Delta::word(old, len as u16).patch_complete(word(packet, ipv4::CHECKSUM));
        packet[ipv4::CHECKSUM..ipv4::SRC].copy_from_slice(&sum.to_be_bytes());
    } else {
        let len = (len - ipv6::LEN) as u16;
        packet[ipv6::PAYLOAD_LEN..ipv6::NEXT_HEADER].copy_from_slice(&len.to_be_bytes());
    }
}

/// Makes the checksum anew, in its form, from the addresses that stand in the packet now.
fn finish(buf: &mut PacketBuf, view: &View) {
    let is_partial = buf.vnet.is_partial(view.l4);
    let packet = buf.packet_mut();
    // The family's addresses stand next to each other; the sum is the same whichever comes first.
    let addresses = if view.src.is_v4() { ipv4::SRC..ipv4::MIN_LEN } else { ipv6::SRC..ipv6::LEN };
    let addresses = checksum::sum(&packet[addresses]);
    let segment = &mut packet[view.l4..];
    let len = u32::try_from(segment.len()).unwrap_or(u32::MAX);
    let pseudo = checksum::fold(u32::from(addresses) + u32::from(view.protocol.0) + (len >> 16) + (len & 0xffff));
    segment[tcp::CHECKSUM..tcp::CHECKSUM + 2].fill(0);
    let sum = if is_partial { pseudo } else { checksum::finish(pseudo, segment) };
    segment[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn set_long(segment: &mut [u8], at: usize, value: u32, is_partial: bool) {
    for (byte, new) in value.to_be_bytes().into_iter().enumerate() {
        set_byte(segment, at + byte, new, is_partial);
    }
}

fn set_word(segment: &mut [u8], at: usize, value: u16, is_partial: bool) {
    for (byte, new) in value.to_be_bytes().into_iter().enumerate() {
        set_byte(segment, at + byte, new, is_partial);
    }
}

/// Byte by byte, for options may begin at an odd place. A partial checksum does not cover it yet.
fn set_byte(segment: &mut [u8], at: usize, new: u8, is_partial: bool) {
    let old = std::mem::replace(&mut segment[at], new);
    if is_partial || old == new {
        return;
    }
    let delta = match at.is_multiple_of(2) {
        true => Delta::word(u16::from(old) << 8, u16::from(new) << 8),
        false => Delta::word(u16::from(old), u16::from(new)),
    };
    let sum = delta.patch_complete(word(segment, tcp::CHECKSUM));
    segment[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}
