//! FTP connections of those that mean harm, or begin again: what they cost, and that they go on.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use gatun::engine::Engine;
use gatun::service::{HelperKind, PortRange, Protocols, Snapshot};
use gatun::time::Instant;
use gatun::verdict::Verdict;

use crate::Net;
use crate::ftp::{Control, six, spec};
use crate::support::packet::udp;
use crate::support::world::{self, ServiceSpecExt, service};

/// An engine of which so many TFTP clients expect an answer.
fn expecting(net: Net, others: u32) -> Engine {
    let mut spec = spec(net);
    let vip = net.vip(69);
    let mut tftp = service("tftp", &vip.ip().to_string(), PortRange::single(69), Protocols::Udp).server(
        &net.rs(3, 0).ip().to_string(),
        None,
        1,
    );
    tftp.helper = Some(HelperKind::Tftp);
    spec.services.push(tftp);
    let mut engine = world::engine(Snapshot::build(spec, None).expect("valid").into(), 1 << 16);
    for n in 0..others {
        let client = SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + n).into(), 2000);
        let request = udp(client, vip).payload(b"\0\x01x\0octet\0");
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut request.buf()), Verdict::Forward);
    }
    engine
}

/// One segment can announce as often as it has lines.
#[test]
fn an_announcement_costs_the_same_however_many_there_are() {
    let net = Net::V4;
    let mut took = [0, 4000].map(|others| {
        let mut engine = expecting(net, others);
        assert_eq!(engine.expectations().count(), others as usize);
        let mut control = Control::new(net);
        for packet in &control.packets {
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut packet.buf()), Verdict::Forward);
        }
        let segments = (0..8u16).map(|n| {
            let lines: String =
                (0..50).map(|line| format!("PORT {}\r\n", six(net.client(2000 + n * 50 + line)))).collect();
            let mut buf = control.command(&lines).buf();
            control = control.clone().sent(&lines);
            let begun = std::time::Instant::now();
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
            begun.elapsed()
        });
        let fastest = segments.min().unwrap_or_default();
        engine.check_invariants();
        assert!(engine.expectations().count() > others as usize);
        fastest
    });
    // A scan takes 50 times as long and more.
    took[0] = took[0].max(Duration::from_micros(50));
    assert!(took[1] < took[0] * 10, "{took:?}");
}
