//! The life of a neighbour, from the first packet for it on (RFC 4861 section 7.3).

use std::time::Duration;

use gatun::link::{Bounds, FrameVerdict, Link, Mac, Sent, Settings, State};
use gatun::time::Instant;
use gatun::verdict::DropReason;
use gatun::wire::{Addr, Encapsulation, Outer, PacketBuf, Protocol, Tuple, View, VnetHdr, Wrap};

use crate::support::packet::{icmp_error, tcp, udp};
use crate::{
    OTHER, OUR_MAC, PEER, addr, arp, ethernet, frame_head, frames, link, link_with, ndp, receive, settings, transmit,
};

/// What differs between the families.
struct Side {
    server: &'static str,
    away: &'static str,
    router: &'static str,
    ethertype: u16,
}

const SIDES: [Side; 2] = [
    Side { server: "10.20.0.11", away: "198.51.100.2", router: "10.20.0.254", ethertype: 0x0800 },
    Side { server: "fd20::11", away: "2001:db8:1::2", router: "fd20::254", ethertype: 0x86dd },
];

impl Side {
    fn end(text: &str, port: u16) -> std::net::SocketAddr {
        (text.parse::<std::net::IpAddr>().expect(text), port).into()
    }

    /// A packet to the server, told apart by its source port.
    fn packet(&self, number: u16) -> Vec<u8> {
        self.packet_to(self.server, number)
    }

    fn packet_to(&self, dst: &str, number: u16) -> Vec<u8> {
        udp(Side::end(self.away, number), Side::end(dst, 53)).payload("hello").bytes()
    }

    fn question(&self, target: &str, at: Option<Mac>) -> Vec<u8> {
        match self.ethertype {
            0x0800 => {
                let dst = at.unwrap_or(Mac::BROADCAST);
                arp::frame(dst, OUR_MAC, 1, (OUR_MAC, "10.20.0.2"), (Mac::ZERO, target))
            }
            _ => ndp::our_question(target, at),
        }
    }

    /// An answer that we asked for.
    fn answer(&self, target: &str, mac: Mac) -> Vec<u8> {
        if self.ethertype == 0x0800 { arp::reply(mac, target) } else { ndp::advertisement(target, mac, 0x60) }
    }

    /// What the neighbour says unasked when it has moved.
    fn announcement(&self, target: &str, mac: Mac) -> Vec<u8> {
        match self.ethertype {
            0x0800 => arp::request(mac, target, target),
            _ => ndp::advertisement(target, mac, 0x20),
        }
    }

    fn framed(&self, mac: Mac, packet: &[u8]) -> Vec<u8> {
        ethernet(mac, OUR_MAC, self.ethertype, packet)
    }

    fn state(&self, link: &Link, now: Instant) -> Option<(State, Option<Mac>, usize)> {
        let server = addr(self.server);
        let found = link.neighbours(now).into_iter().find(|neighbour| neighbour.addr == server)?;
        Some((found.state, found.mac, found.queued))
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_first_packets_wait_and_go_in_their_order() {
    for side in &SIDES {
        let (mut link, now) = link();
        assert_eq!(transmit(&mut link, now, &side.packet(1)).0, Sent::Held);
        assert_eq!(frames(&mut link), [side.question(side.server, None)], "asked for once");
        for number in 2..=3 {
            assert_eq!(transmit(&mut link, now, &side.packet(number)).0, Sent::Held);
        }
        assert_eq!((frames(&mut link).len(), side.state(&link, now)), (0, Some((State::Incomplete, None, 3))));
        assert_eq!(receive(&mut link, now, &side.answer(side.server, PEER)).0, FrameVerdict::Consumed);
        let expected: Vec<_> = (1..=3).map(|number| side.framed(PEER, &side.packet(number))).collect();
        assert_eq!(frames(&mut link), expected);
        assert_eq!(side.state(&link, now), Some((State::Reachable, Some(PEER), 0)));
        let packet = side.packet(4);
        assert_eq!(transmit(&mut link, now, &packet), (Sent::Frame, side.framed(PEER, &packet)));
    }
}

#[test]
fn an_unused_neighbour_is_left_alone_and_a_used_one_is_probed() {
    for side in &SIDES {
        let (mut link, mut now) = link();
        transmit(&mut link, now, &side.packet(1));
        receive(&mut link, now, &side.answer(side.server, PEER));
        frames(&mut link);
        now = now + secs(31);
        link.handle_timeout(now);
        assert_eq!((frames(&mut link).len(), side.state(&link, now)), (0, Some((State::Stale, Some(PEER), 0))));
        assert_eq!(transmit(&mut link, now, &side.packet(2)).0, Sent::Frame);
        assert_eq!(side.state(&link, now).map(|s| s.0), Some(State::Delay));
        now = now + secs(5);
        link.handle_timeout(now);
        assert_eq!(frames(&mut link), [side.question(side.server, Some(PEER))], "it is asked directly");
        assert_eq!(side.state(&link, now).map(|s| s.0), Some(State::Probe));
        assert_eq!(transmit(&mut link, now, &side.packet(3)).0, Sent::Frame, "packets go on meanwhile");
        receive(&mut link, now, &side.answer(side.server, PEER));
        assert_eq!(side.state(&link, now), Some((State::Reachable, Some(PEER), 0)));
        // Ten minutes without a packet, and it is forgotten.
        now = now + secs(31);
        link.handle_timeout(now);
        now = now + secs(601);
        link.handle_timeout(now);
        assert_eq!(side.state(&link, now), None);
    }
}

#[test]
fn a_probe_without_an_answer_ends_in_failure() {
    for side in &SIDES {
        let (mut link, mut now) = link();
        transmit(&mut link, now, &side.packet(1));
        receive(&mut link, now, &side.answer(side.server, PEER));
        now = now + secs(31);
        link.handle_timeout(now);
        transmit(&mut link, now, &side.packet(2));
        frames(&mut link);
        now = now + secs(5);
        for _ in 0..3 {
            link.handle_timeout(now);
            assert_eq!(frames(&mut link), [side.question(side.server, Some(PEER))]);
            now = now + secs(1);
        }
        link.handle_timeout(now);
        assert_eq!((frames(&mut link).len(), side.state(&link, now)), (0, Some((State::Failed, None, 0))));
        assert_eq!(transmit(&mut link, now, &side.packet(3)).0, Sent::Drop(DropReason::NeighbourUnreachable));
    }
}

#[test]
fn a_neighbour_that_is_down_is_told_of_and_found_again() {
    for side in &SIDES {
        let (mut link, mut now) = link();
        transmit(&mut link, now, &side.packet(1));
        transmit(&mut link, now, &side.packet(2));
        assert_eq!(frames(&mut link).len(), 1);
        for _ in 0..2 {
            now = now + secs(1);
            link.handle_timeout(now);
            assert_eq!(frames(&mut link), [side.question(side.server, None)]);
        }
        now = now + secs(1);
        link.handle_timeout(now);
        assert_eq!(frames(&mut link).len(), 0, "three times in vain");
        // Both senders hear of it, by an error that quotes their packets as they were to leave.
        for number in 1..=2 {
            let error = link.poll_returned().expect("an error for each packet");
            assert_eq!(error.packet(), unreachable(side, &side.packet(number)), "{number}");
        }
        assert!(link.poll_returned().is_none());
        assert_eq!(link.drops()[DropReason::NeighbourUnreachable as usize], 2);
        // From now on at once, and the neighbour is asked on, once a second.
        for (millis, asked) in [(0, 1), (500, 0), (999, 0), (1000, 1)] {
            let later = now + Duration::from_millis(millis);
            let (sent, _) = transmit(&mut link, later, &side.packet(3));
            assert_eq!(sent, Sent::Drop(DropReason::NeighbourUnreachable), "at {millis} ms");
            assert_eq!(frames(&mut link), vec![side.question(side.server, None); asked], "at {millis} ms");
            assert!(link.poll_returned().is_some());
        }
        now = now + secs(1);
        receive(&mut link, now, &side.answer(side.server, PEER));
        assert_eq!(transmit(&mut link, now, &side.packet(4)).0, Sent::Frame);
    }
}

/// "Host unreachable" from our own address, as etherparse builds it.
fn unreachable(side: &Side, quoted: &[u8]) -> Vec<u8> {
    use crate::support::packet::{Build, IcmpError};
    let v4 = side.ethertype == 0x0800;
    let own = if v4 { "10.20.0.2:0" } else { "[fd20::2]:0" };
    let error = if v4 { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) };
    let build = icmp_error(own, Side::end(side.away, 0), error, quoted).id(0).ttl(64);
    Build { dont_fragment: true, tos: if v4 { 0xc0 } else { 0 }, ..build }.bytes()
}

#[test]
fn no_error_about_an_error_and_no_flood_of_them() {
    let (mut link, mut now) = link();
    let side = &SIDES[0];
    transmit(&mut link, now, &side.packet(1));
    for _ in 0..3 {
        now = now + secs(1);
        link.handle_timeout(now);
    }
    while link.poll_returned().is_some() {}
    let error =
        icmp_error("198.51.100.2:0", "10.20.0.11:0", crate::support::packet::IcmpError::TimeExceeded, &side.packet(1));
    assert_eq!(transmit(&mut link, now, &error.bytes()).0, Sent::Drop(DropReason::NeighbourUnreachable));
    assert!(link.poll_returned().is_none());
    let from_nowhere = udp("127.0.0.1:9", "10.20.0.11:53").bytes();
    assert_eq!(transmit(&mut link, now, &from_nowhere).0, Sent::Drop(DropReason::NeighbourUnreachable));
    assert!(link.poll_returned().is_none());
    now = now + secs(2);
    let mut errors = 0;
    for _ in 0..3000 {
        transmit(&mut link, now, &side.packet(1));
        errors += std::iter::from_fn(|| link.poll_returned()).count();
    }
    assert_eq!(errors, 1000, "so many a second");
    for _ in 0..2000 {
        now = now + Duration::from_millis(1);
        transmit(&mut link, now, &side.packet(1));
    }
    assert_eq!(std::iter::from_fn(|| link.poll_returned()).count(), 1024, "kept for a caller that does not take them");
}

#[test]
fn the_queue_of_a_neighbour_is_short_and_the_newest_win() {
    let (mut link, now) = link();
    let side = &SIDES[0];
    for number in 1..=20 {
        assert_eq!(transmit(&mut link, now, &side.packet(number)).0, Sent::Held);
    }
    frames(&mut link);
    assert_eq!(link.drops()[DropReason::NeighbourQueueFull as usize], 12);
    assert!(link.poll_returned().is_none(), "nobody is told that it was dropped");
    receive(&mut link, now, &side.answer(side.server, PEER));
    let expected: Vec<_> = (13..=20).map(|number| side.framed(PEER, &side.packet(number))).collect();
    assert_eq!(frames(&mut link), expected);
}

#[test]
fn the_bytes_of_all_queues_are_bounded() {
    let bounds = Bounds { queued_bytes: 100_000, ..Bounds::default() };
    let (mut link, now) = link_with(Settings { bounds, routers: vec![], ..settings() });
    let large =
        |host: u8| udp("198.51.100.2:9", Side::end(&format!("10.20.0.{host}"), 53)).payload(vec![1; 30_000]).bytes();
    for host in 20..23 {
        assert_eq!(transmit(&mut link, now, &large(host)).0, Sent::Held);
    }
    assert_eq!(transmit(&mut link, now, &large(23)).0, Sent::Drop(DropReason::NeighbourQueueFull));
    assert_eq!(link.neighbour_count(), 4);
}

#[test]
fn a_neighbour_may_move_but_not_at_once() {
    for side in &SIDES {
        let (mut link, mut now) = link();
        transmit(&mut link, now, &side.packet(1));
        receive(&mut link, now, &side.answer(side.server, PEER));
        frames(&mut link);
        now = now + secs(2);
        receive(&mut link, now, &side.announcement(side.server, OTHER));
        assert_eq!(side.state(&link, now), Some((State::Stale, Some(OTHER), 0)), "believed, and probed when used");
    }
    // Two answers to one question: the first one counts.
    let (mut link, now) = link();
    let side = &SIDES[0];
    transmit(&mut link, now, &side.packet(1));
    receive(&mut link, now, &side.answer(side.server, PEER));
    receive(&mut link, now + Duration::from_millis(10), &side.answer(side.server, OTHER));
    assert_eq!(side.state(&link, now).map(|s| s.1), Some(Some(PEER)));
    // An advertisement without the override flag raises doubts, no more.
    let side = &SIDES[1];
    transmit(&mut link, now, &side.packet(1));
    receive(&mut link, now, &side.answer(side.server, PEER));
    receive(&mut link, now + secs(2), &ndp::advertisement(side.server, OTHER, 0));
    assert_eq!(side.state(&link, now).map(|s| (s.0, s.1)), Some((State::Stale, Some(PEER))));
}

#[test]
fn what_is_not_on_the_segment_goes_to_the_router() {
    for side in &SIDES {
        let (mut link, now) = link_with(settings());
        let away = side.packet_to(side.away, 7);
        receive(&mut link, now, &side.answer(side.router, PEER));
        assert_eq!(transmit(&mut link, now, &away), (Sent::Frame, side.framed(PEER, &away)));

        let (mut link, now) = crate::link();
        assert_eq!(transmit(&mut link, now, &away).0, Sent::Drop(DropReason::NoRoute));
    }
    let (mut link, now) = link_with(settings());
    for nowhere in ["203.0.113.10:9", "224.0.0.1:9", "255.255.255.255:9", "[ff02::1]:9", "10.20.0.2:9", "[fd20::2]:9"] {
        let src = if nowhere.starts_with('[') { "[fd20::11]:9" } else { "10.20.0.11:9" };
        let packet = udp(src, nowhere).bytes();
        assert_eq!(transmit(&mut link, now, &packet).0, Sent::Drop(DropReason::NoRoute), "{nowhere}");
    }
}

#[test]
fn another_router_takes_over_while_the_first_is_silent() {
    let routers = vec![addr("10.20.0.254"), addr("10.20.0.253")];
    let (mut link, now) = link_with(Settings { routers, ..settings() });
    let side = &SIDES[0];
    let away = side.packet_to(side.away, 7);
    receive(&mut link, now, &side.answer("10.20.0.253", OTHER));
    frames(&mut link);
    assert_eq!(transmit(&mut link, now, &away), (Sent::Frame, side.framed(OTHER, &away)));
    receive(&mut link, now, &side.answer("10.20.0.254", PEER));
    assert_eq!(transmit(&mut link, now, &away), (Sent::Frame, side.framed(PEER, &away)));
}

#[test]
fn a_packet_goes_where_its_hop_says() {
    let (mut link, now) = link();
    let side = &SIDES[0];
    let to_vip = side.packet_to("203.0.113.10", 7);
    let mut buf = PacketBuf::from_packet(&to_vip);
    buf.hop = Some(addr(side.server));
    assert_eq!(link.transmit(now, &mut buf), Sent::Held);
    assert_eq!(frames(&mut link), [side.question(side.server, None)]);
    receive(&mut link, now, &side.answer(side.server, PEER));
    assert_eq!(frames(&mut link), [side.framed(PEER, &to_vip)]);
}

#[test]
fn what_is_still_to_be_cut_has_the_header_of_every_piece_in_front() {
    let (mut link, now) = link();
    let outer = Outer {
        src: addr("fd20::2"),
        dst: addr("fd20::11"),
        encapsulation: Encapsulation::Ipip,
        ttl: 64,
        id: 0,
        entropy: 0,
    };
    let wrap = Some(Wrap { outer, mtu: 1500 });
    let mut buf = tcp("198.51.100.2:4000", "203.0.113.10:80").payload(vec![1; 3000]).super_packet(1000);
    buf.wrap = wrap;
    let (packet, vnet) = (buf.packet().to_vec(), buf.vnet);
    assert_eq!(link.transmit(now, &mut buf), Sent::Held);
    frames(&mut link);
    receive(&mut link, now, &ndp::advertisement("fd20::11", PEER, 0x60));
    let frame = link.poll_frame().expect("it waited");
    assert_eq!((frame.wrap, frame.vnet), (wrap, vnet), "offsets count from the packet until it is cut");
    assert_eq!(frame.packet(), ethernet(PEER, OUR_MAC, 0x86dd, &packet), "the outer family's EtherType");
    buf.wrap = None;
    buf.hop = Some(addr("fd20::11"));
    assert_eq!(link.transmit(now, &mut buf), Sent::Frame);
    assert_eq!(
        buf.vnet,
        VnetHdr { csum_start: vnet.csum_start + 14, hdr_len: vnet.hdr_len + 14 * u16::from(vnet.hdr_len > 0), ..vnet }
    );
    assert_eq!(frame_head(buf.packet()), (PEER, OUR_MAC, 0x0800), "the packet's own EtherType");
}

#[test]
fn servers_and_routers_are_looked_for_and_kept() {
    let bounds = Bounds { entries: 16, ..Bounds::default() };
    let mut link = Link::new(Settings { bounds, ..settings() });
    let mut now = Instant::from_secs(1);
    let servers: Vec<Addr> = ["10.20.0.11", "fd20::11", "10.30.0.14"].map(addr).into();
    link.configure(now, &[], &servers);
    let known: Vec<Addr> = link.neighbours(now).iter().map(|n| n.addr).collect();
    assert_eq!(known, ["10.20.0.11", "10.20.0.254", "fd20::11", "fd20::254"].map(addr), "not the one elsewhere");
    receive(&mut link, now, &arp::reply(PEER, "10.20.0.254"));
    // A stranger invents addresses of the segment, by the thousand.
    for host in 0..5000_u16 {
        let dst = format!("fd20::9:{host:x}");
        transmit(&mut link, now, &SIDES[1].packet_to(&dst, 1));
        now = now + Duration::from_millis(1);
        link.handle_timeout(now);
        frames(&mut link);
    }
    assert_eq!(link.neighbour_count(), 4 + 16);
    assert!(link.drops()[DropReason::NeighbourEvicted as usize] > 4000);
    let router = link.neighbours(now).into_iter().find(|n| n.addr == addr("10.20.0.254")).expect("it is kept");
    assert_eq!((router.mac, router.kept), (Some(PEER), true));
    // Nor do hosts that do answer drive it out, the one that was used for longest gives way.
    for host in 0..100_u16 {
        now = now + Duration::from_millis(1);
        let host = format!("fd20::a:{host:x}");
        transmit(&mut link, now, &SIDES[1].packet_to(&host, 1));
        receive(&mut link, now, &ndp::advertisement(&host, OTHER, 0x60));
        frames(&mut link);
    }
    let known: Vec<_> = link.neighbours(now).into_iter().filter(|n| n.mac == Some(OTHER)).map(|n| n.addr).collect();
    assert!(known.contains(&addr("fd20::a:63")) && !known.contains(&addr("fd20::a:0")), "{known:?}");
    assert_eq!(link.neighbours(now).iter().filter(|n| n.kept).count(), 4);
    // Without a service that has it, a server is like any other.
    link.configure(now, &[], &[]);
    assert_eq!(link.neighbours(now).iter().filter(|n| n.kept).count(), 2);
    link.check_invariants();
}

#[test]
fn kept_neighbours_are_watched_with_or_without_traffic() {
    for side in &SIDES {
        let (mut link, mut now) = link();
        link.configure(now, &[], &[addr(side.server)]);
        assert_eq!(frames(&mut link), [side.question(side.server, None)]);
        receive(&mut link, now, &side.answer(side.server, PEER));
        for _ in 0..3 {
            now = now + Duration::from_millis(4999);
            link.handle_timeout(now);
            assert_eq!(frames(&mut link).len(), 0);
            now = now + Duration::from_millis(1);
            link.handle_timeout(now);
            assert_eq!(frames(&mut link), [side.question(side.server, Some(PEER))], "every five seconds");
            receive(&mut link, now, &side.answer(side.server, PEER));
            assert_eq!((side.state(&link, now).map(|s| s.0), link.missing().len()), (Some(State::Reachable), 0));
        }
        // It dies: three questions, then it is missing, and everybody is asked for it once a second.
        now = now + secs(5);
        for second in 0..6 {
            link.handle_timeout(now);
            let at = (second < 3).then_some(PEER);
            let asked = if second == 3 { vec![] } else { vec![side.question(side.server, at)] };
            assert_eq!(frames(&mut link), asked, "second {second}");
            let missing = if second < 3 { vec![] } else { vec![addr(side.server)] };
            assert_eq!(link.missing(), missing, "second {second}");
            now = now + secs(1);
        }
        // It is back, elsewhere, and says so itself: that is asked for at once.
        receive(&mut link, now, &side.announcement(side.server, OTHER));
        assert_eq!((link.missing().len(), side.state(&link, now).map(|s| s.1)), (0, Some(Some(OTHER))));
        link.handle_timeout(now);
        assert_eq!(frames(&mut link), [side.question(side.server, Some(OTHER))]);
        // Who is no longer kept is left alone.
        receive(&mut link, now, &side.answer(side.server, OTHER));
        link.configure(now, &[], &[]);
        link.handle_timeout(now + secs(60));
        assert_eq!(frames(&mut link).len(), 0);
    }
}

#[test]
fn hosts_that_answered_outlive_those_that_never_do() {
    let bounds = Bounds { entries: 64, ..Bounds::default() };
    let (mut link, mut now) = link_with(Settings { bounds, routers: vec![], ..settings() });
    let side = &SIDES[0];
    let hosts: Vec<String> = (10..40).map(|host| format!("10.20.0.{host}")).collect();
    for host in &hosts {
        transmit(&mut link, now, &side.packet_to(host, 1));
        receive(&mut link, now, &side.answer(host, PEER));
    }
    for host in 0..1000_u16 {
        now = now + Duration::from_millis(1);
        transmit(&mut link, now, &SIDES[1].packet_to(&format!("fd20::9:{host:x}"), 1));
    }
    let there = link.neighbours(now).iter().filter(|n| n.state == State::Reachable).count();
    assert_eq!(there, hosts.len());
}

/// The engine gets the error, and the client hears of it from the VIP.
#[test]
fn an_error_passes_the_engine_to_the_client() {
    use crate::support::world::{ServiceSpecExt, engine, service};
    use gatun::service::{PortRange, Protocols, Snapshot, SnapshotSpec};
    use gatun::verdict::Verdict;
    let web = service("web", "203.0.113.10", PortRange::single(80), Protocols::Tcp).server("10.20.0.11", Some(8080), 1);
    let spec = SnapshotSpec { services: vec![web], is_hop: true, ..SnapshotSpec::default() };
    let mut engine = engine(Snapshot::build(spec, None).expect("valid").into(), 16);
    let (mut link, mut now) = link();
    let mut syn = tcp("198.51.100.2:4000", "203.0.113.10:80").syn().buf();
    assert_eq!(engine.handle_packet(now, &mut syn), Verdict::Forward);
    assert_eq!(link.transmit(now, &mut syn), Sent::Held);
    for _ in 0..3 {
        now = now + secs(1);
        link.handle_timeout(now);
    }
    let mut error = link.poll_returned().expect("the server is not there");
    assert_eq!(engine.handle_packet(now, &mut error), Verdict::Forward);
    let view = View::parse(error.packet()).expect("a good packet");
    assert_eq!((view.src, view.dst, view.protocol), (addr("203.0.113.10"), addr("198.51.100.2"), Protocol::ICMP));
    let (_, quoted) = View::parse_quoted(&error.packet()[28..]).expect("a quoted packet");
    let sent = Tuple { src: view.dst, dst: view.src, sport: 4000, dport: 80, protocol: Protocol::TCP };
    assert_eq!(quoted, Some(sent), "the client sees what it sent");
}
