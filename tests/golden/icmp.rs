//! ICMP errors about packets of flows, both ways, and pings.

use crate::support::oracle;
use crate::support::packet::{ACK, Build, Extension, IcmpError, PSH, SYN, echo, icmp_error, tcp, udp};
use crate::{Net, Row};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || net.spec();
    let (client, vip, rs) = (net.client(40000), net.vip(53), net.rs(1, 53));
    // A query, as the client sent it and as the server got it; the answer likewise.
    let query = udp(client, vip).payload("a question of some length, so that there is something to cut off");
    let forwarded = query.with_dst(rs);
    let answer = udp(rs, client).payload("an answer");
    let translated = answer.with_src(vip);

    let mut rows = Vec::new();
    let errors = [
        ("port unreachable", IcmpError::PortUnreachable),
        ("time exceeded", IcmpError::TimeExceeded),
        ("too big", IcmpError::TooBig(1400)),
        (
            "parameter problem",
            if net.is_v4() { IcmpError::Raw(12, 0, [9, 0, 0, 0]) } else { IcmpError::Raw(4, 0, [0, 0, 0, 40]) },
        ),
        ("host unreachable", if net.is_v4() { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) }),
    ];
    for (name, error) in errors {
        rows.push(
            Row::forward(
                &format!("{name} from the server comes from the VIP"),
                spec(),
                icmp_error(rs, client, error, &forwarded.bytes()),
                icmp_error(vip, client, error, &query.bytes()),
            )
            .after([&query]),
        );
        rows.push(
            Row::forward(
                &format!("{name} from a router behind the gateway comes from the VIP as well"),
                spec(),
                icmp_error(net.inner_router(), client, error, &forwarded.bytes()),
                icmp_error(vip, client, error, &query.bytes()),
            )
            .after([&query]),
        );
        rows.push(
            Row::forward(
                &format!("{name} from outside goes to the server, its source kept"),
                spec(),
                icmp_error(net.outer_router(), vip, error, &translated.bytes()),
                icmp_error(net.outer_router(), rs, error, &answer.bytes()),
            )
            .after([&query]),
        );
    }
    rows.extend(quotes(net, &query));
    rows.extend(broken(net, &query));
    rows.extend(unrelated(net, &query));
    rows.extend(pings(net));
    rows
}

/// However much of the packet is quoted, and whatever stands behind it.
fn quotes(net: Net, query: &Build) -> Vec<Row> {
    let (client, vip, rs) = (net.client(40000), net.vip(80), net.rs(1, 8080));
    let error = IcmpError::TimeExceeded;
    let about = |quoted: &[u8]| icmp_error(net.inner_router(), client, error, quoted);
    let told = |quoted: &[u8]| icmp_error(vip, client, error, quoted);
    let syn = tcp(client, vip).syn();
    let data = tcp(client, vip).flags(ACK | PSH).seq(1001, 5001).payload(vec![3; 300]);
    let handshake =
        [syn.clone(), tcp(rs, client).flags(SYN | ACK).seq(5000, 1001), syn.clone().flags(ACK).seq(1001, 5001)];
    let header = if net.is_v4() { 20 } else { 40 };
    let cut = |build: &Build, len: usize| build.bytes()[..header + len].to_vec();
    let server_side = |build: &Build, server| build.with_dst(server);

    let mut rows = Vec::new();
    for len in [4, 8, 12, 20, 21, 100] {
        rows.push(
            Row::forward(
                &format!("a quote of TCP with {len} bytes behind the IP header"),
                net.spec(),
                about(&cut(&server_side(&data, rs), len)),
                told(&cut(&data, len)),
            )
            .after(&handshake),
        );
    }
    // RFC 4884: the quote is padded to 128 bytes, its length stands in the header (in words of 4 or 8 bytes), extensions
    // follow; here one of MPLS.
    let extensions = [0x20, 0, 0, 0, 0, 8, 1, 1, 0xde, 0xad, 0xbe, 0xef];
    let error4884 = match net {
        Net::V4 => IcmpError::Raw(11, 0, [0, 32, 0, 0]),
        Net::V6 => IcmpError::Raw(3, 0, [16, 0, 0, 0]),
    };
    for (name, flow, server, before) in
        [("long", &data, rs, &handshake[..]), ("short", query, net.rs(1, 53), std::slice::from_ref(query))]
    {
        let padded = |build: &Build| {
            let mut quoted = build.bytes();
            quoted.resize(128, 0);
            [&quoted[..], &extensions].concat()
        };
        rows.push(
            Row::forward(
                &format!("RFC 4884 extensions behind a {name} packet stay as they are"),
                net.spec(),
                icmp_error(net.inner_router(), client, error4884, &padded(&flow.with_dst(server))),
                icmp_error(flow.dst, client, error4884, &padded(flow)),
            )
            .after(before),
        );
    }
    let query_rs = net.rs(1, 53);
    let mut payload_differs = query.with_dst(query_rs).bytes();
    let mut payload_differs_out = query.bytes();
    for bytes in [&mut payload_differs, &mut payload_differs_out] {
        *bytes.last_mut().expect("a payload") ^= 0x55;
    }
    let to_dns = |quoted: &[u8]| icmp_error(net.vip(53), client, error, quoted);
    rows.push(
        Row::forward(
            "the quoted transport checksum is not looked at",
            net.spec(),
            about(&payload_differs),
            to_dns(&payload_differs_out),
        )
        .after([query]),
    );
    let unsummed = query.clone().without_checksum();
    rows.push(
        Row::forward(
            "a quoted UDP checksum that was left out stays out",
            net.spec(),
            about(&unsummed.with_dst(query_rs).bytes()),
            to_dns(&unsummed.bytes()),
        )
        .after([query]),
    );
    let odd_headers = match net {
        Net::V4 => query.clone().ip_options(&[1; 12]),
        Net::V6 => query.clone().extensions(&[Extension::HopByHop(0), Extension::Destination(1)]),
    };
    rows.push(
        Row::forward(
            "options and extension headers in the quote are walked",
            net.spec(),
            about(&odd_headers.with_dst(query_rs).bytes()),
            to_dns(&odd_headers.bytes()),
        )
        .after([query]),
    );
    let outer = |build: Build| match net {
        Net::V4 => build.ip_options(&[1; 8]),
        Net::V6 => build.extensions(&[Extension::Destination(0)]),
    };
    rows.push(
        Row::forward(
            "and so are those of the error itself",
            net.spec(),
            outer(about(&query.with_dst(query_rs).bytes())),
            outer(to_dns(&query.bytes())),
        )
        .after([query]),
    );
    rows
}

fn broken(net: Net, query: &Build) -> Vec<Row> {
    let (client, rs) = (net.client(40000), net.rs(1, 53));
    let error = icmp_error(rs, client, IcmpError::PortUnreachable, &query.with_dst(rs).bytes());
    let mut bad_checksum = error.bytes();
    *bad_checksum.last_mut().expect("a quote") ^= 1;
    let mut rows = vec![
        Row::drop("an error with a wrong checksum", net.spec(), bad_checksum, DropReason::BadIcmpChecksum)
            .after([query]),
    ];
    if net.is_v4() {
        let mut quoted = query.with_dst(rs).bytes();
        quoted[10] ^= 1;
        let error = icmp_error(rs, client, IcmpError::PortUnreachable, &quoted);
        rows.push(
            Row::drop("a quoted IP header with a wrong checksum", net.spec(), error, DropReason::BadIcmpChecksum)
                .after([query]),
        );
    }
    let short = icmp_error(net.outer_router(), net.vip(0), IcmpError::PortUnreachable, &query.bytes()[..12]);
    rows.push(Row::drop("a quote without a whole IP header", net.spec(), short, DropReason::Truncated).after([query]));
    rows
}

fn unrelated(net: Net, query: &Build) -> Vec<Row> {
    let (client, vip, rs) = (net.client(40000), net.vip(53), net.rs(1, 53));
    let error = IcmpError::PortUnreachable;
    let no_flow = udp(net.vip(53), net.stranger(9)).payload("?");
    let stranger = udp(net.rs(1, 53), net.stranger(9)).payload("?");
    let ports_missing = &udp(rs, client).with_src(vip).bytes()[..if net.is_v4() { 22 } else { 42 }];
    let (redirect, router) = (if net.is_v4() { 5 } else { 137 }, net.outer_router());
    let word = IcmpError::Raw(redirect, 0, [0; 4]);
    vec![
        Row::drop(
            "an error to the VIP about no flow",
            net.spec(),
            icmp_error(router, vip, error, &no_flow.bytes()),
            DropReason::IcmpNoFlow,
        ),
        Row::drop(
            "an error to the VIP that quotes no ports",
            net.spec(),
            icmp_error(router, vip, error, ports_missing),
            DropReason::IcmpNoFlow,
        )
        .after([query]),
        Row::drop(
            "an error that was not sent to the sender of what it quotes",
            net.spec(),
            icmp_error(router, vip, error, &query.with_dst(rs).bytes()),
            DropReason::IcmpNoFlow,
        )
        .after([query]),
        Row::pass(
            "an error past the gateway about nothing of ours",
            net.spec(),
            icmp_error(net.inner_router(), rs, error, &stranger.bytes()),
        ),
        Row::drop(
            "a redirect to the VIP",
            net.spec(),
            icmp_error(router, vip, word, &query.bytes()),
            DropReason::UnsupportedIcmp,
        ),
        Row::drop(
            "an unasked echo reply to the VIP",
            net.spec(),
            {
                let word = [0, 1, 0, 1];
                icmp_error(client, vip, IcmpError::Raw(if net.is_v4() { 0 } else { 129 }, 0, word), b"pong")
            },
            DropReason::UnsupportedIcmp,
        ),
    ]
}

/// The answer to a ping.
pub fn echo_reply(net: Net, ping: &Build) -> Build {
    let mut back = ping.reversed().ttl(64);
    if let crate::support::packet::Transport::Icmp(kind, ..) = &mut back.transport {
        *kind = if net.is_v4() { 0 } else { 129 };
    }
    back
}

fn pings(net: Net) -> Vec<Row> {
    let (client, vip) = (net.client(0), net.vip(0));
    let reply = |build: &Build| echo_reply(net, build);
    let ping = echo(client, vip, 7, 1);
    let answered = |name: &str, ping: Build| Row::new(name, net.spec(), &ping, Verdict::Reply).out(reply(&ping));
    let with_headers = match net {
        Net::V4 => ping.clone().ip_options(&[1; 4]),
        Net::V6 => ping.clone().extensions(&[Extension::HopByHop(0)]),
    };
    let mut bad = ping.bytes();
    *bad.last_mut().expect("a payload") ^= 1;
    let mut bad_reply = reply(&ping).bytes();
    *bad_reply.last_mut().expect("a payload") ^= 1;
    vec![
        answered("a ping to the VIP", ping.clone()),
        answered("a ping that almost ran out", ping.clone().ttl(2)),
        answered("a large ping", ping.clone().payload(vec![9; 1400])),
        answered("a ping without payload", ping.clone().payload([])),
        answered("a ping with more headers", with_headers),
        Row::new("a ping with a wrong checksum is not made right", net.spec(), bad, Verdict::Reply).out(bad_reply),
    ]
}

#[test]
fn an_error_neither_refreshes_nor_ends_its_flow() {
    for net in Net::BOTH {
        let (client, vip, rs) = (net.client(40000), net.vip(53), net.rs(1, 53));
        let query = udp(client, vip).payload("query");
        let mut engine = crate::support::world::engine(crate::support::world::snapshot(net.spec().services), 16);
        engine.handle_packet(Instant::ZERO, &mut query.buf());
        let timeout = std::time::Duration::from_secs(300);
        let before = engine.flows(Instant::from_secs(100), 0, 9).0;
        let mut error = icmp_error(rs, client, IcmpError::PortUnreachable, &query.with_dst(rs).bytes()).buf();
        assert_eq!(engine.handle_packet(Instant::from_secs(100), &mut error), Verdict::Forward);
        let after = engine.flows(Instant::from_secs(100), 0, 9).0;
        assert_eq!((before.len(), &before), (1, &after));
        assert_eq!(after[0].remaining, timeout - std::time::Duration::from_secs(100));
        assert_eq!(engine.stats().icmp_errors, 1);
        assert!(oracle::checksums_are_right(error.packet()));
    }
}
