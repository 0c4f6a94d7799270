//! Golden rows: a description, what is configured, what came before, a packet in, the verdict, the packet out. Every row
//! stands for both families; packets are built by etherparse.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod conntrack;
mod filtering;
mod forwards;
mod fragments;
mod ftp;
mod ftp_bounds;
mod ftp_fullnat;
mod ftp_masquerade;
mod fullnat;
mod gateway;
mod hairpin;
mod hop;
mod icmp;
mod lost;
mod malformed;
mod masquerade;
mod nat;
mod npt;
mod one_packet;
mod one_way;
mod overlaps;
mod passive;
mod pools;
mod probe;
mod proxy_protocol;
mod queries;
mod rates;
mod refusal;
mod reload;
mod rfc_timers;
mod rfc_tunnel;
mod spoofed;
mod syn_proxy;
mod tcp_states;
mod tftp;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use gatun::service::{PortRange, Protocols, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf};

use support::oracle;
use support::packet::Build;
use support::world::{self, ServiceSpecExt, service};

#[test]
fn nat() {
    run(nat::rows);
}

#[test]
fn fullnat() {
    run(fullnat::rows);
}

#[test]
fn ftp() {
    run(ftp::rows);
}

#[test]
fn proxy_protocol() {
    run(proxy_protocol::rows);
}

#[test]
fn tftp() {
    run(tftp::rows);
}

#[test]
fn one_way() {
    run(one_way::rows);
}

#[test]
fn icmp_errors() {
    run(icmp::rows);
}

#[test]
fn prefixes() {
    run(npt::rows);
}

#[test]
fn hops() {
    run(hop::rows);
}

#[test]
fn refusals() {
    run(refusal::rows);
}

#[test]
fn malformed_packets() {
    run(malformed::rows);
}

#[test]
fn icmp_through_masquerades() {
    run(queries::rows);
}

#[test]
fn spoofed_sources() {
    run(spoofed::rows);
}

#[test]
fn overlapping_fragments() {
    run(overlaps::rows);
}

#[test]
fn thresholds() {
    run(cluster::rows);
}

#[test]
fn syn_proxy() {
    run(syn_proxy::rows);
}

#[test]
fn rates() {
    run(rates::rows);
}

#[test]
fn packets_by_themselves() {
    run(one_packet::rows);
}

#[test]
fn masquerades() {
    run(masquerade::rows);
}

#[test]
fn every_reason_to_drop_has_a_row() {
    let mut seen = BTreeSet::new();
    for net in [Net::V4, Net::V6] {
        let all = [
            nat::rows,
            fullnat::rows,
            ftp::rows,
            hop::rows,
            one_way::rows,
            icmp::rows,
            refusal::rows,
            malformed::rows,
            cluster::rows,
            masquerade::rows,
            rates::rows,
            npt::rows,
            overlaps::rows,
            queries::rows,
            spoofed::rows,
            syn_proxy::rows,
        ];
        for rows in all {
            for row in rows(&net) {
                if let Verdict::Drop(reason) | Verdict::Refuse(reason) = row.verdict {
                    seen.insert(reason);
                }
            }
        }
    }
    // No packet gets this verdict: it is what becomes of held fragments. See fragments.rs.
    seen.insert(DropReason::FragmentTimeout);
    // The engine sees no frames: tests/link has these.
    seen.extend(LINK_REASONS);
    // A matter of time: see masquerade.rs.
    seen.insert(DropReason::Unanswered);
    // What became of the server: see lost.rs.
    seen.insert(DropReason::ServerDown);
    // Not a matter of the packet: see one_way.rs.
    seen.extend([DropReason::ServerUnreachable, DropReason::LinkFull, DropReason::NoTunnelSource]);
    // The real server's: see tests/receive.
    seen.extend([DropReason::UnknownGateway, DropReason::TunnelNotAllowed, DropReason::NotOurVip]);
    // Probes are not the device's: see probe.rs.
    seen.extend([DropReason::ProbeForged, DropReason::ProbeLost, DropReason::ProbeEnded]);
    // Tunnels: see tests/tunnel.
    seen.extend([
        DropReason::BadOffload,
        DropReason::NotTunnelled,
        DropReason::BadTunnel,
        DropReason::TunnelFragment,
        DropReason::CongestionNotEct,
    ]);
    // The real server's end of them: see tests/receive.rs.
    seen.extend([DropReason::UnknownGateway, DropReason::TunnelNotAllowed, DropReason::NotOurVip]);
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

const LINK_REASONS: [DropReason; 13] = [
    DropReason::BadFrame,
    DropReason::VlanTagged,
    DropReason::OtherMac,
    DropReason::OtherEtherType,
    DropReason::LinkBroadcast,
    DropReason::BadArp,
    DropReason::BadNdp,
    DropReason::SpoofedMac,
    DropReason::AddressConflict,
    DropReason::NoRoute,
    DropReason::NeighbourQueueFull,
    DropReason::NeighbourUnreachable,
    DropReason::NeighbourEvicted,
];

/// One line of a table.
pub struct Row {
    pub name: String,
    pub spec: SnapshotSpec,
    pub max_flows: usize,
    pub setup: Vec<PacketBuf>,
    pub packet: PacketBuf,
    pub verdict: Verdict,
    /// What is sent, its checksum completed; `None` when nothing is.
    pub out: Option<Vec<u8>>,
    /// The neighbour that it is sent to in spite of its destination.
    pub hop: Option<Addr>,
}

impl Row {
    pub fn new(name: &str, spec: SnapshotSpec, packet: impl Packet, verdict: Verdict) -> Row {
        Row {
            name: name.into(),
            spec,
            max_flows: 1024,
            setup: Vec::new(),
            packet: packet.buf(),
            verdict,
            out: None,
            hop: None,
        }
    }

    /// A packet that goes on as another.
    pub fn forward(name: &str, spec: SnapshotSpec, packet: impl Packet, out: impl Packet) -> Row {
        Row::new(name, spec, packet, Verdict::Forward).out(out)
    }

    pub fn drop(name: &str, spec: SnapshotSpec, packet: impl Packet, reason: DropReason) -> Row {
        Row::new(name, spec, packet, Verdict::Drop(reason))
    }

    /// A packet that is dropped and answered.
    pub fn refuse(name: &str, spec: SnapshotSpec, packet: impl Packet, reason: DropReason, out: impl Packet) -> Row {
        Row::new(name, spec, packet, Verdict::Refuse(reason)).out(out)
    }

    /// A packet that goes on as it came.
    pub fn pass(name: &str, spec: SnapshotSpec, packet: impl Packet) -> Row {
        let buf = packet.buf();
        Row::new(name, spec, buf.clone(), Verdict::Pass).out(buf)
    }

    pub fn out(mut self, out: impl Packet) -> Row {
        self.out = Some(oracle::complete(&out.buf()));
        self
    }

    pub fn after<P: Packet>(mut self, setup: impl IntoIterator<Item = P>) -> Row {
        self.setup.extend(setup.into_iter().map(|packet| packet.buf()));
        self
    }

    pub fn hop(mut self, neighbour: Addr) -> Row {
        self.hop = Some(neighbour);
        self
    }

    pub fn max_flows(mut self, max_flows: usize) -> Row {
        self.max_flows = max_flows;
        self
    }

    fn run(self, net: &Net) {
        let name = format!("{:?}: {}", net, self.name);
        let snapshot = Snapshot::build(self.spec, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut engine = world::engine(snapshot.into(), self.max_flows);
        for mut packet in self.setup {
            engine.handle_packet(Instant::ZERO, &mut packet);
            engine.check_invariants();
        }
        let mut buf = self.packet.clone();
        let verdict = engine.handle_packet(Instant::ZERO, &mut buf);
        assert_eq!(verdict, self.verdict, "{name}");
        assert_eq!(verdict.sends(), self.out.is_some(), "{name}: the row has no packet out, or one too many");
        engine.check_invariants();
        assert_eq!(buf.hop, self.hop, "{name}: to whom");
        assert_eq!(buf.wrap, None, "{name}: in one piece");
        if let Some(expected) = self.out {
            let sent = without_tunnel_label(oracle::complete(&buf));
            if sent != expected {
                let (sent, expected) = (oracle::decode(&sent), oracle::decode(&expected));
                panic!("{name}:\nsent     {sent:02x?}\nexpected {expected:02x?}\n{:02x?}", buf.packet());
            }
            if verdict == Verdict::Forward && buf.vnet.is_gso() {
                assert_eq!(buf.vnet, self.packet.vnet, "{name}: the offloads changed");
            }
        }
    }
}

/// The flow label of an outer IPv6 header is the tunnel's to choose (RFC 6438); all packets of a flow have the same.
fn without_tunnel_label(mut packet: Vec<u8>) -> Vec<u8> {
    if let [first, label @ .., _, _, next] = &mut packet[..7]
        && *first >> 4 == 6
        && matches!(*next, 4 | 41)
    {
        label[0] &= 0xf0;
        label[1..].fill(0);
    }
    packet
}

/// Whatever can stand in a row.
pub trait Packet {
    fn buf(&self) -> PacketBuf;
}

impl Packet for Build {
    fn buf(&self) -> PacketBuf {
        Build::buf(self)
    }
}

impl Packet for PacketBuf {
    fn buf(&self) -> PacketBuf {
        self.clone()
    }
}

impl Packet for Vec<u8> {
    fn buf(&self) -> PacketBuf {
        PacketBuf::from_packet(self)
    }
}

impl<P: Packet> Packet for &P {
    fn buf(&self) -> PacketBuf {
        (*self).buf()
    }
}

fn run(rows: fn(&Net) -> Vec<Row>) {
    for net in [Net::V4, Net::V6] {
        let rows = rows(&net);
        assert!(!rows.is_empty());
        for row in rows {
            row.run(&net);
        }
    }
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    V4,
    V6,
}

impl Net {
    pub const BOTH: [Net; 2] = [Net::V4, Net::V6];

    pub fn is_v4(self) -> bool {
        self == Net::V4
    }

    fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self.is_v4() { v4 } else { v6 }.parse().expect("an address")
    }

    pub fn client(self, port: u16) -> SocketAddr {
        (self.pick("198.51.100.2", "2001:db8:1::2"), port).into()
    }

    /// Another client, by number from 0.
    pub fn other(self, number: u8, port: u16) -> SocketAddr {
        let (v4, v6) = (format!("198.51.101.{number}"), format!("2001:db8:2:{number:x}::1"));
        (self.pick(&v4, &v6), port).into()
    }

    pub fn vip(self, port: u16) -> SocketAddr {
        (self.pick("203.0.113.10", "2001:db8:f::10"), port).into()
    }

    pub fn vip2(self, port: u16) -> SocketAddr {
        (self.pick("203.0.113.11", "2001:db8:f::11"), port).into()
    }

    /// A server, by number from 1.
    pub fn rs(self, number: u8, port: u16) -> SocketAddr {
        let (v4, v6) = (format!("10.20.0.1{number}"), format!("fd20::1{number}"));
        (self.pick(&v4, &v6), port).into()
    }

    /// A host behind the gateway that is no server, by number.
    pub fn inside(self, number: u8, port: u16) -> SocketAddr {
        let (v4, v6) = (format!("10.20.0.{}", 100 + number), format!("fd20::1:{number:x}"));
        (self.pick(&v4, &v6), port).into()
    }

    /// An address of a masquerade's pool.
    pub fn pool(self, port: u16) -> SocketAddr {
        (self.pick("203.0.113.100", "2001:db8:f::100"), port).into()
    }

    /// A router behind the gateway.
    pub fn inner_router(self) -> SocketAddr {
        (self.pick("10.20.0.254", "fd20::fe"), 0).into()
    }

    /// A router on the way to the client.
    pub fn outer_router(self) -> SocketAddr {
        (self.pick("192.0.2.1", "2001:db8:9::1"), 0).into()
    }

    /// Neither client nor server nor VIP.
    pub fn stranger(self, port: u16) -> SocketAddr {
        (self.pick("192.0.2.77", "2001:db8:9::77"), port).into()
    }

    /// TCP 80 to servers 1 and 2 at 8080; UDP and TCP 53 to server 1; UDP 8000-8099 to server 2 from 9000 on; on the second
    /// VIP everything to server 1 but TCP 443, which goes to server 2, and 1000-1999, which go to server 3.
    pub fn spec(self) -> SnapshotSpec {
        let ip = |end: SocketAddr| end.ip().to_string();
        let (vip, vip2) = (ip(self.vip(0)), ip(self.vip2(0)));
        let (rs1, rs2, rs3) = (ip(self.rs(1, 0)), ip(self.rs(2, 0)), ip(self.rs(3, 0)));
        let range = |first, last| PortRange { first, last };
        let services = vec![
            service("web", &vip, PortRange::single(80), Protocols::Tcp).server(&rs1, Some(8080), 1).server(
                &rs2,
                Some(8080),
                1,
            ),
            service("dns", &vip, PortRange::single(53), Protocols::TcpAndUdp).server(&rs1, Some(53), 1),
            service("range", &vip, range(8000, 8099), Protocols::Udp).server(&rs2, Some(9000), 1),
            service("all", &vip2, PortRange::ALL, Protocols::TcpAndUdp).server(&rs1, None, 1),
            service("some", &vip2, range(1000, 1999), Protocols::TcpAndUdp).server(&rs3, None, 1),
            service("tls", &vip2, PortRange::single(443), Protocols::Tcp).server(&rs2, None, 1),
            service("drained", &vip, PortRange::single(81), Protocols::TcpAndUdp).server(&rs1, None, 0),
            service("empty", &vip, PortRange::single(82), Protocols::TcpAndUdp),
        ];
        SnapshotSpec { services, ..SnapshotSpec::default() }
    }
}
