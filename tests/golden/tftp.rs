//! TFTP: the server answers from a port of its own choice.

use std::net::SocketAddr;

use gatun::service::{HelperKind, PortRange, Protocols, SnapshotSpec};
use gatun::verdict::DropReason;

use crate::support::packet::IcmpError::PortUnreachable;
use crate::support::packet::udp;
use crate::support::world::{ServiceSpecExt, service};
use crate::{Net, Row};

fn spec(net: Net) -> SnapshotSpec {
    let ip = |end: SocketAddr| end.ip().to_string();
    let mut tftp = service("tftp", &ip(net.vip(0)), PortRange::single(69), Protocols::Udp)
        .server(&ip(net.rs(1, 0)), Some(6969), 1)
        .server(&ip(net.rs(2, 0)), Some(6969), 1);
    tftp.helper = Some(HelperKind::Tftp);
    SnapshotSpec { services: vec![tftp], ..SnapshotSpec::default() }
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let client = net.client(2000);
    let request = |opcode: u8| udp(client, net.vip(69)).payload([&[0, opcode][..], b"file\0octet\0"].concat());
    let first = udp(net.rs(1, 33333), client).payload([0, 3, 0, 1, 7, 7, 7]);
    let ack = udp(client, net.vip(33333)).payload([0, 4, 0, 1]);
    let unknown = |name: &str, opcode: u8| Row::pass(name, spec(net), &first).after([request(opcode)]);
    vec![
        Row::forward("a request goes to the server", spec(net), request(1), request(1).with_dst(net.rs(1, 6969))),
        Row::forward("the answer comes from the VIP", spec(net), &first, first.with_src(net.vip(33333)))
            .after([request(1)]),
        Row::forward("to a write request as well", spec(net), &first, first.with_src(net.vip(33333)))
            .after([request(2)]),
        Row::forward("what goes on belongs to it", spec(net), &ack, ack.with_dst(net.rs(1, 33333)))
            .after([request(1), first.clone()]),
        Row::forward(
            "the next block as well",
            spec(net),
            first.clone().payload([0, 3, 0, 2]),
            first.with_src(net.vip(33333)).payload([0, 3, 0, 2]),
        )
        .after([request(1), first.clone(), ack.clone()]),
        Row::refuse("before the answer there is nothing", spec(net), &ack, DropReason::NoService, {
            crate::refusal::error(net, net.vip(33333), PortUnreachable, &ack.bytes())
        })
        .after([request(1)]),
        Row::pass("another server's answer", spec(net), first.with_src(net.rs(2, 33333))).after([request(1)]),
        Row::pass("an answer to another port", spec(net), first.with_dst(net.client(2001))).after([request(1)]),
        Row::pass("an answer to another client", spec(net), first.with_dst(net.other(1, 2000))).after([request(1)]),
        unknown("data is no request", 3),
        unknown("an acknowledgement is no request", 4),
        Row::forward("without a port of its own the flow is one", spec(net), first.with_src(net.rs(1, 6969)), {
            first.with_src(net.vip(69))
        })
        .after([request(1)]),
    ]
}
