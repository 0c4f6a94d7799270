//! Probes through the gateway's own data path, all in this process: a gateway between memory devices, and behind it a server
//! that is another stack of smoltcp's, on a thread of its own.
#![cfg(feature = "gateway")]

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gatun::control::health::path::Path;
use gatun::control::health::transport::{Connect, Target, is_ours};
use gatun::forward::receive::{RealServer, Received};
use gatun::io::Gateway;
use gatun::io::device::Device as _;
use gatun::io::memory::{self, Memory};
use gatun::io::worker::{self, Workers};
use gatun::service::{
    Method, PoolSpec, PortRange, ProbeSource, Protocols, SchedulerKind, ServerId, ServerSpec, ServiceSpec, Snapshot,
    SnapshotSpec,
};
use gatun::verdict::DropReason;
use gatun::wire::{Addr, PacketBuf};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{HardwareAddress, IpCidr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const WEB: u16 = 80;
const GARBAGE: u16 = 81;
const SILENT: u16 = 82;
const NOBODY: u16 = 83;
const ECHO: u16 = 53;
const LARGE: usize = 300_000;
const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
struct Net {
    own: &'static str,
    vip: &'static str,
    server: &'static str,
    pool: &'static str,
}

const NETS: [Net; 2] = [
    Net { own: "10.20.0.1", vip: "203.0.113.10", server: "10.20.0.11", pool: "203.0.113.100" },
    Net { own: "fd20::1", vip: "2001:db8:f::10", server: "fd20::11", pool: "2001:db8:f::100" },
];

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().expect("an address"))
}

struct World {
    gateway: Arc<Gateway>,
    path: Path,
    net: Net,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _workers: Workers,
}

impl World {
    fn new(net: Net, method: Method) -> World {
        let server = ServerSpec { name: "rs1".into(), address: addr(net.server), weight: 0, ..ServerSpec::default() };
        let service = ServiceSpec {
            name: "all".into(),
            vip: addr(net.vip),
            ports: PortRange::ALL,
            protocols: Protocols::TcpAndUdp,
            method,
            pool: PoolSpec { addresses: vec![addr(net.pool)], ..PoolSpec::default() },
            scheduler: SchedulerKind::Rr,
            servers: vec![server],
            ..ServiceSpec::default()
        };
        let source = ProbeSource { vip: addr(net.vip), server: addr(net.server), client: addr(net.own) };
        let spec = SnapshotSpec {
            services: vec![service],
            probe_sources: vec![source],
            tunnel_sources: vec![(addr(net.server), addr(net.own))],
            ..SnapshotSpec::default()
        };
        let snapshot = Arc::new(Snapshot::build(spec, None).expect("valid"));
        let gateway = Arc::new(Gateway::new(snapshot, 2, 64, [3, 4]));
        let (queue, far_in) = memory::pair(4096);
        let (outlet, far_out) = memory::pair(4096);
        gateway.set_outlet(Box::new(outlet));
        let workers = worker::start(&gateway, vec![queue]).expect("threads");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || Server::new(net).run(far_out, far_in, &stopping));
        World { path: Path::new(gateway.clone()), gateway, net, stop, thread: Some(thread), _workers: workers }
    }

    fn every() -> impl Iterator<Item = World> {
        NETS.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| World::new(net, *method)))
    }

    fn to(&self, port: u16) -> Target {
        let vip: IpAddr = self.net.vip.parse().expect("an address");
        Target { address: SocketAddr::new(vip, port), through: Some(ServerId(0)) }
    }

    fn probes(&self) -> usize {
        let now = self.gateway.now();
        self.gateway.shards().iter().map(|shard| shard.lock().flows(now, 0, 1000).0.len()).sum()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.gateway.shards().iter().map(|shard| shard.lock().stats().drops(reason)).sum()
    }

    async fn no_probe_is_left(&self) {
        let begun = Instant::now();
        while self.probes() > 0 {
            assert!(begun.elapsed() < SOON, "{} probes are left", self.probes());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the server panicked");
    }
}

#[tokio::test]
async fn an_exchange_by_tcp() {
    for world in World::every() {
        for round in 0..3 {
            let mut stream = world.path.stream(world.to(WEB)).await.expect("it listens");
            assert_eq!(world.probes(), 1, "round {round}");
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it listens still");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an answer to its end");
            assert_eq!(answer.len(), LARGE);
            assert!(answer.iter().enumerate().all(|(n, byte)| *byte == n as u8), "in order");
            drop(stream);
            world.no_probe_is_left().await;
        }
        // Nobody's load, and nothing was lost.
        let snapshot = world.gateway.snapshot();
        assert_eq!(snapshot.server(ServerId(0)).expect("there").load.admitted(), 0);
        assert_eq!(world.dropped(DropReason::ProbeLost), 0);
    }
}

#[tokio::test]
async fn an_exchange_by_udp() {
    for world in World::every() {
        let mut exchange = world.path.datagrams(world.to(ECHO)).await.expect("a socket");
        let mut answer = [0; 64];
        for question in [&b"one"[..], b"and two"] {
            exchange.send(question).await.expect("it goes");
            let len = exchange.receive(&mut answer).await.expect("an answer");
            assert_eq!(&answer[..len], question);
        }
        exchange.send(b"cut").await.expect("it goes");
        assert_eq!(exchange.receive(&mut answer[..2]).await.expect("the beginning"), 2);
        let long = exchange.send(&[0; 1500]).await.expect_err("too long for a packet");
        assert_eq!(long.kind(), ErrorKind::InvalidInput);
        drop(exchange);
        world.no_probe_is_left().await;
    }
}

#[tokio::test]
async fn refusals_are_told() {
    for world in World::every() {
        let refused = world.path.stream(world.to(NOBODY)).await.err().expect("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let mut exchange = world.path.datagrams(world.to(NOBODY)).await.expect("a socket");
        exchange.send(b"?").await.expect("it goes");
        let refused = exchange.receive(&mut [0; 8]).await.expect_err("port unreachable");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(exchange);
        assert_eq!(world.probes(), 0);
        let nobody = Target { through: Some(ServerId(7)), ..world.to(WEB) };
        assert!(is_ours(&world.path.stream(nobody).await.err().expect("no such server")));
    }
}

#[tokio::test]
async fn silence_and_rubbish_are_borne() {
    for world in World::every() {
        let mut stream = world.path.stream(world.to(SILENT)).await.expect("it listens");
        stream.write_all(b"hello?").await.expect("it takes that");
        let silent = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 8])).await;
        assert!(silent.is_err(), "it says nothing");
        drop(stream);
        // A second one while the first is still closing.
        let mut stream = world.path.stream(world.to(GARBAGE)).await.expect("it listens");
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).await.expect("rubbish");
        // With some left unread: a RST.
        drop(stream);
        world.no_probe_is_left().await;
    }
}

#[tokio::test]
async fn there_are_so_many_at_a_time_and_dropped_ones_make_room() {
    let world = World::new(NETS[0], Method::Nat);
    let mut open = Vec::new();
    let full = loop {
        match world.path.datagrams(world.to(ECHO)).await {
            Ok(exchange) => open.push(exchange),
            Err(error) => break error,
        }
    };
    assert!(is_ours(&full), "it says nothing of the server: {full}");
    assert_eq!((open.len(), world.probes()), (512, 512));
    open.clear();
    assert_eq!(world.probes(), 0);
    assert!(world.path.datagrams(world.to(ECHO)).await.is_ok());
    // A connection that is given up while it is being made.
    tokio::select! {
        biased;
        _ = world.path.stream(world.to(WEB)) => panic!("it is not that fast"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(world.probes(), 0);
}

/// A host with the server's address and the VIP: a stack, and what runs on it.
struct Server {
    interface: Interface,
    sockets: SocketSet<'static>,
    queue: Queue,
    tcp: Vec<(SocketHandle, u16, usize)>,
    echo: SocketHandle,
    tunnel: RealServer,
}

impl Server {
    fn new(net: Net) -> Server {
        let mut queue = Queue::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut queue, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in [net.server, net.vip] {
                let address: IpAddr = address.parse().expect("an address");
                list.push(IpCidr::new(address.into(), 0)).expect("room for two");
            }
        });
        let mut sockets = SocketSet::new(Vec::new());
        let listen = |port| {
            let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
            (sockets.add(tcp::Socket::new(buffer(), buffer())), port, 0)
        };
        let tcp = [WEB, GARBAGE, SILENT].into_iter().map(listen).collect();
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8 << 10]);
        let mut echo = udp::Socket::new(buffer(), buffer());
        echo.bind(ECHO).expect("a port");
        let echo = sockets.add(echo);
        let (vips, gateways) = (vec![addr(net.vip)], vec![addr(net.own)]);
        let tunnel = RealServer { vips, gateways, ipip: true, gue_ports: Vec::new() };
        Server { interface, sockets, queue, tcp, echo, tunnel }
    }

    fn run(mut self, mut from: Memory, mut to: Memory, stop: &AtomicBool) {
        let (begun, mut received) = (Instant::now(), Received::default());
        let mut buf = PacketBuf::with_capacity(65_535);
        while !stop.load(Ordering::Relaxed) {
            self.serve();
            // Waits for 10 ms at most.
            if let Ok(true) = from.receive(&mut buf) {
                // What is no tunnelled packet is taken as it is.
                let mut inner = buf.clone();
                let taken = self.tunnel.handle(&mut inner, &mut received).is_ok();
                self.queue.arrived.push_back(if taken { inner.packet().to_vec() } else { buf.packet().to_vec() });
            }
            let now = smoltcp::time::Instant::from_micros(begun.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.queue, &mut self.sockets);
            self.serve();
            self.interface.poll(now, &mut self.queue, &mut self.sockets);
            for packet in self.queue.sent.drain(..) {
                let _ = to.send(&mut PacketBuf::from_packet(&packet));
            }
        }
    }

    fn serve(&mut self) {
        for (handle, port, sent) in &mut self.tcp {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait) {
                *sent = 0;
                socket.abort();
                socket.listen(*port).expect("a closed socket listens");
            }
            let asked = socket.can_recv() && socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|len| len > 0);
            match *port {
                WEB if asked || *sent > 0 => {
                    while *sent < LARGE && socket.can_send() {
                        let piece: Vec<u8> = (*sent..LARGE.min(*sent + 8192)).map(|n| n as u8).collect();
                        *sent += socket.send_slice(&piece).expect("it can send");
                    }
                    if *sent == LARGE {
                        socket.close();
                    }
                }
                GARBAGE if socket.can_send() => {
                    let _ = socket.send_slice(&[0xa5; 4096]);
                }
                SILENT if socket.state() == tcp::State::CloseWait => socket.close(),
                _ => {}
            }
        }
        let echo = self.sockets.get_mut::<udp::Socket<'_>>(self.echo);
        while let Ok((payload, from)) = echo.recv() {
            let payload = payload.to_vec();
            echo.send_slice(&payload, from).expect("room");
        }
    }
}

#[derive(Default)]
struct Queue {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Queue {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Sent<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1480;
        capabilities
    }
}

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
