//! An independent reading of packets: structure by etherparse, sums one word at a time as RFC 1071 describes them.

use std::net::IpAddr;

use etherparse::{IpSlice, TcpSlice, UdpSlice};
use gatun::wire::{PacketBuf, VnetHdr};

/// What a packet says, by etherparse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub protocol: u8,
    /// Where the transport header starts.
    pub l4: usize,
    /// Length of the whole packet.
    pub len: usize,
    /// Identification, offset in bytes, more fragments; only when it is a fragment.
    pub fragment: Option<(u32, u16, bool)>,
    /// `None` in later fragments.
    pub ports: Option<(u16, u16)>,
    pub tcp: Option<Tcp>,
    /// What follows the transport header; after ICMP's 8 bytes.
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub header_len: usize,
    pub mss: Option<u16>,
}

/// Reads a packet; `None` when etherparse refuses it.
pub fn decode(packet: &[u8]) -> Option<Decoded> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let (ttl, protocol, l4, len, fragment) = match &ip {
        IpSlice::Ipv4(ip) => {
            let header = ip.header();
            let offset = header.fragments_offset().byte_offset();
            let fragment = (u32::from(header.identification()), offset, header.more_fragments());
            // An authentication header is payload here.
            (header.ttl(), header.protocol().0, header.slice().len(), usize::from(header.total_len()), fragment)
        }
        IpSlice::Ipv6(ip) => {
            let header = ip.header();
            let fragment = ip.extensions().clone().into_iter().find_map(|extension| match extension {
                etherparse::Ipv6ExtensionSlice::Fragment(f) => {
                    let f = f.to_header();
                    Some((f.identification, f.fragment_offset.byte_offset(), f.more_fragments))
                }
                _ => None,
            });
            let l4 = 40 + ip.extensions().slice().len();
            (
                header.hop_limit(),
                ip.payload().ip_number.0,
                l4,
                40 + usize::from(header.payload_length()),
                fragment.unwrap_or_default(),
            )
        }
    };
    let fragment = (fragment.1 != 0 || fragment.2).then_some(fragment);
    let later = fragment.is_some_and(|(_, offset, _)| offset != 0);
    // etherparse takes a payload length of 0 for one that is told elsewhere (RFC 2675).
    let segment = packet.get(l4..len)?;
    let mut decoded = Decoded {
        src: ip.source_addr(),
        dst: ip.destination_addr(),
        ttl,
        protocol,
        l4,
        len,
        fragment,
        ports: None,
        tcp: None,
        payload: segment.to_vec(),
    };
    match protocol {
        _ if later => {}
        6 => {
            let tcp = TcpSlice::from_slice(segment).ok()?;
            let bits = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack()];
            decoded.ports = Some((tcp.source_port(), tcp.destination_port()));
            decoded.payload = tcp.payload().to_vec();
            decoded.tcp = Some(Tcp {
                seq: tcp.sequence_number(),
                ack: tcp.acknowledgment_number(),
                flags: bits.iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum(),
                window: tcp.window_size(),
                header_len: usize::from(tcp.data_offset()) * 4,
                mss: tcp.options_iterator().find_map(|option| match option {
                    Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
                    _ => None,
                }),
            });
        }
        17 => {
            let udp = UdpSlice::from_slice_lax(segment).ok()?;
            decoded.ports = Some((udp.source_port(), udp.destination_port()));
            decoded.payload = segment[8..].to_vec();
        }
        1 | 58 => decoded.payload = segment.get(8..)?.to_vec(),
        _ => {}
    }
    Some(decoded)
}

/// The one's complement sum, one word at a time.
pub fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// The transport checksum of a whole packet.
#[derive(Clone, Copy, Debug)]
pub struct Checksum {
    /// Where its field stands in the packet.
    pub at: usize,
    pub l4: usize,
    pub found: u16,
    /// What it should be; never 0 for UDP.
    pub expected: u16,
    /// The sum of the pseudo header alone.
    pub pseudo: u16,
}

impl Checksum {
    /// `None` for protocols that have none we know of.
    pub fn of(packet: &[u8]) -> Option<Checksum> {
        let decoded = decode(packet)?;
        let l4 = decoded.l4;
        let at = match decoded.protocol {
            _ if decoded.fragment.is_some_and(|(_, offset, _)| offset != 0) => return None,
            6 => l4 + 16,
            17 => l4 + 6,
            1 | 58 => l4 + 2,
            _ => return None,
        };
        let mut pseudo = Vec::new();
        match (decoded.src, decoded.dst) {
            _ if decoded.protocol == 1 => {}
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                pseudo.extend(src.octets());
                pseudo.extend(dst.octets());
                pseudo.extend([0, decoded.protocol]);
                pseudo.extend(((decoded.len - l4) as u16).to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                pseudo.extend(src.octets());
                pseudo.extend(dst.octets());
                pseudo.extend(((decoded.len - l4) as u32).to_be_bytes());
                pseudo.extend([0, 0, 0, decoded.protocol]);
            }
            _ => return None,
        }
        let pseudo_sum = sum(&pseudo);
        let mut covered = pseudo;
        covered.extend_from_slice(&packet[l4..decoded.len]);
        let field = covered.len() - (decoded.len - l4) + (at - l4);
        covered[field..field + 2].fill(0);
        let expected = match !sum(&covered) {
            0 if decoded.protocol == 17 => 0xffff,
            expected => expected,
        };
        let found = u16::from_be_bytes([packet[at], packet[at + 1]]);
        Some(Checksum { at, l4, found, expected, pseudo: pseudo_sum })
    }

    /// How far the field is off, in one's complement; 0 when it is right.
    pub fn error(&self) -> u16 {
        let (difference, borrow) = self.found.overflowing_sub(self.expected);
        match difference - u16::from(borrow) {
            0xffff => 0,
            error => error,
        }
    }
}

/// Whether the IP header's checksum (IPv4) and the transport checksum are right. A UDP checksum that was left out is.
pub fn checksums_are_right(packet: &[u8]) -> bool {
    let Some(decoded) = decode(packet) else { return false };
    let ip = packet[0] >> 4 == 6 || sum(&packet[..decoded.l4]) == 0xffff;
    ip && Checksum::of(packet).is_none_or(|checksum| {
        // The kernel completes a TCP checksum of 0 as 0xFFFF, which is the same sum.
        (decoded.protocol == 17 && checksum.found == 0) || checksum.error() == 0
    })
}

/// Writes the IPv4 header checksum anew; leaves IPv6 alone.
pub fn fix_ip_checksum(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 15) * 4;
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..header]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Writes the transport checksum anew, and that of the IP header.
pub fn fix_checksums(packet: &mut [u8]) {
    fix_ip_checksum(packet);
    if let Some(checksum) = Checksum::of(packet) {
        packet[checksum.at..checksum.at + 2].copy_from_slice(&checksum.expected.to_be_bytes());
    }
}

/// The packet with only the pseudo header summed, and a virtio header that says so.
pub fn to_partial(packet: &[u8]) -> PacketBuf {
    let checksum = Checksum::of(packet).expect("a protocol with a checksum");
    let mut buf = PacketBuf::from_packet(packet);
    buf.packet_mut()[checksum.at..checksum.at + 2].copy_from_slice(&checksum.pseudo.to_be_bytes());
    buf.vnet = VnetHdr::partial(checksum.l4 as u16, (checksum.at - checksum.l4) as u16);
    buf
}

/// What the kernel makes of the packet: a partial checksum is completed, blindly, from what stands in the field.
pub fn complete(buf: &PacketBuf) -> Vec<u8> {
    let mut packet = buf.packet().to_vec();
    if buf.vnet.needs_csum() {
        let (start, at) = (usize::from(buf.vnet.csum_start), usize::from(buf.vnet.csum_start + buf.vnet.csum_offset));
        let checksum = match !sum(&packet[start..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// Puts fragments together again, in whatever order they come; `None` when one is missing.
pub fn reassemble(fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut pieces: Vec<(u16, bool, &[u8])> = Vec::new();
    for fragment in fragments {
        let d = decode_ip(fragment)?;
        let (_, offset, more) = d.1?;
        pieces.push((offset, more, &fragment[d.0..]));
    }
    pieces.sort_by_key(|piece| piece.0);
    let first =
        fragments.iter().find(|f| decode_ip(f).is_some_and(|d| d.1.is_some_and(|(_, offset, _)| offset == 0)))?;
    let mut payload = Vec::new();
    for (offset, _, piece) in &pieces {
        if usize::from(*offset) != payload.len() {
            return None;
        }
        payload.extend_from_slice(piece);
    }
    if pieces.last()?.1 {
        return None;
    }
    let mut packet = if first[0] >> 4 == 4 {
        let mut header = first[..usize::from(first[0] & 15) * 4].to_vec();
        let total = (header.len() + payload.len()) as u16;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].fill(0);
        header
    } else {
        let mut header = first[..40].to_vec();
        header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        header[6] = first[40];
        header
    };
    packet.extend(payload);
    fix_ip_checksum(&mut packet);
    Some(packet)
}

type FragmentInfo = Option<(u32, u16, bool)>;

/// Where the payload starts, and the fragment fields.
fn decode_ip(packet: &[u8]) -> Option<(usize, FragmentInfo)> {
    let d = decode_fragment(packet)?;
    Some((d.l4, d.fragment))
}

/// As [`decode`], but does not look into the transport header, which may be cut off.
fn decode_fragment(packet: &[u8]) -> Option<Decoded> {
    let mut plain = packet.to_vec();
    // A protocol that nobody parses; the place of the field is the same in every fragment that the suites make.
    if packet[0] >> 4 == 4 {
        plain[9] = 253;
    } else if packet[6] == 44 {
        plain[40] = 253;
    }
    decode(&plain)
}

/// As [`fix_ip_checksum`], for bytes that may be no packet at all.
pub fn fix_header_checksum_if_possible(bytes: &mut [u8]) {
    let header = bytes.first().map_or(0, |first| usize::from(first & 15) * 4);
    if (20..=bytes.len()).contains(&header) {
        fix_ip_checksum(bytes);
    }
}
