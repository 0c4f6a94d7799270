//! Packets of very many clients, made by patching a template: cheap enough to measure an engine with.

use std::sync::Arc;

use gatun::engine::Engine;
use gatun::service::{MasqueradeSpec, Method, Network, PoolSpec, PortRange, Protocols, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::timeouts::Timeouts;
use gatun::verdict::Verdict;
use gatun::wire::PacketBuf;

use super::oracle;
use super::packet::{ACK, SYN, tcp, udp};
use super::world::{ServiceSpecExt, addr, engine, service};

pub const SERVERS: u32 = 4;

/// Writes packets of client number `n` into one buffer.
#[derive(Clone)]
pub struct Client {
    template: Vec<u8>,
    v4: bool,
    /// Of the IPv4 header with a source of zero.
    header_sum: u16,
}

impl Client {
    /// Segments with `flags` from clients to the VIP.
    pub fn new(v4: bool, flags: u8, seq: u32, ack: u32, payload: usize) -> Client {
        let (src, dst) = if v4 { ("0.0.0.0:0", "203.0.113.10:80") } else { ("[::]:0", "[2001:db8:f::10]:80") };
        let template = tcp(src, dst).flags(flags).seq(seq, ack).payload(vec![0x55; payload]).bytes();
        Client { header_sum: header_sum(&template), template, v4 }
    }

    /// Makes `buf` the packet of client `n`. Its IPv4 header checksum is right; that of TCP is not, nobody looks.
    #[inline]
    pub fn write(&self, buf: &mut PacketBuf, n: u32) {
        let packet = buf.packet_mut();
        packet.copy_from_slice(&self.template);
        // 64 clients' ports an address, so that addresses and ports both tell flows apart.
        let (host, port) = (n >> 6, 1024 + (n & 63) as u16);
        if self.v4 {
            let address = 0x0a00_0000 | host;
            packet[12..16].copy_from_slice(&address.to_be_bytes());
            let sum = u32::from(self.header_sum) + (address >> 16) + (address & 0xffff);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            packet[20..22].copy_from_slice(&port.to_be_bytes());
        } else {
            packet[8..12].copy_from_slice(&0x2001_0db8u32.to_be_bytes());
            packet[20..24].copy_from_slice(&host.to_be_bytes());
            packet[40..42].copy_from_slice(&port.to_be_bytes());
        }
    }

    pub fn buf(&self) -> PacketBuf {
        PacketBuf::from_packet(&self.template)
    }
}

fn header_sum(template: &[u8]) -> u16 {
    let mut header = template[..20].to_vec();
    header[10..12].fill(0);
    oracle::sum(&header)
}

/// One service over both families with [`SERVERS`] servers each; established flows never expire, half-open ones after 1 s.
pub fn snapshot() -> Arc<Snapshot> {
    snapshot_by(Method::Nat)
}

/// The same by another method, with four addresses of each family as its pool.
pub fn snapshot_by(method: Method) -> Arc<Snapshot> {
    let addresses = (100..104).flat_map(|n| [addr(&format!("203.0.113.{n}")), addr(&format!("2001:db8:f::{n}"))]);
    let pool = PoolSpec { addresses: addresses.collect(), ..PoolSpec::default() };
    let add = |vip: &str, net: &str| {
        (0..SERVERS).fold(service(vip, vip, PortRange::single(80), Protocols::Tcp), |service, n| {
            service.server(&format!("{net}{}", 11 + n), Some(8080), 1)
        })
    };
    let day = std::time::Duration::from_secs(86_400);
    let timeouts =
        Timeouts { tcp_established: day * 31, tcp_syn_recv: std::time::Duration::from_secs(1), ..Timeouts::RFC };
    let mut services = vec![add("203.0.113.10", "10.20.0."), add("2001:db8:f::10", "fd20::")];
    for service in &mut services {
        (service.method, service.pool) = (method, pool.clone());
    }
    let spec = SnapshotSpec { services, timeouts, ..SnapshotSpec::default() };
    Arc::new(Snapshot::build(spec, None).expect("a valid snapshot"))
}

/// Lets clients `0..flows` connect, to the end of the handshake.
pub fn establish(engine: &mut Engine, v4: bool, flows: u32, now: Instant) {
    let syn = Client::new(v4, SYN, 1000, 0, 0);
    let ack = Client::new(v4, ACK, 1001, 5001, 0);
    let mut buf = syn.buf();
    for n in 0..flows {
        syn.write(&mut buf, n);
        assert_eq!(engine.handle_packet(now, &mut buf), Verdict::Forward);
        // The server's answer: what it got, turned round.
        answer(buf.packet_mut(), v4);
        assert_eq!(engine.handle_packet(now, &mut buf), Verdict::Forward);
        ack.write(&mut buf, n);
        assert_eq!(engine.handle_packet(now, &mut buf), Verdict::Forward);
    }
}

/// An engine with `flows` established flows, and room for `max`.
pub fn established(v4: bool, flows: u32, max: usize) -> Engine {
    let mut engine = engine(snapshot(), max);
    establish(&mut engine, v4, flows, Instant::ZERO);
    engine
}

/// Turns a SYN round into the SYN-ACK with sequence number 5000.
fn answer(packet: &mut [u8], v4: bool) {
    let (src, dst, len, l4) = if v4 { (12, 16, 4, 20) } else { (8, 24, 16, 40) };
    for n in 0..len {
        packet.swap(src + n, dst + n);
    }
    packet.swap(l4, l4 + 2);
    packet.swap(l4 + 1, l4 + 3);
    packet[l4 + 4..l4 + 8].copy_from_slice(&5000u32.to_be_bytes());
    packet[l4 + 8..l4 + 12].copy_from_slice(&1001u32.to_be_bytes());
    packet[l4 + 13] = SYN | ACK;
}

/// Mappings of each inside host.
pub const PER_HOST: u32 = 50;

/// Writes datagrams of inside hosts to one remote end into one buffer.
#[derive(Clone)]
pub struct Inside {
    template: Vec<u8>,
    v4: bool,
    header_sum: u16,
}

impl Inside {
    pub fn new(v4: bool, payload: usize) -> Inside {
        let (src, dst) = if v4 { ("0.0.0.0:0", "198.51.100.2:53") } else { ("[::]:0", "[2001:db8:1::2]:53") };
        let template = udp(src, dst).payload(vec![0x55; payload]).bytes();
        Inside { header_sum: if v4 { header_sum(&template) } else { 0 }, template, v4 }
    }

    /// Makes `buf` the datagram of inside endpoint `n`; [`PER_HOST`] of them are one host's. Its checksum is not right.
    #[inline]
    pub fn write(&self, buf: &mut PacketBuf, n: u32) {
        let packet = buf.packet_mut();
        packet.copy_from_slice(&self.template);
        let (host, port) = (n / PER_HOST, (2048 + n % PER_HOST) as u16);
        let address = 0x0a00_0000 | host;
        if self.v4 {
            packet[12..16].copy_from_slice(&address.to_be_bytes());
            let sum = u32::from(self.header_sum) + (address >> 16) + (address & 0xffff);
            let sum = (sum & 0xffff) + (sum >> 16);
            packet[10..12].copy_from_slice(&(!((sum & 0xffff) as u16 + (sum >> 16) as u16)).to_be_bytes());
            packet[20..22].copy_from_slice(&port.to_be_bytes());
        } else {
            packet[8] = 0xfd;
            packet[20..24].copy_from_slice(&address.to_be_bytes());
            packet[40..42].copy_from_slice(&port.to_be_bytes());
        }
    }

    pub fn buf(&self) -> PacketBuf {
        PacketBuf::from_packet(&self.template)
    }
}

/// A masquerade of everything private through as few addresses of each family as hold `mappings`, but for one in a hundred
/// ports.
pub fn masquerade(mappings: u32) -> Arc<Snapshot> {
    let addresses = (mappings + mappings / 100).div_ceil(64_512);
    let pool = |prefix: &str| (1..=addresses).map(|n| addr(&format!("{prefix}{n}"))).collect::<Vec<_>>();
    let pool = PoolSpec { addresses: [pool("203.0.113."), pool("2001:db8:f::")].concat(), ..PoolSpec::default() };
    let from = vec![Network { address: addr("10.0.0.0"), len: 8 }, Network { address: addr("fd00::"), len: 8 }];
    let day = std::time::Duration::from_secs(86_400);
    let timeouts = Timeouts { udp: day * 31, ..Timeouts::RFC };
    let masquerades = vec![MasqueradeSpec { name: "lan".into(), from, pool, ..MasqueradeSpec::default() }];
    let spec = SnapshotSpec { masquerades, timeouts, ..SnapshotSpec::default() };
    Arc::new(Snapshot::build(spec, None).expect("a valid snapshot"))
}

/// Lets inside endpoints `0..flows` send.
pub fn go_out(engine: &mut Engine, v4: bool, flows: u32, now: Instant) {
    let inside = Inside::new(v4, 64);
    let mut buf = inside.buf();
    for n in 0..flows {
        inside.write(&mut buf, n);
        assert_eq!(engine.handle_packet(now, &mut buf), Verdict::Forward, "mapping {n}");
    }
}
