//! The gateway as a hop of its own (mode "tap"): TTLs count down, it has addresses, and there is no host behind it.

use crate::icmp::echo_reply;
use crate::refusal::{answer, without_window};
use crate::support::packet::{ACK, IcmpError, RST, SYN, echo, icmp_error, tcp, udp};
use crate::support::world;
use crate::{Net, Row};
use gatun::service::{Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf, View};

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let own = net.rs(0, 4711);
    let spec = || SnapshotSpec { is_hop: true, own_addresses: vec![Addr::from(own.ip())], ..net.spec() };
    let (client, vip, rs) = (net.client(40000), net.vip(80), net.rs(1, 8080));
    let syn = tcp(client, vip).syn();
    let query = udp(client, net.vip(53)).payload("a question");
    let server = net.rs(1, 53);
    let error = IcmpError::PortUnreachable;
    let about = |ttl| icmp_error(server, client, error, &query.with_dst(server).bytes()).ttl(ttl);
    let ping = echo(client, own, 7, 1);
    vec![
        Row::forward("one hop less to the server", spec(), syn.clone().ttl(64), syn.with_dst(rs).ttl(63)),
        Row::forward("down to the last hop", spec(), syn.clone().ttl(2), syn.with_dst(rs).ttl(1)),
        Row::forward(
            "one hop less to the client",
            spec(),
            tcp(rs, client).flags(SYN | ACK).ttl(60),
            tcp(vip, client).flags(SYN | ACK).ttl(59),
        )
        .after([&syn]),
        Row::forward(
            "a super-packet has its checksum left to the device",
            spec(),
            tcp(client, vip).flags(ACK).seq(1, 1).payload(vec![7; 3000]).ttl(9).super_packet(1000),
            tcp(client, rs).flags(ACK).seq(1, 1).payload(vec![7; 3000]).ttl(8).super_packet(1000),
        )
        .after([&syn]),
        Row::forward(
            "an error has one hop less as well",
            spec(),
            about(33),
            icmp_error(net.vip(53), client, error, &query.bytes()).ttl(32),
        )
        .after([&query]),
        Row::drop("an error whose hops end here", spec(), about(1), DropReason::TtlExceeded).after([&query]),
        Row::drop("what is no flow's has nowhere to go", spec(), udp(client, net.stranger(9)), DropReason::NotOurs),
        Row::drop("nor has a stranger's ping", spec(), echo(client, net.stranger(0), 1, 1), DropReason::NotOurs),
        Row::new("its own address answers a ping", spec(), &ping, Verdict::Reply).out(echo_reply(net, &ping)),
        Row::refuse(
            "and refuses everything else",
            spec(),
            tcp(client, own).syn().seq(77, 0),
            DropReason::NoService,
            without_window(answer(tcp(own, client).flags(RST | ACK).seq(0, 78))),
        ),
    ]
}

/// Every fragment is a packet on its way, and none goes beyond its last hop.
#[test]
fn fragments_count_their_hops() {
    for net in Net::BOTH {
        let spec = SnapshotSpec { is_hop: true, ..net.spec() };
        let mut engine = world::engine(Snapshot::build(spec, None).expect("valid").into(), 16);
        let whole = udp(net.client(40000), net.vip(53)).payload(vec![7; 3000]).ttl(5);
        for (number, fragment) in whole.fragments(1000).iter().enumerate() {
            let mut buf = PacketBuf::from_packet(fragment);
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward, "{net:?} {number}");
            assert_eq!(View::parse(buf.packet()).map(|view| view.ttl), Ok(4), "{net:?} {number}");
        }
        let late = whole.ttl(1).fragments(1000);
        let mut late = PacketBuf::from_packet(late.last().expect("some fragments"));
        let exceeded = Verdict::Drop(DropReason::TtlExceeded);
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut late), exceeded, "{net:?}");
    }
}
