//! Packets as etherparse builds them, so that nothing of the code under test has a hand in what it is fed.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, TcpHeader,
};
use gatun::wire::{PacketBuf, VnetHdr, vnet};

use super::oracle;

/// A packet to be built: set what matters, then call [`Build::bytes`] or one of its relatives.
#[derive(Clone, Debug)]
pub struct Build {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    /// Raw IPv4 options; a multiple of 4 bytes.
    pub ip_options: Vec<u8>,
    pub extensions: Vec<Extension>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// With so many 8-byte units of options beyond the first.
    HopByHop(u8),
    Destination(u8),
    Routing(u8),
    /// A fragment header of a packet that is whole (RFC 6946).
    AtomicFragment,
    /// With so many 4-byte units of integrity check value.
    Authentication(u8),
}

#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        options: Vec<u8>,
    },
    Udp {
        checksum: bool,
    },
    /// Type, code and the second word of the header.
    Icmp(u8, u8, [u8; 4]),
    Other(u8),
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// The MSS option.
pub fn mss(value: u16) -> [u8; 4] {
    [2, 4, (value >> 8) as u8, value as u8]
}

/// A TCP segment; `src` and `dst` as in `198.51.100.2:40000` or `[2001:db8::1]:80`.
pub fn tcp(src: impl End, dst: impl End) -> Build {
    build(src, dst, Transport::Tcp { seq: 1000, ack: 0, flags: 0, window: 65535, options: Vec::new() })
}

pub fn udp(src: impl End, dst: impl End) -> Build {
    build(src, dst, Transport::Udp { checksum: true })
}

/// An echo request; the sources' ports are of no account.
pub fn echo(src: impl End, dst: impl End, id: u16, sequence: u16) -> Build {
    let (src, dst) = (src.end(), dst.end());
    let kind = if src.is_ipv4() { 8 } else { 128 };
    let word = [(id >> 8) as u8, id as u8, (sequence >> 8) as u8, sequence as u8];
    build(src, dst, Transport::Icmp(kind, 0, word)).payload(b"abcdefgh")
}

/// An ICMP error that quotes `quoted`; types as in IPv4, turned into those of ICMPv6 by family.
pub fn icmp_error(src: impl End, dst: impl End, error: IcmpError, quoted: &[u8]) -> Build {
    let (src, dst) = (src.end(), dst.end());
    let (kind, code, word) = error.header(src.is_ipv4());
    build(src, dst, Transport::Icmp(kind, code, word)).payload(quoted)
}

#[derive(Clone, Copy, Debug)]
pub enum IcmpError {
    PortUnreachable,
    TimeExceeded,
    /// With the MTU of the next hop.
    TooBig(u16),
    Raw(u8, u8, [u8; 4]),
}

impl IcmpError {
    pub fn header(self, v4: bool) -> (u8, u8, [u8; 4]) {
        match (self, v4) {
            (IcmpError::PortUnreachable, true) => (3, 3, [0; 4]),
            (IcmpError::PortUnreachable, false) => (1, 4, [0; 4]),
            (IcmpError::TimeExceeded, true) => (11, 0, [0; 4]),
            (IcmpError::TimeExceeded, false) => (3, 0, [0; 4]),
            (IcmpError::TooBig(mtu), true) => (3, 4, [0, 0, (mtu >> 8) as u8, mtu as u8]),
            (IcmpError::TooBig(mtu), false) => (2, 0, [0, 0, (mtu >> 8) as u8, mtu as u8]),
            (IcmpError::Raw(kind, code, word), _) => (kind, code, word),
        }
    }
}

fn build(src: impl End, dst: impl End, transport: Transport) -> Build {
    Build {
        src: src.end(),
        dst: dst.end(),
        ttl: 64,
        tos: 0,
        id: 0x1234,
        dont_fragment: false,
        ip_options: Vec::new(),
        extensions: Vec::new(),
        transport,
        payload: Vec::new(),
    }
}

impl Build {
    pub fn flags(mut self, set: u8) -> Build {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = set;
        }
        self
    }

    pub fn syn(self) -> Build {
        self.flags(SYN)
    }

    pub fn seq(mut self, sequence: u32, acknowledgement: u32) -> Build {
        if let Transport::Tcp { seq, ack, .. } = &mut self.transport {
            (*seq, *ack) = (sequence, acknowledgement);
        }
        self
    }

    pub fn tcp_options(mut self, set: &[u8]) -> Build {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = set.to_vec();
        }
        self
    }

    pub fn without_checksum(mut self) -> Build {
        self.transport = Transport::Udp { checksum: false };
        self
    }

    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Build {
        self.payload = payload.as_ref().to_vec();
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Build {
        self.ttl = ttl;
        self
    }

    pub fn id(mut self, id: u16) -> Build {
        self.id = id;
        self
    }

    pub fn ip_options(mut self, options: &[u8]) -> Build {
        self.ip_options = options.to_vec();
        self
    }

    pub fn extensions(mut self, extensions: &[Extension]) -> Build {
        self.extensions = extensions.to_vec();
        self
    }

    /// What the other end sends back: ends swapped.
    pub fn reversed(&self) -> Build {
        Build { src: self.dst, dst: self.src, ..self.clone() }
    }

    pub fn with_src(&self, src: impl End) -> Build {
        Build { src: src.end(), ..self.clone() }
    }

    pub fn with_dst(&self, dst: impl End) -> Build {
        Build { dst: dst.end(), ..self.clone() }
    }

    /// The packet, its checksums complete.
    pub fn bytes(&self) -> Vec<u8> {
        let start = PacketBuilder::ip(self.ip());
        let mut bytes = Vec::new();
        let written = match &self.transport {
            Transport::Tcp { seq, ack, flags, window, options } => {
                let mut header = TcpHeader::new(self.src.port(), self.dst.port(), *seq, *window);
                header.acknowledgment_number = *ack;
                header.fin = flags & FIN != 0;
                header.syn = flags & SYN != 0;
                header.rst = flags & RST != 0;
                header.psh = flags & PSH != 0;
                header.ack = flags & ACK != 0;
                header.set_options_raw(options).expect("at most 40 bytes of options");
                start.tcp_header(header).write(&mut bytes, &self.payload)
            }
            Transport::Udp { .. } => start.udp(self.src.port(), self.dst.port()).write(&mut bytes, &self.payload),
            Transport::Icmp(kind, code, word) if self.src.is_ipv4() => {
                start.icmpv4_raw(*kind, *code, *word).write(&mut bytes, &self.payload)
            }
            Transport::Icmp(kind, code, word) => start.icmpv6_raw(*kind, *code, *word).write(&mut bytes, &self.payload),
            Transport::Other(protocol) => {
                start.write(&mut bytes, IpNumber(*protocol), &self.payload).expect("etherparse accepts it");
                return bytes;
            }
        };
        written.expect("etherparse accepts it");
        if let Transport::Udp { checksum: false } = self.transport {
            let at = oracle::Checksum::of(&bytes).expect("UDP has one").at;
            bytes[at..at + 2].fill(0);
        }
        bytes
    }

    pub fn buf(&self) -> PacketBuf {
        PacketBuf::from_packet(&self.bytes())
    }

    /// As a device hands over what the kernel has not summed yet.
    pub fn partial(&self) -> PacketBuf {
        oracle::to_partial(&self.bytes())
    }

    /// As a device hands over a super-packet that is to be cut into segments of `size` bytes of payload.
    pub fn super_packet(&self, size: u16) -> PacketBuf {
        let mut buf = self.partial();
        buf.vnet.gso_type = match (&self.transport, self.src.is_ipv4()) {
            (Transport::Udp { .. }, _) => VnetHdr::GSO_UDP_L4,
            (_, true) => VnetHdr::GSO_TCPV4,
            (_, false) => VnetHdr::GSO_TCPV6,
        };
        buf.vnet.gso_size = size;
        buf.vnet.hdr_len = (buf.len() - self.payload.len()) as u16;
        assert!(buf.vnet.is_gso() && vnet::VNET_HDR_LEN == 10);
        buf
    }

    /// The packet cut into fragments with `size` bytes of payload each (a multiple of 8), the last one with the rest.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        fragment(&self.bytes(), size, u32::from(self.id))
    }

    fn ip(&self) -> IpHeaders {
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut header = Ipv4Header::new(0, self.ttl, IpNumber(0), src.octets(), dst.octets()).expect("short");
                header.identification = self.id;
                header.dont_fragment = self.dont_fragment;
                header.options =
                    Ipv4Options::try_from(self.ip_options.as_slice()).expect("a multiple of 4, at most 40");
                header.dscp = (self.tos >> 2).try_into().expect("6 bits");
                IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, self.extension_headers())
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        }
    }

    fn extension_headers(&self) -> Ipv6Extensions {
        let raw = |units: u8, fill: u8| {
            let mut payload = vec![fill; 6 + usize::from(units) * 8];
            // In a routing header this is the number of segments left.
            payload[1] = 0;
            Ipv6RawExtHeader::new_raw(IpNumber(0), &payload).expect("8n + 6 bytes")
        };
        let mut headers = Ipv6Extensions::default();
        for extension in &self.extensions {
            match *extension {
                Extension::HopByHop(units) => headers.hop_by_hop_options = Some(raw(units, 0)),
                Extension::Destination(units) => headers.destination_options = Some(raw(units, 0)),
                Extension::Routing(units) => {
                    headers.routing =
                        Some(Ipv6RoutingExtensions { routing: raw(units, 4), final_destination_options: None });
                }
                Extension::AtomicFragment => {
                    let offset = IpFragOffset::try_new(0).expect("in range");
                    headers.fragment = Some(etherparse::Ipv6FragmentHeader::new(IpNumber(0), offset, false, 77));
                }
                Extension::Authentication(units) => {
                    let icv = vec![0xab; usize::from(units) * 4];
                    headers.auth = Some(IpAuthHeader::new(IpNumber(0), 1, 2, &icv).expect("a multiple of 4"));
                }
            }
        }
        headers
    }
}

/// Cuts a packet without extension headers into fragments.
pub fn fragment(packet: &[u8], size: usize, id: u32) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0, "only the last fragment may have an odd length");
    let header = if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 };
    let pieces: Vec<&[u8]> = packet[header..].chunks(size).collect();
    let last = pieces.len() - 1;
    let one = |(number, piece): (usize, &&[u8])| {
        let mut bytes = packet[..header].to_vec();
        let field = (number * size) as u16;
        if packet[0] >> 4 == 6 {
            let next = std::mem::replace(&mut bytes[6], 44);
            bytes[4..6].copy_from_slice(&((piece.len() + 8) as u16).to_be_bytes());
            bytes.extend([next, 0]);
            bytes.extend((field | u16::from(number != last)).to_be_bytes());
            bytes.extend(id.to_be_bytes());
        } else {
            let field = (field / 8) | (u16::from(number != last) << 13);
            bytes[2..4].copy_from_slice(&((header + piece.len()) as u16).to_be_bytes());
            bytes[6..8].copy_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(piece);
        oracle::fix_ip_checksum(&mut bytes);
        bytes
    };
    pieces.iter().enumerate().map(one).collect()
}

/// An end of a packet, however it is written. A bare address has port 0.
pub trait End {
    fn end(self) -> SocketAddr;
}

impl End for SocketAddr {
    fn end(self) -> SocketAddr {
        self
    }
}

impl End for (IpAddr, u16) {
    fn end(self) -> SocketAddr {
        self.into()
    }
}

impl End for &str {
    fn end(self) -> SocketAddr {
        self.parse().or_else(|_| self.parse().map(|ip: IpAddr| SocketAddr::new(ip, 0))).expect(self)
    }
}
