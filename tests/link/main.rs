//! The gateway's end of a segment, driven frame by frame: golden frames for ARP and neighbour discovery (built by hand or by
//! etherparse), the life of a neighbour, and properties of the whole under any sequence of frames, packets and time.

mod arp;
mod mld;
mod ndp;
mod neighbours;
mod properties;
#[path = "../../fuzz/harness/segment.rs"]
mod segment;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use gatun::link::{Bounds, FrameVerdict, Link, Mac, Prefix, Sent, Settings};
use gatun::time::Instant;
use gatun::verdict::DropReason;
use gatun::wire::{Addr, PacketBuf};

pub use support::world::addr;

pub const OUR_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const PEER: Mac = Mac([2, 0, 0, 0, 0, 0x11]);
pub const OTHER: Mac = Mac([2, 0, 0, 0, 0, 0x12]);

pub fn settings() -> Settings {
    Settings {
        mac: OUR_MAC,
        addresses: vec![Prefix { addr: addr("10.20.0.2"), len: 24 }, Prefix { addr: addr("fd20::2"), len: 64 }],
        routers: vec![addr("10.20.0.254"), addr("fd20::254")],
        bounds: Bounds::default(),
    }
}

/// A link with a VIP of each family and nobody kept, whose announcements are over.
pub fn link() -> (Link, Instant) {
    link_with(Settings { routers: Vec::new(), ..settings() })
}

pub fn link_with(settings: Settings) -> (Link, Instant) {
    let mut link = Link::new(settings);
    let mut now = Instant::from_secs(1);
    link.configure(now, &[addr("203.0.113.10"), addr("2001:db8:f::10")], &[]);
    for _ in 0..5 {
        now = now + Duration::from_secs(1);
        link.handle_timeout(now);
    }
    frames(&mut link);
    while link.poll_returned().is_some() {}
    (link, now)
}

/// Every frame that the link wants sent.
pub fn frames(link: &mut Link) -> Vec<Vec<u8>> {
    link.check_invariants();
    std::iter::from_fn(|| link.poll_frame()).map(|frame| frame.packet().to_vec()).collect()
}

pub fn receive(link: &mut Link, now: Instant, frame: &[u8]) -> (FrameVerdict, Vec<u8>) {
    let mut buf = PacketBuf::with_capacity(2048);
    assert!(buf.replace(frame));
    let verdict = link.handle_frame(now, &mut buf);
    link.check_invariants();
    (verdict, buf.packet().to_vec())
}

pub fn transmit(link: &mut Link, now: Instant, packet: &[u8]) -> (Sent, Vec<u8>) {
    let mut buf = PacketBuf::from_packet(packet);
    let sent = link.transmit(now, &mut buf);
    link.check_invariants();
    (sent, buf.packet().to_vec())
}

pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &ethertype.to_be_bytes(), payload].concat()
}

/// A frame and what becomes of it.
pub struct Row {
    pub name: &'static str,
    pub frame: Vec<u8>,
    pub verdict: FrameVerdict,
    /// The answer.
    pub answer: Option<Vec<u8>>,
}

pub fn row(name: &'static str, frame: Vec<u8>, verdict: FrameVerdict) -> Row {
    Row { name, frame, verdict, answer: None }
}

pub fn drop(name: &'static str, frame: Vec<u8>, reason: DropReason) -> Row {
    row(name, frame, FrameVerdict::Drop(reason))
}

pub fn answer(name: &'static str, frame: Vec<u8>, answer: Vec<u8>) -> Row {
    Row { name, frame, verdict: FrameVerdict::Answer, answer: Some(answer) }
}

#[test]
fn golden_frames() {
    let mut seen = BTreeSet::new();
    for Row { name, frame, verdict, answer } in arp::rows().into_iter().chain(ndp::rows()).chain(other_rows()) {
        let (mut link, now) = link();
        let (got, buf) = receive(&mut link, now, &frame);
        assert_eq!(got, verdict, "{name}");
        if let Some(answer) = answer {
            assert_eq!(buf, answer, "{name}:\n{buf:02x?}\n{answer:02x?}");
        }
        if let FrameVerdict::Drop(reason) = verdict {
            assert_eq!(link.drops()[reason as usize], 1, "{name}");
            seen.insert(reason);
        }
        assert_eq!(link.neighbour_count(), 0, "{name}: nobody asked for a neighbour");
    }
    use DropReason::{
        AddressConflict, BadArp, BadFrame, BadNdp, LinkBroadcast, OtherEtherType, OtherMac, SpoofedMac, VlanTagged,
    };
    let all =
        [BadFrame, VlanTagged, OtherMac, OtherEtherType, LinkBroadcast, BadArp, BadNdp, SpoofedMac, AddressConflict];
    assert_eq!(seen, BTreeSet::from(all), "every reason has a row");
}

/// Frames that are neither ARP nor neighbour discovery.
fn other_rows() -> Vec<Row> {
    let v4 = support::packet::udp("10.20.0.11:5", "203.0.113.10:53").payload("hello").bytes();
    let v6 = support::packet::udp("[fd20::11]:5", "[2001:db8:f::10]:53").payload("hello").bytes();
    let mac = OUR_MAC;
    vec![
        row("a packet for us", ethernet(mac, PEER, 0x0800, &v4), FrameVerdict::Packet),
        row("an IPv6 packet for us", ethernet(mac, PEER, 0x86dd, &v6), FrameVerdict::Packet),
        row("a packet with padding", ethernet(mac, PEER, 0x0800, &[&v4[..], &[0; 9]].concat()), FrameVerdict::Packet),
        drop("nothing", vec![], DropReason::BadFrame),
        drop("half a header", vec![2; 13], DropReason::BadFrame),
        drop("a header alone", ethernet(mac, PEER, 0x0800, &[]), DropReason::BadFrame),
        drop("IPv6 in an IPv4 frame", ethernet(mac, PEER, 0x0800, &v6), DropReason::BadFrame),
        drop("IPv4 in an IPv6 frame", ethernet(mac, PEER, 0x86dd, &v4), DropReason::BadFrame),
        drop("a packet for somebody else", ethernet(OTHER, PEER, 0x0800, &v4), DropReason::OtherMac),
        drop("a packet for all", ethernet(Mac::BROADCAST, PEER, 0x0800, &v4), DropReason::LinkBroadcast),
        drop(
            "a packet for many",
            ethernet(Mac([0x33, 0x33, 0, 0, 0, 5]), PEER, 0x86dd, &v6),
            DropReason::LinkBroadcast,
        ),
        drop("a packet from us", ethernet(mac, mac, 0x0800, &v4), DropReason::SpoofedMac),
        drop("a packet from a group", ethernet(mac, Mac([3; 6]), 0x0800, &v4), DropReason::SpoofedMac),
        drop("a packet from nobody", ethernet(mac, Mac::ZERO, 0x0800, &v4), DropReason::SpoofedMac),
        drop("a VLAN tag", ethernet(mac, PEER, 0x8100, &[&[0, 5, 8, 0], &v4[..]].concat()), DropReason::VlanTagged),
        drop("a service tag", ethernet(mac, PEER, 0x88a8, &[0; 40]), DropReason::VlanTagged),
        drop("LLDP", ethernet(Mac([1, 0x80, 0xc2, 0, 0, 14]), PEER, 0x88cc, &[0; 40]), DropReason::OtherEtherType),
        drop(
            "spanning tree, which has a length",
            ethernet(Mac([1, 0x80, 0xc2, 0, 0, 0]), PEER, 38, &[0x42; 38]),
            DropReason::OtherEtherType,
        ),
    ]
}

#[test]
fn most_packets_need_no_link() {
    for row in arp::rows().into_iter().chain(ndp::rows()).chain(other_rows()) {
        let plain = gatun::link::is_plain_packet(OUR_MAC, &row.frame);
        assert_eq!(plain, row.verdict == FrameVerdict::Packet, "{}", row.name);
    }
}

/// The destination of a frame and what kind of packet it has.
pub fn frame_head(frame: &[u8]) -> (Mac, Mac, u16) {
    let mac = |at: usize| Mac(frame[at..at + 6].try_into().expect("six bytes"));
    (mac(0), mac(6), u16::from_be_bytes([frame[12], frame[13]]))
}

#[test]
fn addresses_are_announced_three_times_a_second_apart() {
    let mut link = Link::new(Settings { routers: Vec::new(), ..settings() });
    let (vip, vip6) = (addr("203.0.113.10"), addr("2001:db8:f::10"));
    let start = Instant::from_secs(1);
    link.configure(start, &[vip, vip6], &[]);
    let own = [addr("10.20.0.2"), addr("fd20::2"), OUR_MAC.link_local(), vip, vip6];
    let expected: Vec<Vec<u8>> = own.iter().flat_map(|addr| announcement(*addr)).collect();
    assert_eq!(frames(&mut link), expected, "at once");
    for second in 1..=2 {
        link.handle_timeout(start + Duration::from_millis(second * 1000 - 1));
        assert_eq!(frames(&mut link).len(), 0, "before second {second}");
        assert_eq!(link.poll_timeout(), Some(start + Duration::from_secs(second)));
        link.handle_timeout(start + Duration::from_secs(second));
        assert_eq!(frames(&mut link), expected, "second {second}");
    }
    assert_eq!(link.poll_timeout(), None);

    // A VIP that is added is announced alone; one that goes is neither announced nor answered for.
    let now = Instant::from_secs(10);
    let new = addr("203.0.113.11");
    link.configure(now, &[vip, new], &[]);
    assert_eq!(frames(&mut link), announcement(new));
    link.configure(now, &[vip], &[]);
    assert_eq!((frames(&mut link).len(), link.poll_timeout()), (0, None), "it is gone again");
    let who_has = arp::request(PEER, "10.20.0.11", "203.0.113.11");
    assert_eq!(receive(&mut link, now, &who_has).0, FrameVerdict::Consumed);
}

pub fn announcement(addr: Addr) -> Vec<Vec<u8>> {
    if !addr.is_v4() {
        let text = addr.to_string();
        return vec![ndp::unsolicited(&text), mld::report(&[&text])];
    }
    let text = addr.to_string();
    let zero = Mac::ZERO;
    vec![
        arp::frame(Mac::BROADCAST, OUR_MAC, 1, (OUR_MAC, &text), (zero, &text)),
        arp::frame(Mac::BROADCAST, OUR_MAC, 2, (OUR_MAC, &text), (OUR_MAC, &text)),
    ]
}
