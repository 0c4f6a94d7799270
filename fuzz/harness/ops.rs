//! What may happen to an engine, as plain data.

use super::oracle;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// A client sends a packet to a VIP.
    Client(Shape),
    /// The server answers the packet that was forwarded last.
    Answer {
        flags: u8,
        seq: u8,
        len: u8,
    },
    /// An ICMP error comes about the packet that was forwarded last.
    Error {
        kind: u8,
        quoted: u8,
        from_router: bool,
        corrupt: bool,
    },
    /// A UDP datagram comes in fragments, one bit of `mask` each, in the order given by `order`.
    Fragments {
        shape: Shape,
        id: u8,
        order: u8,
        mask: u8,
    },
    /// The packet that came last comes again with one byte changed.
    Mangled {
        at: u8,
        value: u8,
    },
    Raw(Vec<u8>),
    /// Time passes: `mantissa` times 10 to the power of `exponent` (0 to 6) milliseconds.
    Wait {
        mantissa: u8,
        exponent: u8,
    },
    /// Another snapshot is put in force.
    Swap(u8),
    /// Flows are deleted: by protocol, source, server, state or all.
    Delete(u8),
    /// A server fails, comes up, is drained or not; a service loses its quorum or has it again.
    Health(u8),
    /// The flows of some servers are ended.
    Evacuate(u8),
}

/// A packet from a client. Every field is taken modulo what there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub v6: bool,
    pub client: u8,
    pub sport: u8,
    pub vip: u8,
    pub dport: u8,
    /// 0-5 TCP, 6-8 UDP, 9 echo, else some other protocol.
    pub protocol: u8,
    pub flags: u8,
    pub seq: u8,
    pub ack: u8,
    pub len: u8,
    pub ttl: u8,
    pub partial: bool,
}

impl Op {
    pub fn decode(bytes: &mut Bytes<'_>) -> Op {
        let kind = bytes.u8();
        match kind % 16 {
            _ if kind >= 0xfc => Op::Evacuate(bytes.u8()),
            _ if kind >= 0xf4 => Op::Health(bytes.u8()),
            0..=4 => Op::Client(Shape::decode(bytes)),
            5..=7 => Op::Answer { flags: bytes.u8(), seq: bytes.u8(), len: bytes.u8() },
            8 => {
                let (kind, quoted, how) = (bytes.u8(), bytes.u8(), bytes.u8());
                Op::Error { kind, quoted, from_router: how & 1 != 0, corrupt: how & 6 == 6 }
            }
            9 | 10 => {
                Op::Fragments { shape: Shape::decode(bytes), id: bytes.u8(), order: bytes.u8(), mask: bytes.u8() }
            }
            11 => Op::Mangled { at: bytes.u8(), value: bytes.u8() },
            12 => {
                let len = usize::from(bytes.u8());
                Op::Raw(bytes.take(len).to_vec())
            }
            13 => Op::Wait { mantissa: bytes.u8(), exponent: bytes.u8() },
            14 => Op::Swap(bytes.u8()),
            _ => Op::Delete(bytes.u8()),
        }
    }
}

impl Shape {
    fn decode(bytes: &mut Bytes<'_>) -> Shape {
        let (ends, ports, kind) = (bytes.u8(), bytes.u8(), bytes.u8());
        Shape {
            v6: ends & 1 != 0,
            client: ends >> 1 & 7,
            vip: ends >> 4,
            sport: ports & 7,
            dport: ports >> 3,
            protocol: kind & 15,
            partial: kind & 0x80 != 0,
            flags: bytes.u8(),
            seq: bytes.u8(),
            ack: bytes.u8(),
            len: bytes.u8(),
            // Mostly plenty.
            ttl: if kind & 0x70 == 0x70 { 1 } else { 64 },
        }
    }
}

/// Takes bytes off the front; zeros when there are none left.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A packet by hand, checksums complete. `src` and `dst` are 4 or 16 bytes each; `segment` has a blank checksum.
pub fn ip_packet(src: &[u8], dst: &[u8], protocol: u8, ttl: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = if src.len() == 4 {
        let total = (20 + segment.len()) as u16;
        let mut header = vec![0x45, 0, (total >> 8) as u8, total as u8, 0x12, 0x34, 0, 0, ttl, protocol, 0, 0];
        header.extend(src);
        header.extend(dst);
        header
    } else {
        let len = segment.len() as u16;
        let mut header = vec![0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, ttl];
        header.extend(src);
        header.extend(dst);
        header
    };
    packet.extend(segment);
    oracle::fix_checksums(&mut packet);
    packet
}

pub fn tcp_segment(sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, len: usize) -> Vec<u8> {
    // Every SYN carries an MSS option behind a NOP, at an odd place.
    let options: &[u8] = if flags & 2 != 0 { &[1, 2, 4, 0xff, 0xff, 0, 0, 0] } else { &[] };
    let mut segment = Vec::with_capacity(20 + options.len() + len);
    segment.extend(sport.to_be_bytes());
    segment.extend(dport.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend((0..len).map(|n| n as u8));
    segment
}

pub fn udp_segment(sport: u16, dport: u16, len: usize) -> Vec<u8> {
    let mut segment = Vec::with_capacity(8 + len);
    segment.extend(sport.to_be_bytes());
    segment.extend(dport.to_be_bytes());
    segment.extend(((8 + len) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend((0..len).map(|n| n as u8));
    segment
}

pub fn icmp_message(kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word);
    message.extend(rest);
    message
}

/// Cuts a packet without extension headers into fragments of `size` bytes of payload.
pub fn fragment(packet: &[u8], size: usize, id: u8) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let header = if v4 { 20 } else { 40 };
    let last = (packet.len() - header).div_ceil(size) - 1;
    let cut = |(number, piece): (usize, &[u8])| {
        let mut out = packet[..header].to_vec();
        let (offset, more) = ((number * size) as u16, u16::from(number != last));
        if v4 {
            out[2..4].copy_from_slice(&((header + piece.len()) as u16).to_be_bytes());
            out[4..6].copy_from_slice(&[0, id]);
            out[6..8].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut out[6], 44);
            out.extend([next, 0]);
            out.extend((offset | more).to_be_bytes());
            out.extend([0, 0, 0, id]);
        }
        out.extend(piece);
        oracle::fix_ip_checksum(&mut out);
        out
    };
    packet[header..].chunks(size).enumerate().map(cut).collect()
}
