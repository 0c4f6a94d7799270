//! FTP and TFTP in a masquerade: what an inside host announces of itself becomes the outside address and a mapped port, and
//! what follows comes in, whatever else is let in. The client may be inside, or the server.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::command::{Command, FlowFilter};
use gatun::engine::Engine;
use gatun::explain::{Explained, explain};
use gatun::service::{
    Filtering, ForwardSpec, HelperKind, Limits, MasqueradeSpec, Network, PoolSpec, PortRange, Protocols, SnapshotSpec,
};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Protocol, Tuple};

use crate::Net;
use crate::ftp::{engine, eprt, epsv, pasv, six};
use crate::support::oracle::{self, Decoded};
use crate::support::packet::{ACK, Build, PSH, SYN, tcp, udp};
use crate::support::world::addr;

const NOW: Instant = Instant::ZERO;

/// One inside network and outside address, as strict as there is; port 21 of the outside address leads to port 2121 of inside
/// host 2.
fn spec(net: Net) -> SnapshotSpec {
    let outside = net.pool(0).ip().into();
    let pool = PoolSpec { addresses: vec![outside], ports: PortRange { first: 1024, last: 65535 } };
    let from = match net {
        Net::V4 => Network { address: addr("10.20.0.0"), len: 24 },
        Net::V6 => Network { address: addr("fd20::"), len: 64 },
    };
    let lan = MasqueradeSpec {
        name: "lan".into(),
        from: vec![from],
        pool,
        filtering: Filtering::AddressPort,
        helpers: HelperKind::ALL.to_vec(),
        ..MasqueradeSpec::default()
    };
    let forward = ForwardSpec {
        name: "ftp".into(),
        address: outside,
        ports: PortRange::single(21),
        protocols: Protocols::Tcp,
        to: net.inside(2, 0).ip().into(),
        to_port: Some(2121),
    };
    SnapshotSpec { masquerades: vec![lan], forwards: vec![forward], ..SnapshotSpec::default() }
}

fn sent(engine: &mut Engine, packet: &Build) -> Result<Decoded, Verdict> {
    let mut buf = packet.buf();
    let verdict = engine.handle_packet(NOW, &mut buf);
    engine.check_invariants();
    let sent = oracle::complete(&buf);
    match verdict {
        Verdict::Forward => {
            assert!(oracle::checksums_are_right(&sent));
            Ok(oracle::decode(&sent).expect("a packet"))
        }
        verdict => Err(verdict),
    }
}

/// Sends a packet, which has to go on; what is sent.
fn send(engine: &mut Engine, packet: &Build) -> Decoded {
    sent(engine, packet).unwrap_or_else(|verdict| panic!("{verdict:?}: {packet:?}"))
}

fn ends(packet: &Decoded) -> (SocketAddr, SocketAddr) {
    let (sport, dport) = packet.ports.expect("it has ports");
    (SocketAddr::new(packet.src, sport), SocketAddr::new(packet.dst, dport))
}

fn numbers(packet: &Decoded) -> (u32, u32) {
    packet.tcp.as_ref().map(|tcp| (tcp.seq, tcp.ack)).expect("TCP")
}

fn text(packet: &Decoded) -> String {
    String::from_utf8(packet.payload.clone()).expect("text")
}

/// A control connection whose ends' first bytes are 1001 (the client's) and 5001.
struct Control {
    engine: Engine,
    client: SocketAddr,
    server: SocketAddr,
    /// As the outside end knows the inside one.
    outside: SocketAddr,
    is_client_inside: bool,
}

impl Control {
    /// Of an inside client to an outside server.
    fn outbound(net: Net, spec: SnapshotSpec) -> Control {
        let mut engine = engine(spec);
        let (client, server) = (net.inside(1, 40000), net.stranger(21));
        let (outside, _) = ends(&send(&mut engine, &tcp(client, server).syn()));
        assert_eq!(outside.ip(), net.pool(0).ip());
        send(&mut engine, &tcp(server, outside).flags(SYN | ACK).seq(5000, 1001));
        Control { engine, client, server, outside, is_client_inside: true }
    }

    /// Of an outside client to an inside server.
    fn inbound(net: Net, spec: SnapshotSpec) -> Control {
        let mut engine = engine(spec);
        let (client, server, outside) = (net.stranger(40000), net.inside(2, 2121), net.pool(21));
        let syn = send(&mut engine, &tcp(client, outside).syn());
        assert_eq!(ends(&syn), (client, server));
        send(&mut engine, &tcp(server, client).flags(SYN | ACK).seq(5000, 1001));
        Control { engine, client, server, outside, is_client_inside: false }
    }

    /// What the server reads.
    fn command(&mut self, seq: u32, line: &str) -> Decoded {
        let to = if self.is_client_inside { self.server } else { self.outside };
        send(&mut self.engine, &tcp(self.client, to).flags(PSH | ACK).seq(seq, 5001).payload(line))
    }

    /// What the client reads.
    fn reply(&mut self, seq: u32, ack: u32, line: &str) -> Decoded {
        let to = if self.is_client_inside { self.outside } else { self.client };
        send(&mut self.engine, &tcp(self.server, to).flags(PSH | ACK).seq(seq, ack).payload(line))
    }

    /// `from` outside connects to `told`, which is `inside`.
    fn comes_in(&mut self, from: SocketAddr, told: SocketAddr, inside: SocketAddr) {
        let first = Tuple {
            src: from.ip().into(),
            dst: told.ip().into(),
            sport: from.port(),
            dport: told.port(),
            protocol: Protocol::TCP,
        };
        let Explained::Expected { announcement, translated, .. } = explain(&self.engine, NOW, &first, SYN).outcome
        else {
            panic!("it is expected");
        };
        assert_eq!((announcement.service.as_str(), announcement.server), ("lan", None));
        assert_eq!((translated.dst.ip(), translated.dport), (inside.ip(), inside.port()));
        let syn = send(&mut self.engine, &tcp(from, told).syn());
        assert_eq!(ends(&syn), (from, inside));
        let answer = send(&mut self.engine, &tcp(inside, from).flags(SYN | ACK).seq(8000, 1001));
        assert_eq!(ends(&answer), (told, from));
        assert_eq!(self.engine.expectations().count(), 0);
    }
}

/// The address and port of a line of EPRT.
fn announced(line: &str) -> SocketAddr {
    let argument = line.strip_prefix("EPRT |").and_then(|rest| rest.strip_suffix("|\r\n")).expect(line);
    let (_, end) = argument.split_once('|').expect(line);
    let (address, port) = end.split_once('|').expect(line);
    SocketAddr::new(address.parse().expect(line), port.parse().expect(line))
}

/// The port of a reply to EPSV.
fn told_port(line: &str) -> u16 {
    line.split('|').nth(3).and_then(|port| port.parse().ok()).expect(line)
}

#[test]
fn an_inside_client_is_connected_to() {
    for net in Net::BOTH {
        let mut control = Control::outbound(net, spec(net));
        let inside = net.inside(1, 33000);
        let line = format!("EPRT {}\r\n", eprt(inside));
        let read = control.command(1001, &line);
        let told = announced(&text(&read));
        assert_eq!(told.ip(), control.outside.ip());
        // Both ends' numbers go on from there.
        let (grown, end) = (text(&read).len().wrapping_sub(line.len()) as u32, 1001 + line.len() as u32);
        assert_eq!(numbers(&control.reply(5001, end + grown, "200 OK\r\n")), (5001, end));
        assert_eq!(numbers(&control.command(end, "NLST\r\n")).0, end + grown);
        // Nobody else comes in there.
        let other = tcp(net.client(20), told).syn();
        assert!(sent(&mut control.engine, &other).is_err());
        control.comes_in(net.stranger(20), told, inside);
        // One of IPv4 alone.
        if net.is_v4() {
            let mut control = Control::outbound(net, spec(net));
            let read = text(&control.command(1001, &format!("PORT {}\r\n", six(inside))));
            let port = control.engine.expectations().next().expect("it is expected").key.dport;
            assert_eq!(read, format!("PORT {}\r\n", six(net.pool(port))));
            control.comes_in(net.stranger(20), net.pool(port), inside);
        }
    }
}

/// Even where the masquerade lets in whoever comes to a mapping.
#[test]
fn what_is_announced_opens_no_mapping() {
    for net in Net::BOTH {
        let mut spec = spec(net);
        spec.masquerades[0].filtering = Filtering::Endpoint;
        let mut control = Control::outbound(net, spec);
        let inside = net.inside(1, 33000);
        let told = announced(&text(&control.command(1001, &format!("EPRT {}\r\n", eprt(inside)))));
        let other = tcp(net.client(20), told).syn();
        assert_eq!(sent(&mut control.engine, &other).err(), Some(Verdict::Drop(DropReason::Unanswered)));
        control.comes_in(net.stranger(20), told, inside);
        // That the inside host has answered opens it, as any flow does.
        assert_eq!(ends(&send(&mut control.engine, &other)).1, inside);
    }
}

#[test]
fn an_outside_servers_replies_stay_as_they_are() {
    for net in Net::BOTH {
        let mut control = Control::outbound(net, spec(net));
        control.command(1001, "EPSV\r\n");
        assert_eq!(text(&control.reply(5001, 1007, &epsv(40007))), epsv(40007));
        assert_eq!(control.engine.expectations().count(), 0);
        let syn = send(&mut control.engine, &tcp(net.inside(1, 41000), net.stranger(40007)).syn());
        assert_eq!(ends(&syn).1, net.stranger(40007));
        // A part of one does not wait.
        assert_eq!(text(&control.reply(5001 + epsv(40007).len() as u32, 1007, "227 (10,")), "227 (10,");
    }
}

#[test]
fn an_inside_server_is_connected_to() {
    for net in Net::BOTH {
        let mut control = Control::inbound(net, spec(net));
        let inside = net.inside(2, 40007);
        assert_eq!(text(&control.command(1001, "EPSV\r\n")), "EPSV\r\n");
        let told = text(&control.reply(5001, 1007, &epsv(40007)));
        control.comes_in(net.stranger(50000), net.pool(told_port(&told)), inside);
        if net.is_v4() {
            // A server that says its own address, and one that was told the outside one.
            for said in [inside, net.pool(40007)] {
                let mut control = Control::inbound(net, spec(net));
                control.command(1001, "PASV\r\n");
                let read = text(&control.reply(5001, 1007, &pasv(said)));
                let port = control.engine.expectations().next().expect("it is expected").key.dport;
                assert_eq!(read, pasv(net.pool(port)));
                control.comes_in(net.stranger(50000), net.pool(port), inside);
            }
        }
    }
}

#[test]
fn an_outside_client_is_connected_to_as_anybody() {
    for net in Net::BOTH {
        let mut control = Control::inbound(net, spec(net));
        let line = format!("EPRT {}\r\n", eprt(net.stranger(33000)));
        assert_eq!(text(&control.command(1001, &line)), line);
        assert_eq!(control.engine.expectations().count(), 0);
        let syn = send(&mut control.engine, &tcp(net.inside(2, 2120), net.stranger(33000)).syn());
        assert_eq!((ends(&syn).0.ip(), ends(&syn).1), (net.pool(0).ip(), net.stranger(33000)));
    }
}

/// Passive ports that are forwarded as well stay what they are.
#[test]
fn a_forwarded_port_stands_for_itself() {
    for net in Net::BOTH {
        let mut spec = spec(net);
        let ports = PortRange { first: 40000, last: 40010 };
        let data = ForwardSpec { name: "data".into(), ports, to_port: None, ..spec.forwards[0].clone() };
        spec.forwards.push(data);
        let mut control = Control::inbound(net, spec);
        control.command(1001, "EPSV\r\n");
        assert_eq!(text(&control.reply(5001, 1007, &epsv(40007))), epsv(40007));
        control.comes_in(net.stranger(50000), net.pool(40007), net.inside(2, 40007));
    }
}

#[test]
fn without_its_switch_nothing_is_read() {
    for net in Net::BOTH {
        let mut spec = spec(net);
        spec.masquerades[0].helpers = vec![HelperKind::Tftp];
        let mut control = Control::outbound(net, spec.clone());
        let line = format!("EPRT {}\r\n", eprt(net.inside(1, 33000)));
        assert_eq!(text(&control.command(1001, &line)), line);
        assert_eq!(control.engine.expectations().count(), 0);
        spec.masquerades[0].helpers = vec![HelperKind::Ftp];
        let mut engine = engine(spec);
        send(&mut engine, &udp(net.inside(1, 2000), net.stranger(69)).payload(b"\0\x01x\0octet\0"));
        assert_eq!(engine.expectations().count(), 0);
    }
}

#[test]
fn an_inside_host_announces_nobody_else() {
    for net in Net::BOTH {
        for end in [net.inside(3, 33000), net.client(33000), net.inside(1, 1023)] {
            let mut control = Control::outbound(net, spec(net));
            let line = format!("EPRT {}\r\n", eprt(end));
            assert_eq!(text(&control.command(1001, &line)), line);
            assert_eq!(control.engine.expectations().count(), 0);
        }
    }
}

#[test]
fn a_tftp_server_answers_from_another_port() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        let client = net.inside(1, 2000);
        let request = udp(client, net.stranger(69)).payload(b"\0\x01x\0octet\0");
        let (outside, _) = ends(&send(&mut engine, &request));
        // Asked again, it is still one answer.
        send(&mut engine, &request);
        assert_eq!(engine.expectations().count(), 1);
        let block = |from: SocketAddr| udp(from, outside).payload(b"\0\x03\0\x01data");
        assert!(sent(&mut engine, &block(net.client(30000))).is_err(), "nobody else answers");
        assert_eq!(ends(&send(&mut engine, &block(net.stranger(30000)))), (net.stranger(30000), client));
        let ack = udp(client, net.stranger(30000)).payload(b"\0\x04\0\x01");
        assert_eq!(ends(&send(&mut engine, &ack)), (outside, net.stranger(30000)));
        // Once.
        assert!(sent(&mut engine, &block(net.stranger(30001))).is_err());
    }
}

/// Mappings are kept for what is expected, and no longer.
#[test]
fn a_mapping_goes_with_what_it_was_for() {
    for net in Net::BOTH {
        let ports = |engine: &Engine| engine.mappings(NOW, 0, 100).0.len();
        let spec = || SnapshotSpec { forwards: Vec::new(), ..spec(net) };
        let mut control = Control::outbound(net, spec());
        for port in 2000..2020 {
            let line = format!("EPRT {}\r\n", eprt(net.inside(1, port)));
            let seq = 1001 + u32::from(port - 2000) * line.len() as u32;
            // The server acknowledges all of it, so that there is room for changes.
            let end = seq + line.len() as u32;
            let read = control.command(seq, &line);
            let acked = numbers(&read).0 + read.payload.len() as u32;
            assert_eq!(numbers(&control.reply(5001, acked, "")).1, end);
        }
        // That of the control connection, and of the last few.
        assert_eq!((control.engine.expectations().count(), ports(&control.engine)), (4, 5));
        let limits = Limits { expectations: 2, ..Limits::default() };
        let next = SnapshotSpec { limits, ..spec() };
        let next = gatun::service::Snapshot::build(next, Some(control.engine.snapshot())).expect("valid");
        control.engine.apply(NOW, Command::Swap(next.into()));
        control.engine.check_invariants();
        assert_eq!((control.engine.expectations().count(), ports(&control.engine)), (2, 3));
        control.engine.handle_timeout(NOW + Duration::from_secs(60));
        control.engine.check_invariants();
        assert_eq!((control.engine.expectations().count(), ports(&control.engine)), (0, 1));
        control.engine.apply(NOW, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
        control.engine.check_invariants();
        assert_eq!(ports(&control.engine), 0);
    }
}

#[test]
fn a_line_in_pieces_waits_for_its_end() {
    for net in Net::BOTH {
        let mut control = Control::outbound(net, spec(net));
        let line = format!("EPRT {}\r\n", eprt(net.inside(1, 33000)));
        let (start, end) = line.split_at(12);
        assert_eq!(text(&control.command(1001, start)), "EPRT ");
        let rest = text(&control.command(1013, end));
        control.comes_in(net.stranger(20), announced(&format!("EPRT {rest}")), net.inside(1, 33000));
    }
}
