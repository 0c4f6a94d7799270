//! Packets that contradict themselves.

use crate::support::oracle;
use crate::support::packet::{ACK, Build, Extension, FIN, RST, SYN, Transport, echo, tcp, udp};
use crate::{Net, Row};
use gatun::service::{Limits, SnapshotSpec};
use gatun::verdict::DropReason;

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let (client, vip) = (net.client(40000), net.vip(53));
    let packet = udp(client, vip).payload("hello");
    let syn = tcp(client, net.vip(80)).syn();
    let header = if net.is_v4() { 20 } else { 40 };
    let drop = |name: &str, bytes: Vec<u8>, reason| Row::drop(name, net.spec(), bytes, reason);
    let changed = |build: &Build, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = build.bytes();
        change(&mut bytes);
        oracle::fix_ip_checksum(&mut bytes);
        bytes
    };
    let mut rows = vec![
        drop("nothing", vec![], DropReason::Truncated),
        drop("one byte", vec![packet.bytes()[0]], DropReason::Truncated),
        drop("half an IP header", packet.bytes()[..header - 1].to_vec(), DropReason::Truncated),
        drop("no more than an IP header", packet.bytes()[..header].to_vec(), DropReason::Truncated),
        drop("a byte is missing", packet.bytes()[..packet.bytes().len() - 1].to_vec(), DropReason::Truncated),
        drop("version 5", changed(&packet, &|b| b[0] = 0x55), DropReason::NotIp),
        drop("zeros", vec![0; 64], DropReason::NotIp),
        drop("a UDP header cut short", short(net, 17, 7), DropReason::Truncated),
        drop("a TCP header cut short", short(net, 6, 19), DropReason::Truncated),
        drop("an ICMP header cut short", short(net, if net.is_v4() { 1 } else { 58 }, 7), DropReason::Truncated),
        drop(
            "a UDP length beyond the packet",
            changed(&packet, &|b| b[header + 5] += 1),
            DropReason::BadTransportHeader,
        ),
        drop("a UDP length below its header", changed(&packet, &|b| b[header + 5] = 7), DropReason::BadTransportHeader),
        drop("a TCP data offset of 4", changed(&syn, &|b| b[header + 12] = 0x40), DropReason::BadTransportHeader),
        drop("a TCP data offset beyond the packet", changed(&syn, &|b| b[header + 12] = 0x60), DropReason::Truncated),
        Row::drop("SYN and FIN", net.spec(), syn.clone().flags(SYN | FIN), DropReason::BadTransportHeader),
        Row::drop("SYN and RST", net.spec(), syn.clone().flags(SYN | RST | ACK), DropReason::BadTransportHeader),
    ];
    rows.extend(if net.is_v4() { headers_v4(net, &packet) } else { headers_v6(net, &packet) });
    rows.extend(fragments(net));
    rows
}

fn headers_v4(net: Net, packet: &Build) -> Vec<Row> {
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = packet.bytes();
        change(&mut bytes);
        bytes
    };
    let drop = |name: &str, bytes: Vec<u8>, reason| Row::drop(name, net.spec(), bytes, reason);
    vec![
        drop("a header length of 16", changed(&|b| b[0] = 0x44), DropReason::BadIpHeader),
        drop(
            "a header length beyond the total length",
            changed(&|b| (b[0], b[3]) = (0x4f, 59)),
            DropReason::BadIpHeader,
        ),
        drop("a total length below the header", changed(&|b| b[3] = 19), DropReason::BadIpHeader),
        drop("a wrong header checksum", changed(&|b| b[10] ^= 1), DropReason::BadIpChecksum),
        drop("a header changed on the way", changed(&|b| b[8] -= 1), DropReason::BadIpChecksum),
    ]
}

fn headers_v6(net: Net, packet: &Build) -> Vec<Row> {
    // Nine destination options headers in a row, 8 bytes each.
    let mut chain = packet.bytes()[..40].to_vec();
    chain[6] = 60;
    for n in 0..9 {
        chain.extend([if n == 8 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain.extend(&packet.bytes()[40..]);
    let len = (chain.len() - 40) as u16;
    chain[4..6].copy_from_slice(&len.to_be_bytes());
    let mut cut = packet.clone().extensions(&[Extension::Destination(0)]).bytes();
    cut[41] = 200;
    let mut mapped = packet.bytes();
    mapped[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 2]);
    vec![
        Row::drop("nine extension headers", net.spec(), chain, DropReason::TooManyExtensionHeaders),
        Row::drop("an extension header beyond the packet", net.spec(), cut, DropReason::Truncated),
        Row::drop("an IPv4-mapped source", net.spec(), mapped, DropReason::BadIpHeader),
    ]
}

fn fragments(net: Net) -> Vec<Row> {
    let syn = tcp(net.client(40000), net.vip(80)).syn().payload(vec![1; 100]);
    let ping = echo(net.client(0), net.vip(0), 1, 1).payload(vec![1; 2000]);
    // 16 bytes of TCP header in the first fragment; the second begins before the header ends.
    let tiny = syn.fragments(16);
    let overlapping = syn.fragments(8);
    let small = SnapshotSpec { limits: Limits { held_fragment_bytes: 500, ..Limits::default() }, ..net.spec() };
    let mut beyond = syn.fragments(24)[1].clone();
    let at = if net.is_v4() { 6 } else { 42 };
    let field: u16 = if net.is_v4() { 0x1fff } else { 0xfff8 };
    beyond[at..at + 2].copy_from_slice(&field.to_be_bytes());
    oracle::fix_ip_checksum(&mut beyond);
    vec![
        Row::drop(
            "a first fragment without the whole TCP header",
            net.spec(),
            tiny[0].clone(),
            DropReason::BadFragment,
        ),
        Row::drop("a fragment over the TCP header", net.spec(), overlapping[1].clone(), DropReason::BadFragment),
        Row::drop("a fragment that ends beyond 65535", net.spec(), beyond, DropReason::BadFragment),
        Row::drop("no room to hold a fragment", small, ping.fragments(1000)[1].clone(), DropReason::FragmentTableFull),
    ]
}

/// An IP packet with `len` bytes of something that claims to be `protocol`.
fn short(net: Net, protocol: u8, len: usize) -> Vec<u8> {
    let build = udp(net.client(1), net.vip(53)).payload(vec![0; len]);
    let mut bytes = Build { transport: Transport::Other(253), ..build }.bytes();
    bytes[if net.is_v4() { 9 } else { 6 }] = protocol;
    oracle::fix_ip_checksum(&mut bytes);
    bytes
}
