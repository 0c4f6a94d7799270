//! An engine with clients, servers, routers and an operator around it, and checks after everything that happens.

use std::sync::Arc;
use std::time::Duration;

use gatun::command::{Command, Extent, FlowFilter, Only, Outcome};
use gatun::engine::{Engine, EngineConfig};
use gatun::service::{FlowPolicy, Method, ServerId, Snapshot};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::outer::GUE_PORT;
use gatun::wire::{Addr, PacketBuf, Protocol, Tuple, View, unwrap};

use super::model::{Cause, Model, is_right, quoted_tuple, tuple_of};
use super::ops::{self, Op, Shape};
use super::oracle::{self, Decoded};
use super::specs::{FULLNAT, server_addr, server_like, spec};

/// Many, so that two packets in one are of one.
const SHARDING: gatun::engine::Sharding = gatun::engine::Sharding { seed: [7, 9], shards: 16_384 };

const SERVER_PORTS: [u16; 8] = [80, 53, 8000, 8099, 1, 443, 8080, 65535];

pub struct World {
    pub engine: Engine,
    pub now: Instant,
    model: Model,
    packets: u64,
    /// The last packet was no RST that the engine ignored.
    believed: bool,
    /// The last packet that came in, and the last one that was forwarded to a server.
    came: Vec<u8>,
    went: Option<Vec<u8>>,
}

impl World {
    /// `size` sets the limit of the flow table, and in its upper bits the configuration to begin with.
    pub fn new(size: u8) -> World {
        let number = size >> 5;
        let spec = spec(if number == 6 { FULLNAT } else { number });
        let limit = 1 + usize::from(size % 32);
        let snapshot = Arc::new(Snapshot::build(spec.clone(), None).expect("valid"));
        let mut engine = Engine::new(EngineConfig { shard: 0, shards: 1, max_flows: limit, seed: [7, 9] }, snapshot);
        engine.apply(Instant::ZERO, Command::Watch(true));
        let now = Instant::from_secs(1000);
        World { engine, now, model: Model::new(spec, limit), packets: 0, believed: true, came: Vec::new(), went: None }
    }

    pub fn step(&mut self, op: &Op) {
        match op {
            Op::Client(shape) => self.feed(from_client(shape)),
            Op::Answer { flags, seq, len } => self.answer(*flags, *seq, *len),
            Op::Error { kind, quoted, from_router, corrupt } => self.error(*kind, *quoted, *from_router, *corrupt),
            Op::Fragments { shape, id, order, mask } => self.fragments(shape, *id, *order, *mask),
            Op::Mangled { at, value } => {
                let mut packet = self.came.clone();
                if !packet.is_empty() {
                    let at = usize::from(*at) % packet.len();
                    packet[at] = *value;
                    oracle::fix_header_checksum_if_possible(&mut packet);
                    self.feed(PacketBuf::from_packet(&packet));
                }
            }
            Op::Raw(bytes) => {
                let mut packet = bytes.clone();
                oracle::fix_header_checksum_if_possible(&mut packet);
                self.feed(PacketBuf::from_packet(&packet));
            }
            Op::Wait { mantissa, exponent } => self.wait(*mantissa, *exponent),
            Op::Swap(number) => self.swap(*number),
            Op::Delete(number) => self.delete(*number),
            Op::Health(number) => self.health(*number),
            Op::Evacuate(number) => self.evacuate(*number),
        }
        self.check();
    }

    /// Lets all flows run out, and sees that nothing is left.
    pub fn finish(&mut self) {
        let mut rounds = 0;
        while let Some(deadline) = self.engine.poll_timeout() {
            self.now = self.now.max(deadline);
            self.engine.handle_timeout(self.now);
            self.drain_events(Cause::Time);
            rounds += 1;
            assert!(rounds < 10_000, "time does not pass beyond {:?}", self.now);
        }
        self.check();
        assert_eq!(self.engine.occupancy().0, 0, "flows are left without a deadline");
        let tables = self.engine.snapshot().persisted();
        assert!(tables.iter().all(|table| table.occupancy().0 == 0), "clients are left without a deadline");
        assert_eq!(counted(&self.engine), self.packets, "each packet has one verdict");
    }

    /// Hands a packet to the engine and judges the verdict.
    pub fn feed(&mut self, mut buf: PacketBuf) {
        let before = buf.clone();
        self.packets += 1;
        self.came = before.packet().to_vec();
        let input = oracle::decode(before.packet());
        let ignored = self.engine.stats().rst_ignored;
        let verdict = self.engine.handle_packet(self.now, &mut buf);
        self.believed = self.engine.stats().rst_ignored == ignored;
        let tuple = input.as_ref().and_then(tuple_of);
        self.drain_events(Cause::Packet(tuple));
        match (&input, verdict) {
            // What etherparse does not read (unknown extension headers and the like) must only do no harm.
            (None, _) => {}
            (Some(input), Verdict::Forward) => self.forwarded(input, &before, &buf),
            (Some(input), Verdict::Pass) => {
                assert_eq!(&buf.packet()[..input.len], &before.packet()[..input.len], "passed, but changed");
                assert!(tuple.is_none_or(|t| self.model.translation(&t).is_none()), "a packet of a flow was passed");
            }
            (Some(input), Verdict::Reply) => self.replied(input, &before, &buf),
            (Some(input), Verdict::Refuse(reason)) => {
                assert!(is_right(&buf), "a refusal with a wrong checksum");
                let output = oracle::decode(buf.packet()).expect("a refusal is a packet");
                assert_eq!(output.dst, input.src);
                self.dropped(input, tuple, reason);
                self.stopped(tuple, reason);
            }
            (Some(input), Verdict::Drop(reason)) => {
                self.dropped(input, tuple, reason);
                self.stopped(tuple, reason);
            }
            (Some(_), Verdict::Elsewhere(_)) => panic!("handed over, but there is one shard"),
            (Some(_), Verdict::Deliver) => panic!("delivered, but nobody probes here"),
            (Some(input), Verdict::Held) => {
                assert!(input.fragment.is_some_and(|(_, offset, _)| offset != 0), "held, but no later fragment");
            }
        }
        while let Some(released) = self.engine.poll_transmit() {
            let output = oracle::decode(unwrapped(&released).packet()).expect("a released fragment is a packet");
            if output.protocol == 6 && output.fragment.is_none() {
                let starts =
                    input.as_ref().and_then(|input| input.tcp.as_ref()).is_some_and(|tcp| tcp.flags & 0x12 == 2);
                assert!(verdict == Verdict::Drop(DropReason::ServerDown) || starts, "a RST by {verdict:?}");
                is_own_reset(&released);
                continue;
            }
            assert!(output.fragment.is_some_and(|(_, offset, _)| offset != 0));
            if let (Some(input), Verdict::Forward) = (&input, verdict) {
                self.model.later_fragment(input, &output);
            }
        }
    }

    fn forwarded(&mut self, input: &Decoded, before: &PacketBuf, buf: &PacketBuf) {
        if matches!(input.protocol, 1 | 58) && self.is_tunnel_source(input.dst) {
            return tunnel_error_relayed(input, buf);
        }
        let sent = buf;
        let buf = &unwrapped(buf);
        let output = oracle::decode(buf.packet()).expect("what is forwarded is a packet");
        if matches!(input.protocol, 1 | 58) && input.fragment.is_none() {
            return self.error_forwarded(input, &output, before, buf);
        }
        let later = input.fragment.is_some_and(|(_, offset, _)| offset != 0);
        if later {
            return self.model.later_fragment(input, &output);
        }
        let (from, to) = (tuple_of(input), tuple_of(&output));
        let from = from.expect("only TCP and UDP are forwarded");
        let to = to.expect("what is forwarded has ports");
        let known = self.model.translation(&from);
        let alone = self.model.alone(&from).into_iter().find(|(alone, _)| known.is_none() && *alone == to);
        assert!(known == Some(to) || alone.is_some(), "{from:?} went another way than its flow: {to:?}, {known:?}");
        assert_eq!(input.payload, output.payload);
        assert_eq!(input.ttl, output.ttl);
        if input.fragment.is_some() {
            self.model.first_fragment(input, &output);
        } else if is_right(before) {
            assert!(is_right(buf), "a checksum went wrong");
        }
        let of_flow = self.model.method(&from);
        let from_client = |(_, method)| (method, self.model.vips.contains(&from.dst));
        let (method, from_client) = of_flow.or(alone.map(from_client)).expect("it is of a flow");
        if method != Method::Fullnat {
            // There every shard has ports of its own; see tests/shards.rs.
            assert_eq!(self.shard_of(before), self.shard_of_answer(&to), "the answer to {from:?} is another shard's");
        }
        match method {
            Method::Nat | Method::Fullnat => assert_eq!((sent.hop, sent.wrap), (None, None)),
            _ => {
                let untouched = buf.packet()[..input.len] == before.packet()[..input.len] && buf.vnet == before.vnet;
                assert!(untouched, "{method:?} changed the packet");
                // Not those that the service has now: a flow stays with its server over a reload.
                let hop_is_server = |hop| (11..=13).any(|host| server_addr(input.src.is_ipv4(), host) == hop);
                assert_eq!(sent.hop.is_some(), method == Method::Direct && from_client);
                assert!(sent.hop.is_none_or(hop_is_server), "to {:?}", sent.hop);
                assert_eq!(sent.packet().len() > buf.packet().len(), method == Method::Tunnel && from_client);
            }
        }
        let mss = output.tcp.as_ref().and_then(|tcp| tcp.mss);
        let headers = if input.src.is_ipv4() { 40 } else { 60 };
        let is_syn = input.tcp.as_ref().is_some_and(|tcp| tcp.flags & 2 != 0);
        assert!(
            !is_syn || method.is_one_way() || mss.is_none_or(|mss| mss <= self.model.spec.mtu - headers),
            "MSS {mss:?} is not clamped"
        );
        if self.believed {
            self.model.seen(self.now, &from);
        }
        if self.model.vips.contains(&from.dst) {
            self.went = Some(oracle::complete(sent));
        }
    }

    fn is_tunnel_source(&self, addr: std::net::IpAddr) -> bool {
        self.engine.snapshot().is_tunnel_source(Addr::from(addr))
    }

    fn error_forwarded(&self, input: &Decoded, output: &Decoded, before: &PacketBuf, buf: &PacketBuf) {
        assert!(is_right(buf), "a translated error with a wrong checksum");
        let quoted = quoted_tuple(input).expect("only errors that quote ports are translated");
        if self.model.method(&quoted.reversed()).is_some_and(|(method, _)| method.is_one_way()) {
            assert_eq!(buf.packet(), &before.packet()[..input.len], "an error of a one-way flow was changed");
            return;
        }
        let Some((to, dst, src)) = self.model.quoted(&quoted) else {
            let about = quoted_tuple(output).expect("it quotes as much as came").reversed();
            let alone = self.model.alone(&quoted.reversed());
            assert!(alone.iter().any(|(to, _)| *to == about), "the error is about no flow: {quoted:?}");
            return;
        };
        assert_eq!(quoted_tuple(output), Some(to));
        assert_eq!(Addr::from(output.dst), dst);
        let to = self.model.translation(&quoted.reversed()).expect("it is about a flow");
        if self.model.method(&quoted.reversed()).is_some_and(|(method, _)| method != Method::Fullnat) {
            assert_eq!(self.shard_of(before), self.shard_of_answer(&to), "an error belongs to another shard");
        }
        assert_eq!(Addr::from(output.src), src.unwrap_or(Addr::from(input.src)));
    }

    /// The shard of a packet, if there were many.
    fn shard_of(&self, packet: &PacketBuf) -> u16 {
        let view = View::parse(packet.packet()).expect("it was forwarded");
        gatun::engine::place_of(self.engine.snapshot(), packet, &view, SHARDING)
    }

    /// The same for a packet that answers one of tuple `to`.
    fn shard_of_answer(&self, to: &Tuple) -> u16 {
        gatun::engine::place_between(self.engine.snapshot(), (to.dst, to.src), Some(to.sport), SHARDING)
    }

    fn replied(&self, input: &Decoded, before: &PacketBuf, buf: &PacketBuf) {
        let output = oracle::decode(buf.packet()).expect("a reply is a packet");
        assert_eq!((output.src, output.dst), (input.dst, input.src));
        assert!(self.model.vips.contains(&Addr::from(input.dst)));
        assert_eq!(input.payload, output.payload);
        if input.fragment.is_none() {
            assert_eq!(is_right(before), is_right(buf));
        }
    }

    fn dropped(&self, input: &Decoded, tuple: Option<Tuple>, reason: DropReason) {
        use DropReason as R;
        let occupancy = self.engine.occupancy();
        let Some(tuple) = tuple else { return };
        let service = self.model.servers(&tuple);
        match reason {
            R::NoService => assert!(service.is_none(), "{tuple:?} has a service"),
            R::NoServer | R::ServersFull => {
                let snapshot = self.engine.snapshot();
                let service = snapshot.service_for(tuple.dst, tuple.protocol, tuple.dport).expect("a service");
                assert!(service.all_servers().all(|server| !server.is_available()), "{tuple:?} could be served");
                assert_eq!(reason == R::ServersFull, service.servers.iter().any(|server| server.is_only_full()));
            }
            R::NoFlow => assert!(input.tcp.as_ref().is_some_and(|tcp| tcp.flags & 0x12 != 2), "a SYN has no flow"),
            R::TableFull => assert_eq!(occupancy.0, occupancy.1),
            R::PoolExhausted => assert!(self.model.is_exhausted(self.now, &tuple), "a port is free for {tuple:?}"),
            R::TtlExceeded => assert!(input.ttl <= 1),
            _ => return,
        }
        let known = self.model.translation(&tuple).is_some();
        assert!(!known || reason == R::TtlExceeded, "a packet of a flow was dropped: {reason:?}");
    }

    /// A packet that its flow's method cannot take to the server is of the flow all the same, and keeps it alive.
    fn stopped(&mut self, tuple: Option<Tuple>, reason: DropReason) {
        use DropReason as R;
        let is_of_flow =
            matches!(reason, R::TooBig | R::TunnelLoop | R::NoTunnelSource | R::ServerUnreachable | R::BadOffload);
        if let Some(tuple) = tuple.filter(|_| is_of_flow && self.believed) {
            self.model.seen(self.now, &tuple);
        }
    }

    fn drain_events(&mut self, cause: Cause) {
        while let Some(event) = self.engine.poll_event() {
            self.model.event(self.now, &event, cause);
        }
    }

    fn answer(&mut self, flags: u8, seq: u8, len: u8) {
        let Some(went) = self.went.as_deref().map(PacketBuf::from_packet) else { return };
        let Some(tuple) = oracle::decode(unwrapped(&went).packet()).as_ref().and_then(tuple_of) else { return };
        let back = tuple.reversed();
        let segment = match tuple.protocol {
            Protocol::TCP => ops::tcp_segment(back.sport, back.dport, sequence(5000, seq), 1001, flags, len.into()),
            _ => ops::udp_segment(back.sport, back.dport, len.into()),
        };
        let packet = ops::ip_packet(back.src.wire(), back.dst.wire(), tuple.protocol.0, 64, &segment);
        self.feed(PacketBuf::from_packet(&packet));
    }

    fn error(&mut self, kind: u8, quoted: u8, from_router: bool, corrupt: bool) {
        let Some(went) = self.went.clone() else { return };
        let Some(about) = oracle::decode(&went) else { return };
        let v4 = about.src.is_ipv4();
        let types: [(u8, u8); 4] =
            if v4 { [(3, 3), (3, 4), (11, 0), (12, 0)] } else { [(1, 4), (2, 0), (3, 0), (4, 0)] };
        let (kind, code) = types[usize::from(kind) % 4];
        let cut = went.len().min(about.l4 + 4 + usize::from(quoted));
        let message = ops::icmp_message(kind, code, [0, 0, 5, 0], &went[..cut]);
        let router = if v4 { Addr::from_v4([10, 20, 0, 254]) } else { server_addr(false, 254) };
        let src = if from_router { router } else { Addr::from(about.dst) };
        let dst = Addr::from(about.src);
        let mut packet = ops::ip_packet(src.wire(), dst.wire(), if v4 { 1 } else { 58 }, 64, &message);
        if corrupt {
            let last = packet.len() - 1;
            packet[last] ^= 0x55;
        }
        self.feed(PacketBuf::from_packet(&packet));
    }

    fn fragments(&mut self, shape: &Shape, id: u8, order: u8, mask: u8) {
        let (src, dst) = ends(shape);
        let (sport, dport) = ports(shape);
        let packet = match shape.protocol % 10 {
            9 => echo(shape, 200),
            _ => {
                let segment = ops::udp_segment(sport, dport, 100 + usize::from(shape.len));
                ops::ip_packet(src.wire(), dst.wire(), 17, 64, &segment)
            }
        };
        let mut pieces = ops::fragment(&packet, 48, id % 4);
        let len = pieces.len();
        pieces.rotate_left(usize::from(order) % len);
        if order & 0x80 != 0 {
            pieces.reverse();
        }
        for (number, piece) in pieces.iter().enumerate() {
            if mask >> (number % 8) & 1 == 0 {
                self.feed(PacketBuf::from_packet(piece));
            }
        }
    }

    fn wait(&mut self, mantissa: u8, exponent: u8) {
        let millis = u64::from(mantissa) * 10u64.pow(u32::from(exponent % 7));
        self.now = self.now + Duration::from_millis(millis);
        // Sometimes packets come before the engine was told the time.
        if exponent & 0x80 == 0 {
            self.engine.handle_timeout(self.now);
            self.drain_events(Cause::Time);
            assert!(self.engine.poll_timeout().is_none_or(|deadline| deadline > self.now), "work is left over");
            self.model.check_ages(self.now);
        }
    }

    fn swap(&mut self, number: u8) {
        let spec = spec(number);
        let next = Snapshot::build(spec.clone(), Some(self.engine.snapshot())).expect("valid");
        let flows = self.engine.occupancy().0;
        self.engine.apply(self.now, Command::Swap(Arc::new(next)));
        assert_eq!(self.engine.occupancy().0, flows, "a swap ended flows");
        self.model.swap(spec);
        self.drain_events(Cause::Command);
    }

    fn delete(&mut self, number: u8) {
        let before = self.engine.occupancy().0;
        let filter = match number % 8 {
            0 => FlowFilter { protocol: Some(Protocol::UDP), ..FlowFilter::default() },
            1 => FlowFilter { src: Some((client_addr(true, number >> 3), 32)), ..FlowFilter::default() },
            2 => FlowFilter { server: Some(vec![ServerId(u32::from(number >> 3) % 4)]), ..FlowFilter::default() },
            3 => FlowFilter { state: Some("ESTABLISHED".into()), ..FlowFilter::default() },
            4 => FlowFilter { dport: Some(80), ..FlowFilter::default() },
            _ => FlowFilter { dst: Some((Addr::from_v4([203, 0, 113, 8]), 29)), ..FlowFilter::default() },
        };
        let filter = if number == 255 { FlowFilter::default() } else { filter };
        let (mut deleted, mut cursor) = (0, Some(0));
        while let Some(from) = cursor {
            let command = Command::Delete { filter: filter.clone(), cursor: from };
            let Outcome::Deleted { count, next } = self.engine.apply(self.now, command) else {
                panic!("a deletion says how many")
            };
            assert!(next.is_none_or(|next| next > from), "a deletion gets on");
            deleted += count;
            cursor = next;
        }
        assert_eq!(before - self.engine.occupancy().0, deleted as usize);
        let (left, _) = self.engine.flows(self.now, 0, usize::MAX);
        assert!(left.iter().all(|flow| number != 255 && !filter.matches(flow)), "not all that match are gone");
        self.drain_events(Cause::Command);
    }

    fn health(&mut self, number: u8) {
        let snapshot = self.engine.snapshot();
        let server = snapshot.server(ServerId(u32::from(number >> 3) % 8));
        match (number % 8, server) {
            (0..=2, Some(server)) => {
                server.state.set_up(self.now, false);
            }
            (3..=5, Some(server)) => {
                server.state.set_up(self.now, true);
            }
            (6, Some(server)) => {
                server.state.set_draining(!server.state.is_draining());
            }
            (7, _) => {
                if let Some(service) = snapshot.live.get(usize::from(number >> 3) % snapshot.live.len().max(1)) {
                    service.state.set_quorum(!service.state.has_quorum());
                }
            }
            _ => {}
        }
    }

    fn evacuate(&mut self, number: u8) {
        let policies = [None, Some(FlowPolicy::Reset), Some(FlowPolicy::Reschedule), Some(FlowPolicy::Keep)];
        let policy = policies[usize::from(number % 4)];
        let servers: Vec<ServerId> = (0..6).filter(|n| number >> 2 & 1 << n != 0).map(ServerId).collect();
        let before = self.engine.occupancy().0;
        let (mut ended, mut cursor) = (0, Some(0));
        while let Some(from) = cursor {
            let command = Command::Evacuate {
                servers: servers.as_slice().into(),
                policy,
                extent: Extent { began: self.now, only: Only::All },
                cursor: from,
            };
            let Outcome::Deleted { count, next } = self.engine.apply(self.now, command) else {
                panic!("an evacuation says how many")
            };
            (ended, cursor) = (ended + count, next);
        }
        assert_eq!(before - self.engine.occupancy().0, ended as usize);
        let (left, _) = self.engine.flows(self.now, 0, usize::MAX);
        let keeps = policy == Some(FlowPolicy::Keep);
        assert!(keeps || left.iter().all(|flow| !servers.contains(&flow.server)), "some are left");
        let mut resets = 0;
        while let Some(reset) = self.engine.poll_transmit() {
            is_own_reset(&reset);
            resets += 1;
        }
        assert!(resets <= 2 * ended, "{resets} RSTs for {ended} flows");
        self.drain_events(Cause::Command);
    }

    /// What must hold whatever happened.
    fn check(&mut self) {
        self.engine.check_invariants();
        let (occupancy, limit) = self.engine.occupancy();
        assert!(occupancy <= limit);
        assert_eq!(self.model.len(), occupancy, "the model has other flows than the engine");
        let snapshot = self.engine.snapshot();
        let servers = (0..snapshot.server_ids()).filter_map(|id| snapshot.server(ServerId(id as u32)));
        let load: u64 = servers.map(|server| server.load.active() + server.load.inactive()).sum();
        assert_eq!(load, occupancy as u64, "the servers' load is not that of the flows");
        let stats = self.engine.stats();
        let ended = stats.flows_expired + stats.flows_evicted + stats.flows_deleted + stats.flows_reused;
        let ended = ended + stats.flows_evacuated + stats.ports_reclaimed;
        assert_eq!(stats.flows_created - ended, occupancy as u64);
        for table in snapshot.persisted() {
            let (clients, most) = table.occupancy();
            assert!(clients <= most && most <= snapshot.spec.limits.persistent_clients);
            let counted: u32 = table.entries(self.now, 0, usize::MAX).0.iter().map(|entry| entry.flows).sum();
            assert!(counted as usize <= occupancy, "persistence counts {counted} flows of {occupancy}");
        }
        let counted = counted(&self.engine);
        assert!(counted <= self.packets && self.packets <= counted + stats.fragments_held);
    }
}

/// A RST that the engine made.
fn is_own_reset(sent: &PacketBuf) {
    let inner = unwrapped(sent);
    assert!(is_right(&inner), "a RST with a wrong checksum");
    let output = oracle::decode(inner.packet()).expect("a RST is a packet");
    assert_eq!(output.tcp.expect("a RST is TCP").flags & 4, 4);
}

/// The packet without the outer headers of a tunnel, if it has any. All of these are small enough to go in one piece.
fn unwrapped(sent: &PacketBuf) -> PacketBuf {
    assert_eq!(sent.wrap, None, "in pieces");
    let mut buf = sent.clone();
    match unwrap(&mut buf, |port| port == GUE_PORT) {
        Ok(_) => buf,
        Err(_) => sent.clone(),
    }
}

/// An error about an outer packet has become one about the client's.
fn tunnel_error_relayed(input: &Decoded, buf: &PacketBuf) {
    assert!(is_right(buf), "a relayed error with a wrong checksum");
    let output = oracle::decode(buf.packet()).expect("a relayed error is a packet");
    let told = quoted_tuple(&output).expect("it quotes the client's packet");
    assert_eq!((Addr::from(output.src), Addr::from(output.dst)), (told.dst, told.src), "told to whoever sent it");
    assert!(output.payload.len() < input.payload.len(), "the outer headers are quoted as well");
}

/// Packets that have their verdict; fragments that are held have none yet.
fn counted(engine: &Engine) -> u64 {
    let stats = engine.stats();
    stats.forwarded + stats.passed + stats.replied + stats.drops.iter().sum::<u64>()
}

fn from_client(shape: &Shape) -> PacketBuf {
    let (src, dst) = ends(shape);
    let (sport, dport) = ports(shape);
    let len = usize::from(shape.len);
    let (protocol, segment) = match shape.protocol {
        0..=5 => {
            let (seq, ack) = (sequence(1000, shape.seq), sequence(5000, shape.ack));
            (6, ops::tcp_segment(sport, dport, seq, ack, shape.flags, len))
        }
        6..=8 => (17, ops::udp_segment(sport, dport, len)),
        9 | 10 => return PacketBuf::from_packet(&echo(shape, len)),
        _ => (132, vec![0; 12]),
    };
    let packet = ops::ip_packet(src.wire(), dst.wire(), protocol, shape.ttl, &segment);
    match shape.partial && protocol != 132 {
        true => oracle::to_partial(&packet),
        false => PacketBuf::from_packet(&packet),
    }
}

fn echo(shape: &Shape, len: usize) -> Vec<u8> {
    let (src, dst) = ends(shape);
    let (kind, protocol) = if shape.v6 { (128, 58) } else { (8, 1) };
    let message = ops::icmp_message(kind, 0, [0, shape.sport, 0, 1], &vec![0x61; len]);
    ops::ip_packet(src.wire(), dst.wire(), protocol, shape.ttl, &message)
}

/// Near the start of the connection, or, rarely, anywhere.
fn sequence(base: u32, offset: u8) -> u32 {
    match offset {
        0..=247 => base + u32::from(offset),
        // Half the sequence space away, where before and after meet.
        248..=250 => (base + u32::from(offset - 248)).wrapping_add(1 << 31),
        _ => base.wrapping_add(u32::from(offset) << 24),
    }
}

fn ends(shape: &Shape) -> (Addr, Addr) {
    let vip = match (shape.v6, shape.vip % 8) {
        (false, n) => Addr::from_v4([203, 0, 113, [10, 10, 10, 11, 11, 12, 10, 99][usize::from(n)]]),
        (true, n) => {
            let mut octets = [0; 16];
            octets[..6].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0xf]);
            octets[15] = if n == 7 { 99 } else { 10 };
            Addr::from_v6(octets)
        }
    };
    (client_addr(!shape.v6, shape.client), vip)
}

fn ports(shape: &Shape) -> (u16, u16) {
    let sport = [40000, 40001, 40002, 1023, 5, 8080, 53, 0][usize::from(shape.sport % 8)];
    (sport, SERVER_PORTS[usize::from(shape.dport % 8)])
}

fn client_addr(v4: bool, number: u8) -> Addr {
    let last = number % 8 + 1;
    match v4 {
        // The last one claims to be a server.
        true if last == 8 => server_addr(true, 11),
        true => Addr::from_v4([198, 51, 100, last]),
        false => server_like([0x20, 0x01, 0x0d, 0xb8], last),
    }
}
