//! RFC 2003: what a tunnel does not take, and what its sender is told of errors on the way to its end.

use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};

use crate::one_way::{FIRST_ID, ends, ipip, snapshot, wrapped};
use crate::support::oracle;
use crate::support::packet::{IcmpError, icmp_error, tcp};
use crate::support::world;
use crate::{Net, refusal};

#[test]
fn rfc2003_s3_1_what_has_no_hop_left_is_not_encapsulated() {
    for (net, outer) in [(Net::V4, Net::V4), (Net::V4, Net::V6), (Net::V6, Net::V4), (Net::V6, Net::V6)] {
        let mut engine = world::engine(snapshot(ipip(net, outer)), 16);
        let syn = tcp(net.client(40000), net.vip(80)).syn();
        for ttl in [0, 1] {
            let mut buf = syn.clone().ttl(ttl).buf();
            let verdict = engine.handle_packet(Instant::ZERO, &mut buf);
            assert_eq!(verdict, Verdict::Refuse(DropReason::TtlExceeded), "{net:?} {outer:?} {ttl}");
            let told = oracle::decode(buf.packet()).expect("an error");
            assert_eq!((told.dst, told.protocol), (net.client(0).ip(), if net.is_v4() { 1 } else { 58 }));
            assert_eq!(buf.packet()[told.l4], if net.is_v4() { 11 } else { 3 }, "time exceeded");
        }
    }
}

/// Verdict, and what is sent, for an error from a router on the way about a SYN in the tunnel.
fn told(net: Net, error: IcmpError) -> (Verdict, Vec<u8>) {
    let mut engine = world::engine(snapshot(ipip(net, Net::V4)), 16);
    let syn = tcp(net.client(40000), net.vip(80)).syn();
    assert_eq!(engine.handle_packet(Instant::ZERO, &mut syn.buf()), Verdict::Forward);
    let quoted = wrapped(&syn.bytes(), Net::V4, 60, FIRST_ID);
    let mut buf = icmp_error(Net::V4.inner_router(), ends(Net::V4).0, error, &quoted).buf();
    let verdict = engine.handle_packet(Instant::ZERO, &mut buf);
    engine.check_invariants();
    (verdict, buf.packet().to_vec())
}

/// Section 4.1 and 4.4: that its end is not reached, whatever the reason, is to the sender a host that is not there.
#[test]
fn rfc2003_s4_errors_about_the_tunnel_are_told_as_what_they_are_to_the_sender() {
    for net in Net::BOTH {
        // Net, host, and protocol unreachable; prohibited; time exceeded in transit.
        for (kind, code) in [(3, 0), (3, 1), (3, 2), (3, 13), (11, 0)] {
            let (verdict, sent) = told(net, IcmpError::Raw(kind, code, [0; 4]));
            assert_eq!(verdict, Verdict::Forward, "{net:?} {kind}/{code}");
            let host = if net.is_v4() { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) };
            let syn = tcp(net.client(40000), net.vip(80)).syn();
            assert_eq!(sent, refusal::error(net, net.vip(80), host, &syn.bytes()).bytes(), "{net:?} {kind}/{code}");
        }
    }
}

/// Sections 4.1, 4.2, 4.3 and 4.5.
#[test]
fn rfc2003_s4_errors_about_the_outer_header_alone_are_not_relayed() {
    let own = ends(Net::V4).0.ip();
    for net in Net::BOTH {
        // Port unreachable, source route failed, source quench, redirect, parameter problem.
        for (kind, code) in [(3, 3), (3, 5), (4, 0), (5, 1), (12, 0)] {
            let (verdict, sent) = told(net, IcmpError::Raw(kind, code, [10, 0, 0, 9]));
            // At most the gateway's own kernel gets it.
            let kept = verdict == Verdict::Pass && oracle::decode(&sent).is_some_and(|packet| packet.dst == own);
            assert!(kept || matches!(verdict, Verdict::Drop(_)), "{net:?} {kind}/{code}: {verdict:?}");
        }
    }
}
