//! RFC 4787: mapping, ports, filtering, hairpinning and ICMP of UDP.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::net::{BOTH, Family, Nat, Net, requirement};
use super::wire::Seen;
use crate::gateway;
use crate::servers::{address, other_addresses};
use crate::support::packet::{IcmpError, icmp_error, udp};

/// A socket of a node at one of its addresses.
fn socket(net: &Net<'_>, node: &str, at: &str) -> Result<UdpSocket> {
    let at: SocketAddr = format!("{}:0", if at.contains(':') { format!("[{at}]") } else { at.to_string() }).parse()?;
    let socket = net.lab.inside(node, || UdpSocket::bind(at))?.with_context(|| format!("{at} on {node}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(socket)
}

/// What a socket receives next, and from whom.
fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut bytes = [0; 2048];
    let (length, from) = socket.recv_from(&mut bytes).context("nothing comes")?;
    Ok((bytes[..length].to_vec(), from))
}

#[test]
fn rfc4787_req_01_mapping_is_endpoint_independent() {
    requirement(Nat::new(), |net| {
        for family in [0, 1] {
            let inside = socket(net, "in1", address("in1")[family])?;
            let mut seen = BTreeSet::new();
            let others = ["out1", "out2"].map(|node| (node, other_addresses(node)[family]));
            for (node, at) in others.into_iter().chain(["out1", "out2"].map(|node| (node, address(node)[family]))) {
                // Two ports of each address.
                for _ in 0..2 {
                    let outside = socket(net, node, at)?;
                    inside.send_to(b"who am I?", outside.local_addr()?)?;
                    let (_, from) = receive(&outside)?;
                    outside.send_to(b"somebody", from)?;
                    ensure!(receive(&inside)?.1 == outside.local_addr()?, "the answer has another source");
                    seen.insert(from);
                }
            }
            ensure!(seen.len() == 1, "one socket has several outside endpoints: {seen:?}");
        }
        Ok(())
    });
}

#[test]
fn rfc4787_req_02_address_pooling_is_paired() {
    requirement(Nat::new().pool(3), |net| {
        for family in BOTH {
            let mut pool = BTreeSet::new();
            for host in 1..=8 {
                let outside = |socket: u16| {
                    let to = family.outside(1 + (socket % 3) as u8, 53);
                    net.mapped(&udp(family.inside(host, 40000 + 7 * socket), to).payload("out"))
                };
                let addresses: BTreeSet<_> = (0..10).map(|n| Ok(outside(n)?.ip())).collect::<Result<_>>()?;
                ensure!(addresses.len() == 1, "host {host} has several outside addresses: {addresses:?}");
                pool.extend(addresses);
            }
            ensure!(pool.len() > 1, "eight hosts, and all of them at {pool:?}");
        }
        Ok(())
    });
}

#[test]
fn rfc4787_req_03_ports_are_not_overloaded() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let mut seen = BTreeSet::new();
            for port in 30000..30010 {
                for host in 1..=8 {
                    // Each talks to a server of its own, where sharing a port would do no harm at first.
                    seen.insert(net.mapped(&udp(family.inside(host, port), family.outside(host, 53)).payload("out"))?);
                }
            }
            ensure!(seen.len() == 80, "80 sockets have {} outside endpoints", seen.len());
        }
        Ok(())
    });
}

/// Ports of one range stay in it, also where they have to be changed.
#[test]
fn rfc4787_req_03a_ports_keep_their_range() {
    requirement(Nat::new().with("ports = \"1-65535\""), |net| {
        for family in BOTH {
            for port in [500, 501, 1023, 1024, 5060, 65535] {
                for host in 1..=4 {
                    let out = net.mapped(&udp(family.inside(host, port), family.outside(1, 53)).payload("out"))?;
                    ensure!((out.port() < 1024) == (port < 1024), "{port} becomes {}", out.port());
                }
            }
        }
        Ok(())
    });
}

#[test]
fn rfc4787_req_04_port_parity_is_kept() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            for port in [40000, 40001, 40002, 40003] {
                for host in 1..=6 {
                    let out = net.mapped(&udp(family.inside(host, port), family.outside(1, 53)).payload("out"))?;
                    ensure!(out.port() % 2 == port % 2, "{port} becomes {}", out.port());
                }
            }
        }
        Ok(())
    });
}

/// The seconds that are left of the one flow of this host's port.
fn left(net: &Net<'_>, from: SocketAddr) -> Result<u64> {
    let (src, port) = (from.ip().to_string(), from.port().to_string());
    let flows = net.gateway()?.flows(&["--src", &src, "--sport", &port])?;
    ensure!(flows.len() == 1, "one flow of {from}: {flows:?}");
    Ok(flows[0].timeout)
}

/// What is left of a mapping's time just after a packet; that it then lives so long is tested under a virtual clock
/// (tests/golden/rfc_timers.rs).
#[test]
fn rfc4787_req_05c_the_default_timer_is_five_minutes() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let from = family.inside(1, 40000);
            let out = net.mapped(&udp(from, family.outside(1, 53)).payload("out"))?;
            ensure!(left(net, from)? >= 295, "{} s are left before a reply", left(net, from)?);
            net.back(&udp(family.outside(1, 53), out).payload("in"), from)?;
            ensure!(left(net, from)? >= 295, "{} s are left after a reply", left(net, from)?);
        }
        Ok(())
    });
}

/// A mapping of three seconds: packets from inside keep it for longer, and without any it goes.
#[test]
fn rfc4787_req_05b_and_06_outbound_packets_restart_a_timer_of_any_length() {
    requirement(Nat::new().timeouts("udp = \"3s\"").one_worker(), |net| {
        let (used, idle) = (Family::V4.inside(1, 40000), Family::V4.inside(2, 40000));
        let to = Family::V4.outside(1, 53);
        let out = [net.mapped(&udp(used, to).payload("out"))?, net.mapped(&udp(idle, to).payload("out"))?];
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(600));
            net.out(&udp(used, to).payload("out"))?;
        }
        net.back(&udp(to, out[0]).payload("for who is there"), used)?;
        net.filtered(&udp(to, out[1]).payload("for who is gone"))
    });
}

/// Inside and outside cannot be the same: who configures that is told.
#[test]
fn rfc4787_req_07_conflicting_addresses_are_refused() {
    requirement(Nat::new(), |net| {
        let text = std::fs::read_to_string(&net.gateway()?.config)?;
        let file = net.lab.path("conflict.toml");
        let check = |from: &str| {
            std::fs::write(&file, text.replace("from = [\"10.40.0.0/24\"]", &format!("from = [\"{from}\"]")))?;
            gateway::gatun(net.lab, &["check", "-c", file.to_str().context("a path in UTF-8")?])
        };
        check("10.40.0.0/24")?.success()?;
        // The pool's own network.
        let told = check("203.0.113.0/24")?.exits(1)?;
        ensure!(told.stderr.contains("203.0.113.100"), "{told}");
        Ok(())
    });
}

/// Whether a mapping to one endpoint takes packets from another port of that address, and from another address.
fn filtering(net: &Net<'_>, other_port: bool, other_address: bool) -> Result<()> {
    for family in BOTH {
        let (inside, server) = (family.inside(1, 40000), family.outside(1, 53));
        let out = net.mapped(&udp(inside, server).payload("out"))?;
        net.back(&udp(server, out).payload("who was asked"), inside)?;
        for (who, passes) in [(family.outside(1, 54), other_port), (family.outside(2, 53), other_address)] {
            let packet = udp(who, out).payload(format!("from {who}"));
            if passes {
                net.back(&packet, inside)?;
                // And the way back: it is answered from the same mapping.
                ensure!(net.mapped(&udp(inside, who).payload("answer"))? == out, "another mapping for {who}");
            } else {
                net.filtered(&packet)?;
            }
        }
        // Whatever the filtering: no mapping, no entry.
        let nobody = SocketAddr::new(out.ip(), out.port() ^ 2);
        net.filtered(&udp(server, nobody).payload("to nobody"))?;
    }
    Ok(())
}

#[test]
fn rfc4787_req_08_filtering_is_endpoint_independent_by_default() {
    requirement(Nat::new().one_worker(), |net| filtering(net, true, true));
}

#[test]
fn rfc4787_req_08_filtering_by_address() {
    requirement(Nat::new().with("filtering = \"address\"").one_worker(), |net| filtering(net, true, false));
}

#[test]
fn rfc4787_req_08a_filtering_is_configurable() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| filtering(net, false, false));
}

/// Two hosts of the same network talk by their outside addresses.
#[test]
fn rfc4787_req_09_hairpinning_works() {
    requirement(Nat::new(), |net| {
        for family in [0, 1] {
            let sockets = [socket(net, "in1", address("in1")[family])?, socket(net, "in2", address("in2")[family])?];
            let outside = socket(net, "out1", address("out1")[family])?;
            let mut seen = Vec::new();
            for socket in &sockets {
                socket.send_to(b"who am I?", outside.local_addr()?)?;
                seen.push(receive(&outside)?.1);
            }
            for round in 0..3 {
                for (from, to) in [(0, 1), (1, 0)] {
                    let text = format!("{round} from {from}");
                    sockets[from].send_to(text.as_bytes(), seen[to])?;
                    let (bytes, source) = receive(&sockets[to])?;
                    ensure!(bytes == text.as_bytes() && source == seen[from], "{source}, not {}", seen[from]);
                }
            }
        }
        Ok(())
    });
}

/// The receiver sees the sender's outside endpoint, on the first packet as well, and also where both are one host.
#[test]
fn rfc4787_req_09a_a_hairpinned_packet_has_the_external_source() {
    requirement(Nat::new().pool(2), |net| {
        for family in BOTH {
            for (one, two) in [(1, 2), (3, 3)] {
                let (from, to) = (family.inside(one, 40000), family.inside(two, 40001));
                let server = family.outside(1, 53);
                let target = net.mapped(&udp(to, server).payload("out"))?;
                net.inside.send(udp(from, target).payload("hairpin").bytes())?;
                let seen = net.inside.expect("the hairpinned packet", |seen| seen.payload() == b"hairpin")?;
                ensure!(seen.to() == to && seen.checksums_are_right(), "{seen:?}");
                ensure!((0..2).any(|n| family.pool(n).ip() == seen.from().ip()), "an inside source: {seen:?}");
                // It is the mapping that everybody sees.
                ensure!(net.mapped(&udp(from, server).payload("out"))? == seen.from(), "another mapping: {seen:?}");
            }
        }
        Ok(())
    });
}

/// TFTP answers from another port: under the strictest filtering only a helper lets that in.
fn tftp(net: &Net<'_>, helps: bool) -> Result<()> {
    let (inside, server) = (Family::V4.inside(1, 40000), Family::V4.outside(1, 69));
    let out = net.mapped(&udp(inside, server).payload("\0\x01file\0octet\0"))?;
    let answer = udp(Family::V4.outside(1, 3333), out).payload("\0\x03\0\x01data");
    if helps { net.back(&answer, inside).map(drop) } else { net.filtered(&answer) }
}

#[test]
fn rfc4787_req_10_helpers_are_off_by_default() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| tftp(net, false));
}

/// FTP's switch is not TFTP's.
#[test]
fn rfc4787_req_10a_each_helper_has_its_switch() {
    let strict = || Nat::new().with("filtering = \"address-port\"").one_worker();
    requirement(strict().with("helpers = [\"tftp\"]"), |net| tftp(net, true));
    requirement(strict().with("helpers = [\"ftp\"]"), |net| tftp(net, false));
}

/// With no port left new sockets get none; old ones keep theirs, for new endpoints as well, and filtering stays as it is.
#[test]
fn rfc4787_req_11_behaviour_does_not_change_under_exhaustion() {
    requirement(Nat::new().with("ports = \"50000-50015\"").one_worker(), |net| {
        for family in BOTH {
            let server = family.outside(1, 53);
            let mut mappings = Vec::new();
            for host in 1..=10 {
                for port in 40000..40016 {
                    let from = family.inside(host, port);
                    net.inside.send(udp(from, server).payload(from.to_string()).bytes())?;
                }
            }
            for _ in 0..16 {
                let seen = net.outside.expect("a mapping for each port", |seen| seen.to() == server)?;
                let from: SocketAddr = std::str::from_utf8(seen.payload())?.parse()?;
                ensure!(mappings.iter().all(|(_, out)| *out != seen.from()), "{seen:?} is another's");
                mappings.push((from, seen.from()));
            }
            for &(from, out) in &mappings {
                ensure!(net.mapped(&udp(from, family.outside(2, 99)).payload("elsewhere"))? == out, "a new mapping");
                net.back(&udp(family.outside(3, 9), out).payload("in"), from)?;
            }
            net.outside.refute("more mappings than ports", |seen| seen.to() == server)?;
        }
        Ok(())
    });
}

/// Every kind of error about a packet that went out; the mapping stays, whoever sends them. One worker: they are all through
/// when the next packet is.
#[test]
fn rfc4787_req_12_icmp_does_not_end_a_mapping() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 40000), family.outside(1, 53));
            let sent = net.out(&udp(inside, server).payload("out"))?;
            // Source quench and redirects among them, though those do not go on.
            let kinds: &[(u8, u8)] = match family {
                Family::V4 => &[
                    (3, 0),
                    (3, 1),
                    (3, 2),
                    (3, 3),
                    (3, 9),
                    (3, 13),
                    (4, 0),
                    (5, 0),
                    (5, 1),
                    (11, 0),
                    (11, 1),
                    (12, 0),
                ],
                Family::V6 => &[(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (1, 6), (3, 0), (3, 1), (4, 0)],
            };
            let errors = kinds.iter().map(|&(kind, code)| IcmpError::Raw(kind, code, [0; 4]));
            for error in errors.chain([IcmpError::TooBig(1400)]) {
                net.outside.send(icmp_error(family.router(), sent.from(), error, &sent.bytes).bytes())?;
            }
            net.back(&udp(server, sent.from()).payload("still there"), inside)?;
            ensure!(net.mapped(&udp(inside, family.outside(2, 53)).payload("out"))? == sent.from(), "a new mapping");
        }
        Ok(())
    });
}

/// An error from `from` comes to the host inside, as one about the packet that it sent. Another one has its port outside, so
/// that one which is not restored shows.
fn unreachable_from(net: &Net<'_>, family: Family, from: SocketAddr) -> Result<()> {
    let (inside, server) = (family.inside(1, 40000), family.outside(1, 53));
    net.out(&udp(family.inside(2, 40000), server).payload("out"))?;
    let sent = net.out(&udp(inside, server).payload("out"))?;
    ensure!(sent.from().port() != 40000, "another host's port: {sent:?}");
    net.outside.send(icmp_error(from, sent.from(), IcmpError::PortUnreachable, &sent.bytes).bytes())?;
    let is = |seen: &Seen| seen.icmp().is_some_and(|icmp| icmp.is_error()) && seen.to().ip() == inside.ip();
    let seen = net.inside.expect("port unreachable", is)?;
    let quoted = seen.quoted().context("a quoted packet")?;
    ensure!((quoted.from, quoted.to) == (inside, server) && quoted.header_is_right, "{seen:?}");
    ensure!(seen.from().ip() == from.ip() && seen.checksums_are_right(), "{seen:?}");
    Ok(())
}

#[test]
fn rfc4787_req_12a_icmp_is_not_filtered_by_source() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| {
        BOTH.into_iter().try_for_each(|family| {
            unreachable_from(net, family, family.router())?;
            unreachable_from(net, family, family.outside(2, 0))
        })
    });
}

#[test]
fn rfc4787_req_12b_destination_unreachable_is_translated() {
    requirement(Nat::new().one_worker(), |net| {
        BOTH.into_iter().try_for_each(|family| unreachable_from(net, family, family.outside(1, 0)))
    });
}
