//! What the gateway says of the multicast groups that it listens to (RFC 3810): byte by byte.

use std::time::Duration;

use etherparse::{Icmpv6Header, Icmpv6Slice, Icmpv6Type, Ipv6Header};
use gatun::link::{FrameVerdict, Mac};
use gatun::verdict::DropReason;

use crate::{OUR_MAC, PEER, addr, ethernet, frames, link, ndp, receive};

const ROUTERS: Mac = Mac([0x33, 0x33, 0, 0, 0, 0x16]);
const ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

fn packet(src: &str, dst: &str, hop_limit: u8, kind: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let octets = |text: &str| *addr(text).octets();
    let icmp = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: rest };
    let icmp = Icmpv6Header::with_checksum(icmp, octets(src), octets(dst), body).expect("a short message");
    let ip = Ipv6Header {
        hop_limit,
        payload_length: (8 + 8 + body.len()) as u16,
        next_header: etherparse::IpNumber(0),
        source: octets(src),
        destination: octets(dst),
        ..Ipv6Header::default()
    };
    [&ip.to_bytes()[..], &ALERT, &icmp.to_bytes(), body].concat()
}

/// Our report that we listen for these addresses.
pub fn report(addrs: &[&str]) -> Vec<u8> {
    let mut groups: Vec<_> = addrs.iter().map(|text| *addr(&ndp::group(text).0).octets()).collect();
    groups.sort_unstable();
    let records: Vec<u8> = groups.iter().flat_map(|group| [&[4, 0, 0, 0][..], group].concat()).collect();
    let own = OUR_MAC.link_local().to_string();
    let packet = packet(&own, "ff02::16", 1, 143, [0, 0, 0, addrs.len() as u8], &records);
    ethernet(ROUTERS, OUR_MAC, 0x86dd, &packet)
}

fn query(hop_limit: u8) -> Vec<u8> {
    let body = [&[0; 16][..], &[2, 125, 0, 0]].concat();
    ethernet(ndp::ALL_NODES, PEER, 0x86dd, &packet("fe80::9", "ff02::1", hop_limit, 130, [0, 100, 0, 0], &body))
}

#[test]
fn a_question_is_answered_once_a_second() {
    let (mut link, now) = link();
    let own = OUR_MAC.link_local().to_string();
    let expected = report(&["fd20::2", "2001:db8:f::10", &own]);
    for (millis, answered) in [(0, true), (999, false), (1000, true)] {
        let (verdict, _) = receive(&mut link, now + Duration::from_millis(millis), &query(1));
        assert_eq!(verdict, FrameVerdict::Consumed);
        assert_eq!(frames(&mut link), vec![expected.clone(); usize::from(answered)], "at {millis} ms");
    }
    let (verdict, _) = receive(&mut link, now + Duration::from_secs(9), &query(64));
    assert_eq!((verdict, frames(&mut link).len()), (FrameVerdict::Drop(DropReason::LinkBroadcast), 0), "of elsewhere");
}

#[test]
fn many_groups_take_many_reports() {
    let (mut link, now) = link();
    let vips: Vec<_> = (1..=200).map(|n| addr(&format!("2001:db8:f::{n:x}"))).collect();
    link.configure(now, &vips, &[]);
    frames(&mut link);
    receive(&mut link, now, &query(1));
    let reports = frames(&mut link);
    let mut groups = 0;
    for frame in &reports {
        assert!(frame.len() <= 14 + 1280);
        let (ip, rest) = Ipv6Header::from_slice(&frame[14..]).expect("an IPv6 header");
        let icmp = Icmpv6Slice::from_slice(&rest[8..]).expect("an ICMPv6 message");
        assert!(icmp.is_checksum_valid(ip.source, ip.destination));
        groups += usize::from(frame[14 + 48 + 7]);
    }
    // Those of our own addresses are the groups of two VIPs as well.
    assert_eq!((groups, reports.len()), (200, 4), "each once");
}
