//! The PROXY protocol: the header in front of what a client sends, and the numbers of both ends around it.

use std::net::SocketAddr;

use gatun::command::{Command, Extent, Only};
use gatun::engine::Engine;
use gatun::service::{FlowPolicy, Method, PortRange, Protocols, ProxyProtocol, ServerId, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{PacketBuf, Protocol, Tuple};

use crate::support::oracle;
use crate::support::packet::{ACK, Build, FIN, IcmpError, PSH, RST, SYN, icmp_error, tcp};
use crate::support::world::{self, ServiceSpecExt, service};
use crate::{Net, Packet, Row};

/// A web service that tells servers its clients.
fn spec(net: Net, version: ProxyProtocol) -> SnapshotSpec {
    let (vip, rs) = (net.vip(0).ip().to_string(), net.rs(1, 0).ip().to_string());
    let mut web = service("web", &vip, PortRange::single(80), Protocols::Tcp).server(&rs, Some(8080), 1);
    web.proxy_protocol = Some(version);
    SnapshotSpec { services: vec![web], ..SnapshotSpec::default() }
}

/// As the specification has it, for client port 40000.
fn header(net: Net, version: ProxyProtocol) -> Vec<u8> {
    match (version, net.is_v4()) {
        (ProxyProtocol::V1, true) => b"PROXY TCP4 198.51.100.2 203.0.113.10 40000 80\r\n".to_vec(),
        (ProxyProtocol::V1, false) => b"PROXY TCP6 2001:db8:1::2 2001:db8:f::10 40000 80\r\n".to_vec(),
        (ProxyProtocol::V2, true) => {
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[198, 51, 100, 2, 203, 0, 113, 10], &[0x9c, 0x40, 0, 80]]
                .concat()
        }
        (ProxyProtocol::V2, false) => [
            &b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"[..],
            &[0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0x20, 0x01, 0x0d, 0xb8, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10],
            &[0x9c, 0x40, 0, 80],
        ]
        .concat(),
    }
}

/// A connection of client port 40000; the client's first byte is 1001, the server's 5001.
#[derive(Clone, Copy)]
struct Ends(Net);

impl Ends {
    fn client(self, flags: u8, seq: u32, ack: u32) -> Build {
        tcp(self.0.client(40000), self.0.vip(80)).flags(flags).seq(seq, ack)
    }

    fn server(self, flags: u8, seq: u32, ack: u32) -> Build {
        tcp(self.0.rs(1, 8080), self.0.client(40000)).flags(flags).seq(seq, ack)
    }

    fn handshake(self) -> Vec<Build> {
        vec![self.client(SYN, 1000, 0), self.server(SYN | ACK, 5000, 1001)]
    }

    /// A packet as the server gets it.
    fn to_server(self, packet: &Build) -> Build {
        packet.with_dst(self.0.rs(1, 8080))
    }

    fn to_client(self, packet: &Build) -> Build {
        packet.with_src(self.0.vip(80))
    }
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    ProxyProtocol::ALL.into_iter().flat_map(|version| versioned(net, version)).collect()
}

fn versioned(net: Net, version: ProxyProtocol) -> Vec<Row> {
    let (ends, lead) = (Ends(net), header(net, version));
    let len = lead.len() as u32;
    let row = |name: &str, setup: Vec<Build>, packet: Build, out: Build| {
        Row::forward(name, spec(net, version), packet, out).after(ends.handshake()).after(setup)
    };
    let ack = ends.client(ACK, 1001, 5001);
    let with = |payload: &[u8]| [&lead[..], payload].concat();
    let data = ends.client(PSH | ACK, 1001, 5001).payload(b"GET /");
    let more = ends.client(PSH | ACK, 1006, 5001).payload(b" HTTP");
    let acked = ends.server(ACK, 5001, 1001 + len);
    let sack = |left: u32, right: u32| [&[1, 1, 5, 10][..], &left.to_be_bytes(), &right.to_be_bytes()].concat();
    let fast_open = ends.client(SYN, 1000, 0).payload(b"GET /");
    let quote = |packet: &Build| packet.bytes()[..packet.bytes().len().min(64)].to_vec();
    let rs = net.rs(1, 0);
    let lost =
        icmp_error(rs, net.client(0), IcmpError::PortUnreachable, &quote(&ends.to_server(&more).seq(1006 + len, 5001)));
    let lost_out = icmp_error(net.vip(0), net.client(0), IcmpError::PortUnreachable, &quote(&more));
    vec![
        row("the header rides on the ACK", vec![], ack.clone(), ends.to_server(&ack).payload(&lead)),
        row("or on the first data", vec![], data.clone(), ends.to_server(&data).payload(with(b"GET /"))),
        row(
            "or on a FIN",
            vec![],
            ends.client(FIN | ACK, 1001, 5001),
            ends.to_server(&ends.client(FIN | ACK, 1001, 5001)).payload(&lead),
        ),
        row(
            "and again in front of data, as it may be lost",
            vec![ack.clone()],
            data.clone(),
            ends.to_server(&data).payload(with(b"GET /")),
        ),
        row(
            "until the server acknowledges it",
            vec![ack.clone(), acked.clone()],
            data.clone(),
            ends.to_server(&data).seq(1001 + len, 5001),
        ),
        row(
            "all of it",
            vec![ack.clone(), ends.server(ACK, 5001, 1000 + len)],
            data.clone(),
            ends.to_server(&data).payload(with(b"GET /")),
        ),
        row(
            "but not more than there is",
            vec![ack.clone(), ends.server(ACK, 5001, 1002 + len)],
            data.clone(),
            ends.to_server(&data).payload(with(b"GET /")),
        ),
        row("what comes behind is moved", vec![], more.clone(), ends.to_server(&more).seq(1006 + len, 5001)),
        row(
            "the client hears nothing of the header",
            vec![ack.clone()],
            acked.clone(),
            ends.to_client(&ends.server(ACK, 5001, 1001)),
        ),
        row(
            "nor of a part of it",
            vec![ack.clone()],
            ends.server(ACK, 5001, 1001 + 5),
            ends.to_client(&ends.server(ACK, 5001, 1001)),
        ),
        row(
            "but of its own bytes",
            vec![data.clone()],
            ends.server(ACK, 5001, 1006 + len),
            ends.to_client(&ends.server(ACK, 5001, 1006)),
        ),
        row(
            "and of those that came early",
            vec![data.clone(), more.clone()],
            ends.server(ACK, 5001, 1001).tcp_options(&sack(1006 + len, 1011 + len)),
            ends.to_client(&ends.server(ACK, 5001, 1001)).tcp_options(&sack(1006, 1011)),
        ),
        row(
            "a repeated SYN-ACK is as the first",
            vec![ack.clone(), acked.clone()],
            ends.server(SYN | ACK, 5000, 1001),
            ends.to_client(&ends.server(SYN | ACK, 5000, 1001)),
        ),
        row(
            "what the server says is not moved",
            vec![ack.clone()],
            ends.server(PSH | ACK, 5001, 1001 + len).payload(b"220 ready"),
            ends.to_client(&ends.server(PSH | ACK, 5001, 1001).payload(b"220 ready")),
        ),
        row(
            "a RST before all of it is what the server expects",
            vec![],
            ends.client(RST, 1001, 0),
            ends.to_server(&ends.client(RST, 1001, 0)),
        ),
        row(
            "and behind it as well",
            vec![ack.clone()],
            ends.client(RST, 1001, 0),
            ends.to_server(&ends.client(RST, 1001 + len, 0)),
        ),
        row(
            "a keepalive stays before it",
            vec![ack.clone()],
            ends.client(ACK, 1000, 5001),
            ends.to_server(&ends.client(ACK, 1000, 5001)),
        ),
        row("an ICMP error quotes what the client sent", vec![data.clone(), more.clone()], lost, lost_out),
        Row::forward(
            "data on a SYN is left out, for the client to send again",
            spec(net, version),
            fast_open.clone(),
            ends.to_server(&ends.client(SYN, 1000, 0)),
        ),
        Row::drop(
            "nothing goes to a server that has not answered",
            spec(net, version),
            ack.clone(),
            DropReason::TooEarly,
        )
        .after([ends.client(SYN, 1000, 0)]),
        Row::drop(
            "a client cannot write the header itself",
            spec(net, version),
            ends.client(PSH | ACK, 1000, 5001).payload(with(b"GET /")),
            DropReason::TooEarly,
        )
        .after(ends.handshake()),
        row(
            "nor choose its place by another SYN",
            vec![ends.client(SYN, 900, 0)],
            data.clone(),
            ends.to_server(&data).payload(with(b"GET /")),
        ),
        row(
            "a forged SYN does not end a connection",
            vec![ack.clone(), acked.clone(), ends.client(SYN, 0x7000_0000, 0)],
            data.clone(),
            ends.to_server(&data).seq(1001 + len, 5001),
        ),
        row(
            "nor one that is being closed",
            vec![
                ack.clone(),
                ends.server(FIN | ACK, 5001, 1001 + len),
                ends.client(SYN, 0x7000_0000, 0),
                ends.server(ACK, 5002, 1001 + len),
            ],
            data.clone(),
            ends.to_server(&data).seq(1001 + len, 5001),
        ),
        row(
            "a SYN stands where the client says",
            vec![ack.clone(), acked.clone()],
            ends.client(SYN, 2000, 0),
            ends.to_server(&ends.client(SYN, 2000, 0)),
        ),
        row(
            "a server that has lost the connection gets the header of the next one",
            vec![ack.clone(), acked.clone(), ends.client(SYN, 2000, 0), ends.server(SYN | ACK, 70_000, 2001)],
            ends.client(PSH | ACK, 2001, 70_001).payload(b"GET /"),
            ends.to_server(&ends.client(PSH | ACK, 2001, 70_001).payload(with(b"GET /"))),
        ),
        row(
            "also where its bytes would be those of the last one",
            vec![ack.clone(), ends.client(SYN, 2000, 0), ends.server(SYN | ACK, 70_000, 2001)],
            ends.client(PSH | ACK, 2001, 70_001).payload(b"GET /"),
            ends.to_server(&ends.client(PSH | ACK, 2001, 70_001).payload(with(b"GET /"))),
        ),
        Row::drop(
            "but none at the place of the last one",
            spec(net, version),
            ends.client(SYN, 1000, 0),
            DropReason::TooEarly,
        )
        .after(ends.handshake())
        .after([ack.clone(), acked.clone()]),
        Row::drop(
            "nor when that one is being closed",
            spec(net, version),
            ends.client(SYN, 1000, 0),
            DropReason::TooEarly,
        )
        .after(ends.handshake())
        .after([ack.clone(), ends.server(FIN | ACK, 5001, 1001 + len)]),
        Row::drop(
            "a SYN whose bytes cannot be left out",
            spec(net, version),
            broken(&fast_open),
            DropReason::Unreadable,
        ),
        row(
            "a SYN that comes twice changes nothing",
            vec![ends.client(SYN, 1000, 0)],
            ack.clone(),
            ends.to_server(&ack).payload(&lead),
        ),
        Row::drop("a wrong sum stays out", spec(net, version), broken(&data), DropReason::Unreadable)
            .after(ends.handshake()),
        Row::forward(
            "a broken SYN-ACK says nothing",
            spec(net, version),
            ack.clone(),
            ends.to_server(&ack).payload(&lead),
        )
        .after(ends.handshake())
        .after([broken(&ends.server(SYN | ACK, 5000, 901))]),
        Row::drop(
            "a fragment has no room for it",
            spec(net, version),
            data.clone().payload([7; 100]).fragments(64)[0].clone(),
            DropReason::Unreadable,
        )
        .after(ends.handshake()),
        Row::forward(
            "what the device will sum stays partial",
            spec(net, version),
            data.partial(),
            ends.to_server(&data).payload(with(b"GET /")),
        )
        .after(ends.handshake()),
        Row::forward(
            "a super-packet stays one",
            spec(net, version),
            data.clone().payload([7; 9000]).super_packet(1448),
            ends.to_server(&data).payload(with(&[7; 9000])),
        )
        .after(ends.handshake()),
    ]
}

/// With a wrong TCP checksum.
fn broken(packet: &Build) -> PacketBuf {
    let mut bytes = packet.bytes();
    let at = oracle::Checksum::of(&bytes).expect("TCP has one").at;
    bytes[at] ^= 0x55;
    PacketBuf::from_packet(&bytes)
}

fn engine(net: Net, version: ProxyProtocol) -> Engine {
    world::engine(Snapshot::build(spec(net, version), None).expect("valid").into(), 64)
}

fn send(engine: &mut Engine, packet: impl Packet) -> Vec<u8> {
    let mut buf = packet.buf();
    assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
    oracle::complete(&buf)
}

#[test]
fn what_becomes_too_long_goes_as_two() {
    for net in Net::BOTH {
        let (ends, lead) = (Ends(net), header(net, ProxyProtocol::V1));
        let mut engine = engine(net, ProxyProtocol::V1);
        ends.handshake().into_iter().for_each(|packet| drop(send(&mut engine, packet)));
        let room = if net.is_v4() { 1460 } else { 1440 };
        let payload: Vec<u8> = (0..room).map(|n| n as u8).collect();
        let whole = [&lead[..], &payload].concat();
        let data = ends.client(PSH | ACK, 1001, 5001);
        let first = send(&mut engine, data.clone().payload(&payload));
        assert_eq!(first, ends.to_server(&data).flags(ACK).payload(&whole[..room]).bytes());
        let rest = engine.poll_transmit().expect("the rest");
        let expected = ends.to_server(&data).seq(1001 + room as u32, 5001).payload(&whole[room..]);
        assert_eq!(oracle::complete(&rest), expected.bytes());
        assert!(engine.poll_transmit().is_none());
    }
}

/// The largest packets there are leave no room; their end comes again.
#[test]
fn what_becomes_longer_than_packets_can_be_loses_its_end() {
    for net in Net::BOTH {
        let (ends, lead) = (Ends(net), header(net, ProxyProtocol::V2));
        let mut engine = engine(net, ProxyProtocol::V2);
        ends.handshake().into_iter().for_each(|packet| drop(send(&mut engine, packet)));
        let headers = if net.is_v4() { 40 } else { 60 };
        let payload: Vec<u8> = (0..65535 - headers).map(|n| n as u8).collect();
        let data = ends.client(FIN | PSH | ACK, 1001, 5001).payload(&payload);
        let sent = send(&mut engine, data.super_packet(1400));
        let kept = [&lead[..], &payload[..payload.len() - lead.len()]].concat();
        assert_eq!(sent, ends.to_server(&data).flags(PSH | ACK).payload(kept).bytes());
    }
}

/// Sequence numbers go round once in 4 GiB; what has been acknowledged long ago has no part in them.
#[test]
fn numbers_stay_moved_for_good() {
    let net = Net::V4;
    let (ends, len) = (Ends(net), 28u32);
    let mut engine = engine(net, ProxyProtocol::V2);
    let setup = ends.handshake().into_iter().chain([ends.client(ACK, 1001, 5001), ends.server(ACK, 5001, 1001 + len)]);
    setup.for_each(|packet| drop(send(&mut engine, packet)));
    let mut seq = 1001u32;
    for _ in 0..140 {
        seq = seq.wrapping_add(1 << 25);
        let data = ends.client(ACK, seq, 5001).payload(b"x");
        assert_eq!(send(&mut engine, &data), ends.to_server(&data).seq(seq.wrapping_add(len), 5001).bytes());
        let acked = ends.server(ACK, 5001, seq.wrapping_add(len + 1));
        assert_eq!(send(&mut engine, &acked), ends.to_client(&acked).seq(5001, seq.wrapping_add(1)).bytes());
    }
}

#[test]
fn a_server_that_is_gone_and_its_client_are_told_in_their_own_numbers() {
    for net in Net::BOTH {
        let (ends, lead) = (Ends(net), header(net, ProxyProtocol::V2));
        let mut engine = engine(net, ProxyProtocol::V2);
        let data = ends.client(PSH | ACK, 1001, 5001).payload(b"GET /");
        let setup = ends.handshake().into_iter().chain([data, ends.server(ACK, 5001, 1006 + lead.len() as u32)]);
        setup.for_each(|packet| drop(send(&mut engine, packet)));
        engine.apply(
            Instant::ZERO,
            Command::Evacuate {
                servers: [ServerId(0)].as_slice().into(),
                policy: Some(FlowPolicy::Reset),
                extent: Extent { began: Instant::ZERO, only: Only::All },
                cursor: 0,
            },
        );
        let sent: Vec<_> = std::iter::from_fn(|| engine.poll_transmit())
            .filter_map(|buf| oracle::decode(&oracle::complete(&buf)))
            .filter_map(|packet| packet.tcp.map(|tcp| (packet.dst, tcp.flags & RST != 0, tcp.seq)))
            .collect();
        let to_server = (net.rs(1, 0).ip(), true, 1006 + lead.len() as u32);
        assert_eq!(sent, [to_server, (net.client(0).ip(), true, 5001)]);
    }
}

/// A flow without a packet for its server would be one that a stranger gets for nothing.
#[test]
fn a_syn_that_goes_nowhere_begins_no_flow() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| [(net, Method::Nat), (net, Method::Fullnat)]) {
        let mut spec = spec(net, ProxyProtocol::V1);
        spec.services[0].method = method;
        spec.services[0].pool.addresses = vec![net.pool(0).ip().into()];
        let mut engine = world::engine(Snapshot::build(spec, None).expect("valid").into(), 64);
        let mut buf = broken(&Ends(net).client(SYN, 1000, 0).payload(b"GET /"));
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Drop(DropReason::Unreadable));
        assert_eq!(engine.stats().flows_created, 0);
    }
}

#[test]
fn a_connection_over_a_closing_one_has_a_header_of_its_own() {
    for net in Net::BOTH {
        let (ends, lead) = (Ends(net), header(net, ProxyProtocol::V1));
        let mut engine = engine(net, ProxyProtocol::V1);
        let setup = ends.handshake().into_iter().chain([
            ends.client(ACK, 1001, 5001),
            ends.server(FIN | ACK, 5001, 1001 + lead.len() as u32),
            ends.client(SYN, 100_000, 0),
            ends.server(SYN | ACK, 70_000, 100_001),
        ]);
        setup.for_each(|packet| drop(send(&mut engine, packet)));
        let ack = ends.client(ACK, 100_001, 70_001);
        assert_eq!(send(&mut engine, &ack), ends.to_server(&ack).payload(&lead).bytes());
    }
}

/// The gateway's own questions say that they are nobody's.
#[test]
fn a_probe_has_a_header_of_its_own() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| [(net, Method::Nat), (net, Method::Fullnat)]) {
        let headers = [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"];
        for (version, header) in ProxyProtocol::ALL.into_iter().zip(headers) {
            let mut spec = spec(net, version);
            spec.services[0].method = method;
            spec.services[0].pool.addresses = vec![net.pool(0).ip().into()];
            let mut engine = world::engine(Snapshot::build(spec, None).expect("valid").into(), 64);
            let (probe, vip, rs) = (net.client(40000), net.vip(80), net.rs(1, 8080));
            let original = Tuple {
                src: probe.ip().into(),
                dst: vip.ip().into(),
                sport: probe.port(),
                dport: vip.port(),
                protocol: Protocol::TCP,
            };
            engine.apply(Instant::ZERO, Command::Probe { original, server: ServerId(0) });
            let mut syn = tcp(probe, vip).syn().buf();
            assert_eq!(engine.handle_probe(Instant::ZERO, &mut syn), Verdict::Forward);
            let syn = oracle::decode(&oracle::complete(&syn)).expect("a packet");
            let peer = SocketAddr::new(syn.src, syn.ports.expect("TCP").0);
            let mut answer = tcp(rs, peer).flags(SYN | ACK).seq(5000, 1001).buf();
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut answer), Verdict::Deliver);
            let mut buf = tcp(probe, vip).flags(PSH | ACK).seq(1001, 5001).payload(b"GET /").buf();
            assert_eq!(engine.handle_probe(Instant::ZERO, &mut buf), Verdict::Forward);
            let sent = oracle::decode(&oracle::complete(&buf)).expect("a packet").payload;
            assert_eq!(sent, [header, b"GET /"].concat());
            let mut acked = tcp(rs, peer).flags(ACK).seq(5001, 1006 + header.len() as u32).buf();
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut acked), Verdict::Deliver);
            let told = oracle::decode(&oracle::complete(&acked)).and_then(|packet| packet.tcp).expect("TCP");
            assert_eq!(told.ack, 1006);
        }
    }
}
