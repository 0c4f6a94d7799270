//! FTP: what is announced on the control connection, and the connections that follow from it.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::command::{Command, FlowFilter};
use gatun::engine::Engine;
use gatun::flow::Sender;
use gatun::service::{HelperKind, Limits, Method, Passive, PortRange, Protocols, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};

use crate::refusal::{answer, without_window};
use crate::support::oracle;
use crate::support::packet::{ACK, Build, FIN, PSH, RST, SYN, mss, tcp};
use crate::support::world::{self, ServiceSpecExt, service};
use crate::{Net, Packet, Row};

/// FTP over servers 1 and 2, and a service at port 5000 of the same VIP.
pub fn spec(net: Net) -> SnapshotSpec {
    let ip = |end: SocketAddr| end.ip().to_string();
    let (rs1, rs2) = (ip(net.rs(1, 0)), ip(net.rs(2, 0)));
    let mut ftp = service("ftp", &ip(net.vip(0)), PortRange::single(21), Protocols::Tcp)
        .server(&rs1, Some(2121), 1)
        .server(&rs2, Some(2121), 1);
    ftp.helper = Some(HelperKind::Ftp);
    let other = service("other", &ip(net.vip(0)), PortRange::single(5000), Protocols::Tcp).server(&rs2, None, 1);
    SnapshotSpec { services: vec![ftp, other], ..SnapshotSpec::default() }
}

/// A control connection of client port 40000 to server 1, as its packets come to the gateway.
#[derive(Clone)]
pub struct Control {
    net: Net,
    /// Next numbers: the client's own, the server's own.
    pub client: u32,
    pub server: u32,
    /// What the client's acknowledgements are ahead of the server's numbers.
    pub shift: u32,
    pub packets: Vec<Build>,
}

impl Control {
    pub fn new(net: Net) -> Control {
        let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
        let packets = vec![
            tcp(client, vip).syn(),
            tcp(rs, client).flags(SYN | ACK).seq(5000, 1001),
            tcp(client, vip).flags(ACK).seq(1001, 5001),
        ];
        Control { net, client: 1001, server: 5001, shift: 0, packets }
    }

    /// The next segment of the client's; it is not sent yet.
    pub fn command(&self, text: impl AsRef<[u8]>) -> Build {
        let acked = self.server.wrapping_add(self.shift);
        tcp(self.net.client(40000), self.net.vip(21)).flags(PSH | ACK).seq(self.client, acked).payload(text)
    }

    /// The next segment of the server's; it is not sent yet.
    pub fn reply(&self, text: impl AsRef<[u8]>) -> Build {
        tcp(self.net.rs(1, 2121), self.net.client(40000)).flags(PSH | ACK).seq(self.server, self.client).payload(text)
    }

    pub fn sent(mut self, text: impl AsRef<[u8]>) -> Control {
        self.packets.push(self.command(&text));
        self.client = self.client.wrapping_add(text.as_ref().len() as u32);
        self
    }

    pub fn got(mut self, text: impl AsRef<[u8]>) -> Control {
        self.packets.push(self.reply(&text));
        self.server = self.server.wrapping_add(text.as_ref().len() as u32);
        self
    }

    /// From here on the client has so many bytes more than the server sent.
    pub fn grown(mut self, by: u32) -> Control {
        self.shift = self.shift.wrapping_add(by);
        self
    }
}

/// An address and a port as PASV and PORT have them.
pub fn six(end: SocketAddr) -> String {
    format!("{},{},{}", end.ip().to_string().replace('.', ","), end.port() >> 8, end.port() & 0xff)
}

/// An address and a port as EPRT has them.
pub fn eprt(end: SocketAddr) -> String {
    format!("|{}|{}|{}|", if end.is_ipv4() { 1 } else { 2 }, end.ip(), end.port())
}

pub fn pasv(end: SocketAddr) -> String {
    format!("227 Entering Passive Mode ({}).\r\n", six(end))
}

pub fn epsv(port: u16) -> String {
    format!("229 Entering Extended Passive Mode (|||{port}|).\r\n")
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let mut rows = extended(net);
    rows.extend(refused(net));
    rows.extend(numbers(net));
    if net.is_v4() {
        rows.extend(with_addresses(net));
    }
    rows
}

/// EPSV and EPRT, which both families have.
fn extended(net: Net) -> Vec<Row> {
    let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
    let asked = Control::new(net).sent("EPSV\r\n");
    let passive = asked.clone().got(epsv(40007));
    let eprt_line = format!("EPRT {}\r\n", eprt(net.client(33000)));
    let active = Control::new(net).sent(&eprt_line);
    let data_syn = tcp(net.client(41000), net.vip(40007)).syn().tcp_options(&mss(9000));
    let clamped = if net.is_v4() { 1460 } else { 1440 };
    let active_syn = tcp(net.rs(1, 20), net.client(33000)).syn().tcp_options(&mss(9000));
    let active_answer = tcp(net.client(33000), net.vip(20)).flags(SYN | ACK).seq(7000, 1001);
    let connected = active.packets.iter().cloned().chain([active_syn.clone()]);
    let answered = |name: &str, control: Control| {
        let (syn, out) = (tcp(net.client(41000), net.vip(40007)).syn(), tcp(net.client(41000), net.rs(1, 40007)).syn());
        Row::forward(name, spec(net), syn, out).after(&control.packets)
    };
    vec![
        Row::forward("EPSV goes on as it is", spec(net), asked.packets[3].clone(), asked.packets[3].with_dst(rs))
            .after(&asked.packets[..3]),
        Row::forward(
            "a free port is kept",
            spec(net),
            asked.reply(epsv(40007)),
            asked.reply(epsv(40007)).with_src(vip),
        )
        .after(&asked.packets),
        Row::forward(
            "a port with a service of its own is not: this one has none",
            spec(net),
            tcp(client, net.vip(5000)).syn(),
            tcp(client, net.rs(2, 5000)).syn(),
        )
        .after(&passive.packets),
        Row::forward(
            "the announced connection goes to that very server",
            spec(net),
            &data_syn,
            data_syn.with_dst(net.rs(1, 40007)).tcp_options(&mss(clamped)),
        )
        .after(&passive.packets),
        answered(
            "whatever failed before",
            Control::new(net).sent("SIZE x\r\nEPSV\r\n").got("550 No\r\n").got(epsv(40007)),
        ),
        answered(
            "whatever is said unasked",
            Control::new(net).sent("EPSV 1\r\n").got("220 Hi\r\n226 Done\r\n150 Go\r\n").got(epsv(40007)),
        ),
        answered(
            "whatever has no answer",
            Control::new(net).sent("SITE_X\r\n".repeat(20)).sent("\r\nEPSV\r\n").got(epsv(40007)),
        ),
        Row::forward(
            "and comes back",
            spec(net),
            tcp(net.rs(1, 40007), net.client(41000)).flags(SYN | ACK).seq(9000, 1001),
            tcp(net.vip(40007), net.client(41000)).flags(SYN | ACK).seq(9000, 1001),
        )
        .after(passive.packets.iter().cloned().chain([data_syn.clone()])),
        Row::refuse(
            "it is expected once",
            spec(net),
            data_syn.with_src(net.client(41001)),
            DropReason::NoService,
            reset(net.vip(40007), net.client(41001)),
        )
        .after(passive.packets.iter().cloned().chain([data_syn.clone()])),
        Row::refuse(
            "of that client alone",
            spec(net),
            data_syn.with_src(net.other(1, 41000)),
            DropReason::NoService,
            reset(net.vip(40007), net.other(1, 41000)),
        )
        .after(&passive.packets),
        Row::forward(
            "EPRT with the client's own address goes on as it is",
            spec(net),
            Control::new(net).command(&eprt_line),
            Control::new(net).command(&eprt_line).with_dst(rs),
        )
        .after(&Control::new(net).packets),
        Row::forward(
            "the server's connection comes from the VIP's data port",
            spec(net),
            &active_syn,
            active_syn.with_src(net.vip(20)).tcp_options(&mss(clamped)),
        )
        .after(&active.packets),
        Row::forward(
            "whatever port the server connects from",
            spec(net),
            active_syn.with_src(net.rs(1, 45678)),
            active_syn.with_src(net.vip(20)).tcp_options(&mss(clamped)),
        )
        .after(&active.packets),
        Row::forward("the client's answer finds it", spec(net), &active_answer, active_answer.with_dst(net.rs(1, 20)))
            .after(connected.clone()),
        Row::forward(
            "and the data as well",
            spec(net),
            tcp(net.rs(1, 20), net.client(33000)).flags(ACK).seq(1001, 7001).payload([7; 1000]).super_packet(500),
            tcp(net.vip(20), net.client(33000)).flags(ACK).seq(1001, 7001).payload([7; 1000]),
        )
        .after(connected.clone().chain([active_answer.clone()])),
        Row::pass("another server's connection is not announced", spec(net), active_syn.with_src(net.rs(2, 20)))
            .after(&active.packets),
        Row::pass("nor one to another port", spec(net), active_syn.with_dst(net.client(33001))).after(&active.packets),
        Row::pass(
            "nor a segment that is no SYN",
            spec(net),
            tcp(net.rs(1, 20), net.client(33000)).flags(ACK).seq(1, 1),
        )
        .after(&active.packets),
        Row::forward(
            "commands may be in small letters, with other bars, behind other lines",
            spec(net),
            &active_syn,
            active_syn.with_src(net.vip(20)).tcp_options(&mss(clamped)),
        )
        .after(
            &Control::new(net).sent(format!("NOOP\r\neprt {}\r\n", eprt(net.client(33000)).replace('|', "!"))).packets,
        ),
        Row::forward(
            "a command in pieces counts",
            spec(net),
            &active_syn,
            active_syn.with_src(net.vip(20)).tcp_options(&mss(clamped)),
        )
        .after(&in_pieces(Control::new(net), &eprt_line, 3).packets),
    ]
}

/// The answer to a SYN with number 1000.
fn reset(from: SocketAddr, to: SocketAddr) -> Build {
    without_window(answer(tcp(from, to)).flags(RST | ACK).seq(0, 1001))
}

fn in_pieces(mut control: Control, line: &str, size: usize) -> Control {
    for piece in line.as_bytes().chunks(size) {
        control = control.sent(piece);
    }
    control
}

/// What announces nothing.
fn refused(net: Net) -> Vec<Row> {
    let data_syn = tcp(net.client(41000), net.vip(40007)).syn();
    let active_syn = tcp(net.rs(1, 20), net.client(33000)).syn();
    let nothing = |name: &str, control: Control, port: u16| {
        let syn = data_syn.with_dst(net.vip(port));
        let answer = reset(net.vip(port), net.client(41000));
        Row::refuse(name, spec(net), &syn, DropReason::NoService, answer).after(&control.packets)
    };
    let passed =
        |name: &str, line: String| Row::pass(name, spec(net), &active_syn).after(&Control::new(net).sent(line).packets);
    let asked = || Control::new(net).sent("EPSV\r\n");
    vec![
        nothing("a reply that nobody asked for", Control::new(net).got(epsv(40007)), 40007),
        nothing("a reply in the banner", Control::new(net).got(format!("220 Hello\r\n{}", epsv(40007))), 40007),
        nothing("a line within a reply", asked().got(format!("214-Help\r\n{}214 Done\r\n", epsv(40007))), 40007),
        nothing("a line of a client's", asked().sent(epsv(40007)), 40007),
        nothing("a second answer to one question", asked().got(epsv(40006)).got(epsv(40007)), 40007),
        nothing("behind a question that failed", asked().got("425 No\r\n").got(epsv(40007)), 40007),
        nothing(
            "behind one that failed at length",
            Control::new(net).sent("NOOP\r\nEPSV\r\n").got("200 OK\r\n502-No\r\n502 No\r\n").got(epsv(40007)),
            40007,
        ),
        nothing("EPSV ALL asks for none", Control::new(net).sent("EPSV ALL\r\n").got(epsv(40007)), 40007),
        nothing("a port of the system's", asked().got(epsv(22)), 22),
        nothing("port 0", asked().got(epsv(0)), 40007),
        nothing("a port beyond all", asked().got("229 Here (|||65536|)\r\n"), 40007),
        nothing("no number", asked().got("229 Here (|||4000x|)\r\n"), 40007),
        nothing("another code", asked().got(epsv(40007).replace("229", "228")), 40007),
        nothing(
            "behind a protected connection's beginning",
            Control::new(net).sent("AUTH TLS\r\n").got("234 Go\r\n").sent("EPSV\r\n").got(epsv(40007)),
            40007,
        ),
        passed("another address than the client's", format!("EPRT {}\r\n", eprt(net.stranger(33000)))),
        passed("the address of a server", format!("EPRT {}\r\n", eprt(net.rs(2, 33000)))),
        passed(
            "of a family that is not said",
            format!("EPRT {}\r\n", eprt(net.client(33000)).replacen(|c: char| c.is_ascii_digit(), "3", 1)),
        ),
        passed("a port below 1024", format!("EPRT {}\r\n", eprt(net.client(1023)))),
        passed("a longer word", format!("XEPRT {}\r\n", eprt(net.client(33000)))),
        passed("a line without end", format!("EPRT {}", eprt(net.client(33000)))),
        passed("an argument that goes on and on", format!("EPRT {}{}\r\n", " ".repeat(90), eprt(net.client(33000)))),
    ]
}

/// A port that is taken at the VIP makes the reply longer or shorter; here a service has it.
fn numbers(net: Net) -> Vec<Row> {
    let vip = net.vip(21);
    let asked = Control::new(net).sent("EPSV\r\n");
    vec![
        Row::forward(
            "what follows a reply",
            spec(net),
            asked.clone().got(epsv(40007)).reply("200 Next\r\n"),
            asked.clone().got(epsv(40007)).reply("200 Next\r\n").with_src(vip),
        )
        .after(&asked.clone().got(epsv(40007)).packets),
        Row::drop(
            "a segment that is too early",
            spec(net),
            asked.clone().got(epsv(40007)).reply("200 Next\r\n"),
            DropReason::TooEarly,
        )
        .after(&asked.clone().got("220 Hello\r\n").packets),
        Row::drop(
            "a segment with a wrong checksum",
            spec(net),
            broken(&asked.reply("220 Hello\r\n")),
            DropReason::Unreadable,
        )
        .after(&asked.packets),
        Row::forward(
            "an acknowledgement alone is not read",
            spec(net),
            tcp(net.rs(1, 2121), net.client(40000)).flags(ACK).seq(5001, 1001),
            tcp(vip, net.client(40000)).flags(ACK).seq(5001, 1001),
        )
        .after(&asked.packets),
        Row::forward(
            "the connection's end",
            spec(net),
            asked.reply("221 Bye\r\n").flags(FIN | ACK),
            asked.reply("221 Bye\r\n").flags(FIN | ACK).with_src(vip),
        )
        .after(&asked.packets),
    ]
}

fn broken(packet: &Build) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    bytes
}

/// PASV and PORT, which IPv4 alone has: the reply changes its length.
fn with_addresses(net: Net) -> Vec<Row> {
    let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
    let asked = Control::new(net).sent("PASV\r\n");
    let said = pasv(net.rs(1, 40007));
    let heard = pasv(net.vip(40007));
    let grown = (heard.len() - said.len()) as u32;
    let passive = asked.clone().got(&said).grown(grown);
    let next = passive.reply("150 Here it comes\r\n");
    let next_out = next.clone().seq(passive.server + grown, passive.client).with_src(vip);
    let ack = tcp(client, vip).flags(ACK).seq(passive.client, passive.server + grown);
    let sack = |left: u32, right: u32| [&[1, 1, 5, 10][..], &left.to_be_bytes(), &right.to_be_bytes()].concat();
    // Where the address begins.
    let given = asked.server + 27;
    let data_syn = tcp(net.client(41000), net.vip(40007)).syn();
    let to_server = data_syn.with_dst(net.rs(1, 40007));
    let forms = [
        "227 Entering Passive Mode ({}).\r\n",
        "227 Entering Passive Mode {}\r\n",
        "227 ={}\r\n",
        "227 {}\r\n",
        "227-Listen\r\n227 Passive 2 of 3 ({})\r\n",
        "227 Entering Passive Mode. {}.\r\n",
    ];
    let mut rows: Vec<Row> = forms
        .iter()
        .map(|form| {
            let said = form.replace("{}", &six(net.rs(1, 40007)));
            let heard = form.replace("{}", &six(net.vip(40007)));
            Row::forward(form, spec(net), asked.reply(said), asked.reply(heard).with_src(vip)).after(&asked.packets)
        })
        .collect();
    rows.extend([
        Row::forward(
            "with a partial checksum",
            spec(net),
            asked.reply(&said).partial(),
            asked.reply(&heard).with_src(vip),
        )
        .after(&asked.packets),
        Row::forward("the connection that PASV announced", spec(net), &data_syn, to_server).after(&passive.packets),
        Row::forward("what comes behind has moved", spec(net), &next, &next_out).after(&passive.packets),
        Row::forward(
            "in a super-packet as well",
            spec(net),
            next.clone().payload(vec![b'x'; 30_000]).super_packet(1448),
            next_out.clone().payload(vec![b'x'; 30_000]),
        )
        .after(&passive.packets),
        Row::forward(
            "the acknowledgement moves back",
            spec(net),
            &ack,
            ack.clone().seq(passive.client, passive.server).with_dst(rs),
        )
        .after(&passive.packets),
        Row::forward(
            "half an acknowledgement is one for what is whole",
            spec(net),
            ack.clone().seq(passive.client, passive.server + grown - 4),
            ack.clone().seq(passive.client, passive.server - 4).with_dst(rs),
        )
        .after(&passive.packets),
        // The text that was given has 19 bytes for 17.
        Row::forward(
            "nor does one that ends within the address count for what is behind it",
            spec(net),
            ack.clone().seq(passive.client, given + 18),
            ack.clone().seq(passive.client, given + 16).with_dst(rs),
        )
        .after(&passive.packets),
        Row::forward(
            "a block that begins there is one of what is whole",
            spec(net),
            ack.clone().tcp_options(&sack(given + 18, 6000)),
            ack.clone().seq(passive.client, passive.server).with_dst(rs).tcp_options(&sack(given + 17, 6000 - grown)),
        )
        .after(&passive.packets),
        Row::forward(
            "a block that lies there is none",
            spec(net),
            ack.clone().tcp_options(&sack(given + 17, given + 18)),
            ack.clone().seq(passive.client, passive.server).with_dst(rs).tcp_options(&[1; 12]),
        )
        .after(&passive.packets),
        Row::forward("a stranger's acknowledgement counts for nothing", spec(net), asked.reply(&said), {
            asked.reply(&heard).with_src(vip)
        })
        .after(passive.packets.iter().cloned().chain([
            ack.clone().seq(passive.client, passive.server + 5_000_000),
            ack.clone().seq(passive.client + 5_000_000, passive.server + grown),
        ])),
        Row::forward(
            "blocks of a SACK move back",
            spec(net),
            ack.clone().tcp_options(&sack(6000, 6100)),
            ack.clone().seq(passive.client, passive.server).with_dst(rs).tcp_options(&sack(6000 - grown, 6100 - grown)),
        )
        .after(&passive.packets),
        Row::forward("the reply comes again", spec(net), asked.reply(&said), asked.reply(&heard).with_src(vip))
            .after(&passive.packets),
        Row::forward(
            "together with what follows",
            spec(net),
            asked.reply(format!("{said}150 Here\r\n")),
            asked.reply(format!("{heard}150 Here\r\n")).with_src(vip),
        )
        .after(&passive.packets),
        Row::forward(
            "the rest of it comes again",
            spec(net),
            asked.clone().got(&said[..40]).reply(&said[40..]),
            asked.clone().got(&heard[..40]).reply(&heard[40..]).with_src(vip),
        )
        .after(&passive.packets),
        Row::forward("PORT goes on as it is", spec(net), Control::new(net).command("PORT 198,51,100,2,130,1\r\n"), {
            Control::new(net).command("PORT 198,51,100,2,130,1\r\n").with_dst(rs)
        })
        .after(&Control::new(net).packets),
        Row::forward(
            "the connection that PORT announced",
            spec(net),
            tcp(net.rs(1, 20), net.client(33281)).syn(),
            tcp(net.vip(20), net.client(33281)).syn(),
        )
        .after(&Control::new(net).sent(format!("PORT {}\r\n", six(net.client(33281)))).packets),
        Row::pass("PORT to somebody else", spec(net), tcp(net.rs(1, 20), net.stranger(33281)).syn())
            .after(&Control::new(net).sent(format!("PORT {}\r\n", six(net.stranger(33281)))).packets),
        Row::forward(
            "a server that announces another goes unheard",
            spec(net),
            asked.reply(pasv(net.rs(2, 40007))),
            asked.reply(pasv(net.rs(2, 40007))).with_src(vip),
        )
        .after(&asked.packets),
        Row::forward("a server that announces the VIP", spec(net), &data_syn, data_syn.with_dst(net.rs(1, 40007)))
            .after(&asked.clone().got(&heard).packets),
        Row::forward("half a reply goes on as far as it is sure", spec(net), asked.reply(&said[..33]), {
            asked.reply(&heard[..27]).with_src(vip)
        })
        .after(&asked.packets),
        Row::forward(
            "with its rest the address comes",
            spec(net),
            asked.clone().got(&said[..33]).reply(&said[33..]),
            asked.clone().got(&said[..27]).reply(&heard[27..]).with_src(vip),
        )
        .after(&asked.clone().got(&said[..33]).packets),
        Row::forward(
            "meanwhile the client's acknowledgement is one for what waits",
            spec(net),
            asked.clone().got(&said[..27]).command(""),
            asked.clone().got(&said[..33]).command("").with_dst(rs),
        )
        .after(&asked.clone().got(&said[..33]).packets),
        Row::forward(
            "more that waits: a byte that the client has already",
            spec(net),
            asked.clone().got(&said[..33]).reply(&said[33..35]),
            asked.clone().got(&said[..26]).reply(&said[26..27]).with_src(vip),
        )
        .after(&asked.clone().got(&said[..33]).packets),
    ]);
    rows
}

pub fn engine(spec: SnapshotSpec) -> Engine {
    world::engine(Snapshot::build(spec, None).expect("valid").into(), 1024)
}

/// Sends a packet; what goes on, its checksum complete.
pub fn send(engine: &mut Engine, now: Instant, packet: impl Packet) -> Vec<u8> {
    let mut buf = packet.buf();
    assert_eq!(engine.handle_packet(now, &mut buf), Verdict::Forward);
    engine.check_invariants();
    let sent = oracle::complete(&buf);
    assert!(oracle::checksums_are_right(&sent));
    sent
}

#[test]
fn a_port_that_is_taken_at_the_vip_becomes_another() {
    for net in Net::BOTH {
        for data_ports in [None, Some(PortRange { first: 6000, last: 6009 })] {
            let mut spec = spec(net);
            spec.services[0].data_ports = data_ports;
            let mut engine = engine(spec);
            let now = Instant::ZERO;
            let asked = Control::new(net).sent("EPSV\r\n");
            for packet in &asked.packets {
                send(&mut engine, now, packet);
            }
            // Another service has it.
            let sent = send(&mut engine, now, asked.reply(epsv(5000)));
            let told = oracle::decode(&sent).expect("a packet");
            let text = String::from_utf8(told.payload).expect("text");
            let port: u16 = text.split('|').nth(3).and_then(|port| port.parse().ok()).expect(&text);
            assert_eq!(text, epsv(port));
            assert!(port != 5000 && port >= 1024, "{port}");
            assert!(data_ports.is_none_or(|range| range.contains(port)), "{port}");
            let syn = tcp(net.client(41000), net.vip(port)).syn();
            assert_eq!(send(&mut engine, now, &syn), syn.with_dst(net.rs(1, 5000)).bytes());
            let answer = tcp(net.rs(1, 5000), net.client(41000)).flags(SYN | ACK).seq(1, 1001);
            assert_eq!(send(&mut engine, now, &answer), answer.with_src(net.vip(port)).bytes());
            // The numbers behind it have moved by as much as the text grew.
            let grown = text.len() as u32 - epsv(5000).len() as u32;
            let next = asked.clone().got(epsv(5000));
            let out = next.reply("150 Here\r\n").seq(next.server + grown, next.client).with_src(net.vip(21));
            assert_eq!(send(&mut engine, now, next.reply("150 Here\r\n")), out.bytes());
        }
    }
}

#[test]
fn two_servers_may_announce_one_port_to_one_client() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let now = Instant::ZERO;
    let first = Control::new(net).sent("EPSV\r\n").got(epsv(40007));
    // The second connection goes to server 2.
    let move_to = |packet: &Build| match packet.src.ip() == net.rs(1, 0).ip() {
        true => packet.with_src(net.rs(2, 2121)).with_dst(net.client(40001)),
        false => packet.with_src(net.client(40001)),
    };
    for packet in &first.packets {
        send(&mut engine, now, packet);
    }
    let sent: Vec<_> = first.packets.iter().map(|packet| send(&mut engine, now, move_to(packet))).collect();
    let text = String::from_utf8(oracle::decode(&sent[4]).expect("a packet").payload).expect("text");
    let port: u16 = text.split('|').nth(3).and_then(|port| port.parse().ok()).expect(&text);
    assert_ne!(port, 40007);
    for (port, rs) in [(40007, net.rs(1, 40007)), (port, net.rs(2, 40007))] {
        let syn = tcp(net.client(50000), net.vip(port)).syn();
        assert_eq!(send(&mut engine, now, &syn), syn.with_dst(rs).bytes());
    }
}

#[test]
fn what_is_announced_is_kept_for_a_minute() {
    let net = Net::V6;
    let mut engine = engine(spec(net));
    let announce = Control::new(net).sent(format!("EPRT {}\r\n", eprt(net.client(33000))));
    for packet in &announce.packets {
        send(&mut engine, Instant::ZERO, packet);
    }
    let expected: Vec<_> = engine.expectations().copied().collect();
    assert_eq!(expected.len(), 1);
    let deadline = expected[0].deadline;
    assert_eq!(deadline, Instant::from_secs(60));
    assert_eq!(engine.poll_timeout(), Some(deadline));
    let syn = tcp(net.rs(1, 20), net.client(33000)).syn();
    assert_eq!(engine.handle_packet(deadline, &mut syn.buf()), Verdict::Pass);
    engine.handle_timeout(deadline);
    assert_eq!(engine.expectations().count(), 0);
}

#[test]
fn announcements_are_bounded_and_the_oldest_go() {
    let net = Net::V4;
    let limits = Limits { expectations: 16, ..Limits::default() };
    let mut engine = engine(SnapshotSpec { limits, ..spec(net) });
    let ports = |engine: &Engine| engine.expectations().map(|e| e.key.dport).collect::<Vec<_>>();
    // One connection has few.
    let mut control = Control::new(net);
    for port in 2000..2020 {
        control = control.sent(format!("PORT {}\r\n", six(net.client(port))));
    }
    for packet in &control.packets {
        send(&mut engine, Instant::ZERO, packet);
    }
    assert_eq!(ports(&engine), [2016, 2017, 2018, 2019]);
    // Many have no more than there may be.
    for n in 0..30u8 {
        let client = net.other(n, 40000);
        let line = format!("PORT {}\r\n", six(net.other(n, 3000 + u16::from(n))));
        for packet in Control::new(net).sent(line).packets.into_iter().filter(|packet| packet.src == net.client(40000))
        {
            // The server's part does not matter to the helper.
            send(&mut engine, Instant::ZERO, packet.with_src(client));
        }
    }
    assert_eq!(ports(&engine), (3014..3030).collect::<Vec<_>>());
    // They are told in slices: none twice, and what is over not at all.
    let told = |now: Instant| {
        let (mut all, mut slices, mut cursor) = (Vec::new(), 0, Some(0));
        while let Some(from) = cursor {
            let slice;
            (slice, cursor) = engine.expected_flows(now, from, 5);
            assert!(slice.len() <= 5);
            all.extend(slice);
            slices += 1;
        }
        (all, slices)
    };
    let (all, slices) = told(Instant::from_secs(1));
    assert_eq!(all.iter().map(|e| e.dport).collect::<Vec<_>>(), ports(&engine));
    assert_eq!(slices, 4);
    let first = &all[0];
    assert_eq!((first.remaining, first.opener), (Duration::from_secs(59), Sender::Server));
    assert_eq!((first.helper, first.method), (Some(HelperKind::Ftp), Method::Nat));
    let by = first.by.expect("the connection is there");
    assert_eq!((by.src, by.sport, by.dport), (first.dst, 40000, 21));
    assert!(told(Instant::from_secs(60)).0.is_empty());
}

#[test]
fn connections_that_are_read_are_bounded() {
    let net = Net::V6;
    let mut engine = world::engine(Snapshot::build(spec(net), None).expect("valid").into(), 16);
    let mut connect = |n: u8| {
        let announce = Control::new(net).sent(format!("EPRT {}\r\n", eprt(net.other(n, 3000)))).packets;
        let (client, server) = (net.other(n, 40000), net.rs(1 + n % 2, 2121));
        for packet in announce {
            let packet = match packet.src == net.client(40000) {
                true => packet.with_src(client),
                false => packet.with_src(server).with_dst(client),
            };
            send(&mut engine, Instant::ZERO, packet);
        }
        engine.expectations().count()
    };
    // A quarter of the flows that there may be. The others go on unread.
    assert_eq!((0..6).map(&mut connect).collect::<Vec<_>>(), [1, 2, 3, 4, 4, 4]);
    assert_eq!(engine.stats().helper_skipped, 2);
    // One that ends makes room.
    let by_client = |n: u8| FlowFilter { src: Some((net.other(n, 0).ip().into(), 128)), ..FlowFilter::default() };
    engine.apply(Instant::ZERO, Command::Delete { filter: by_client(0), cursor: 0 });
    let next = Control::new(net).sent(format!("EPRT {}\r\n", eprt(net.other(6, 3000)))).packets;
    for packet in next.into_iter().filter(|packet| packet.src == net.client(40000)) {
        send(&mut engine, Instant::ZERO, packet.with_src(net.other(6, 40000)));
    }
    assert_eq!(engine.expectations().count(), 5);
}

#[test]
fn a_servers_connection_runs_through_the_states() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        let now = Instant::from_secs(5);
        let announce = || Control::new(net).sent(format!("EPRT {}\r\n", eprt(net.client(33000))));
        let (rs, client, vip) = (net.rs(1, 20), net.client(33000), net.vip(20));
        for packet in &announce().packets {
            send(&mut engine, now, packet);
        }
        let state = |engine: &Engine| {
            let (flows, _) = engine.flows(now, 0, 9);
            let flow = flows.into_iter().find(|flow| flow.original.dport == 20).expect("it is there");
            assert_eq!((flow.original.src, flow.reply.src), (client.ip().into(), rs.ip().into()));
            (flow.state_word().expect("TCP"), flow.assured)
        };
        let steps = [
            (tcp(rs, client).syn(), ("SYN_SENT", false)),
            (tcp(client, vip).flags(SYN | ACK).seq(7000, 1001), ("SYN_RECV", false)),
            (tcp(rs, client).flags(ACK).seq(1001, 7001), ("ESTABLISHED", true)),
            (tcp(rs, client).flags(ACK).seq(1001, 7001).payload([1; 999]), ("ESTABLISHED", true)),
            (tcp(rs, client).flags(FIN | ACK).seq(2000, 7001), ("FIN_WAIT", true)),
            (tcp(client, vip).flags(FIN | ACK).seq(7001, 2001), ("TIME_WAIT", true)),
            (tcp(rs, client).flags(ACK).seq(2001, 7002), ("TIME_WAIT", true)),
        ];
        for (packet, expected) in steps {
            send(&mut engine, now, &packet);
            assert_eq!(state(&engine), expected);
        }
        let load = |engine: &Engine| engine.snapshot().live[0].servers[0].load.clone();
        assert_eq!((load(&engine).flows(), load(&engine).active()), (2, 1));
        // The same ports again, announced again.
        let again = tcp(rs, client).syn().seq(900_000, 0);
        send(
            &mut engine,
            now,
            Control::new(net)
                .sent(format!("EPRT {}\r\n", eprt(client)))
                .got("200 OK\r\n")
                .command(format!("EPRT {}\r\n", eprt(client)))
                .seq(announce().client, 5001),
        );
        assert_eq!(send(&mut engine, now, &again), again.with_src(vip).bytes());
        assert_eq!(state(&engine), ("SYN_SENT", false));
        assert_eq!(engine.stats().flows_reused, 1);
    }
}

#[test]
fn a_full_sized_segment_that_grows_becomes_two() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let asked = Control::new(net).sent("PASV\r\n");
    for packet in &asked.packets {
        send(&mut engine, Instant::ZERO, packet);
    }
    let with = |line: String| format!("{line}{}\r\n", "x".repeat(1458 - pasv(net.rs(1, 40007)).len()));
    let (said, heard) = (with(pasv(net.rs(1, 40007))), with(pasv(net.vip(40007))));
    assert_eq!(said.len(), 1460);
    let first = send(&mut engine, Instant::ZERO, asked.reply(&said).flags(FIN | PSH | ACK));
    let rest = oracle::complete(&engine.poll_transmit().expect("a second packet"));
    assert!(oracle::checksums_are_right(&rest));
    assert!(engine.poll_transmit().is_none());
    let out = asked.clone().got(&heard[..1460]);
    assert_eq!(first, asked.reply(&heard[..1460]).flags(ACK).with_src(net.vip(21)).bytes());
    assert_eq!(rest, out.reply(&heard[1460..]).flags(FIN | PSH | ACK).with_src(net.vip(21)).bytes());
}

#[test]
fn one_way_methods_have_no_helper() {
    let net = Net::V4;
    for method in [Method::Direct, Method::Tunnel] {
        let mut spec = spec(net);
        let service = &mut spec.services[0];
        (service.method, service.helper) = (method, Some(HelperKind::Ftp));
        service.servers.iter_mut().for_each(|server| server.port = None);
        spec.tunnel_sources = vec![(net.rs(1, 0).ip().into(), net.rs(9, 0).ip().into())];
        let mut engine = engine(spec);
        for packet in Control::new(net).sent(format!("PORT {}\r\n", six(net.client(33000)))).packets {
            if packet.src == net.client(40000) {
                engine.handle_packet(Instant::ZERO, &mut packet.buf());
            }
        }
        assert_eq!(engine.expectations().count(), 0);
    }
}

/// Both ends must take the RST: each knows the other one's numbers.
#[test]
fn a_reset_has_the_numbers_that_its_receiver_knows() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let now = Instant::ZERO;
    let grown = (pasv(net.vip(40007)).len() - pasv(net.rs(1, 40007)).len()) as u32;
    let control = Control::new(net).sent("PASV\r\n").got(pasv(net.rs(1, 40007))).grown(grown);
    for packet in &control.packets {
        send(&mut engine, now, packet);
    }
    assert!(engine.snapshot().live[0].servers[0].state.set_up(now, false));
    let verdict = engine.handle_packet(now, &mut control.command("QUIT\r\n").buf());
    assert_eq!(verdict, Verdict::Drop(DropReason::ServerDown));
    let resets: Vec<_> = std::iter::from_fn(|| engine.poll_transmit()).collect();
    let told = |end: SocketAddr| {
        let packets = resets.iter().map(|buf| oracle::decode(&oracle::complete(buf)).expect("a packet"));
        let reset = packets.into_iter().find(|packet| packet.dst == end.ip()).expect("it is told");
        reset.tcp.map(|tcp| (tcp.seq, tcp.ack)).expect("TCP")
    };
    assert!(resets.iter().all(|buf| oracle::checksums_are_right(&oracle::complete(buf))));
    assert_eq!(told(net.client(0)), (control.server + grown, control.client));
    assert_eq!(told(net.rs(1, 0)), (control.client, control.server));
}

/// That the announced port is closed by now is no sign that the service is down.
#[test]
fn a_refused_data_connection_is_no_failure() {
    let net = Net::V6;
    let mut spec = spec(net);
    spec.services[0].passive = Some(Passive { fall: 1, hold: Duration::from_secs(10) });
    let mut engine = engine(spec);
    let control = Control::new(net).sent("EPSV\r\n").got(epsv(40007));
    let syn = tcp(net.client(41000), net.vip(40007)).syn();
    let refusal = tcp(net.rs(1, 40007), net.client(41000)).flags(RST | ACK).seq(0, 1001);
    for packet in control.packets.iter().chain([&syn, &refusal]) {
        send(&mut engine, Instant::ZERO, packet);
    }
    assert!(engine.snapshot().live[0].servers[0].is_available());
}
