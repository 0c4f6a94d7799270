//! The SYN proxy: cookies, and the way from a proven client to its server.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::explain::{Explained, explain};
use gatun::flow::TcpState;
use gatun::forward::cookie::{Cookie, Cookies};
use gatun::service::{FlowPolicy, Method, Passive, ProxyProtocol, SnapshotSpec, SynProxy};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Options, PacketBuf, Protocol, Tuple, View};

use crate::gateway::{Gateway, find};
use crate::refusal::answer;
use crate::support::packet::{ACK, Build, FIN, PSH, RST, SYN, Transport, tcp};
use crate::{Net, Row};

const SECOND: Duration = Duration::from_secs(1);
/// The client's first number, and the server's.
const N: u32 = 1000;
const S: u32 = 70_000;

fn spec(net: Net, when: SynProxy) -> SnapshotSpec {
    let mut spec = net.spec();
    find(&mut spec, "web").syn_proxy = when;
    spec
}

fn tuple(client: SocketAddr, vip: SocketAddr) -> Tuple {
    let (src, dst) = (Addr::from(client.ip()), Addr::from(vip.ip()));
    Tuple { src, dst, sport: client.port(), dport: vip.port(), protocol: Protocol::TCP }
}

/// As the engine of these tests bakes it.
fn cookie(now: Instant, net: Net, client: SocketAddr, options: &Options) -> Cookie {
    Cookies::new([1, 2]).bake(now, &tuple(client, net.vip(80)), N, options, true)
}

fn bytes(options: &Options) -> Vec<u8> {
    let mut bytes = [0; 40];
    let len = options.write(&mut bytes);
    bytes[..len].to_vec()
}

fn window(mut packet: Build, set: u16) -> Build {
    if let Transport::Tcp { window, .. } = &mut packet.transport {
        *window = set;
    }
    packet
}

fn with(packet: Build, options: &Options) -> Build {
    packet.tcp_options(&bytes(options))
}

fn times(value: u32, echo: u32) -> Options {
    Options { timestamps: Some((value, echo)), ..Options::default() }
}

/// What Linux offers.
const FULL: Options = Options { mss: Some(1460), scale: Some(9), sack: true, timestamps: Some((5000, 0)) };
const PLAIN: Options = Options { mss: Some(1460), scale: None, sack: false, timestamps: None };

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let (client, vip) = (net.client(40000), net.vip(80));
    let mut rows = Vec::new();
    let always = || spec(net, SynProxy::Always);
    let mss = if net.is_v4() { 1460 } else { 1440 };
    for (name, offered) in [
        ("all options", FULL),
        ("a smaller MSS", Options { mss: Some(536), ..FULL }),
        ("no timestamps", Options { timestamps: None, ..FULL }),
        ("none", PLAIN),
    ] {
        let baked = cookie(Instant::ZERO, net, client, &offered);
        let syn = with(tcp(client, vip).syn().seq(N, 0), &offered);
        let has_room = offered.timestamps.is_some();
        let told = Options {
            mss: Some(mss),
            scale: has_room.then_some(7),
            sack: has_room,
            timestamps: baked.time.map(|time| (time, 5000)),
        };
        let syn_ack = answer(with(tcp(vip, client).flags(SYN | ACK).seq(baked.seq, N + 1), &told));
        rows.push(
            Row::new(&format!("a SYN with {name}"), always(), syn.clone(), Verdict::Reply).out(window(syn_ack, 0)),
        );
        let ack = with(
            tcp(client, vip).flags(ACK).seq(N + 1, baked.seq.wrapping_add(1)),
            &baked.time.map_or(Options::default(), |time| times(5007, time)),
        );
        let asked = Options {
            mss: offered.mss.map(|offered| offered.min(mss)),
            scale: offered.scale.filter(|_| has_room),
            sack: has_room,
            timestamps: has_room.then_some((5007, 0)),
        };
        let first = answer(with(tcp(client, net.rs(1, 8080)).syn().seq(N, 0), &asked));
        let shifted = if has_room { u16::MAX } else { 100 };
        rows.push(
            Row::forward(
                &format!("its ACK, with {name}"),
                always(),
                window(ack.clone(), 100),
                window(first, if has_room { 51_200 } else { shifted }),
            )
            .after([syn]),
        );
    }
    let baked = cookie(Instant::ZERO, net, client, &PLAIN);
    let syn = with(tcp(client, vip).syn().seq(N, 0), &PLAIN);
    // No larger than fits through the device.
    let small = with(tcp(client, vip).syn().seq(N, 0), &Options { mss: Some(1400), ..FULL });
    let ack = |seq: u32, ack: u32| tcp(client, vip).flags(ACK).seq(seq, ack);
    let reset = |seq: u32| crate::refusal::without_window(answer(tcp(vip, client)).flags(RST).seq(seq, 0));
    let right = baked.seq.wrapping_add(1);
    let wrong = right ^ 0x0800_0000;
    let direct = Options { mss: Some(1400), ..FULL };
    // "always" is refused with such a service.
    let mut served_direct = always();
    served_direct.limits.half_open = 0;
    find(&mut served_direct, "web").syn_proxy = SynProxy::Auto;
    find(&mut served_direct, "web").method = Method::Direct;
    find(&mut served_direct, "web").servers.iter_mut().for_each(|server| server.port = None);
    let mut unserved = always();
    find(&mut unserved, "web").servers.iter_mut().for_each(|server| server.weight = 0);
    let mut limited = always();
    limited.limits.new_flows_per_second = 1;
    let other = net.other(1, 1);
    let mut corrupt = syn.bytes();
    *corrupt.last_mut().expect("not empty") ^= 1;
    rows.extend([
        Row::refuse("an ACK of no cookie", always(), ack(N + 1, wrong), DropReason::NoFlow, reset(wrong)).after([&syn]),
        Row::refuse("for another SYN", always(), ack(N + 3, right), DropReason::NoFlow, reset(right)).after([&syn]),
        Row::refuse(
            "with data where the SYN stood",
            always(),
            ack(N, right).payload("GET"),
            DropReason::NoFlow,
            reset(right),
        )
        .after([&syn]),
        Row::refuse("where nobody was sent one", always(), ack(N + 1, right), DropReason::NoFlow, reset(right)),
        Row::drop(
            "what comes before the server's answer",
            always(),
            ack(N + 1, right).payload("GET"),
            DropReason::NotOpen,
        )
        .after([syn.clone(), ack(N + 1, right)]),
        Row::drop("a SYN with a wrong checksum", always(), corrupt, DropReason::Unreadable),
        Row::refuse(
            "a SYN when nobody serves",
            unserved,
            syn.clone(),
            DropReason::NoServer,
            crate::refusal::without_window(answer(tcp(vip, client)).flags(RST | ACK).seq(0, N + 1)),
        ),
        Row::forward(
            "a SYN for a service that is never proxied",
            spec(net, SynProxy::Never),
            small.clone(),
            small.with_dst(net.rs(1, 8080)),
        ),
        Row::forward("or not yet", spec(net, SynProxy::Auto), small.clone(), small.with_dst(net.rs(1, 8080))),
        Row::refuse("a proven client over a limit", limited, ack(N + 1, right), DropReason::TotalRate, reset(right))
            .after([syn.clone(), tcp(other, net.vip2(9)).syn()]),
        Row::forward(
            "one-way methods have none",
            served_direct,
            with(tcp(client, vip).syn(), &direct),
            with(tcp(client, vip).syn(), &direct),
        )
        .hop(Addr::from(net.rs(1, 0).ip())),
    ]);
    rows
}

/// A client, a server, and the gateway between them.
struct Pair {
    gateway: Gateway,
    client: SocketAddr,
    server: SocketAddr,
    offered: Options,
    cookie: Cookie,
}

fn options(buf: &PacketBuf) -> Options {
    Options::of(buf, &View::parse(buf.packet()).expect("a packet"))
}

impl Pair {
    fn new(net: Net, offered: Options, change: impl FnOnce(&mut SnapshotSpec)) -> Pair {
        let gateway = Gateway::new(net, |spec| {
            find(spec, "web").syn_proxy = SynProxy::Always;
            find(spec, "web").servers.truncate(1);
            change(spec);
        });
        let client = net.other(1, 1);
        let cookie = cookie(gateway.now, net, client, &offered);
        Pair { gateway, client, server: net.rs(1, 8080), offered, cookie }
    }

    fn c(&self, ahead: u32) -> u32 {
        self.cookie.seq.wrapping_add(ahead)
    }

    fn syn(&self) -> Build {
        with(tcp(self.client, self.gateway.net.vip(80)).syn().seq(N, 0), &self.offered)
    }

    fn by_client(&self, flags: u8, seq: u32, ack: u32) -> Build {
        let packet = tcp(self.client, self.gateway.net.vip(80)).flags(flags).seq(seq, ack);
        self.cookie.time.map_or(packet.clone(), |time| with(packet, &times(5007, time)))
    }

    fn by_server(&self, flags: u8, seq: u32, ack: u32) -> Build {
        tcp(self.server, self.client).flags(flags).seq(seq, ack)
    }

    fn syn_ack(&self, options: &Options) -> Build {
        with(self.by_server(SYN | ACK, S, N + 1), options)
    }

    /// To where the server has been asked.
    fn ask(&mut self) {
        assert_eq!(self.gateway.feed(self.syn().buf()).0, Verdict::Reply);
        let (verdict, sent) = self.gateway.feed(self.by_client(ACK, N + 1, self.c(1)).buf());
        assert_eq!(verdict, Verdict::Forward);
        let sent = seen(&sent);
        assert_eq!((sent.flags, sent.seq, sent.from, sent.to), (SYN, N, self.client, self.server));
    }

    /// The whole of it; what the client and what the server gets when the server has answered with these options.
    fn open(&mut self, answered: &Options) -> (Seen, Seen) {
        self.ask();
        let (verdict, to_client) = self.gateway.feed(window(self.syn_ack(answered), 64_000).buf());
        assert_eq!(verdict, Verdict::Forward);
        let sent = self.gateway.sent();
        assert_eq!(sent.len(), 1);
        (seen(&to_client), seen(&sent[0].1))
    }

    fn state(&self) -> Option<TcpState> {
        self.gateway.flows().first().and_then(|flow| flow.tcp_state)
    }

    fn exchange(&mut self, packet: &Build) -> Seen {
        let (verdict, sent) = self.gateway.feed(packet.buf());
        assert_eq!(verdict, Verdict::Forward, "{packet:?}");
        seen(&sent)
    }
}

/// What matters of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    options: Options,
    payload: Vec<u8>,
}

fn seen(buf: &PacketBuf) -> Seen {
    use crate::support::oracle;
    assert!(oracle::checksums_are_right(buf.packet()));
    let packet = oracle::decode(buf.packet()).expect("a packet");
    let (tcp, (sport, dport)) = (packet.tcp.expect("TCP"), packet.ports.expect("TCP"));
    Seen {
        from: (packet.src, sport).into(),
        to: (packet.dst, dport).into(),
        flags: tcp.flags,
        seq: tcp.seq,
        ack: tcp.ack,
        window: tcp.window,
        options: options(buf),
        payload: packet.payload,
    }
}

#[test]
fn nothing_is_kept_of_a_syn() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |_| {});
        for port in 1..5000 {
            let syn = tcp(net.other(3, port), net.vip(80)).syn().seq(port.into(), 0);
            assert_eq!(pair.gateway.send(&syn), Err(Verdict::Reply));
        }
        assert_eq!((pair.gateway.flows().len(), pair.gateway.sent().len()), (0, 0));
        let stats = pair.gateway.engine.stats().clone();
        assert_eq!((stats.cookies_sent, stats.cookies_proven, stats.flows_created), (4999, 0, 0));
        pair.ask();
    }
}

#[test]
fn both_ends_are_told_when_the_server_has_answered() {
    for net in Net::BOTH {
        let vip = net.vip(80);
        let mut pair = Pair::new(net, FULL, |_| {});
        let time = pair.cookie.time.expect("with timestamps");
        let answered = Options { mss: Some(1460), scale: Some(10), sack: true, timestamps: Some((900, 5007)) };
        let (to_client, to_server) = pair.open(&answered);
        let (client, server) = (pair.client, pair.server);
        let expected = Seen {
            from: vip,
            to: client,
            flags: ACK,
            seq: pair.c(1),
            ack: N + 1,
            // A SYN-ACK's window is not scaled; this one is, by what the client was told.
            window: 64_000 >> 7,
            options: times(time, 5007),
            payload: Vec::new(),
        };
        assert_eq!(to_client, expected);
        let expected = Seen {
            from: client,
            to: server,
            flags: ACK,
            seq: N + 1,
            ack: S + 1,
            window: 65535,
            options: times(5007, 900),
            payload: Vec::new(),
        };
        assert_eq!((to_server, pair.state()), (expected, Some(TcpState::Established)));
        // From here on both are shifted, and windows of a scale of 10 are told as of one of 7.
        let data = with(pair.by_server(PSH | ACK, S + 1, N + 1), &times(950, 5007)).payload("220 ready");
        let sent = pair.exchange(&window(data, 50));
        assert_eq!((sent.seq, sent.ack, sent.options, sent.window), (pair.c(1), N + 1, times(time + 50, 5007), 400));
        let data =
            with(tcp(client, vip).flags(PSH | ACK).seq(N + 1, pair.c(10)), &times(5100, time + 50)).payload("HELO");
        let sent = pair.exchange(&window(data, 77));
        assert_eq!((sent.seq, sent.ack, sent.options, sent.window), (N + 1, S + 10, times(5100, 950), 77));
        assert_eq!(sent.payload, b"HELO");
    }
}

#[test]
fn what_the_server_does_not_do_is_made_up_for() {
    let net = Net::V4;
    for offered in [FULL, Options { sack: false, scale: Some(3), ..FULL }, Options { scale: None, ..FULL }, PLAIN] {
        let all = [None, Some(0), Some(5), Some(7), Some(14)];
        // A server scales only if it was asked with a scale.
        let is_asked = offered.scale.is_some() && offered.timestamps.is_some();
        for scale in all.into_iter().filter(|scale| is_asked || scale.is_none()) {
            let mut pair = Pair::new(net, offered, |_| {});
            let answered =
                Options { mss: Some(1460), scale, sack: false, timestamps: offered.timestamps.map(|_| (9, 5007)) };
            let (to_client, to_server) = pair.open(&answered);
            let told = if is_asked { 7 } else { 0 };
            assert_eq!(u32::from(to_client.window) << told, 64_000, "{scale:?}");
            // The client's window is 100 of its own units.
            let scale_of_client = offered.scale.filter(|_| is_asked).unwrap_or(0);
            let meant = 100_u32 << scale_of_client;
            let asks = |window: u16| match scale {
                Some(_) => u32::from(window) << scale_of_client,
                None => window.into(),
            };
            let ack = pair.by_client(ACK, N + 1, pair.c(1));
            assert_eq!(asks(pair.exchange(&window(ack, 100)).window), meant, "{offered:?} {scale:?}");
            assert!(asks(to_server.window) >= 65_535);
            let time = answered.timestamps.map_or(Options::default(), |_| times(10, 5007));
            let data = window(with(pair.by_server(ACK, S + 1, N + 1), &time), 1000);
            let understood = u64::from(pair.exchange(&data).window) << told;
            let meant = 1000_u64 << scale.unwrap_or(0);
            assert!(
                understood <= meant && (meant - understood < 128 || understood == 65535 << 7),
                "{scale:?}: {understood}"
            );
        }
    }
}

#[test]
fn a_server_without_timestamps_is_found_out_once() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |_| {});
        pair.ask();
        let (verdict, sent) = pair.gateway.feed(pair.syn_ack(&PLAIN).buf());
        let to_client = seen(&sent);
        assert_eq!((verdict, to_client.flags, to_client.seq), (Verdict::Forward, RST | ACK, pair.c(1)));
        let sent = pair.gateway.sent();
        let to_server = seen(&sent[0].1);
        assert_eq!((sent.len(), to_server.flags, to_server.seq, to_server.to), (1, RST, N + 1, pair.server));
        assert!(pair.gateway.flows().is_empty());
        // The next client is told of none.
        let syn = with(tcp(net.other(2, 2), net.vip(80)).syn().seq(N, 0), &FULL);
        let (verdict, sent) = pair.gateway.feed(syn.buf());
        let told = options(&sent);
        assert_eq!((verdict, told.timestamps, told.scale, told.sack), (Verdict::Reply, None, None, false));
        // Also after a reload.
        pair.gateway.reload(|spec| find(spec, "web").servers[0].weight = 3);
        assert_eq!(options(&pair.gateway.feed(syn.buf()).1).timestamps, None);
    }
}

#[test]
fn the_syn_is_sent_again_when_the_client_says_something() {
    for net in Net::BOTH {
        for offered in [FULL, PLAIN] {
            let mut pair = Pair::new(net, offered, |_| {});
            pair.ask();
            let probe = pair.by_client(ACK, N, pair.c(1));
            let data = pair.by_client(PSH | ACK, N + 1, pair.c(1)).payload("GET /");
            let fin = pair.by_client(FIN | ACK, N + 6, pair.c(1));
            for packet in [&probe, &data, &fin] {
                assert_eq!(pair.gateway.send(packet), Err(Verdict::Drop(DropReason::NotOpen)), "at once");
                pair.gateway.wait(SECOND);
                let sent = pair.exchange(packet);
                assert_eq!((sent.flags, sent.seq, sent.to, sent.payload.len()), (SYN, N, pair.server, 0));
            }
            // The server answers all of them the same.
            let answered = Options { timestamps: offered.timestamps.map(|_| (9, 5007)), ..PLAIN };
            assert_eq!(pair.exchange(&pair.syn_ack(&answered)).flags, ACK);
            assert_eq!(pair.gateway.sent().len(), 1);
            let again = pair.exchange(&pair.syn_ack(&answered));
            assert_eq!(
                (again.flags, again.seq, again.to),
                (SYN | ACK, pair.cookie.seq, pair.client),
                "for the client to acknowledge"
            );
            assert_eq!(pair.exchange(&data).payload, b"GET /");
        }
    }
}

#[test]
fn a_lost_first_ack_is_made_up_for_by_what_follows() {
    for net in Net::BOTH {
        for (seq, flags, payload) in [(N, ACK, ""), (N + 1, PSH | ACK, "GET /"), (N + 1, FIN | ACK, "")] {
            let mut pair = Pair::new(net, FULL, |_| {});
            assert_eq!(pair.gateway.feed(pair.syn().buf()).0, Verdict::Reply);
            pair.gateway.wait(20 * SECOND);
            let sent = pair.exchange(&pair.by_client(flags, seq, pair.c(1)).payload(payload));
            assert_eq!((sent.flags, sent.seq, sent.payload.len()), (SYN, N, 0));
        }
    }
}

#[test]
fn a_server_that_refuses_is_believed() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |spec| {
            let web = find(spec, "web");
            web.servers = [
                web.servers[0].clone(),
                gatun::service::ServerSpec {
                    name: "rs9".into(),
                    address: Addr::from(net.rs(3, 0).ip()),
                    ..web.servers[0].clone()
                },
            ]
            .into();
            web.servers[1].weight = 0;
            web.passive = Some(Passive { fall: 1, hold: 60 * SECOND });
        });
        pair.gateway.server("web", 1).state.set_up(pair.gateway.now, true);
        pair.ask();
        let forged = pair.by_server(RST | ACK, 0, N + 9);
        assert_eq!(pair.gateway.send(&forged), Err(Verdict::Drop(DropReason::NotOpen)));
        let sent = pair.exchange(&pair.by_server(RST | ACK, 0, N + 1));
        assert_eq!((sent.flags, sent.seq, sent.ack, sent.to), (RST | ACK, pair.c(1), N + 1, pair.client));
        assert_eq!(pair.state(), Some(TcpState::Close));
        let state = pair.gateway.server("web", 0).state.clone();
        assert_eq!(state.failures().1, 1, "passive checks count it");
        // The client may begin anew at once.
        assert_eq!(pair.gateway.feed(pair.syn().buf()).0, Verdict::Reply);
    }
}

#[test]
fn a_server_with_an_old_connection_is_told_as_a_client_would() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |_| {});
        pair.ask();
        let sent = pair.exchange(&pair.by_server(ACK, 123, 456));
        assert_eq!((sent.flags, sent.seq, sent.from, sent.to), (RST, 456, pair.client, pair.server));
        assert_eq!(pair.state(), Some(TcpState::SynRecv), "the flow goes on");
        pair.gateway.wait(SECOND);
        assert_eq!(pair.exchange(&pair.by_client(ACK, N, pair.c(1))).flags, SYN);
    }
}

#[test]
fn a_client_that_gives_up_is_believed_and_may_begin_anew() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |_| {});
        pair.ask();
        let sent = pair.exchange(&pair.by_client(RST | ACK, N + 1, pair.c(1)));
        assert_eq!((sent.flags, sent.seq, sent.ack, sent.to), (RST, N + 1, 0, pair.server));
        // A SYN changes nothing, however it is numbered.
        let vip = net.vip(80);
        let again = with(tcp(pair.client, vip).syn().seq(9_000_000, 0), &FULL);
        let (verdict, sent) = pair.gateway.feed(again.buf());
        assert_eq!(verdict, Verdict::Reply);
        assert_eq!(pair.gateway.send(&pair.syn()), Err(Verdict::Drop(DropReason::NotOpen)), "that of the flow itself");
        assert_eq!((pair.gateway.flows().len(), pair.gateway.engine.stats().flows_reused), (1, 0));
        // The ACK of its cookie does.
        let (other, time) = (seen(&sent).seq, options(&sent).timestamps.expect("with timestamps").0);
        let forged = with(tcp(pair.client, vip).flags(ACK).seq(9_000_001, other ^ 8), &times(1, time));
        assert_eq!(pair.gateway.send(&forged), Err(Verdict::Drop(DropReason::NotOpen)));
        let ack = with(tcp(pair.client, vip).flags(ACK).seq(9_000_001, other.wrapping_add(1)), &times(1, time));
        let sent = pair.exchange(&ack);
        assert_eq!((sent.flags, sent.seq), (SYN, 9_000_000));
        assert_eq!((pair.gateway.flows().len(), pair.gateway.engine.stats().flows_reused), (1, 1));
    }
}

#[test]
fn a_client_may_connect_again_over_the_same_ports() {
    let net = Net::V4;
    let mut pair = Pair::new(net, FULL, |_| {});
    pair.open(&Options { timestamps: Some((9, 5007)), scale: Some(2), ..PLAIN });
    let time = pair.cookie.time.expect("with timestamps");
    pair.exchange(&pair.by_client(FIN | ACK, N + 1, pair.c(1)));
    pair.exchange(&with(pair.by_server(FIN | ACK, S + 1, N + 2), &times(10, 5007)));
    pair.exchange(&pair.by_client(ACK, N + 2, pair.c(2)));
    assert_eq!(pair.state(), Some(TcpState::TimeWait));
    let (verdict, sent) = pair.gateway.feed(with(tcp(pair.client, net.vip(80)).syn().seq(N + 5000, 0), &FULL).buf());
    assert_eq!((verdict, pair.gateway.flows().len()), (Verdict::Reply, 0));
    assert!(options(&sent).timestamps.is_some_and(|(value, echo)| value != time && echo == 5000));
}

#[test]
fn it_goes_together_with_the_proxy_protocol() {
    for (net, version) in Net::BOTH.into_iter().flat_map(|net| ProxyProtocol::ALL.map(|version| (net, version))) {
        let mut pair = Pair::new(net, FULL, |spec| find(spec, "web").proxy_protocol = Some(version));
        let answered = Options { timestamps: Some((9, 5007)), scale: Some(7), ..PLAIN };
        let (to_client, to_server) = pair.open(&answered);
        let len = to_server.payload.len() as u32;
        assert!(len >= 28 && (to_server.payload.starts_with(b"PROXY") || to_server.payload.starts_with(b"\r\n\r\n\0")));
        assert_eq!((to_server.seq, to_server.ack, to_client.payload.len()), (N + 1, S + 1, 0));
        // It may be lost, and comes again with the client's data.
        let data = pair.by_client(PSH | ACK, N + 1, pair.c(1)).payload("GET /");
        let sent = pair.exchange(&data);
        assert_eq!((sent.seq, sent.payload), (N + 1, [&to_server.payload[..], b"GET /"].concat()));
        let acked = with(pair.by_server(ACK, S + 1, N + 6 + len), &times(11, 5007));
        let sent = pair.exchange(&acked);
        assert_eq!((sent.seq, sent.ack), (pair.c(1), N + 6));
        let more = pair.by_client(PSH | ACK, N + 6, pair.c(1)).payload(" HTTP");
        assert_eq!(pair.exchange(&more).seq, N + 6 + len);
    }
}

#[test]
fn a_flow_whose_server_dies_while_it_opens_comes_to_another() {
    for policy in [None, Some(FlowPolicy::Reset), Some(FlowPolicy::Reschedule)] {
        let net = Net::V4;
        let mut pair = Pair::new(net, FULL, |spec| {
            let all = net.spec();
            let web = find(spec, "web");
            web.servers = all.services[0].servers.clone();
            web.on_server_down = policy;
        });
        pair.ask();
        let server = pair.gateway.server("web", 0);
        server.state.set_up(pair.gateway.now, false);
        pair.gateway.wait(SECOND);
        let sent = pair.exchange(&pair.by_client(ACK, N, pair.c(1)));
        assert_eq!((sent.flags, sent.to), (SYN, net.rs(2, 8080)), "{policy:?}");
        assert_eq!((pair.gateway.flows().len(), pair.gateway.sent().len()), (1, 0));
    }
}

#[test]
fn when_an_open_flow_is_reset_both_ends_believe_it() {
    for net in Net::BOTH {
        let mut pair = Pair::new(net, FULL, |_| {});
        pair.open(&Options { timestamps: Some((9, 5007)), scale: Some(2), ..PLAIN });
        pair.exchange(&with(pair.by_server(PSH | ACK, S + 1, N + 1), &times(10, 5007)).payload("hello"));
        pair.exchange(&pair.by_client(ACK, N + 1, pair.c(6)));
        let id = pair.gateway.server("web", 0).id;
        assert_eq!(pair.gateway.evacuate(&[id], None), 1);
        let sent: Vec<Seen> = pair.gateway.sent().iter().map(|(_, buf)| seen(buf)).collect();
        let to = |end| sent.iter().find(|seen| seen.to == end).map(|seen| (seen.flags & RST, seen.seq));
        assert_eq!((to(pair.client), to(pair.server)), (Some((RST, pair.c(6))), Some((RST, N + 1))));
    }
}

#[test]
fn a_cookie_ages() {
    let net = Net::V4;
    for (age, is_good) in [(63, true), (130, false)] {
        let mut pair = Pair::new(net, PLAIN, |_| {});
        assert_eq!(pair.gateway.feed(pair.syn().buf()).0, Verdict::Reply);
        pair.gateway.wait(age * SECOND);
        // Others go on connecting.
        assert_eq!(pair.gateway.feed(pair.gateway.syn(7, 7).buf()).0, Verdict::Reply);
        let verdict = pair.gateway.feed(pair.by_client(ACK, N + 1, pair.c(1)).buf()).0;
        assert_eq!(verdict == Verdict::Forward, is_good, "{age}");
    }
}

#[test]
fn auto_sets_in_at_the_limit_and_lasts_as_long_as_the_flood() {
    for net in Net::BOTH {
        let mut gateway = Gateway::new(net, |spec| {
            find(spec, "web").syn_proxy = SynProxy::Auto;
            spec.limits.half_open = 40;
        });
        let syn = |n: u32| tcp(net.other((n >> 10) as u8, 1 + (n & 1023) as u16), net.vip(80)).syn().seq(n, 0);
        for n in 0..41 {
            assert!(gateway.send(&syn(n)).is_ok(), "{n}");
        }
        assert_eq!(gateway.send(&syn(41)), Err(Verdict::Reply));
        // Half-open flows end, but the flood goes on: ten a second would be 2400.
        let mut n = 42;
        for _ in 0..300 {
            gateway.wait(SECOND);
            for _ in 0..10 {
                assert_eq!(gateway.send(&syn(n)), Err(Verdict::Reply), "{n}");
                n += 1;
            }
        }
        assert_eq!(gateway.flows().len(), 0);
        // It is over; a client who comes back says nothing of the sort.
        gateway.wait(9 * SECOND);
        for _ in 0..2 {
            gateway.send(&syn(n)).ok();
            gateway.wait(120 * SECOND);
        }
        assert!(gateway.send(&syn(n)).is_ok());
        assert!(gateway.send(&syn(n + 1)).is_ok());
    }
}

#[test]
fn what_clients_prove_is_no_flood() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        find(spec, "web").syn_proxy = SynProxy::Auto;
        spec.limits.half_open = 4;
    });
    for port in 1..6 {
        assert!(gateway.connect(1, port).is_ok());
    }
    let proven = |gateway: &mut Gateway, port: u16| {
        let client = net.other(2, port);
        let (verdict, sent) = gateway.feed(tcp(client, net.vip(80)).syn().seq(N, 0).buf());
        if verdict == Verdict::Forward {
            return false;
        }
        let ack = tcp(client, net.vip(80)).flags(ACK).seq(N + 1, seen(&sent).seq.wrapping_add(1));
        let server = gateway.send(&ack).expect("proven");
        let answer = tcp(server, client).flags(SYN | ACK).seq(S, N + 1);
        assert_eq!(gateway.send(&answer), Ok(client));
        gateway.sent();
        true
    };
    let mut port = 1;
    while proven(&mut gateway, port) {
        gateway.wait(SECOND);
        port += 1;
        assert!(port < 300, "it does not end");
    }
    assert!(port > 230, "the five are half-open for four minutes");
}

#[test]
fn explain_says_that_the_client_is_asked_first() {
    let net = Net::V4;
    let pair = Pair::new(net, FULL, |_| {});
    let told = explain(&pair.gateway.engine, pair.gateway.now, &tuple(pair.client, net.vip(80)), SYN);
    assert!(matches!(&told.outcome, Explained::Admitted { choice, .. } if choice.needs_proof), "{told:?}");
}
