//! RFC 7857, by its sections.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::net::{BOTH, Family, Nat, Net, Opener, requirement};
use super::wire::Seen;
use crate::flow_line::FlowLine;
use crate::support::oracle;
use crate::support::packet::{ACK, FIN, IcmpError, PSH, RST, SYN, icmp_error, tcp, udp};

/// Longer than the second that a list of flows counts in.
const A_WHILE: Duration = Duration::from_millis(2100);

/// The one flow of this host.
fn flow(net: &Net<'_>, inside: SocketAddr) -> Result<FlowLine> {
    let flows = net.gateway()?.flows(&["--src", &inside.ip().to_string()])?;
    ensure!(flows.len() == 1, "one flow of {inside}: {flows:?}");
    flows.into_iter().next().context("a flow")
}

fn left(net: &Net<'_>, inside: SocketAddr) -> Result<u64> {
    Ok(flow(net, inside)?.timeout)
}

/// A connection from inside, established: its outside endpoint. Next come 101 from inside and 901 from outside.
fn establish(net: &Net<'_>, inside: SocketAddr, server: SocketAddr) -> Result<SocketAddr> {
    let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
    net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
    net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
    Ok(out)
}

/// Open from either side, data, and closed from either side.
#[test]
fn rfc7857_s02_tcp_sessions_are_tracked() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
            let is = |state: &str, least: u64| -> Result<()> {
                let flow = flow(net, inside)?;
                ensure!(flow.state.as_deref() == Some(state) && flow.timeout >= least, "not {state}: {flow:?}");
                Ok(())
            };
            let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
            is("SYN_SENT", 235)?;
            net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
            is("SYN_RECV", 235)?;
            net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
            is("ESTABLISHED", 7435)?;
            net.back(&tcp(server, out).flags(FIN | ACK).seq(901, 101), inside)?;
            // Half closed: what is left to say passes.
            net.out(&tcp(inside, server).flags(ACK | PSH).seq(101, 902).payload("the rest"))?;
            net.out(&tcp(inside, server).flags(FIN | ACK).seq(109, 902))?;
            net.back(&tcp(server, out).flags(ACK).seq(902, 110), inside)?;
            let flow = flow(net, inside)?;
            ensure!(flow.state.as_deref() != Some("ESTABLISHED") && flow.timeout >= 235, "{flow:?}");
        }
        Ok(())
    });
}

/// Opening and closing have parameters of their own, which default to four minutes.
#[test]
fn rfc7857_s02_1_opening_and_closing_have_separate_timeouts() {
    let timeouts =
        "tcp_syn_sent = \"20s\", tcp_syn_recv = \"40s\", tcp_fin_wait = \"1m20s\", tcp_close_wait = \"1m20s\"";
    requirement(Nat::new().timeouts(timeouts), |net| {
        let (inside, server) = (Family::V4.inside(1, 5000), Family::V4.outside(1, 80));
        let out = net.mapped(&tcp(inside, server).syn().seq(100, 0))?;
        ensure!((35..=40).contains(&left(net, inside)?), "opening: {} s", left(net, inside)?);
        net.back(&tcp(server, out).flags(SYN | ACK).seq(900, 101), inside)?;
        ensure!((35..=40).contains(&left(net, inside)?), "half open: {} s", left(net, inside)?);
        net.out(&tcp(inside, server).flags(ACK).seq(101, 901))?;
        net.out(&tcp(inside, server).flags(FIN | ACK).seq(101, 901))?;
        ensure!((75..=80).contains(&left(net, inside)?), "closing: {} s", left(net, inside)?);
        Ok(())
    });
}

/// From both sides; the state is kept for four minutes more.
#[test]
fn rfc7857_s02_2_a_reset_is_translated_and_its_session_kept() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            for (host, from_inside) in [(1, true), (2, false)] {
                let (inside, server) = (family.inside(host, 5000), family.outside(1, 80));
                let out = establish(net, inside, server)?;
                if from_inside {
                    let seen = net.out(&tcp(inside, server).flags(RST | ACK).seq(101, 901))?;
                    ensure!(seen.flags() == Some(RST | ACK) && seen.from() == out, "{seen:?}");
                } else {
                    let seen = net.back(&tcp(server, out).flags(RST | ACK).seq(901, 101), inside)?;
                    ensure!(seen.flags() == Some(RST | ACK), "{seen:?}");
                }
                ensure!((235..=240).contains(&left(net, inside)?), "{} s are left", left(net, inside)?);
                // Another connection of the same socket has the same mapping.
                ensure!(net.mapped(&tcp(inside, family.outside(3, 80)).syn())? == out, "a new mapping");
            }
        }
        Ok(())
    });
}

/// Far from the sequence numbers that it would have: the connection goes on, and on its own timer.
#[test]
fn rfc7857_s02_2_a_spoofed_reset_does_not_close_a_connection() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
            let out = establish(net, inside, server)?;
            net.outside.send(tcp(server, out).flags(RST).seq(0x9000_0000, 0).bytes())?;
            net.out(&tcp(inside, server).flags(ACK | PSH).seq(101, 901).payload("alive"))?;
            net.back(&tcp(server, out).flags(ACK | PSH).seq(901, 106).payload("so am I"), inside)?;
            let flow = flow(net, inside)?;
            ensure!(flow.state.as_deref() == Some("ESTABLISHED") && flow.timeout >= 7435, "{flow:?}");
        }
        Ok(())
    });
}

/// The ports of a host's address are all taken: its new sockets get nothing, in spite of the other address.
#[test]
fn rfc7857_s04_pairing_holds_under_exhaustion() {
    requirement(Nat::new().pool(4).with("ports = \"50000-50007\"").one_worker(), |net| {
        for family in BOTH {
            let server = family.outside(1, 53);
            for port in 40000..40032 {
                net.inside.send(udp(family.inside(1, port), server).payload("out").bytes())?;
            }
            net.inside.expect("a refusal", |seen| seen.icmp().is_some_and(|icmp| icmp.is_error()))?;
            std::thread::sleep(Duration::from_millis(50));
            let seen = net.outside.take_all(|seen| seen.to() == server)?;
            let addresses: BTreeSet<_> = seen.iter().map(|seen| seen.from().ip()).collect();
            ensure!(!seen.is_empty() && addresses.len() == 1, "{} mappings at {addresses:?}", seen.len());
        }
        Ok(())
    });
}

/// A mapping is one of its protocol: the same port of another protocol is another socket.
#[test]
fn rfc7857_s05_and_s06_mapping_and_filtering_are_of_one_protocol() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 5000), family.outside(1, 80));
            let out = net.mapped(&udp(inside, server).payload("out"))?;
            net.outside.send(tcp(server, out).syn().seq(77, 0).bytes())?;
            net.settle()?;
            net.inside.refute("a SYN to a UDP mapping", |seen| seen.flags().is_some())?;
            // Both live beside each other, whatever ports they have.
            let tcp_out = net.mapped(&tcp(inside, server).syn())?;
            net.back(&udp(server, out).payload("in"), inside)?;
            net.back(&tcp(server, tcp_out).flags(SYN | ACK).seq(900, 1001), inside)?;
        }
        Ok(())
    });
}

/// Who is not let in does not keep the mapping.
#[test]
fn rfc7857_s07_filtered_packets_do_not_refresh_a_mapping() {
    requirement(Nat::new().with("filtering = \"address-port\"").one_worker(), |net| {
        let question = |family: Family| udp(family.inside(1, 5000), family.outside(1, 53)).payload("out");
        let mapped = BOTH.map(|family| (family, net.mapped(&question(family))));
        std::thread::sleep(A_WHILE);
        for (family, out) in mapped {
            let (inside, stranger) = (family.inside(1, 5000), family.outside(2, 53));
            net.filtered(&udp(stranger, out?).payload("let me in"))?;
            let before = left(net, inside)?;
            ensure!(before <= 298, "{before} s are left");
            // It does age: a packet from inside sets it back.
            net.out(&question(family))?;
            ensure!(left(net, inside)? > before, "{} s are left, as before", left(net, inside)?);
        }
        Ok(())
    });
}

/// A host that answers with an error, or with a RST, does not want the mapping.
#[test]
fn rfc7857_s07_1_outbound_errors_do_not_refresh_a_mapping() {
    requirement(Nat::new(), |net| {
        let (one, two) = (Family::V4.inside(1, 5000), Family::V4.inside(2, 5000));
        let server = Family::V4.outside(1, 80);
        let out = net.mapped(&udp(one, server).payload("out"))?;
        let arrived = net.back(&udp(server, out).payload("in"), one)?;
        establish(net, two, server)?;
        std::thread::sleep(A_WHILE);
        net.inside.send(icmp_error(one, server, IcmpError::PortUnreachable, &arrived.bytes).bytes())?;
        net.outside.expect("port unreachable", |seen| seen.icmp().is_some_and(|icmp| icmp.is_error()))?;
        ensure!(left(net, one)? <= 298, "after an error: {} s", left(net, one)?);
        net.out(&tcp(two, server).flags(RST).seq(101, 0))?;
        ensure!(left(net, two)? <= 240, "after a RST: {} s", left(net, two)?);
        Ok(())
    });
}

/// Ports that have to be changed are drawn from the whole range, and without an order.
#[test]
fn rfc7857_s09_changed_ports_are_random() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            for opener in [Opener::Udp, Opener::Tcp] {
                let mut ports = Vec::new();
                for port in 0..6 {
                    for host in 1..=6 {
                        let out =
                            net.mapped(&opener.packet(family.inside(host, 20000 + port), family.outside(1, 80)))?;
                        if out.port() != 20000 + port {
                            ports.push(out.port());
                        }
                    }
                }
                ensure!(ports.len() >= 30, "six hosts share ports: {ports:?}");
                let (least, most) = (ports.iter().min().copied(), ports.iter().max().copied());
                ensure!(most.unwrap_or(0) - least.unwrap_or(0) > 20000, "from {least:?} to {most:?}");
                let steps: BTreeSet<i32> =
                    ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
                ensure!(steps.len() > ports.len() / 2, "in an order: {ports:?}");
                ensure!(!ports.is_sorted(), "in ascending order: {ports:?}");
            }
        }
        Ok(())
    });
}

/// Fragments of several hosts with one identification, to one server, interleaved: after the translation they have one source
/// (RFC 6864 section 5.3.1, RFC 3022 section 4).
#[test]
fn rfc7857_s10_identifications_of_two_hosts_do_not_collide() {
    requirement(Nat::new(), |net| {
        let server = Family::V4.outside(1, 53);
        let packets: Vec<_> = (1..=4)
            .map(|host| udp(Family::V4.inside(host, 5000), server).payload(vec![host; 2500]).id(0x4242))
            .collect();
        let fragments: Vec<_> = packets.iter().map(|packet| packet.fragments(1000)).collect();
        for part in 0..3 {
            for fragments in &fragments {
                net.inside.send(&fragments[part])?;
            }
        }
        let mut seen: Vec<Seen> = Vec::new();
        for _ in 0..12 {
            seen.push(net.outside.expect("a fragment", |seen| seen.decoded.fragment.is_some())?);
        }
        let ids: BTreeSet<u32> = seen.iter().filter_map(|seen| Some(seen.decoded.fragment?.0)).collect();
        ensure!(ids.len() == 4, "four packets with the identifications {ids:?}");
        let mut hosts = BTreeSet::new();
        for id in ids {
            let of_one = seen.iter().filter(|seen| seen.decoded.fragment.is_some_and(|(i, ..)| i == id));
            let whole = oracle::reassemble(&of_one.map(|seen| seen.bytes.clone()).collect::<Vec<_>>());
            let whole = whole.context("one packet's fragments")?;
            ensure!(oracle::checksums_are_right(&whole), "wrong checksums");
            hosts.insert(*whole.last().context("a payload")?);
        }
        ensure!(hosts.len() == 4, "packets of {hosts:?} only");
        Ok(())
    });
}

/// The mapping of an identifier goes with its last query.
#[test]
fn rfc7857_s11_a_query_mapping_goes_with_its_last_session() {
    requirement(Nat::new().timeouts("icmp = \"1s\"").one_worker(), |net| {
        let inside = Family::V4.inside(1, 77);
        let request = net.out(&Opener::Echo.packet(inside, Family::V4.outside(1, 0)))?;
        std::thread::sleep(A_WHILE);
        let mut reply = crate::support::packet::echo(request.to(), request.from(), request.from().port(), 1);
        reply.transport = crate::support::packet::Transport::Icmp(0, 0, [request.bytes[24], request.bytes[25], 0, 1]);
        net.filtered(&reply.payload("too late"))
    });
}
