//! Consecutive TCP segments of a flow put together into one super-packet, as a network card or the kernel's GRO does it
//! (`net/ipv4/tcp_offload.c`, `tcp_gro_receive`): the stack behind then handles one packet instead of forty.
//!
//! What is put together can be cut again into the same packets (RFC 9293 leaves no room for more: an end must not notice).
//! So segments are joined only when each header field is what a cutter would write: the same addresses, ports,
//! acknowledgement, window, flags and options, TOS and TTL; numbers that go on without a gap; equal sizes but for the
//! last; PSH on the last only. The identification of IPv4 counts up by one, or does not matter since DF is set
//! (RFC 6864 section 4).
//!
//! A super-packet gets a fresh checksum from whoever sums it, so a segment whose own is wrong must never become a part of
//! one: a complete checksum is verified first, and a packet that fails stays alone, wrong as it came. A partial one
//! (`NEEDS_CSUM`) has nothing to verify.

use super::checksum::{self, pseudo_header};
use super::view::{Transport, View};
use super::{Addr, MAX_PACKET, PacketBuf, Protocol, VnetHdr, ipv4, ipv6, tcp};

/// A super-packet being put together.
struct Train {
    /// Its first packet's place in the batch; the others are appended to it.
    at: usize,
    flow: Flow,
    /// The sequence number that the next segment must have.
    next: u32,
    /// Payload of every segment but the last.
    size: usize,
    segments: u16,
    /// Nothing follows a short segment or one with PSH.
    closed: bool,
    /// The last segment has PSH.
    psh: bool,
    l4: usize,
    /// Where the first packet's payload starts.
    payload: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Flow {
    src: Addr,
    dst: Addr,
    ports: (u16, u16),
}

/// A segment that can be joined.
struct Segment {
    flow: Flow,
    seq: u32,
    l4: usize,
    /// Where the payload starts.
    payload: usize,
    len: usize,
    psh: bool,
}

/// Joins what can be joined. A packet that became part of an earlier one is left empty; the others are to be sent in their
/// order, which is the order in which each flow's packets came. Buffers have to have room for [`MAX_PACKET`] bytes.
pub fn coalesce(batch: &mut [PacketBuf]) {
    // One batch is bounded, and so is this list.
    let mut trains: Vec<Train> = Vec::new();
    for at in 0..batch.len() {
        let (before, rest) = batch.split_at_mut(at);
        let buf = &mut rest[0];
        let Ok(view) = View::parse(buf.packet()) else { continue };
        let Transport::Tcp(header) = view.transport else { continue };
        let flow = Flow { src: view.src, dst: view.dst, ports: (header.sport, header.dport) };
        let open = trains.iter().position(|train| train.flow == flow);
        let segment = segment(buf, &view, &header, flow);
        match (open, segment) {
            (Some(train), Some(segment)) => {
                let train = &mut trains[train];
                if train.join(&mut before[train.at], buf, &segment) {
                    buf.truncate(0);
                } else {
                    train.finish(&mut before[train.at]);
                    *train = Train::new(at, &segment);
                }
            }
            (None, Some(segment)) => trains.push(Train::new(at, &segment)),
            // What cannot be joined must not be overtaken by what follows it.
            (Some(train), None) => {
                let train = trains.swap_remove(train);
                train.finish(&mut before[train.at]);
            }
            (None, None) => {}
        }
    }
    for train in trains {
        train.finish(&mut batch[train.at]);
    }
}

/// `None` for what has to stay alone.
fn segment(buf: &PacketBuf, view: &View, header: &tcp::Header, flow: Flow) -> Option<Segment> {
    let packet = buf.packet();
    let plain = if view.src.is_v4() { ipv4::MIN_LEN } else { ipv6::LEN };
    let payload = view.l4 + header.header_len;
    let fits = view.fragment.is_none() && view.l4 == plain && view.len == packet.len() && payload < view.len;
    // Of the flags only ACK, with or without PSH: everything else is rare, or means something at its own place.
    let ordinary = header.flags & !tcp::PSH == tcp::ACK && packet[view.l4 + URGENT..view.l4 + URGENT + 2] == [0, 0];
    if !fits || !ordinary || buf.vnet.is_gso() || !checksum_is_known(buf, view) {
        return None;
    }
    let (seq, len, psh) = (header.seq, view.len - payload, header.has(tcp::PSH));
    Some(Segment { flow, seq, l4: view.l4, payload, len, psh })
}

const URGENT: usize = 18;
const FLAGS: usize = 13;

fn checksum_is_known(buf: &PacketBuf, view: &View) -> bool {
    let segment = &buf.packet()[view.l4..view.len];
    if buf.vnet.needs_csum() {
        return buf.vnet.is_partial(view.l4) && usize::from(buf.vnet.csum_offset) == tcp::CHECKSUM;
    }
    let pseudo = pseudo_header(view.src, view.dst, Protocol::TCP.0, segment.len());
    checksum::finish(pseudo, segment) == 0
}

impl Train {
    fn new(at: usize, segment: &Segment) -> Train {
        Train {
            at,
            flow: segment.flow,
            next: segment.seq.wrapping_add(segment.len as u32),
            size: segment.len,
            segments: 1,
            closed: segment.psh,
            psh: segment.psh,
            l4: segment.l4,
            payload: segment.payload,
        }
    }

    /// Appends the segment in `buf` to `first`, if it is what comes next.
    fn join(&mut self, first: &mut PacketBuf, buf: &PacketBuf, segment: &Segment) -> bool {
        let goes_on = !self.closed && segment.seq == self.next && segment.len <= self.size;
        if !goes_on
            || first.len() + segment.len > MAX_PACKET
            || !same_headers(first.packet(), buf.packet(), segment, self.segments)
            || !first.append(&buf.packet()[segment.payload..])
        {
            return false;
        }
        self.next = self.next.wrapping_add(segment.len as u32);
        self.segments += 1;
        self.closed = segment.psh || segment.len < self.size;
        self.psh = segment.psh;
        true
    }

    /// Lengths, checksums and offloads of the super-packet, when there is one.
    fn finish(&self, first: &mut PacketBuf) {
        if self.segments == 1 {
            return;
        }
        let packet = first.packet_mut();
        let (len, l4) = (packet.len(), self.l4);
        let v4 = l4 == ipv4::MIN_LEN;
        if v4 {
            packet[ipv4::TOTAL_LEN..ipv4::TOTAL_LEN + 2].copy_from_slice(&(len as u16).to_be_bytes());
            packet[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].fill(0);
            let sum = checksum::finish(0, &packet[..l4]);
            packet[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((len - ipv6::LEN) as u16).to_be_bytes());
        }
        if self.psh {
            packet[l4 + FLAGS] |= tcp::PSH;
        }
        let pseudo = pseudo_header(self.flow.src, self.flow.dst, Protocol::TCP.0, len - l4);
        packet[l4 + tcp::CHECKSUM..l4 + tcp::CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
        first.vnet = VnetHdr {
            gso_type: if v4 { VnetHdr::GSO_TCPV4 } else { VnetHdr::GSO_TCPV6 },
            hdr_len: self.payload as u16,
            gso_size: self.size as u16,
            ..VnetHdr::partial(l4 as u16, tcp::CHECKSUM as u16)
        };
    }
}

/// Whether a cutter would write the headers of `next` for the segment number `number` (from 0) of `first`.
fn same_headers(first: &[u8], next: &[u8], segment: &Segment, number: u16) -> bool {
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (l4, payload) = (segment.l4, segment.payload);
    let network = if l4 == ipv4::MIN_LEN {
        // DF, and no other bit.
        let atomic = first[6] == 0x40;
        let id = word(first, ipv4::ID).wrapping_add(number) == word(next, ipv4::ID);
        first[..2] == next[..2] && first[6..10] == next[6..10] && (atomic || id)
    } else {
        first[..4] == next[..4] && first[6..8] == next[6..8]
    };
    // The flags of the first are ACK alone, or it would have been closed.
    let flags = first[l4 + FLAGS] == next[l4 + FLAGS] & !tcp::PSH;
    network
        && flags
        && first[l4 + 8..l4 + FLAGS] == next[l4 + 8..l4 + FLAGS]
        && first[l4 + FLAGS + 1..l4 + tcp::CHECKSUM] == next[l4 + FLAGS + 1..l4 + tcp::CHECKSUM]
        && first[l4 + tcp::MIN_LEN..payload] == next[l4 + tcp::MIN_LEN..payload]
}
