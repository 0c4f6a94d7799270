//! FTP and TFTP by `fullnat`: what either end announces of itself is replaced, and what follows goes through the pool.

use std::net::SocketAddr;

use gatun::command::{Command, FlowFilter};
use gatun::engine::Engine;
use gatun::explain::{Explained, explain};
use gatun::service::{HelperKind, Method, PoolSpec, PortRange, Protocols, ProxyProtocol, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Protocol, Tuple};

use crate::Net;
use crate::ftp::{engine, eprt, epsv, pasv, six};
use crate::support::oracle::{self, Decoded};
use crate::support::packet::{ACK, Build, PSH, SYN, tcp, udp};
use crate::support::world::{ServiceSpecExt, service};

const NOW: Instant = Instant::ZERO;

fn pool(net: Net, port: u16) -> SocketAddr {
    let text = if net.is_v4() { "203.0.113.100" } else { "2001:db8:f::100" };
    SocketAddr::new(text.parse().expect("an address"), port)
}

fn spec(net: Net, ports: PortRange) -> SnapshotSpec {
    let (vip, rs) = (net.vip(0).ip().to_string(), net.rs(1, 0).ip().to_string());
    let by_fullnat = |name: &str, port: u16, protocols: Protocols, server_port: u16, helper: HelperKind| {
        let mut service = service(name, &vip, PortRange::single(port), protocols).server(&rs, Some(server_port), 1);
        (service.method, service.helper) = (Method::Fullnat, Some(helper));
        service.pool = PoolSpec { addresses: vec![Addr::from(pool(net, 0).ip())], ports };
        service
    };
    let services = vec![
        by_fullnat("ftp", 21, Protocols::Tcp, 2121, HelperKind::Ftp),
        by_fullnat("tftp", 69, Protocols::Udp, 69, HelperKind::Tftp),
    ];
    SnapshotSpec { services, ..SnapshotSpec::default() }
}

const PORTS: PortRange = PortRange { first: 20_000, last: 20_999 };

/// Sends a packet, which has to go on; what is sent.
fn send(engine: &mut Engine, packet: &Build) -> Decoded {
    let mut buf = packet.buf();
    assert_eq!(engine.handle_packet(NOW, &mut buf), Verdict::Forward, "{packet:?}");
    engine.check_invariants();
    let sent = oracle::complete(&buf);
    assert!(oracle::checksums_are_right(&sent));
    oracle::decode(&sent).expect("a packet")
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

/// A control connection of client port 40000, whose first bytes are 1001 and 5001.
struct Control {
    net: Net,
    engine: Engine,
    /// As the server knows the client.
    peer: SocketAddr,
}

impl Control {
    fn new(net: Net, spec: SnapshotSpec) -> Control {
        let mut engine = engine(spec);
        let (client, vip, rs) = (net.client(40000), net.vip(21), net.rs(1, 2121));
        let (peer, _) = ends(&send(&mut engine, &tcp(client, vip).syn()));
        assert_eq!(peer.ip(), pool(net, 0).ip());
        send(&mut engine, &tcp(rs, peer).flags(SYN | ACK).seq(5000, 1001));
        Control { net, engine, peer }
    }

    /// What the server reads.
    fn command(&mut self, seq: u32, line: &str) -> Decoded {
        let (client, vip) = (self.net.client(40000), self.net.vip(21));
        send(&mut self.engine, &tcp(client, vip).flags(PSH | ACK).seq(seq, 5001).payload(line))
    }

    /// What the client reads.
    fn reply(&mut self, seq: u32, ack: u32, line: &str) -> Decoded {
        send(&mut self.engine, &tcp(self.net.rs(1, 2121), self.peer).flags(PSH | ACK).seq(seq, ack).payload(line))
    }

    fn ports(&self) -> (u64, u64) {
        let pools = self.engine.pools();
        (pools.iter().map(|pool| pool.in_use).sum(), pools.iter().map(|pool| pool.quarantined).sum())
    }

    /// The client connects to the port of the server that it was told.
    fn opens(&mut self, port: u16, server_port: u16) {
        let (client, vip, rs) = (self.net.client(41000), self.net.vip(port), self.net.rs(1, server_port));
        let original = Tuple {
            src: client.ip().into(),
            dst: vip.ip().into(),
            sport: client.port(),
            dport: vip.port(),
            protocol: Protocol::TCP,
        };
        let explained = explain(&self.engine, NOW, &original, SYN);
        let (from, to) = ends(&send(&mut self.engine, &tcp(client, vip).syn()));
        // Servers that look take data from where the commands come from alone.
        assert_eq!((from.ip(), to), (self.peer.ip(), rs));
        assert!(PORTS.contains(from.port()));
        let Explained::Expected { translated, .. } = explained.outcome else { panic!("{explained:?}") };
        assert_eq!((translated.src.ip(), translated.sport), (from.ip(), from.port()));
        let answer = send(&mut self.engine, &tcp(rs, from).flags(SYN | ACK).seq(8000, 1001));
        assert_eq!(ends(&answer), (vip, client));
    }

    /// The server connects to what it was told, which is port 33000 of the client.
    fn is_opened(&mut self, told: SocketAddr) {
        let (client, vip, rs) = (self.net.client(33000), self.net.vip(20), self.net.rs(1, 20));
        assert_eq!(told.ip(), self.peer.ip());
        assert!(PORTS.contains(told.port()));
        let syn = send(&mut self.engine, &tcp(rs, told).syn());
        assert_eq!(ends(&syn), (vip, client));
        let answer = send(&mut self.engine, &tcp(client, vip).flags(SYN | ACK).seq(8000, 1001));
        assert_eq!(ends(&answer), (told, rs));
    }
}

/// The address and port of a line of EPRT.
fn announced(line: &str) -> SocketAddr {
    let argument = line.strip_prefix("EPRT |").and_then(|rest| rest.strip_suffix("|\r\n")).expect(line);
    let (_, end) = argument.split_once('|').expect(line);
    let (address, port) = end.split_once('|').expect(line);
    SocketAddr::new(address.parse().expect(line), port.parse().expect(line))
}

#[test]
fn passive_connections_go_through_the_pool() {
    for net in Net::BOTH {
        let mut control = Control::new(net, spec(net, PORTS));
        let asked = control.command(1001, "EPSV\r\n");
        assert_eq!((ends(&asked), text(&asked).as_str()), ((control.peer, net.rs(1, 2121)), "EPSV\r\n"));
        let told = control.reply(5001, 1007, &epsv(40007));
        assert_eq!((ends(&told), text(&told)), ((net.vip(21), net.client(40000)), epsv(40007)));
        control.opens(40007, 40007);
        assert_eq!(control.ports(), (2, 0));
        if net.is_v4() {
            let mut control = Control::new(net, spec(net, PORTS));
            control.command(1001, "PASV\r\n");
            assert_eq!(text(&control.reply(5001, 1007, &pasv(net.rs(1, 40007)))), pasv(net.vip(40007)));
            control.opens(40007, 40007);
        }
    }
}

#[test]
fn active_connections_come_to_a_port_of_the_pool() {
    for net in Net::BOTH {
        let mut control = Control::new(net, spec(net, PORTS));
        let line = format!("EPRT {}\r\n", eprt(net.client(33000)));
        let sent = control.command(1001, &line);
        let told = announced(&text(&sent));
        let grown = (text(&sent).len() as u32).wrapping_sub(line.len() as u32);
        // Both ends' numbers go on from there.
        let end = 1001 + line.len() as u32;
        assert_eq!(numbers(&control.reply(5001, end + grown, "200 OK\r\n")), (5001, end));
        assert_eq!(numbers(&control.command(end, "NLST\r\n")).0, end + grown);
        control.is_opened(told);
        assert_eq!(control.ports(), (2, 0));
        assert_eq!(control.engine.expectations().count(), 0);
        // Its port waits as any other.
        control.engine.apply(NOW, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
        assert_eq!(control.ports(), (0, 2));
    }
}

#[test]
fn a_port_command_has_its_form() {
    let net = Net::V4;
    let mut control = Control::new(net, spec(net, PORTS));
    let sent = text(&control.command(1001, &format!("PORT {}\r\n", six(net.client(33000)))));
    let port = control.engine.expectations().next().expect("it is expected").key.dport;
    assert_eq!(sent, format!("PORT {}\r\n", six(pool(net, port))));
    control.is_opened(pool(net, port));
}

/// Of somebody else, or of a well-known port: what the server makes of it is its affair.
#[test]
fn what_a_client_may_not_announce_goes_on_as_it_is() {
    for net in Net::BOTH {
        for end in [net.stranger(33000), net.client(1023), net.rs(1, 33000)] {
            let mut control = Control::new(net, spec(net, PORTS));
            let line = format!("EPRT {}\r\n", eprt(end));
            assert_eq!(text(&control.command(1001, &line)), line);
            assert_eq!(control.engine.expectations().count(), 0);
        }
    }
}

/// An argument in pieces comes to the server in one, whoever repeats what.
#[test]
fn a_line_in_pieces_waits_for_its_end() {
    for net in Net::BOTH {
        let line = format!("EPRT {}\r\n", eprt(net.client(33000)));
        for size in [1, 3, 8, 20] {
            let mut control = Control::new(net, spec(net, PORTS));
            let mut heard = Vec::new();
            for (n, piece) in line.as_bytes().chunks(size).enumerate() {
                let piece = std::str::from_utf8(piece).expect("text");
                for _ in 0..2 {
                    let sent = control.command(1001 + (n * size) as u32, piece);
                    let at = numbers(&sent).0.wrapping_sub(1001) as i32;
                    // What comes twice says the same.
                    for (place, byte) in sent.payload.iter().enumerate() {
                        let place = at + place as i32;
                        match usize::try_from(place).ok() {
                            Some(place) if place < heard.len() => assert_eq!(heard[place], *byte),
                            Some(place) => {
                                assert_eq!(place, heard.len(), "nothing is left out");
                                heard.push(*byte);
                            }
                            None => {}
                        }
                    }
                }
            }
            let told = announced(std::str::from_utf8(&heard).expect("text"));
            control.is_opened(told);
        }
    }
}

/// A pool of one port serves one connection to each port of a server.
#[test]
fn without_a_port_a_data_connection_waits() {
    for net in Net::BOTH {
        let mut control = Control::new(net, spec(net, PortRange::single(20_500)));
        control.command(1001, "EPSV\r\n");
        control.reply(5001, 1007, &epsv(40007));
        control.opens(40007, 40007);
        control.command(1007, "EPSV\r\n");
        control.reply(5001 + epsv(40007).len() as u32, 1013, &epsv(40007));
        let syn = tcp(net.client(41001), net.vip(40007)).syn();
        assert_eq!(control.engine.handle_packet(NOW, &mut syn.buf()), Verdict::Drop(DropReason::PoolExhausted));
        // It is still expected.
        assert_eq!(control.engine.expectations().count(), 1);
        control.engine.check_invariants();
    }
}

#[test]
fn a_tftp_server_answers_from_another_port() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net, PORTS));
        let (client, rs) = (net.client(2000), net.rs(1, 30_000));
        let (peer, to) = ends(&send(&mut engine, &udp(client, net.vip(69)).payload(b"\0\x01x\0octet\0")));
        assert_eq!((peer.ip(), to), (pool(net, 0).ip(), net.rs(1, 69)));
        let block = send(&mut engine, &udp(rs, peer).payload(b"\0\x03\0\x01data"));
        assert_eq!(ends(&block), (net.vip(30_000), client));
        let ack = send(&mut engine, &udp(client, net.vip(30_000)).payload(b"\0\x04\0\x01"));
        assert_eq!(ends(&ack), (peer, rs));
        // Nobody else answers.
        let other = udp(net.rs(2, 30_000), peer).payload(b"\0\x03\0\x01data");
        assert_ne!(engine.handle_packet(NOW, &mut other.buf()), Verdict::Forward);
    }
}

/// A server that is told its clients, and reads a protocol with a helper: the header comes first, and moves all the rest.
#[test]
fn a_header_and_a_helper_go_together() {
    for net in Net::BOTH {
        let mut spec = spec(net, PORTS);
        spec.services[0].proxy_protocol = Some(ProxyProtocol::V1);
        let mut control = Control::new(net, spec);
        let header = format!(
            "PROXY TCP{} {} {} 40000 21\r\n",
            if net.is_v4() { 4 } else { 6 },
            net.client(0).ip(),
            net.vip(0).ip()
        );
        let line = format!("EPRT {}\r\n", eprt(net.client(33000)));
        let sent = control.command(1001, &line);
        let told = text(&sent).strip_prefix(&header).map(announced).expect("the header comes first");
        assert_eq!(numbers(&sent).0, 1001);
        let (all, end) = (text(&sent).len() as u32, 1001 + line.len() as u32);
        assert_eq!(numbers(&control.reply(5001, 1001 + all, "200 OK\r\n")), (5001, end));
        let next = control.command(end, "NLST\r\n");
        assert_eq!((numbers(&next).0, text(&next).as_str()), (1001 + all, "NLST\r\n"));
        control.is_opened(told);
    }
}
