//! An independent reading of tunnelled packets: outer headers by etherparse, the datagram's sum one word at a time.

use std::net::IpAddr;

use etherparse::{IpSlice, UdpSlice};

use super::oracle;

/// What the outer headers say, and the packet in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub tos: u8,
    /// 4, 41, or what GUE says.
    pub protocol: u8,
    /// Of IPv4: identification and DF.
    pub id: Option<(u16, bool)>,
    /// Of GUE.
    pub ports: Option<(u16, u16)>,
    pub inner: Vec<u8>,
}

/// Decapsulates a whole packet; `None` when it is not tunnelled, or any length or sum is wrong. A sum is needed over IPv6
/// and in no other place.
pub fn decapsulate(packet: &[u8]) -> Option<Outside> {
    let ip = IpSlice::from_slice(packet).ok()?;
    let (ttl, tos, id, header, len) = match &ip {
        IpSlice::Ipv4(ip) => {
            let header = ip.header();
            if oracle::sum(header.slice()) != 0xffff || header.is_fragmenting_payload() {
                return None;
            }
            let tos = header.dcp().value() << 2 | header.ecn().value();
            let id = Some((header.identification(), header.dont_fragment()));
            (header.ttl(), tos, id, header.slice().len(), usize::from(header.total_len()))
        }
        IpSlice::Ipv6(ip) => {
            let header = ip.header();
            let len = 40 + usize::from(header.payload_length());
            (header.hop_limit(), header.traffic_class(), None, 40 + ip.extensions().slice().len(), len)
        }
    };
    let payload = packet.get(header..len)?;
    let (src, dst) = (ip.source_addr(), ip.destination_addr());
    let outside = |protocol, ports, inner: &[u8]| {
        let version = inner.first()? >> 4;
        let agrees = matches!((protocol, version), (4, 4) | (41, 6));
        agrees.then(|| Outside { src, dst, ttl, tos, protocol, id, ports, inner: inner.to_vec() })
    };
    match ip.payload_ip_number().0 {
        protocol @ (4 | 41) => outside(protocol, None, payload),
        17 => {
            let udp = UdpSlice::from_slice(payload).ok()?;
            let gue = udp.payload();
            let summed = udp.checksum() != 0;
            let right = oracle::checksums_are_right(packet) && (summed || packet[0] >> 4 == 4);
            if !right
                || usize::from(udp.length()) != payload.len()
                || gue.len() < 4
                || gue[0] != 0
                || gue[2..4] != [0; 2]
            {
                return None;
            }
            outside(gue[1], Some((udp.source_port(), udp.destination_port())), &gue[4..])
        }
        _ => None,
    }
}
