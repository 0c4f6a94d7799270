//! ICMP through masquerades (RFC 5508): queries, and errors about packets of all kinds, both ways.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::engine::{Engine, EngineConfig};
use gatun::service::{Filtering, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::PacketBuf;

use crate::icmp::echo_reply;
use crate::masquerade::spec;
use crate::support::packet::{ACK, Build, IcmpError, SYN, Transport, echo, icmp_error, tcp, udp};
use crate::support::{oracle, world};
use crate::{Net, Row};

const ID: u16 = 4711;

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || spec(net);
    let (inside, outside, remote) = (net.inside(1, 0), net.pool(0), net.client(0));
    let ping = echo(inside, remote, ID, 1);
    let came = echo_reply(net, &ping).with_dst(outside).ttl(60);
    let request = |src, dst| echo(src, dst, ID, 1);
    let mut bad = ping.bytes();
    *bad.last_mut().expect("a payload") ^= 1;
    let mut bad_out = ping.with_src(outside).bytes();
    *bad_out.last_mut().expect("a payload") ^= 1;
    let mut rows = vec![
        Row::forward("a ping goes out by the pool, its identifier kept", spec(), &ping, ping.with_src(outside)),
        Row::forward("its answer comes in", spec(), &came, came.with_dst(inside)).after([&ping]),
        Row::forward(
            "a ping to another host",
            spec(),
            request(inside, net.stranger(0)),
            request(outside, net.stranger(0)),
        )
        .after([&ping]),
        Row::forward("a ping with a wrong checksum is not made right", spec(), bad, bad_out),
        Row::drop("an answer that nobody asked for", spec(), &came, DropReason::NoMapping),
        Row::drop("an answer to another identifier", spec(), with_id(&came, ID + 1), DropReason::NoMapping)
            .after([&ping]),
        Row::drop("an answer to UDP's port", spec(), &came, DropReason::NoMapping)
            .after([udp(net.inside(1, ID), net.client(53))]),
        Row::forward(
            "an answer of somebody else, by the mapping",
            spec(),
            came.with_src(net.stranger(0)),
            came.with_src(net.stranger(0)).with_dst(inside),
        )
        .after([&ping]),
        Row::drop(
            "whom the masquerade does not let in",
            {
                let mut spec = spec();
                spec.masquerades[0].filtering = Filtering::AddressPort;
                spec
            },
            came.with_src(net.stranger(0)),
            DropReason::Filtered,
        )
        .after([&ping]),
        Row::new("a ping to the pool is answered by the gateway", spec(), request(remote, outside), Verdict::Reply)
            .out(echo_reply(net, &request(remote, outside)))
            .after([&ping]),
        Row::new("one from inside as well", spec(), request(inside, outside), Verdict::Reply)
            .out(echo_reply(net, &request(inside, outside))),
        Row::drop(
            "an inside host answers what nobody could ask",
            spec(),
            echo_reply(net, &request(remote, inside)),
            DropReason::UnsupportedIcmp,
        )
        .after([&ping]),
        Row::pass("a ping that stays inside", spec(), request(inside, net.inside(2, 0))),
        Row::pass("a ping past the gateway", spec(), request(remote, net.stranger(0))),
    ];
    rows.extend(errors(net, &ping));
    if net.is_v4() {
        let message = |kind: u8| {
            let mut build = ping.clone().payload([7; 12]);
            build.transport = Transport::Icmp(kind, 0, [(ID >> 8) as u8, ID as u8, 0, 1]);
            build
        };
        let (asked, told) = (message(13), message(14).reversed().with_dst(outside));
        rows.push(Row::forward("a question for the time", spec(), &asked, asked.with_src(outside)));
        rows.push(Row::forward("its answer", spec(), &told, told.with_dst(inside)).after([&asked]));
        rows.push(Row::drop(
            "the gateway does not tell the time",
            spec(),
            asked.with_src(remote).with_dst(outside),
            DropReason::UnsupportedIcmp,
        ));
        rows.push(Row::drop("a question for the netmask", spec(), message(17), DropReason::UnsupportedIcmp));
    }
    rows
}

fn with_id(build: &Build, id: u16) -> Build {
    let mut build = build.clone();
    if let Transport::Icmp(_, _, word) = &mut build.transport {
        word[..2].copy_from_slice(&id.to_be_bytes());
    }
    build
}

/// What an error of each kind becomes, about queries and about everything else.
fn errors(net: Net, ping: &Build) -> Vec<Row> {
    let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
    let query = udp(inside, net.client(53)).payload("a question of some length, so that there is something to cut off");
    let syn = tcp(inside, net.client(80)).syn();
    let mut rows = Vec::new();
    let kinds = [
        ("port unreachable", IcmpError::PortUnreachable),
        ("time exceeded", IcmpError::TimeExceeded),
        ("too big", IcmpError::TooBig(1400)),
        (
            "parameter problem",
            if net.is_v4() { IcmpError::Raw(12, 0, [9, 0, 0, 0]) } else { IcmpError::Raw(4, 0, [0, 0, 0, 40]) },
        ),
        ("prohibited", if net.is_v4() { IcmpError::Raw(3, 13, [0; 4]) } else { IcmpError::Raw(1, 1, [0; 4]) }),
    ];
    let at = |end: SocketAddr, port| SocketAddr::new(end.ip(), port);
    for (name, error) in kinds {
        for (of, sent) in [("a ping", ping), ("UDP", &query), ("TCP", &syn)] {
            let source = at(outside, sent.src.port());
            // RFC 5508 REQ-4: out it went as the pool; its sender knows it as its own.
            rows.push(
                Row::forward(
                    &format!("{name} about {of} comes in, its source kept"),
                    spec(net),
                    icmp_error(net.outer_router(), outside, error, &sent.with_src(source).bytes()),
                    icmp_error(net.outer_router(), inside, error, &sent.bytes()),
                )
                .after([sent]),
            );
            // REQ-5: what came in for the inside host; the error leaves as the pool's, whoever sent it.
            let answer = if of == "a ping" { echo_reply(net, sent) } else { sent.reversed() };
            let came = answer.with_dst(source);
            for (from, who) in [(inside, "the inside host"), (net.inner_router(), "a router in front of it")] {
                rows.push(
                    Row::forward(
                        &format!("{name} of {who} about an answer to {of} leaves as the pool's"),
                        spec(net),
                        icmp_error(from, sent.dst, error, &answer.bytes()),
                        icmp_error(outside, sent.dst, error, &came.bytes()),
                    )
                    .after([sent]),
                );
            }
        }
    }
    rows.extend(quotes(net, ping, &query));
    rows.extend(hairpins(net));
    rows
}

fn quotes(net: Net, ping: &Build, query: &Build) -> Vec<Row> {
    let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
    let header = if net.is_v4() { 20 } else { 40 };
    let error = IcmpError::TimeExceeded;
    let comes_in = |name: &str, error, sent: &Build, change: &dyn Fn(&mut Vec<u8>)| {
        let quoted = |build: Build| {
            let mut bytes = build.bytes();
            change(&mut bytes);
            bytes
        };
        let source = SocketAddr::new(outside.ip(), sent.src.port());
        Row::forward(
            name,
            spec(net),
            icmp_error(net.outer_router(), outside, error, &quoted(sent.with_src(source))),
            icmp_error(net.outer_router(), inside, error, &quoted(sent.clone())),
        )
        .after([sent])
    };
    let about = |sent: &Build, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sent.with_src(SocketAddr::new(outside.ip(), sent.src.port())).bytes();
        change(&mut bytes);
        icmp_error(net.outer_router(), outside, error, &bytes)
    };
    let cut = |len: usize| move |bytes: &mut Vec<u8>| bytes.truncate(header + len);
    let mut rows = vec![
        comes_in("eight bytes of a ping are enough", error, ping, &cut(8)),
        comes_in("six are, too", error, ping, &cut(6)),
        comes_in("eight bytes of UDP", error, query, &cut(8)),
        comes_in("its checksum is not looked at", error, query, &|bytes| *bytes.last_mut().expect("some") ^= 0x55),
        Row::drop(
            "without the identifier nobody knows whose it is",
            spec(net),
            about(ping, &cut(5)),
            DropReason::IcmpNoFlow,
        )
        .after([ping]),
        Row::drop("an error about nothing", spec(net), about(query, &|_| ()), DropReason::IcmpNoFlow),
        Row::drop(
            "an error of an inside host about nothing",
            spec(net),
            icmp_error(inside, net.client(0), error, &query.reversed().bytes()),
            DropReason::IcmpNoFlow,
        ),
        Row::drop(
            "a wrong checksum",
            spec(net),
            {
                let mut bytes = about(query, &|_| ()).bytes();
                *bytes.last_mut().expect("some") ^= 1;
                bytes
            },
            DropReason::BadIcmpChecksum,
        )
        .after([query]),
    ];
    if net.is_v4() {
        rows.push(
            Row::drop(
                "a wrong checksum of the quoted header",
                spec(net),
                about(query, &|bytes| bytes[10] ^= 1),
                DropReason::BadIcmpChecksum,
            )
            .after([query]),
        );
    }
    let headers = |build: &Build| match net {
        Net::V4 => build.clone().ip_options(&[1; 40]),
        Net::V6 => build.clone().extensions(&[crate::support::packet::Extension::Destination(12)]),
    };
    rows.push(comes_in("options are skipped", error, &headers(query), &|_| ()));
    // RFC 4884: 128 bytes for the packet, and an extension of MPLS with a checksum of its own.
    let error4884 = match net {
        Net::V4 => IcmpError::Raw(11, 0, [0, 32, 0, 0]),
        Net::V6 => IcmpError::Raw(3, 0, [16, 0, 0, 0]),
    };
    let extension = [0x20, 0, 0xe1, 0x38, 0, 8, 1, 1, 0x12, 0x34, 0xa1, 0x01];
    let extended = |bytes: &mut Vec<u8>| {
        bytes.resize(128, 0);
        bytes.extend(extension);
    };
    rows.push(comes_in("an extension stays as it is", error4884, query, &extended));
    rows.push(comes_in("behind a ping", error4884, ping, &extended));
    if !net.is_v4() {
        // 120 bytes of headers leave eight to TCP; what follows stands where its checksum would.
        let syn = tcp(inside, net.client(80)).syn().extensions(&[crate::support::packet::Extension::Destination(9)]);
        rows.push(comes_in("and is not taken for the packet", error4884, &syn, &|bytes| {
            bytes.truncate(128);
            extended(bytes);
        }));
    }
    rows
}

/// RFC 5508 REQ-7: an error of one inside host for another one that has written to it by the outside address.
fn hairpins(net: Net) -> Vec<Row> {
    let error = IcmpError::PortUnreachable;
    let (a, b) = (net.inside(1, 40000), net.inside(2, 50000));
    let (a_out, b_out) = (net.pool(40000), net.pool(50000));
    let opens = udp(b, net.client(53));
    let sent = udp(a, b_out).payload("hello");
    let arrived = udp(a_out, b).payload("hello");
    vec![
        Row::forward("the packet that it is about", spec(net), &sent, &arrived).after([&opens]),
        Row::forward(
            "an error of one inside host for another",
            spec(net),
            icmp_error(b, a_out, error, &arrived.bytes()),
            icmp_error(b_out, a, error, &sent.bytes()),
        )
        .after([&opens, &sent]),
        Row::drop(
            "nobody outside can send it",
            spec(net),
            icmp_error(b_out, a_out, error, &udp(a_out, b_out).payload("hello").bytes()),
            DropReason::Martian,
        )
        .after([&opens, &sent]),
        Row::drop("nor what one would answer the other", spec(net), udp(b_out, a_out), DropReason::Martian)
            .after([&opens, &sent]),
    ]
}

fn engine(spec: SnapshotSpec) -> Engine {
    world::engine(Snapshot::build(spec, None).expect("valid").into(), 64)
}

/// What becomes of a packet: its bytes, if it goes on.
fn send(engine: &mut Engine, now: Instant, build: &Build) -> Result<Vec<u8>, Verdict> {
    let mut buf = build.buf();
    let verdict = engine.handle_packet(now, &mut buf);
    engine.check_invariants();
    if verdict == Verdict::Forward { Ok(buf.packet().to_vec()) } else { Err(verdict) }
}

fn id_of(packet: &[u8]) -> u16 {
    let l4 = oracle::decode(packet).expect("a packet").l4;
    u16::from_be_bytes([packet[l4 + 4], packet[l4 + 5]])
}

#[test]
fn two_hosts_with_one_identifier_get_two() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        for id in [ID, 7, 0] {
            let pings = [1, 2].map(|host| echo(net.inside(host, 0), net.client(0), id, 1));
            let ids = pings.each_ref().map(|ping| {
                let out = send(&mut engine, Instant::ZERO, ping).expect("it goes out");
                assert!(oracle::checksums_are_right(&out));
                let outside = id_of(&out);
                assert_eq!(out, with_id(&ping.with_src(net.pool(0)), outside).bytes());
                outside
            });
            assert!(ids[0] != ids[1] && ids.iter().all(|id| *id >= 1024), "{ids:?}");
            for (ping, outside) in pings.iter().zip(ids) {
                let back = with_id(&echo_reply(net, ping).with_dst(net.pool(0)), outside);
                let came = send(&mut engine, Instant::ZERO, &back).expect("it comes in");
                assert_eq!(came, echo_reply(net, ping).bytes());
                // RFC 5508 REQ-1a: whoever is asked, the identifier is the same.
                let other = send(&mut engine, Instant::ZERO, &ping.with_dst(net.stranger(0))).expect("it goes out");
                assert_eq!(id_of(&other), outside);
                // And whoever answers is let in, also before being asked.
                let strange = send(&mut engine, Instant::ZERO, &back.with_src(net.other(9, 0))).expect("it comes in");
                assert_eq!(id_of(&strange), id);
                let asked = send(&mut engine, Instant::ZERO, &ping.with_dst(net.other(9, 0))).expect("it goes out");
                assert_eq!(id_of(&asked), outside);
            }
        }
        assert_eq!(engine.occupancy().0, 3 * 2 * 3);
    }
}

#[test]
fn a_session_lives_for_a_minute_and_no_error_changes_that() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        let ping = echo(net.inside(1, 0), net.client(0), ID, 1);
        let back = echo_reply(net, &ping).with_dst(net.pool(0));
        send(&mut engine, Instant::ZERO, &ping).expect("it goes out");
        let error = icmp_error(
            net.outer_router(),
            net.pool(0),
            IcmpError::PortUnreachable,
            &ping.with_src(net.pool(0)).bytes(),
        );
        let before = engine.flows(Instant::from_secs(30), 0, 9).0;
        send(&mut engine, Instant::from_secs(30), &error).expect("it is about the session");
        // RFC 5508 REQ-6: neither refreshed nor ended.
        assert_eq!(engine.flows(Instant::from_secs(30), 0, 9).0, before);
        assert_eq!(before[0].remaining, Duration::from_secs(30));
        engine.handle_timeout(Instant::from_millis(59_999));
        // REQ-2: not before 60 seconds.
        send(&mut engine, Instant::from_millis(59_999), &back).expect("the session lives");
        engine.handle_timeout(Instant::from_secs(121));
        assert_eq!(engine.occupancy().0, 0);
        let late = send(&mut engine, Instant::from_secs(121), &back);
        assert_eq!(late, Err(Verdict::Drop(DropReason::NoMapping)));
    }
}

#[test]
fn large_pings_go_out_and_come_in_in_fragments() {
    for net in Net::BOTH {
        for reversed in [false, true] {
            let mut engine = engine(spec(net));
            let ping = echo(net.inside(1, 0), net.client(0), 7, 1).payload(vec![3; 8000]);
            let pass = |engine: &mut Engine, build: &Build| {
                let mut pieces = build.fragments(1448);
                if reversed {
                    pieces.reverse();
                }
                let mut sent = Vec::new();
                for piece in pieces {
                    let mut buf = PacketBuf::from_packet(&piece);
                    if engine.handle_packet(Instant::ZERO, &mut buf).sends() {
                        sent.push(buf.packet().to_vec());
                    }
                    sent.extend(std::iter::from_fn(|| engine.poll_transmit()).map(|held| held.packet().to_vec()));
                    engine.check_invariants();
                }
                oracle::reassemble(&sent).expect("all are there")
            };
            let out = pass(&mut engine, &ping);
            assert!(oracle::checksums_are_right(&out));
            let (told, outside) = (oracle::decode(&out).expect("a packet"), id_of(&out));
            assert_eq!((told.src, told.payload.len(), outside == 7), (net.pool(0).ip(), 8000, false));
            let came = pass(&mut engine, &with_id(&echo_reply(net, &ping).with_dst(net.pool(0)), outside));
            assert!(oracle::checksums_are_right(&came));
            let told = oracle::decode(&came).expect("a packet");
            assert_eq!((told.dst, told.payload.len(), id_of(&came)), (net.inside(1, 0).ip(), 8000, 7));
        }
    }
}

/// Two inside hosts of two shards: an error crosses both.
#[test]
fn a_hairpinned_error_is_handed_over() {
    for net in Net::BOTH {
        let snapshot = std::sync::Arc::new(Snapshot::build(spec(net), None).expect("valid"));
        let engine =
            |shard| Engine::new(EngineConfig { shard, shards: 2, max_flows: 64, seed: [1, 2] }, snapshot.clone());
        let mut engines = [engine(0), engine(1)];
        let sharding = gatun::engine::Sharding { seed: [1, 2], shards: 2 };
        let hosts: Vec<SocketAddr> = (1..40).map(|number| net.inside(number, 40000)).collect();
        let of = |shard| {
            let is = |host: &&SocketAddr| gatun::engine::shard_of(host.ip().into(), sharding) == shard;
            *hosts.iter().find(is).expect("both shards have hosts")
        };
        let (a, b) = (of(0), of(1));
        let follow = |engines: &mut [Engine; 2], build: &Build| {
            let mut buf = build.buf();
            let view = gatun::wire::View::parse(buf.packet()).expect("valid");
            let mut shard = usize::from(gatun::engine::place_of(&snapshot, &buf, &view, sharding));
            for hops in 0..3 {
                match engines[shard].handle_packet(Instant::ZERO, &mut buf) {
                    Verdict::Elsewhere(next) => shard = usize::from(next),
                    Verdict::Forward => {
                        return (hops, oracle::decode(buf.packet()).expect("a packet"), buf.packet().to_vec());
                    }
                    verdict => panic!("{verdict:?}"),
                }
            }
            panic!("it goes round and round");
        };
        let outside = |host: SocketAddr, engines: &mut [Engine; 2]| {
            let (_, told, _) = follow(engines, &udp(host, net.client(53)));
            SocketAddr::new(told.src, told.ports.expect("UDP").0)
        };
        let (a_out, b_out) = (outside(a, &mut engines), outside(b, &mut engines));
        assert_eq!((a_out.port() >> 1 & 1, b_out.port() >> 1 & 1), (0, 1), "each has ports of its own shard");
        let (hops, told, arrived) = follow(&mut engines, &udp(a, b_out).payload("hello"));
        assert_eq!((hops, told.src, told.dst), (1, a_out.ip(), b.ip()));
        let error = icmp_error(b, a_out, IcmpError::PortUnreachable, &arrived);
        let (hops, told, bytes) = follow(&mut engines, &error);
        assert_eq!((hops, told.src, told.dst), (1, b_out.ip(), a.ip()));
        assert!(oracle::checksums_are_right(&bytes));
        let quoted = oracle::decode(&told.payload).expect("a quoted packet");
        let ports = (a.port(), b_out.port());
        assert_eq!((quoted.src, quoted.dst, quoted.ports), (a.ip(), b_out.ip(), Some(ports)));
    }
}

/// From one inside host to another by the outside address, in whatever order.
#[test]
fn fragments_turn_back_as_well() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        send(&mut engine, Instant::ZERO, &udp(net.inside(2, 50000), net.client(53))).expect("it has a mapping");
        let payload: Vec<u8> = (0..4000u32).map(|n| (n * 7) as u8).collect();
        let sent = udp(net.inside(1, 40000), net.pool(50000)).payload(payload);
        let arrived = Build { src: net.pool(40000), dst: net.inside(2, 50000), ..sent.clone() };
        for (id, order) in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 3, 0, 4, 2]].into_iter().enumerate() {
            let pieces = sent.clone().id(id as u16).fragments(1000);
            let mut got = Vec::new();
            for number in order {
                let mut buf = PacketBuf::from_packet(&pieces[number]);
                if engine.handle_packet(Instant::ZERO, &mut buf).sends() {
                    got.push(buf.packet().to_vec());
                }
                got.extend(std::iter::from_fn(|| engine.poll_transmit()).map(|held| held.packet().to_vec()));
                engine.check_invariants();
            }
            assert_eq!(got.len(), 5, "{net:?} {order:?}");
            let mut whole = oracle::reassemble(&got).expect("all are there");
            let expected = arrived.bytes();
            if net.is_v4() {
                whole[4..6].copy_from_slice(&expected[4..6]);
                oracle::fix_ip_checksum(&mut whole);
            }
            assert_eq!(whole, expected, "{net:?} {order:?}");
        }
    }
}

/// What goes between two addresses of pools is the gateway's own, or forged.
#[test]
fn nobody_outside_takes_part_in_a_hairpin() {
    for net in Net::BOTH {
        let mut spec = spec(net);
        let more = if net.is_v4() { "203.0.113.101" } else { "2001:db8:f::101" };
        spec.masquerades[0].pool.addresses.push(world::addr(more));
        let mut engine = engine(spec);
        let mut outside = |host| {
            let out = send(&mut engine, Instant::ZERO, &udp(net.inside(host, 40000), net.client(53))).expect("out");
            let told = oracle::decode(&out).expect("a packet");
            SocketAddr::new(told.src, told.ports.expect("UDP").0)
        };
        let a_out = outside(1);
        let (b, b_out) = (2..50).map(|host| (host, outside(host))).find(|(_, b)| b.ip() != a_out.ip()).expect("two");
        let (a, b) = (net.inside(1, 40000), net.inside(b, 40000));
        let arrived = send(&mut engine, Instant::ZERO, &udp(a, b_out).payload("hello")).expect("it turns back");
        assert_eq!(arrived, udp(a_out, b).payload("hello").bytes());
        let spoofed = Err(Verdict::Drop(DropReason::SpoofedSource));
        assert_eq!(send(&mut engine, Instant::ZERO, &udp(b_out, a_out).payload("hello")), spoofed, "a flow of both");
        assert_eq!(send(&mut engine, Instant::ZERO, &udp((b_out.ip(), 7), a_out)), spoofed, "of neither");
        let error = icmp_error(b_out, a_out, IcmpError::PortUnreachable, &udp(a_out, b_out).bytes());
        assert_eq!(send(&mut engine, Instant::ZERO, &error), spoofed, "an error");
        let answer = send(&mut engine, Instant::ZERO, &udp(b, a_out).payload("hi")).expect("it turns back");
        assert_eq!(answer, udp(b_out, a).payload("hi").bytes());
    }
}

/// RFC 3022 section 4: two inside hosts with one identification, and as many shards as there are.
#[test]
fn identifications_do_not_collide_outside() {
    let net = Net::V4;
    let snapshot = std::sync::Arc::new(Snapshot::build(spec(net), None).expect("valid"));
    let mut seen = std::collections::BTreeSet::new();
    let sharding = gatun::engine::Sharding { seed: [1, 2], shards: 3 };
    for shard in 0..3 {
        let config = EngineConfig { shard, shards: 3, max_flows: 512, seed: [1, 2] };
        let mut engine = Engine::new(config, snapshot.clone());
        let is_here = |host: &u8| gatun::engine::shard_of(net.inside(*host, 0).ip().into(), sharding) == shard;
        for host in (1..100).filter(is_here) {
            let pieces = udp(net.inside(host, 40000), net.client(53)).payload(vec![1; 1000]).id(4711).fragments(800);
            let ids = [0, 1].map(|number: usize| {
                let mut buf = PacketBuf::from_packet(&pieces[number]);
                assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
                oracle::decode(buf.packet()).expect("a packet").fragment.expect("a fragment").0
            });
            assert_eq!(ids[0], ids[1]);
            assert!(seen.insert(ids[0]), "{} twice", ids[0]);
        }
    }
}

/// A connection that is reset by an error is none of the gateway's business (RFC 5382 REQ-10).
#[test]
fn a_connection_outlives_errors() {
    for net in Net::BOTH {
        let mut engine = engine(spec(net));
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(80));
        let syn = tcp(inside, remote).syn();
        send(&mut engine, Instant::ZERO, &syn).expect("it goes out");
        let error = icmp_error(net.outer_router(), outside, IcmpError::PortUnreachable, &syn.with_src(outside).bytes());
        send(&mut engine, Instant::ZERO, &error).expect("it is about the connection");
        let answer = tcp(remote, outside).flags(SYN | ACK).seq(5000, 1001);
        send(&mut engine, Instant::ZERO, &answer).expect("the mapping is there");
    }
}

mod quoted {
    //! Whatever an inside host sends, and however much of it an error quotes: the host gets back what it sent.

    use proptest::prelude::*;

    use super::*;
    use crate::support::arbitrary;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_error_gives_back_what_was_sent(
            build in arbitrary::packet(), host in 1u8..9, beyond in 0usize..200, extended: bool, seed: [u64; 2],
        ) {
            let net = if build.src.is_ipv4() { Net::V4 } else { Net::V6 };
            let mut sent = Build {
                src: net.inside(host, build.src.port()),
                dst: net.client(build.dst.port()),
                ttl: build.ttl.max(2),
                ..build
            };
            match &mut sent.transport {
                Transport::Tcp { flags, .. } => *flags = SYN,
                Transport::Icmp(kind, ..) => *kind = if net.is_v4() { 8 } else { 128 },
                _ => {}
            }
            let config = EngineConfig { shard: 0, shards: 1, max_flows: 8, seed };
            let mut engine = Engine::new(config, Snapshot::build(spec(net), None).expect("valid").into());
            // Somebody else has what it would like to have.
            send(&mut engine, Instant::ZERO, &sent.with_src(net.inside(10, sent.src.port()))).expect("it goes out");
            let out = send(&mut engine, Instant::ZERO, &sent).expect("it goes out");
            prop_assert!(oracle::checksums_are_right(&out));
            let told = oracle::decode(&out).expect("a packet");
            prop_assert_eq!(told.src, net.pool(0).ip());

            let extended = extended && (told.l4 + 8) <= 128;
            // Half a checksum cannot be changed by what it changes by.
            let beyond = if beyond == 9 { 10 } else { beyond };
            let len = out.len().min(if extended { 128 } else { told.l4 + 8 + beyond });
            let extension = [0x20, 0, 0xe1, 0x38, 0, 8, 1, 1, 0x12, 0x34, 0xa1, 0x01];
            let quote = |bytes: &[u8]| {
                let mut quoted = bytes[..len].to_vec();
                if extended {
                    quoted.resize(128, 0);
                    quoted.extend(extension);
                }
                quoted
            };
            let error = match (extended, net) {
                (false, _) => IcmpError::TimeExceeded,
                (true, Net::V4) => IcmpError::Raw(11, 0, [0, 32, 0, 0]),
                (true, Net::V6) => IcmpError::Raw(3, 0, [16, 0, 0, 0]),
            };
            let about = icmp_error(net.outer_router(), net.pool(0), error, &quote(&out));
            let came = send(&mut engine, Instant::ZERO, &about).expect("it is about a flow");
            prop_assert!(oracle::checksums_are_right(&came));
            let came = oracle::decode(&came).expect("a packet");
            prop_assert_eq!((came.src, came.dst), (net.outer_router().ip(), sent.src.ip()));
            // MSS options are lowered on the way: their checksum too.
            if !matches!(&sent.transport, Transport::Tcp { options, .. } if !options.is_empty()) {
                prop_assert_eq!(came.payload, quote(&sent.bytes()));
            }
        }
    }
}
