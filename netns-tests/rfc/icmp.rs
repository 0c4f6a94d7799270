//! RFC 5508: ICMP queries, and what a NAT says itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::net::{BOTH, Family, Nat, Net, Opener, requirement, requirement_with};
use super::wire::Seen;
use crate::servers::{address, other_addresses};
use crate::support::packet::{Build, IcmpError, Transport, echo, icmp_error, udp};

/// The answer to an echo request that has come by.
fn reply(request: &Seen) -> Build {
    let id = request.from().port();
    let mut reply = echo(request.to(), request.from(), id, 1).payload(request.payload());
    if let Transport::Icmp(kind, ..) = &mut reply.transport {
        *kind = if request.from().is_ipv4() { 0 } else { 129 };
    }
    reply
}

#[test]
fn rfc5508_req_01_ping_works() {
    requirement_with(&["ping"], Nat::new(), |net| {
        for family in [0, 1] {
            for to in [address("out1")[family], other_addresses("out2")[family]] {
                for node in ["in1", "in2"] {
                    net.lab.run(node, &["ping", "-n", "-c", "3", "-i", "0.01", "-W", "3", to])?.success()?;
                }
            }
        }
        Ok(())
    });
}

/// One identifier of one host is one outside identifier, and nobody else's; replies find their way.
#[test]
fn rfc5508_req_01a_identifier_mapping_is_endpoint_independent() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let mut everybody = BTreeSet::new();
            for host in 1..=3 {
                let inside = family.inside(host, 77);
                let mut seen = BTreeSet::new();
                for server in 1..=3 {
                    let request = net.out(&Opener::Echo.packet(inside, family.outside(server, 0)))?;
                    net.back(&reply(&request), inside)?;
                    seen.insert(request.from());
                }
                ensure!(seen.len() == 1, "host {host} has several outside identifiers: {seen:?}");
                everybody.extend(seen);
            }
            ensure!(everybody.len() == 3, "hosts share an outside identifier: {everybody:?}");
        }
        Ok(())
    });
}

/// The seconds that are left of this host's flow.
fn left(net: &Net<'_>, inside: SocketAddr) -> Result<u64> {
    let flows = net.gateway()?.flows(&["--src", &inside.ip().to_string()])?;
    ensure!(flows.len() == 1, "one flow of {inside}: {flows:?}");
    Ok(flows[0].timeout)
}

/// That a query lives so long is tested under a virtual clock (tests/golden/rfc_timers.rs).
#[test]
fn rfc5508_req_02_a_query_lives_for_sixty_seconds() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let inside = family.inside(1, 77);
            net.out(&Opener::Echo.packet(inside, family.outside(1, 0)))?;
            ensure!((55..=60).contains(&left(net, inside)?), "{} s", left(net, inside)?);
        }
        Ok(())
    });
}

#[test]
fn rfc5508_req_02a_the_query_timer_is_configurable() {
    requirement(Nat::new().timeouts("icmp = \"3m\""), |net| {
        let inside = Family::V4.inside(1, 77);
        net.out(&Opener::Echo.packet(inside, Family::V4.outside(1, 0)))?;
        ensure!((170..=180).contains(&left(net, inside)?), "{} s", left(net, inside)?);
        Ok(())
    });
}

/// An error about a query, or from inside about its reply, neither restarts the session's timer nor ends it.
#[test]
fn rfc5508_req_06_an_error_about_a_query_leaves_its_session_alone() {
    requirement(Nat::new(), |net| {
        let ask = |inside: SocketAddr, family: Family| net.out(&Opener::Echo.packet(inside, family.outside(1, 0)));
        let mut sessions = Vec::new();
        for family in BOTH {
            let (asking, answered) = (family.inside(1, 77), family.inside(2, 77));
            let arrived = net.back(&reply(&ask(answered, family)?), answered)?;
            sessions.push((family, asking, ask(asking, family)?, answered, arrived));
        }
        std::thread::sleep(Duration::from_millis(2100));
        for (family, inside, sent, answered, arrived) in sessions {
            let error = icmp_error(answered, arrived.from(), IcmpError::PortUnreachable, &arrived.bytes);
            net.inside.send(error.bytes())?;
            let is = |seen: &Seen| seen.quoted().is_some_and(|quoted| quoted.from.ip() == arrived.from().ip());
            net.outside.expect("port unreachable", is)?;
            ensure!((30..=58).contains(&left(net, answered)?), "{} s are left", left(net, answered)?);
            net.back(&reply(&ask(answered, family)?), answered)?;
            let error = icmp_error(family.router(), sent.from(), IcmpError::TimeExceeded, &sent.bytes);
            net.outside.send(error.bytes())?;
            let is = |seen: &Seen| seen.quoted().is_some_and(|quoted| quoted.from == inside);
            net.inside.expect("time exceeded", is)?;
            ensure!((30..=58).contains(&left(net, inside)?), "{} s are left", left(net, inside)?);
            net.back(&reply(&sent), inside)?;
        }
        Ok(())
    });
}

/// An identifier that the sender has chosen names nobody inside, so the gateway answers for its own addresses; as it does to
/// those outside.
#[test]
fn rfc5508_req_07_an_outside_address_answers_a_ping() {
    requirement(Nat::new(), |net| {
        for family in BOTH {
            let (inside, outside, pool) = (family.inside(2, 0), family.outside(2, 0), family.pool(0));
            net.inside.send(echo(inside, pool, 78, 5).payload("hairpin").bytes())?;
            let is = |seen: &Seen| seen.payload() == b"hairpin";
            let seen = net.inside.expect("an answer", is)?;
            ensure!((seen.from().ip(), seen.to()) == (pool.ip(), (inside.ip(), 78).into()), "{seen:?}");
            ensure!(seen.checksums_are_right(), "{seen:?}");
            net.outside.send(echo(outside, pool, 79, 5).payload("hairpin").bytes())?;
            let seen = net.outside.expect("an answer", is)?;
            ensure!((seen.from().ip(), seen.to()) == (pool.ip(), (outside.ip(), 79).into()), "{seen:?}");
        }
        Ok(())
    });
}

/// No port, no identifier: whoever asked is told that it is prohibited, and nothing goes out.
#[test]
fn rfc5508_req_08_without_resources_the_sender_is_told() {
    requirement(Nat::new().with("ports = \"50000-50003\"").one_worker(), |net| {
        for family in BOTH {
            for opener in [Opener::Udp, Opener::Tcp, Opener::Echo] {
                for port in 40000..40012 {
                    net.inside.send(opener.packet(family.inside(1, port), family.outside(1, 80)).bytes())?;
                }
                let refused = family.inside(2, 40000);
                net.inside.send(opener.packet(refused, family.outside(1, 80)).bytes())?;
                let kind = if family.is_v4() { (3, 13) } else { (1, 1) };
                let is = |seen: &Seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == kind);
                let seen = net.inside.expect(&format!("prohibited, for {opener:?}"), |seen| {
                    is(seen) && seen.to().ip() == refused.ip()
                })?;
                let quoted = seen.quoted().ok_or_else(|| anyhow::anyhow!("no quoted packet: {seen:?}"))?;
                ensure!(quoted.from == refused && seen.checksums_are_right(), "{seen:?}");
            }
        }
        Ok(())
    });
}

/// The policy is a rate; there is always one.
#[test]
fn rfc5508_req_09_policy_may_silence_icmp() {
    let nat = Nat::new().with("ports = \"50000-50001\"").tables("[limits]\nreplies_per_second = 1");
    requirement(nat, |net| {
        let server = Family::V4.outside(1, 53);
        for port in 40000..40100 {
            net.inside.send(udp(Family::V4.inside(1, port), server).payload("out").bytes())?;
        }
        let is = |seen: &Seen| seen.icmp().is_some_and(|icmp| icmp.is_error());
        net.inside.expect("one error", is)?;
        std::thread::sleep(Duration::from_millis(50));
        let more = net.inside.take_all(is)?.len();
        // One a second for each packet worker, and a burst of one.
        ensure!(more <= 8, "{more} more errors");
        Ok(())
    });
}

/// A timestamp is a query as an echo request is: its reply comes back.
#[test]
fn rfc5508_req_10b_timestamps_are_translated() {
    requirement(Nat::new(), |net| {
        let (inside, server) = (Family::V4.inside(1, 77), Family::V4.outside(1, 0));
        let message = |from: SocketAddr, to: SocketAddr, kind: u8, id: u16| {
            let mut packet = echo(from, to, id, 1).payload([0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
            packet.transport = Transport::Icmp(kind, 0, [(id >> 8) as u8, id as u8, 0, 1]);
            packet
        };
        let request = net.out(&message(inside, server, 13, 77))?;
        net.back(&message(server, request.from(), 14, request.from().port()), inside)?;
        Ok(())
    });
}

/// Neither a query that is supported nor an error (an address mask, routers' messages): nothing goes through, least of all with an inside
/// address.
#[test]
fn rfc5508_req_11_other_messages_are_dropped() {
    requirement(Nat::new().one_worker(), |net| {
        for family in BOTH {
            let (inside, server) = (family.inside(1, 77), family.outside(1, 0));
            let out = net.mapped(&Opener::Echo.packet(inside, server))?;
            let kinds = if family.is_v4() { [9, 10, 15, 17, 18, 200] } else { [130, 138, 139, 151, 200, 254] };
            let message = |from: SocketAddr, to: SocketAddr, kind: u8, id: u16| {
                let mut packet = echo(from, to, id, 1).payload(format!("other {kind}"));
                packet.transport = Transport::Icmp(kind, 0, [(id >> 8) as u8, id as u8, 0, 1]);
                packet
            };
            for kind in kinds {
                net.inside.send(message(inside, server, kind, 77).bytes())?;
                net.outside.send(message(server, out, kind, out.port()).bytes())?;
            }
            net.settle()?;
            let is = |seen: &Seen| seen.payload().starts_with(b"other ");
            net.outside.refute("a message from inside", is)?;
            net.inside.refute("a message from outside", is)?;
        }
        Ok(())
    });
}
