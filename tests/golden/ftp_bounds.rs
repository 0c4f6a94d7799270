//! FTP connections of those that mean harm, or begin again: what they cost, and that they go on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use gatun::engine::Engine;
use gatun::explain::{Explained, explain};
use gatun::service::{HelperKind, PortRange, Protocols, Snapshot};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Protocol, Tuple};

use crate::Net;
use crate::ftp::{Control, engine, eprt, epsv, pasv, send, six, spec};
use crate::support::oracle;
use crate::support::packet::{ACK, Build, FIN, SYN, tcp, udp};
use crate::support::world::{self, ServiceSpecExt, service};

/// An engine of which so many TFTP clients expect an answer.
fn expecting(net: Net, others: u32) -> Engine {
    let mut spec = spec(net);
    let vip = net.vip(69);
    let mut tftp = service("tftp", &vip.ip().to_string(), PortRange::single(69), Protocols::Udp).server(
        &net.rs(3, 0).ip().to_string(),
        None,
        1,
    );
    tftp.helper = Some(HelperKind::Tftp);
    spec.services.push(tftp);
    let mut engine = world::engine(Snapshot::build(spec, None).expect("valid").into(), 1 << 16);
    for n in 0..others {
        let client = SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + n).into(), 2000);
        let request = udp(client, vip).payload(b"\0\x01x\0octet\0");
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut request.buf()), Verdict::Forward);
    }
    engine
}

/// One segment can announce as often as it has lines.
#[test]
fn an_announcement_costs_the_same_however_many_there_are() {
    let net = Net::V4;
    let mut took = [0, 4000].map(|others| {
        let mut engine = expecting(net, others);
        assert_eq!(engine.expectations().count(), others as usize);
        let mut control = Control::new(net);
        for packet in &control.packets {
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut packet.buf()), Verdict::Forward);
        }
        let segments = (0..8u16).map(|n| {
            let lines: String =
                (0..50).map(|line| format!("PORT {}\r\n", six(net.client(2000 + n * 50 + line)))).collect();
            let mut buf = control.command(&lines).buf();
            control = control.clone().sent(&lines);
            let begun = std::time::Instant::now();
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
            begun.elapsed()
        });
        let fastest = segments.min().unwrap_or_default();
        engine.check_invariants();
        assert!(engine.expectations().count() > others as usize);
        fastest
    });
    // A scan takes 50 times as long and more.
    took[0] = took[0].max(Duration::from_micros(50));
    assert!(took[1] < took[0] * 10, "{took:?}");
}

/// Asks and answers of which the client acknowledges nothing.
fn asked_again_and_again(net: Net, engine: &mut Engine, times: u16) -> Control {
    let mut control = Control::new(net);
    for n in 0..times {
        control = control.sent("PASV\r\n").got(pasv(net.rs(1, 40000 + n)));
    }
    for packet in &control.packets {
        // What the client acknowledges was said before all of them.
        let packet = if packet.src == net.client(40000) { acking(packet, 5001) } else { packet.clone() };
        send(engine, Instant::ZERO, packet);
    }
    control
}

fn acking(packet: &Build, ack: u32) -> Build {
    let (seq, _) =
        oracle::decode(&packet.bytes()).and_then(|packet| packet.tcp).map_or((0, 0), |tcp| (tcp.seq, tcp.ack));
    packet.clone().seq(seq, ack)
}

#[test]
fn changes_of_a_stream_wait_for_their_acknowledgement() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let now = Instant::ZERO;
    let control = asked_again_and_again(net, &mut engine, 16);
    let asked = control.clone().sent("PASV\r\n");
    send(&mut engine, now, acking(&control.command("PASV\r\n"), 5001));
    let reply = asked.reply(pasv(net.rs(1, 50000)));
    for _ in 0..3 {
        assert_eq!(engine.handle_packet(now, &mut reply.buf()), Verdict::Drop(DropReason::TooEarly));
    }
    assert_eq!(engine.expectations().filter(|expected| expected.key.dport == 50000).count(), 0);
    // It comes again when the client has acknowledged the first of them.
    let (said, heard) = (pasv(net.rs(1, 40000)).len() as u32, pasv(net.vip(40000)).len() as u32);
    let ack = tcp(net.client(40000), net.vip(21)).flags(ACK).seq(asked.client, 5001 + heard);
    assert_eq!(
        send(&mut engine, now, &ack),
        ack.clone().seq(asked.client, 5001 + said).with_dst(net.rs(1, 2121)).bytes()
    );
    let grown = 16 * (heard - said);
    let out = asked.reply(pasv(net.vip(50000))).seq(asked.server + grown, asked.client);
    assert_eq!(send(&mut engine, now, &reply), out.with_src(net.vip(21)).bytes());
    assert!(engine.expectations().any(|expected| expected.key.dport == 50000));
}

#[test]
fn answers_beyond_that_in_one_segment_go_on_as_they_are() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let control = asked_again_and_again(net, &mut engine, 10);
    send(&mut engine, Instant::ZERO, acking(&control.command("PASV\r\n".repeat(16)), 5001));
    let lines = |end: fn(Net, u16) -> SocketAddr| (0..16).map(move |n| pasv(end(net, 50000 + n)));
    let (said, heard) = (lines(|net, port| net.rs(1, port)), lines(|net, port| net.vip(port)));
    let asked = control.clone().sent("PASV\r\n".repeat(16));
    let sent = send(&mut engine, Instant::ZERO, asked.reply(said.clone().collect::<String>()));
    let told = String::from_utf8(oracle::decode(&sent).expect("a packet").payload).expect("text");
    assert_eq!(told, heard.take(6).chain(said.skip(6)).collect::<String>());
    assert!(engine.expectations().all(|expected| expected.key.dport < 50006));
}

/// The client's host was started anew, or is short of ports: it connects again while the old connection is being closed.
#[test]
fn a_connection_over_the_ports_of_a_closing_one_is_read_from_its_beginning() {
    let net = Net::V4;
    let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
    let old = Control::new(net).sent("PASV\r\n").got(pasv(net.rs(1, 40007)));
    let fins = [
        ("FIN_WAIT", vec![tcp(rs, client).flags(FIN | ACK).seq(old.server, old.client)]),
        ("CLOSE_WAIT", vec![tcp(client, vip).flags(FIN | ACK).seq(old.client, 5001)]),
    ];
    for (state, fins) in fins {
        let mut engine = engine(spec(net));
        let now = Instant::ZERO;
        for packet in old.packets.iter().chain(&fins) {
            send(&mut engine, now, packet);
        }
        let is = |engine: &Engine| engine.flows(now, 0, 9).0.iter().map(|flow| flow.state_word()).collect::<Vec<_>>();
        assert_eq!(is(&engine), [Some(state)]);
        // A SYN that is none of the client's changes nothing.
        let stale = tcp(client, vip).syn().seq(900, 0);
        send(&mut engine, now, &stale);
        let syn = tcp(client, vip).syn().seq(900_000, 0);
        assert_eq!(send(&mut engine, now, &syn), syn.with_dst(rs).bytes());
        let mut new = Control::new(net);
        (new.client, new.server) = (900_001, 70_001);
        let answer = tcp(rs, client).flags(SYN | ACK).seq(70_000, 900_001);
        assert_eq!(send(&mut engine, now, &answer), answer.with_src(vip).bytes());
        send(&mut engine, now, new.command("").flags(ACK));
        assert_eq!(send(&mut engine, now, new.reply("220 Hi\r\n")), new.reply("220 Hi\r\n").with_src(vip).bytes());
        new = new.got("220 Hi\r\n");
        assert_eq!(send(&mut engine, now, new.command("PASV\r\n")), new.command("PASV\r\n").with_dst(rs).bytes());
        new = new.sent("PASV\r\n");
        let heard = new.reply(pasv(net.vip(40008))).with_src(vip);
        assert_eq!(send(&mut engine, now, new.reply(pasv(net.rs(1, 40008)))), heard.bytes());
        assert_eq!(is(&engine), [Some("ESTABLISHED")]);
    }
}

#[test]
fn what_is_announced_is_explained_as_it_is_done() {
    let now = Instant::ZERO;
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        let outcome = |engine: &Engine, src: SocketAddr, dst: SocketAddr, flags| {
            let (sport, dport) = (src.port(), dst.port());
            let tuple = Tuple { src: src.ip().into(), dst: dst.ip().into(), sport, dport, protocol: Protocol::TCP };
            explain(engine, now, &tuple, flags).outcome
        };
        let told = |engine: &Engine, src: SocketAddr, dst: SocketAddr| match outcome(engine, src, dst, SYN) {
            Explained::Expected { announcement, from_client, translated } => {
                let ends = [(translated.src, translated.sport), (translated.dst, translated.dport)];
                let [src, dst] = ends.map(|(addr, port)| SocketAddr::new(addr.ip(), port));
                assert_eq!((announcement.service.as_str(), announcement.server.as_deref()), ("ftp", Some("rs1")));
                (announcement.to_string(), from_client, src, dst)
            }
            other => panic!("{other:?}"),
        };
        let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
        let line = format!("EPRT {}\r\n", eprt(net.client(33000)));
        let control = Control::new(net).sent("EPSV\r\n").got(epsv(40007)).sent(line);
        for packet in &control.packets {
            send(&mut engine, now, packet);
        }
        let by = format!("a helper: announced by tcp {client} > {vip}");
        let (from, passive) = (net.client(41000), net.vip(40007));
        assert_eq!(told(&engine, from, passive), (by.clone(), true, from, net.rs(1, 40007)));
        let active = (net.rs(1, 20), net.client(33000));
        assert_eq!(told(&engine, active.0, active.1), (by, false, net.vip(20), active.1));
        let early = outcome(&engine, from, passive, ACK);
        assert!(matches!(early, Explained::Dropped { reason: DropReason::NoService, .. }), "{early:?}");
        // Nothing has moved: it is done as it was told.
        assert_eq!(engine.expectations().count(), 2);
        let syn = tcp(from, passive).syn();
        assert_eq!(send(&mut engine, now, &syn), syn.with_dst(net.rs(1, 40007)).bytes());
        assert!(matches!(outcome(&engine, from, passive, SYN), Explained::Known { .. }));
        // Of a connection that is over, the client's SYN starts another one.
        for packet in [
            tcp(client, vip).flags(FIN | ACK).seq(control.client, control.server),
            tcp(rs, client).flags(FIN | ACK).seq(control.server, control.client + 1),
        ] {
            send(&mut engine, now, &packet);
        }
        assert!(matches!(outcome(&engine, client, vip, ACK), Explained::Known { .. }));
        let anew = outcome(&engine, client, vip, SYN);
        assert!(matches!(&anew, Explained::Admitted { choice, .. } if choice.server == "rs2"), "{anew:?}");
        let syn = tcp(client, vip).syn().seq(900_000, 0);
        assert_eq!(send(&mut engine, now, &syn), syn.with_dst(net.rs(2, 2121)).bytes());
        // The other announcement stands.
        let (words, ..) = told(&engine, active.0, active.1);
        assert_eq!(words, "a helper: announced by a flow that has ended");
    }
}

/// The packet lies as far behind what was changed as numbers can lie.
#[test]
fn a_wild_sequence_number_is_moved_as_any() {
    let net = Net::V4;
    let mut engine = engine(spec(net));
    let control = Control::new(net).sent("PASV\r\n").got(pasv(net.rs(1, 40007)));
    for packet in &control.packets {
        send(&mut engine, Instant::ZERO, packet);
    }
    let changed = 5001 + 27u32;
    for behind in [i32::MAX as u32, i32::MAX as u32 - 3, i32::MAX as u32 + 1] {
        let seq = changed.wrapping_sub(behind);
        send(&mut engine, Instant::ZERO, tcp(net.rs(1, 2121), net.client(40000)).flags(ACK).seq(seq, 1007));
    }
}
