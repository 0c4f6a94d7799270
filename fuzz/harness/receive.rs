//! A batch of any packets as a real server receives it: what is taken is a packet for a VIP, nothing else is; and what is
//! put together can be cut again into the packets that came, with the checksums that they had.
//!
//! The first byte says what the server allows and how the rest is to be read: packets, each behind two bytes with its
//! length, as they come from the network or as they are inside the tunnel.

use std::collections::BTreeMap;

use gatun::forward::receive::{RealServer, Received};
use gatun::wire::coalesce::coalesce;
use gatun::wire::{Addr, PacketBuf, Transport, View, VnetHdr};

use super::oracle;

const ALLOW_IPIP: u8 = 1;
const INSIDE: u8 = 2;
const FIX: u8 = 4;
const PARTIAL: u8 = 8;
/// As many as one call receives.
const BATCH: usize = 32;
/// Room for a super-packet of all of them.
const CAPACITY: usize = 16_384;

pub const GATEWAYS: [[u8; 4]; 1] = [[10, 20, 0, 1]];
pub const VIP: [u8; 4] = [203, 0, 113, 10];

pub fn server(ipip: bool) -> RealServer {
    let v6 = |last: u8| {
        let mut octets = [0; 16];
        (octets[0], octets[1], octets[15]) = (0x20, 0x01, last);
        Addr::from_v6(octets)
    };
    RealServer {
        vips: vec![Addr::from_v4(VIP), v6(0x10)],
        gateways: vec![Addr::from_v4(GATEWAYS[0]), v6(1)],
        ipip,
        gue_ports: vec![6080],
    }
}

pub fn run(bytes: &[u8]) {
    let Some((&how, mut rest)) = bytes.split_first() else { return };
    let server = server(how & ALLOW_IPIP != 0);
    let mut received = Received::default();
    let mut batch = Vec::new();
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(more.len()).min(2048);
        let (packet, left) = more.split_at(len);
        rest = left;
        let mut packet = packet.to_vec();
        oracle::fix_header_checksum_if_possible(&mut packet);
        if how & INSIDE != 0 {
            packet = wrapped(prepared(packet, how));
        }
        let mut buf = roomy(&packet);
        if server.handle(&mut buf, &mut received).is_ok() {
            let view = View::parse(buf.packet()).expect("it was parsed");
            assert!(server.vips.contains(&view.dst) && view.len == buf.len() && !buf.vnet.is_gso());
            assert!(!buf.vnet.needs_csum() || (buf.vnet.is_partial(view.l4) && view.fragment.is_none()));
            batch.push(buf);
        }
        if batch.len() == BATCH {
            break;
        }
    }
    assert_eq!(received.ipip.packets + received.gue.packets, batch.len() as u64);
    keeps_every_packet(batch);
}

/// The packet with right checksums, or with a partial one, if it has any.
fn prepared(mut packet: Vec<u8>, how: u8) -> Vec<u8> {
    let Ok(view) = View::parse(&packet) else { return packet };
    let has_checksum = matches!(view.transport, Transport::Tcp(_) | Transport::Udp(_)) && view.fragment.is_none();
    let known = oracle::decode(&packet).is_some_and(|told| told.l4 == view.l4 && told.protocol == view.protocol.0);
    if !has_checksum || !known {
        return packet;
    }
    packet.truncate(view.len);
    if how & FIX != 0 {
        oracle::fix_checksums(&mut packet);
    }
    if how & PARTIAL != 0 { oracle::to_partial(&packet).packet().to_vec() } else { packet }
}

/// In an IPv4 header of the gateway's.
pub fn wrapped(inner: Vec<u8>) -> Vec<u8> {
    let protocol = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 41 } else { 4 };
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(GATEWAYS[0]);
    packet.extend([10, 20, 0, 11]);
    packet.extend(inner);
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    oracle::fix_ip_checksum(&mut packet);
    packet
}

/// A buffer with room behind the packet, as the receiver's are.
pub fn roomy(packet: &[u8]) -> PacketBuf {
    let mut buf = PacketBuf::with_capacity(CAPACITY);
    let area = buf.read_area();
    area[..10].fill(0);
    area[10..10 + packet.len()].copy_from_slice(packet);
    assert!(buf.read_done(10 + packet.len()));
    buf
}

/// Puts the batch together, and cuts it again. Answers how many packets there were between.
pub fn keeps_every_packet(mut batch: Vec<PacketBuf>) -> usize {
    let before = by_flow(batch.iter().map(oracle::complete));
    coalesce(&mut batch);
    let together: Vec<&PacketBuf> = batch.iter().filter(|buf| !buf.is_empty()).collect();
    let after = by_flow(together.iter().flat_map(|buf| cut(buf)));
    assert_eq!(before, after);
    together.len()
}

/// The packets of each flow in their order; the identification of what is never fragmented says nothing.
fn by_flow(packets: impl Iterator<Item = Vec<u8>>) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for mut packet in packets {
        let view = View::parse(&packet).expect("it was parsed");
        let flow = format!("{} {} {:?} {:?}", view.src, view.dst, view.protocol, view.ports());
        if view.src.is_v4() && packet[6] & 0x7f == 0x40 && packet[7] == 0 {
            packet[4..6].fill(0);
            oracle::fix_ip_checksum(&mut packet);
        }
        flows.entry(flow).or_default().push(packet);
    }
    flows
}

/// What the kernel makes of a TCP super-packet (`tcp_gso_segment` in net/ipv4/tcp_offload.c), written down naively.
fn cut(buf: &PacketBuf) -> Vec<Vec<u8>> {
    if !buf.vnet.is_gso() {
        return vec![oracle::complete(buf)];
    }
    let told = oracle::decode(buf.packet()).expect("etherparse reads what was put together");
    let tcp = told.tcp.as_ref().expect("only TCP is put together");
    let v4 = told.src.is_ipv4();
    assert_eq!(buf.vnet.gso(), if v4 { VnetHdr::GSO_TCPV4 } else { VnetHdr::GSO_TCPV6 });
    assert!(oracle::checksums_are_right(&oracle::complete(buf)), "a super-packet's own checksum");
    let headers = told.l4 + tcp.header_len;
    assert_eq!(usize::from(buf.vnet.hdr_len), headers);
    let (size, count) = (usize::from(buf.vnet.gso_size), told.payload.len().div_ceil(usize::from(buf.vnet.gso_size)));
    assert!(count > 1, "a super-packet of one segment");
    let segment = |(number, payload): (usize, &[u8])| {
        let mut packet = buf.packet()[..headers].to_vec();
        packet.extend_from_slice(payload);
        let len = packet.len();
        if v4 {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
        } else {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let seq = tcp.seq.wrapping_add((number * size) as u32);
        packet[told.l4 + 4..told.l4 + 8].copy_from_slice(&seq.to_be_bytes());
        if number + 1 < count {
            packet[told.l4 + 13] &= !8;
        }
        oracle::fix_checksums(&mut packet);
        packet
    };
    told.payload.chunks(size).enumerate().map(segment).collect()
}
