//! An engine, what it is configured with, and a clock to set.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gatun::command::{Command, Extent, FlowRecord, Only, Outcome};
use gatun::engine::Engine;
use gatun::service::{FlowPolicy, Server, ServerId, Service, ServiceSpec, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::Verdict;
use gatun::wire::PacketBuf;

use crate::Net;
use crate::support::oracle::{self, Decoded};
use crate::support::packet::{ACK, Build, SYN, tcp, udp};
use crate::support::world;

pub struct Gateway {
    pub net: Net,
    pub spec: SnapshotSpec,
    pub engine: Engine,
    pub now: Instant,
}

impl Gateway {
    /// With what [`Net::spec`] has, changed.
    pub fn new(net: Net, change: impl FnOnce(&mut SnapshotSpec)) -> Gateway {
        let mut spec = net.spec();
        change(&mut spec);
        let snapshot = Snapshot::build(spec.clone(), None).expect("valid");
        Gateway { net, spec, engine: world::engine(snapshot.into(), 1024), now: Instant::from_secs(100) }
    }

    pub fn reload(&mut self, change: impl FnOnce(&mut SnapshotSpec)) {
        change(&mut self.spec);
        let next = Snapshot::build(self.spec.clone(), Some(self.engine.snapshot())).expect("valid");
        assert_eq!(self.engine.apply(self.now, Command::Swap(Arc::new(next))), Outcome::Done);
        self.engine.check_invariants();
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.engine.handle_timeout(self.now);
        self.engine.check_invariants();
        assert!(self.engine.poll_timeout().is_none_or(|deadline| deadline > self.now), "work is left over");
    }

    pub fn feed(&mut self, mut buf: PacketBuf) -> (Verdict, PacketBuf) {
        let verdict = self.engine.handle_packet(self.now, &mut buf);
        self.engine.check_invariants();
        (verdict, buf)
    }

    /// Where a packet goes.
    pub fn send(&mut self, packet: &Build) -> Result<SocketAddr, Verdict> {
        match self.feed(packet.buf()) {
            (Verdict::Forward, buf) => {
                assert!(oracle::checksums_are_right(buf.packet()));
                let out = oracle::decode(buf.packet()).expect("a packet");
                Ok(buf.hop.map_or(out.dst, |hop| hop.ip())).map(|ip| (ip, out.ports.map_or(0, |ports| ports.1)).into())
            }
            (other, _) => Err(other),
        }
    }

    /// A SYN of client `n` to the web service, and the server that it went to.
    pub fn connect(&mut self, n: u8, port: u16) -> Result<SocketAddr, Verdict> {
        self.send(&self.syn(n, port))
    }

    pub fn syn(&self, n: u8, port: u16) -> Build {
        tcp(self.net.other(n, port), self.net.vip(80)).syn().seq(1000, 0)
    }

    /// A connection of client `n` to the web service, to the end of its handshake, and its server.
    pub fn establish(&mut self, n: u8, port: u16) -> SocketAddr {
        let server = self.connect(n, port).expect("served");
        let (client, vip) = (self.net.other(n, port), self.net.vip(80));
        assert_eq!(self.send(&tcp(server, client).flags(SYN | ACK).seq(5000, 1001)), Ok(client));
        assert_eq!(self.send(&tcp(client, vip).flags(ACK).seq(1001, 5001)), Ok(server));
        server
    }

    /// A datagram of client `n` to the name service.
    pub fn ask(&mut self, n: u8, port: u16) -> Result<SocketAddr, Verdict> {
        self.send(&udp(self.net.other(n, port), self.net.vip(53)).payload("q"))
    }

    pub fn service(&self, name: &str) -> Arc<Service> {
        self.engine.snapshot().live.iter().find(|service| service.spec.name == name).expect(name).clone()
    }

    pub fn server(&self, service: &str, index: usize) -> Arc<Server> {
        self.service(service).servers[index].clone()
    }

    pub fn flows(&self) -> Vec<FlowRecord> {
        self.engine.flows(self.now, 0, usize::MAX).0
    }

    /// What the engine sends by itself.
    pub fn sent(&mut self) -> Vec<(Decoded, PacketBuf)> {
        let mut sent = Vec::new();
        while let Some(buf) = self.engine.poll_transmit() {
            assert!(oracle::checksums_are_right(buf.packet()));
            sent.push((oracle::decode(buf.packet()).expect("a packet"), buf));
        }
        sent
    }

    pub fn evacuate(&mut self, servers: &[ServerId], policy: Option<FlowPolicy>) -> u64 {
        let mut servers = servers.to_vec();
        servers.sort_unstable();
        let (mut ended, mut cursor) = (0, Some(0));
        while let Some(from) = cursor {
            let command = Command::Evacuate {
                servers: servers.as_slice().into(),
                policy,
                extent: Extent { began: self.now, only: Only::All },
                cursor: from,
            };
            let Outcome::Deleted { count, next } = self.engine.apply(self.now, command) else {
                panic!("it says how many")
            };
            self.engine.check_invariants();
            (ended, cursor) = (ended + count, next);
        }
        ended
    }
}

pub fn find<'a>(spec: &'a mut SnapshotSpec, name: &str) -> &'a mut ServiceSpec {
    spec.services.iter_mut().find(|service| service.name == name).expect(name)
}
