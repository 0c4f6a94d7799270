//! A control connection of FTP over a bad network: whatever is lost, repeated in other pieces, reordered or spoilt, each end
//! reads what the other one said, with the servers' addresses exchanged for the VIP's; nobody is acknowledged for what has
//! not arrived, and nobody is stuck.
//!
//! The first bytes say what the two talk about, the rest what happens on the way. When they are used up the network is a
//! good one, with senders that have but one segment under way, and the conversation has to come to its end.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gatun::engine::{Engine, EngineConfig};
use gatun::service::{
    HelperKind, PortRange, Protocols, SchedulerKind, ServerSpec, ServiceSpec, Snapshot, SnapshotSpec,
};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf};

use super::ops::{Bytes, ip_packet};
use super::oracle;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

const NOW: Instant = Instant::from_secs(100);
/// A port of the VIP that another service has: a server's passive port cannot keep it.
const TAKEN: u16 = 5000;

pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut world = World::new(&mut bytes);
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
    }
    world.settle();
    world.check_expectation();
}

/// Which end; the index of what belongs to it.
const CLIENT: usize = 0;
const SERVER: usize = 1;

struct World {
    engine: Engine,
    v4: bool,
    ends: [End; 2],
    /// How many bytes of commands must have come before how many bytes of replies may go.
    turns: Vec<(usize, usize)>,
    /// What the ends are to read.
    expected: [Vec<Piece>; 2],
    /// On the way to the gateway.
    wire: Vec<(usize, PacketBuf)>,
    /// What the last exchange that announced something makes of whose connection.
    announced: Option<Announced>,
    announcements: u32,
}

/// Part of what an end is to read.
#[derive(Clone, Debug)]
enum Piece {
    Text(Vec<u8>),
    /// Some port, in digits.
    Port,
}

#[derive(Clone, Copy, Debug)]
enum Announced {
    Passive(u16),
    Active(u16),
}

/// One end's TCP.
#[derive(Default)]
struct End {
    first: u32,
    says: Vec<u8>,
    /// Of these so many have been acknowledged, and so many sent.
    acked: usize,
    sent: usize,
    /// Blocks that the other end says it has.
    sacked: BTreeMap<usize, usize>,
    has_closed: bool,
    /// What has come, in order, and what is ahead of it.
    read: Vec<u8>,
    ahead: BTreeMap<usize, u8>,
    /// Where the other end's FIN is.
    end: Option<usize>,
}

impl World {
    fn new(bytes: &mut Bytes<'_>) -> World {
        let v4 = bytes.u8() & 1 == 0;
        let count = 1 + bytes.u8() % 10;
        let mut world = World {
            engine: engine(v4),
            v4,
            ends: Default::default(),
            turns: Vec::new(),
            expected: Default::default(),
            wire: Vec::new(),
            announced: None,
            announcements: 0,
        };
        world.ends[CLIENT].first = u32::from_be_bytes([bytes.u8(), 0xff, 0xff, 0xf0]);
        world.ends[SERVER].first = u32::from_be_bytes([bytes.u8(), 0xff, 0xff, 0xe0]);
        for number in 0..count {
            world.exchange(bytes, u16::from(number));
        }
        world.handshake();
        world
    }

    /// A command and its answer.
    fn exchange(&mut self, bytes: &mut Bytes<'_>, number: u16) {
        let port = 1100 + number * 977 + u16::from(bytes.u8());
        let six = |ip: IpAddr| format!("{},{},{}", ip.to_string().replace('.', ","), port >> 8, port & 0xff);
        let (server, vip, client) = (self.addr(SERVER), self.vip(), self.addr(CLIENT));
        let text = |text: String| vec![Piece::Text(text.into_bytes())];
        let kind = match bytes.u8() % 8 {
            // These have room for IPv4 alone.
            0 | 1 if !self.v4 => 2,
            kind => kind,
        };
        self.announcements += u32::from(matches!(kind, 0 | 2..=4));
        let (command, reply, read) = match kind {
            0 => {
                self.announced = Some(Announced::Passive(port));
                let say = |ip| format!("227 Entering Passive Mode ({}).\r\n", six(ip));
                ("PASV\r\n".to_owned(), say(server), text(say(vip)))
            }
            1 => {
                let say = format!("227 Somebody else's {}\r\n", six([10, 20, 0, 99].into()));
                ("pasv\r\n".to_owned(), say.clone(), text(say))
            }
            2 => {
                self.announced = Some(Announced::Passive(port));
                let say = format!("229 Entering Extended Passive Mode (|||{port}|)\r\n");
                ("EPSV\r\n".to_owned(), say.clone(), text(say))
            }
            3 => {
                self.announced = None;
                let mut read = text("229 Here (|||".to_owned());
                read.extend([Piece::Port, Piece::Text(b"|).\r\n".to_vec())]);
                ("EPSV\r\n".to_owned(), format!("229 Here (|||{TAKEN}|).\r\n"), read)
            }
            4 => {
                self.announced = Some(Announced::Active(port));
                let family = if self.v4 { 1 } else { 2 };
                let say = "200 EPRT command successful.\r\n".to_owned();
                (format!("EPRT |{family}|{client}|{port}|\r\n"), say.clone(), text(say))
            }
            5 => {
                let say = format!("214-Help\r\n227 Not this ({})\r\n229 (|||{TAKEN}|)\r\n214 Done\r\n", six(server));
                ("HELP\r\n".to_owned(), say.clone(), text(say))
            }
            _ => {
                let len = usize::from(bytes.u8() % 40);
                let line: String = bytes.take(len).iter().map(|b| char::from(b' ' + b % 90)).collect();
                let say = format!("200 {line}\r\n");
                (format!("{line}\r\n"), say.clone(), text(say))
            }
        };
        self.expected[SERVER].push(Piece::Text(command.clone().into_bytes()));
        self.expected[CLIENT].extend(read);
        self.ends[CLIENT].says.extend(command.as_bytes());
        self.ends[SERVER].says.extend(reply.as_bytes());
        self.turns.push((self.ends[CLIENT].says.len(), self.ends[SERVER].says.len()));
    }

    fn handshake(&mut self) {
        for (end, flags) in [(CLIENT, SYN), (SERVER, SYN | ACK)] {
            let ack = if end == CLIENT { 0 } else { self.ends[CLIENT].first };
            let seq = self.ends[end].first.wrapping_sub(1);
            let mut buf = PacketBuf::from_packet(&self.packet(end, seq, ack, flags, &[], &[]));
            assert_eq!(self.engine.handle_packet(NOW, &mut buf), Verdict::Forward);
        }
        self.acknowledge(CLIENT, 0);
        let (end, mut buf) = self.wire.pop().expect("it was just put there");
        assert_eq!((end, self.engine.handle_packet(NOW, &mut buf)), (CLIENT, Verdict::Forward));
    }

    /// Something happens; the bytes say what.
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let (what, how) = (bytes.u8(), usize::from(bytes.u8()));
        let end = usize::from(what >> 7);
        let (acked, sent) = (self.ends[end].acked, self.ends[end].sent);
        match what & 0x0f {
            0..=3 => {
                let len = (1 + how % 30).min(self.may_say(end) - sent);
                self.say(end, sent, len, what & 0x40 != 0);
            }
            4 => self.say(end, acked, (1 + how).min(sent - acked), what & 0x40 != 0),
            5 => {
                let from = acked + how % (sent - acked).max(1);
                self.say(end, from, (1 + how / 8).min(sent - from), false);
            }
            6 => self.acknowledge(end, how),
            7 => self.lose(how),
            8 => self.repeat(how),
            9 => self.spoil(how),
            10 => self.close(end),
            _ => self.arrive(how, what & 0x40 != 0),
        }
    }

    /// How much an end may have said by now: a reply follows its command.
    fn may_say(&self, end: usize) -> usize {
        match end {
            CLIENT => self.ends[CLIENT].says.len(),
            _ => self
                .turns
                .iter()
                .filter(|turn| turn.0 <= self.ends[SERVER].read.len())
                .map(|turn| turn.1)
                .max()
                .unwrap_or(0),
        }
    }

    fn say(&mut self, end: usize, from: usize, len: usize, is_partial: bool) {
        if len == 0 {
            return;
        }
        let own = &self.ends[end];
        let payload = own.says[from..from + len].to_vec();
        let (seq, ack) = (own.first.wrapping_add(from as u32), self.ack(end));
        let fin = if own.has_closed && from + len == own.says.len() { FIN } else { 0 };
        let packet = self.packet(end, seq, ack, PSH | ACK | fin, &[], &payload);
        let buf = if is_partial { oracle::to_partial(&packet) } else { PacketBuf::from_packet(&packet) };
        self.wire.push((end, buf));
        self.ends[end].sent = self.ends[end].sent.max(from + len);
    }

    /// A segment without payload; with a block that is ahead, if there is any.
    fn acknowledge(&mut self, end: usize, how: usize) {
        let own = &self.ends[end];
        let mut options = Vec::new();
        if let Some(start) = own.ahead.keys().nth(how % own.ahead.len().max(1)).copied() {
            let mut stop = start + 1;
            while own.ahead.contains_key(&stop) {
                stop += 1;
            }
            let number = |at: usize| self.ends[1 - end].first.wrapping_add(at as u32).to_be_bytes();
            options = [&[1, 1, 5, 10][..], &number(start), &number(stop)].concat();
        }
        let flags = if own.has_closed { ACK | FIN } else { ACK };
        let seq = own.first.wrapping_add(if own.has_closed { own.says.len() } else { own.sent } as u32);
        let packet = self.packet(end, seq, self.ack(end), flags, &options, &[]);
        self.wire.push((end, PacketBuf::from_packet(&packet)));
    }

    /// An end that has said all that it has to say closes.
    fn close(&mut self, end: usize) {
        let own = &mut self.ends[end];
        if own.sent == own.says.len() {
            own.has_closed = true;
            self.acknowledge(end, 0);
        }
    }

    fn ack(&self, end: usize) -> u32 {
        let own = &self.ends[end];
        let fin = own.end.is_some_and(|end| end == own.read.len());
        self.ends[1 - end].first.wrapping_add(own.read.len() as u32 + u32::from(fin))
    }

    fn lose(&mut self, which: usize) {
        if !self.wire.is_empty() {
            self.wire.remove(which % self.wire.len());
        }
    }

    fn repeat(&mut self, which: usize) {
        if !self.wire.is_empty() && self.wire.len() < 64 {
            self.wire.push(self.wire[which % self.wire.len()].clone());
        }
    }

    fn spoil(&mut self, which: usize) {
        if !self.wire.is_empty() {
            let at = which % self.wire.len();
            let (_, buf) = &mut self.wire[at];
            // Of an only partial checksum nobody can tell.
            if !buf.vnet.needs_csum() {
                let last = buf.len() - 1;
                buf.packet_mut()[last] ^= 1 << (which % 8);
            }
        }
    }

    /// A packet comes to the gateway; `is_lost`: it goes no further than that.
    fn arrive(&mut self, which: usize, is_lost: bool) {
        if self.wire.is_empty() {
            return;
        }
        let (end, mut buf) = self.wire.remove(which % self.wire.len());
        let verdict = self.engine.handle_packet(NOW, &mut buf);
        self.engine.check_invariants();
        match verdict {
            Verdict::Forward if !is_lost => {
                self.receive(1 - end, &oracle::complete(&buf));
                while let Some(rest) = self.engine.poll_transmit() {
                    self.receive(1 - end, &oracle::complete(&rest));
                }
            }
            Verdict::Forward | Verdict::Drop(DropReason::TooEarly | DropReason::Unreadable) => {
                while self.engine.poll_transmit().is_some() {}
            }
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self, end: usize, packet: &[u8]) {
        if !oracle::checksums_are_right(packet) {
            return;
        }
        let packet_read = oracle::decode(packet).expect("it was forwarded");
        let tcp = packet_read.tcp.expect("it is a segment");
        assert_eq!(packet_read.dst, self.addr(end));
        self.learn(end, tcp.ack, &packet[packet_read.l4 + 20..packet_read.l4 + tcp.header_len]);
        let from = tcp.seq.wrapping_sub(self.ends[1 - end].first) as i32;
        let own = &mut self.ends[end];
        for (at, byte) in (from..).zip(&packet_read.payload) {
            let Some(at) = usize::try_from(at).ok().filter(|at| *at >= own.read.len()) else { continue };
            let known = *own.ahead.entry(at).or_insert(*byte);
            assert_eq!(known, *byte, "byte {at} came twice, as two");
        }
        while let Some(byte) = own.ahead.remove(&own.read.len()) {
            own.read.push(byte);
        }
        if tcp.flags & FIN != 0 {
            let at = usize::try_from(from + packet_read.payload.len() as i32).expect("no FIN before the beginning");
            assert!(own.end.is_none_or(|end| end == at), "two ends");
            own.end = Some(at);
        }
        assert!(is_beginning(&own.read, &self.expected[end]), "{:?}\n{:?}", text(&own.read), self.expected[end]);
        if !packet_read.payload.is_empty() && self.wire.len() < 64 {
            self.acknowledge(end, 0);
        }
    }

    /// What the other end says that it has.
    fn learn(&mut self, end: usize, ack: u32, options: &[u8]) {
        let own = &mut self.ends[end];
        let acked = ack.wrapping_sub(own.first) as i32;
        let said = if own.has_closed { own.says.len() + 1 } else { own.sent };
        // An old one may come after what it acknowledged has become a mere shift, and then say less than it did.
        assert!(acked > -1000, "{acked} acknowledged");
        let acked = usize::try_from(acked).unwrap_or(0);
        assert!(acked <= said, "{acked} of {said} acknowledged");
        own.acked = own.acked.max(acked.min(own.says.len()));
        if let [1, 1, 5, 10, l0, l1, l2, l3, r0, r1, r2, r3] = *options {
            let at = |edge: [u8; 4]| u32::from_be_bytes(edge).wrapping_sub(own.first) as i32;
            let (left, right) = (at([l0, l1, l2, l3]), at([r0, r1, r2, r3]));
            assert!(left < right && right <= said as i32, "{left} to {right} of {said}");
            if let (Ok(left), Ok(right)) = (usize::try_from(left), usize::try_from(right)) {
                own.sacked.insert(left, right);
            }
        }
    }

    /// The rest of the conversation, on a good network. Each end has one segment under way, repeats it until it is
    /// acknowledged, and never what the other one says it has.
    fn settle(&mut self) {
        self.drain();
        for round in 0.. {
            assert!(round < 4000, "stuck: {:?}", self.ends.each_ref().map(|end| (end.acked, end.sent, end.says.len())));
            for end in [CLIENT, SERVER] {
                let (acked, sent) = (self.ends[end].acked, self.ends[end].sent);
                if acked < sent {
                    let has = |block: (&usize, &usize)| (*block.0 <= acked && acked < *block.1).then_some(*block.1);
                    let from = self.ends[end].sacked.iter().find_map(has).unwrap_or(acked).min(sent);
                    // What is said to be there is not sent; but then it has to be acknowledged by and by.
                    let next =
                        self.ends[end].sacked.range(from + 1..).next().map_or(sent, |(left, _)| (*left).min(sent));
                    self.say(end, from, (next - from).min(11), false);
                } else {
                    self.say(end, sent, 9.min(self.may_say(end) - sent), round % 2 == 0);
                }
                self.drain();
            }
            if self.ends.iter().all(|end| end.acked == end.says.len()) {
                break;
            }
        }
        for end in [CLIENT, SERVER] {
            self.ends[end].has_closed = true;
            self.acknowledge(end, 0);
            self.drain();
        }
        for end in [CLIENT, SERVER] {
            let own = &self.ends[end];
            assert!(is_all(&own.read, &self.expected[end]), "{:?}\n{:?}", text(&own.read), self.expected[end]);
            assert_eq!(own.end, Some(own.read.len()), "the FIN stands elsewhere than at the end");
        }
    }

    fn drain(&mut self) {
        while !self.wire.is_empty() {
            self.arrive(0, false);
        }
    }

    /// What was announced last begins, between the right two.
    fn check_expectation(&mut self) {
        // A connection keeps few, and commands may have been read long before other replies.
        if self.announcements > 4 {
            return;
        }
        let (src, dst) = match self.announced {
            None => return,
            Some(Announced::Passive(port)) => ((self.addr(CLIENT), 44_444), (self.vip(), port)),
            Some(Announced::Active(port)) => ((self.addr(SERVER), 20), (self.addr(CLIENT), port)),
        };
        let packet = packet(src.into(), dst.into(), 1, 0, SYN, &[], &[]);
        let mut buf = PacketBuf::from_packet(&packet);
        assert_eq!(self.engine.handle_packet(NOW, &mut buf), Verdict::Forward, "{:?}", self.announced);
        let sent = oracle::decode(buf.packet()).expect("a packet");
        let expected = match self.announced {
            Some(Announced::Passive(port)) => (src.0, self.addr(SERVER), (44_444, port)),
            _ => (self.vip(), dst.0, (20, dst.1)),
        };
        assert_eq!((sent.src, sent.dst, sent.ports.expect("TCP")), expected);
    }

    fn addr(&self, end: usize) -> IpAddr {
        address(self.v4, if end == CLIENT { ["198.51.100.2", "2001:db8:1::2"] } else { ["10.20.0.11", "fd20::11"] })
    }

    fn vip(&self) -> IpAddr {
        address(self.v4, VIP)
    }

    /// A segment as an end sends it.
    fn packet(&self, end: usize, seq: u32, ack: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let (client, server) = ((self.addr(CLIENT), 40_000), (self.addr(SERVER), 2121));
        let (src, dst) = if end == CLIENT { (client, (self.vip(), 21)) } else { (server, client) };
        packet(src.into(), dst.into(), seq, ack, flags, options, payload)
    }
}

const VIP: [&str; 2] = ["203.0.113.10", "2001:db8:f::10"];

fn address(v4: bool, of: [&str; 2]) -> IpAddr {
    of[usize::from(!v4)].parse().expect("an address")
}

fn packet(src: SocketAddr, dst: SocketAddr, seq: u32, ack: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(src.port().to_be_bytes());
    segment.extend(dst.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    ip_packet(Addr::from(src.ip()).wire(), Addr::from(dst.ip()).wire(), 6, 64, &segment)
}

fn engine(v4: bool) -> Engine {
    let vip = Addr::from(address(v4, VIP));
    let server = ServerSpec {
        name: "rs1".to_owned(),
        address: Addr::from(address(v4, ["10.20.0.11", "fd20::11"])),
        port: Some(2121),
        ..ServerSpec::default()
    };
    let service = |name: &str, port: u16, helper: Option<HelperKind>| ServiceSpec {
        name: name.to_owned(),
        vip,
        ports: PortRange::single(port),
        protocols: Protocols::Tcp,
        scheduler: SchedulerKind::Rr,
        helper,
        servers: vec![server.clone()],
        ..ServiceSpec::default()
    };
    let services = vec![service("ftp", 21, Some(HelperKind::Ftp)), service("other", TAKEN, None)];
    let spec = SnapshotSpec { services, ..SnapshotSpec::default() };
    let snapshot = Arc::new(Snapshot::build(spec, None).expect("valid"));
    Engine::new(EngineConfig { shard: 0, shards: 1, max_flows: 16, seed: [7, 9] }, snapshot)
}

/// Whether `read` is how this may begin.
fn is_beginning(read: &[u8], expected: &[Piece]) -> bool {
    matches(read, expected, true)
}

/// Whether `read` is just this.
fn is_all(read: &[u8], expected: &[Piece]) -> bool {
    matches(read, expected, false)
}

fn matches(mut read: &[u8], expected: &[Piece], may_end: bool) -> bool {
    for piece in expected {
        match piece {
            Piece::Text(text) => match read.strip_prefix(&text[..]) {
                Some(rest) => read = rest,
                None => return may_end && text.starts_with(read),
            },
            Piece::Port => {
                let digits = read.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let port = std::str::from_utf8(&read[..digits]).ok().and_then(|text| text.parse::<u16>().ok());
                if digits < read.len() && port.is_none_or(|port| port < 1024 || port == TAKEN) {
                    return false;
                }
                read = &read[digits..];
                if read.is_empty() {
                    return may_end;
                }
            }
        }
    }
    read.is_empty()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
