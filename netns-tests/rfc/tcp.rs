//! RFC 5382: mapping, ports, filtering, hairpinning and ICMP of TCP.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use super::net::{BOTH, Family, Nat, Net, requirement};
use super::wire::Seen;
use crate::servers::{address, other_addresses};
use crate::support::packet::{ACK, IcmpError, PSH, RST, SYN, icmp_error, tcp};

/// A socket of a node that may share its address and port with others.
fn socket(net: &Net<'_>, node: &str, at: SocketAddr) -> Result<Socket> {
    let socket = net.lab.inside(node, || Socket::new(Domain::for_address(at), Type::STREAM, None))??;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.bind(&at.into()).with_context(|| format!("{at} on {node}"))?;
    Ok(socket)
}

fn listener(net: &Net<'_>, node: &str, at: SocketAddr) -> Result<TcpListener> {
    let socket = socket(net, node, at)?;
    socket.listen(16)?;
    Ok(socket.into())
}

fn connect(net: &Net<'_>, node: &str, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let socket = socket(net, node, from)?;
    socket.connect_timeout(&to.into(), Duration::from_secs(3)).with_context(|| format!("{from} to {to}"))?;
    Ok(socket.into())
}

fn at(ip: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse::<IpAddr>()?, port))
}

/// Bytes both ways, and then the end of both, one after the other.
fn converse(mut one: TcpStream, mut two: TcpStream) -> Result<()> {
    let bytes: Vec<u8> = (0..20000_u32).map(|n| n as u8).collect();
    let mut heard = Vec::new();
    one.write_all(&bytes)?;
    one.shutdown(std::net::Shutdown::Write)?;
    two.set_read_timeout(Some(Duration::from_secs(3)))?;
    two.read_to_end(&mut heard)?;
    ensure!(heard == bytes, "{} bytes of {}", heard.len(), bytes.len());
    // Half closed: the other direction goes on.
    two.write_all(&bytes)?;
    drop(two);
    heard.clear();
    one.set_read_timeout(Some(Duration::from_secs(3)))?;
    one.read_to_end(&mut heard)?;
    ensure!(heard == bytes, "{} bytes of {} after the half close", heard.len(), bytes.len());
    Ok(())
}

#[test]
fn rfc5382_req_01_mapping_is_endpoint_independent() {
    requirement(Nat::new(), |net| {
        for family in [0, 1] {
            let from = at(address("in1")[family], 5000)?;
            let mut seen = BTreeSet::new();
            for node in ["out1", "out2"] {
                for ip in [address(node)[family], other_addresses(node)[family]] {
                    let listener = listener(net, node, at(ip, 80)?)?;
                    let stream = connect(net, "in1", from, listener.local_addr()?)?;
                    let (accepted, peer) = listener.accept()?;
                    seen.insert(peer);
                    converse(stream, accepted)?;
                }
            }
            ensure!(seen.len() == 1, "one socket has several outside endpoints: {seen:?}");
        }
        Ok(())
    });
}

/// Connections opened by either side, with half closes.
#[test]
fn rfc5382_req_02_connections_from_both_sides_run_their_course() {
    requirement(Nat::new(), |net| {
        for family in [0, 1] {
            let (inside, server) = (at(address("in1")[family], 5000)?, at(address("out1")[family], 80)?);
            let outer = listener(net, "out1", server)?;
            let first = connect(net, "in1", inside, server)?;
            let (accepted, out) = outer.accept()?;
            // The same socket's address listens; who hears of it outside may connect.
            let inner = listener(net, "in1", inside)?;
            let stranger = connect(net, "out2", at(address("out2")[family], 0)?, out)?;
            let (inner_end, peer) = inner.accept()?;
            ensure!(peer.ip() == stranger.local_addr()?.ip(), "{peer}");
            converse(stranger, inner_end)?;
            converse(first, accepted)?;
        }
        Ok(())
    });
}

/// Both send a SYN, and the packets cross (RFC 9293 section 3.5, figure 7).
#[test]
fn rfc5382_req_02a_simultaneous_open_works() {
    requirement(Nat::new().with("filtering = \"address-port\""), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 6000));
            let out = net.out(&tcp(inside, server).syn().seq(100, 0))?;
            ensure!(out.flags() == Some(SYN), "{out:?}");
            let out = out.from();
            let steps: [(bool, u8, u32, u32, &str); 6] = [
                (false, SYN, 900, 0, ""),
                (true, SYN | ACK, 100, 901, ""),
                (false, SYN | ACK, 900, 101, ""),
                (true, ACK | PSH, 101, 901, "from inside"),
                (false, ACK | PSH, 901, 112, "from outside"),
                (true, ACK, 112, 913, ""),
            ];
            for (outwards, flags, seq, ack, payload) in steps {
                let seen = if outwards {
                    net.out(&tcp(inside, server).flags(flags).seq(seq, ack).payload(payload))?
                } else {
                    net.back(&tcp(server, out).flags(flags).seq(seq, ack).payload(payload), inside)?
                };
                let tcp = seen.decoded.tcp.as_ref().context("TCP")?;
                ensure!((tcp.flags, tcp.seq, tcp.ack) == (flags, seq, ack), "{seen:?}");
                ensure!(!outwards || seen.from() == out, "another mapping: {seen:?}");
            }
            if let Ok(gateway) = net.gateway() {
                let flows = gateway.flows(&["--src", &inside.ip().to_string()])?;
                ensure!(flows.len() == 1 && flows[0].state.as_deref() == Some("ESTABLISHED"), "{flows:?}");
            }
        }
        Ok(())
    });
}

/// Whether a mapping to one endpoint takes SYNs from another port of that address, and from another address.
fn filtering(net: &Net<'_>, other_port: bool, other_address: bool) -> Result<()> {
    for family in BOTH {
        let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
        let out = net.mapped(&tcp(inside, server).syn())?;
        net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 1001), inside)?;
        for (who, passes) in [(family.outside(1, 81), other_port), (family.outside(2, 80), other_address)] {
            let syn = tcp(who, out).syn();
            net.outside.send(syn.bytes())?;
            let is = |seen: &Seen| seen.from() == who && seen.to() == inside;
            if passes {
                net.inside.expect("a SYN from outside", is)?;
                let answer = net.out(&tcp(inside, who).flags(SYN | ACK).seq(50, 1001))?;
                ensure!(answer.from() == out, "answered from another mapping: {answer:?}");
            } else {
                net.settle()?;
                net.inside.refute("a SYN from outside", is)?;
            }
        }
    }
    Ok(())
}

#[test]
fn rfc5382_req_03_filtering_is_endpoint_independent_by_default() {
    requirement(Nat::new(), |net| filtering(net, true, true));
}

#[test]
fn rfc5382_req_03_filtering_by_address() {
    requirement(Nat::new().with("filtering = \"address\"").one_worker(), |net| filtering(net, true, false));
}

#[test]
fn rfc5382_req_03a_filtering_is_configurable() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| filtering(net, false, false));
}

/// FTP's PORT names an inside address, which goes out as it is unless a helper is asked for.
#[test]
fn rfc5382_req_06_helpers_are_off_by_default() {
    let port = |helps: bool| {
        move |net: &Net<'_>| {
            let (inside, server) = (Family::V4.inside(1, 5000), Family::V4.outside(1, 21));
            let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
            net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
            net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
            net.back(&tcp(server, out).flags(ACK | PSH).seq(901, 101).payload("220 ready\r\n"), inside)?;
            let command = "PORT 10,40,0,101,80,10\r\n";
            net.inside.send(tcp(inside, server).flags(ACK | PSH).seq(101, 912).payload(command).bytes())?;
            let seen = net.outside.expect("the command", |seen| seen.payload().starts_with(b"PORT "))?;
            ensure!((seen.payload() != command.as_bytes()) == helps, "{}", String::from_utf8_lossy(seen.payload()));
            Ok(())
        }
    };
    requirement(Nat::new(), port(false));
    requirement(Nat::new().with("helpers = [\"tftp\"]"), port(false));
    requirement(Nat::new().with("helpers = [\"ftp\"]"), port(true));
}

#[test]
fn rfc5382_req_07_ports_are_not_overloaded() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let mut seen = BTreeSet::new();
            for port in 30000..30010 {
                for host in 1..=8 {
                    // Each talks to a server of its own, where sharing a port would do no harm at first.
                    seen.insert(net.mapped(&tcp(family.inside(host, port), family.outside(host, 80)).syn())?);
                }
            }
            ensure!(seen.len() == 80, "80 sockets have {} outside endpoints", seen.len());
        }
        Ok(())
    });
}

/// A host inside connects to another one's outside endpoint, which sees the caller's: the one that a server outside sees.
#[test]
fn rfc5382_req_08_hairpinning_works() {
    requirement(Nat::new(), |net| {
        for family in [0, 1] {
            let (inside, server) = (at(address("in1")[family], 5000)?, at(address("out1")[family], 80)?);
            let outer = listener(net, "out1", server)?;
            let _first = connect(net, "in1", inside, server)?;
            let (_accepted, out) = outer.accept()?;
            let inner = listener(net, "in1", inside)?;
            let from = at(address("in2")[family], 5001)?;
            let caller = connect(net, "in2", from, out)?;
            let (inner_end, peer) = inner.accept()?;
            let _second = connect(net, "in2", from, server)?;
            let (_accepted, seen) = outer.accept()?;
            ensure!(peer == seen && peer.ip() == out.ip(), "it sees {peer}, a server outside {seen}");
            converse(caller, inner_end)?;
        }
        Ok(())
    });
}

/// All codes of IPv4's type 3, and ICMPv6's type 1; after these and all other errors the connection lives on. One worker: they
/// are all through when the next packet is.
#[test]
fn rfc5382_req_09_and_10_destination_unreachable_is_translated_and_ends_nothing() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
            // Another host has its port outside: one that is not restored shows.
            net.out(&tcp(family.inside(2, 5000), server).syn())?;
            let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
            ensure!(out.port() != 5000, "another host's port: {out}");
            net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
            net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
            let sent = net.out(&tcp(inside, server).flags(ACK | PSH).seq(101, 901).payload("hello"))?;
            let (kind, codes) = if family.is_v4() { (3, 0..=15) } else { (1, 0..=6) };
            for code in codes {
                let word = if (kind, code) == (3, 4) { [0, 0, 5, 120] } else { [0; 4] };
                let error = IcmpError::Raw(kind, code, word);
                net.outside.send(icmp_error(family.router(), out, error, &sent.bytes).bytes())?;
                let is = |seen: &Seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code));
                let seen = net.inside.expect(&format!("type {kind}, code {code}"), is)?;
                let quoted = seen.quoted().context("a quoted packet")?;
                ensure!((quoted.from, quoted.to) == (inside, server) && seen.to().ip() == inside.ip(), "{seen:?}");
                ensure!(seen.checksums_are_right() && quoted.header_is_right, "{seen:?}");
            }
            let others: &[(u8, u8)] = match family {
                Family::V4 => &[(4, 0), (5, 0), (5, 1), (11, 0), (11, 1), (12, 0)],
                Family::V6 => &[(3, 0), (3, 1), (4, 0), (4, 1), (4, 2)],
            };
            let others = others.iter().map(|&(kind, code)| IcmpError::Raw(kind, code, [0; 4]));
            for error in others.chain([IcmpError::TooBig(1400)]) {
                net.outside.send(icmp_error(family.router(), out, error, &sent.bytes).bytes())?;
            }
            net.back(&tcp(server, out).flags(ACK | PSH).seq(901, 106).payload("still there"), inside)?;
            ensure!(net.mapped(&tcp(inside, family.outside(2, 80)).syn())? == out, "a new mapping");
        }
        Ok(())
    });
}

/// What is left of a connection's time, by its state; that it lives so long is tested under a virtual clock
/// (tests/golden/rfc_timers.rs).
#[test]
fn rfc5382_req_05_idle_timeouts_are_long_enough() {
    requirement(Nat::new(), |net| {
        let (inside, server) = (Family::V4.inside(1, 5000), Family::V4.outside(1, 80));
        let left = || -> Result<u64> {
            let flows = net.gateway()?.flows(&["--src", &inside.ip().to_string()])?;
            Ok(flows.first().context("a flow")?.timeout)
        };
        let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
        ensure!(left()? >= 235, "SYN_SENT: {} s", left()?);
        net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
        ensure!(left()? >= 235, "SYN_RECV: {} s", left()?);
        net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
        ensure!(left()? >= 7435, "ESTABLISHED: {} s", left()?);
        net.out(&tcp(inside, server).flags(RST | ACK).seq(101, 901))?;
        ensure!(left()? >= 235, "after a RST: {} s", left()?);
        Ok(())
    });
}
