//! Neighbour discovery frames (RFC 4861), built by etherparse.

use std::net::Ipv6Addr;

use etherparse::{Icmpv6Header, Icmpv6Type, PacketBuilder};
use gatun::link::{FrameVerdict, Mac};
use gatun::verdict::DropReason;

use crate::{OTHER, OUR_MAC, PEER, Row, addr, announcement, answer, drop, ethernet, frames, link, receive, row};

pub const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

/// A message as it stands in a packet; what is wrong with it is done to the fields.
#[derive(Clone)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    pub flags: u8,
    pub src: String,
    pub dst: String,
    pub target: String,
    pub options: Vec<u8>,
    pub hop_limit: u8,
}

impl Message {
    pub fn packet(&self) -> Vec<u8> {
        let ip = |text: &str| text.parse::<Ipv6Addr>().expect(text).octets();
        let header = Icmpv6Type::Unknown { type_u8: self.kind, code_u8: self.code, bytes5to8: [self.flags, 0, 0, 0] };
        let payload = [&ip(&self.target)[..], &self.options].concat();
        let header =
            Icmpv6Header::with_checksum(header, ip(&self.src), ip(&self.dst), &payload).expect("a short message");
        let builder = PacketBuilder::ipv6(ip(&self.src), ip(&self.dst), self.hop_limit).icmpv6(header.icmp_type);
        let mut packet = Vec::new();
        builder.write(&mut packet, &payload).expect("a Vec takes everything");
        packet
    }

    pub fn frame(&self, dst: Mac, src: Mac) -> Vec<u8> {
        ethernet(dst, src, 0x86dd, &self.packet())
    }
}

fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1], &mac.0[..]].concat()
}

/// The multicast group of an address, and its MAC.
pub fn group(target: &str) -> (String, Mac) {
    let o = addr(target).octets().to_owned();
    (format!("ff02::1:ff{:02x}:{:02x}{:02x}", o[13], o[14], o[15]), Mac([0x33, 0x33, 0xff, o[13], o[14], o[15]]))
}

fn ask(src: &str, target: &str, mac: Option<Mac>) -> Message {
    let options = mac.map(|mac| option(SOURCE, mac)).unwrap_or_default();
    let (src, dst, target) = (src.into(), group(target).0, target.into());
    Message { kind: 135, code: 0, flags: 0, src, dst, target, options, hop_limit: 255 }
}

/// "Who has `target`?", from `PEER`.
pub fn solicitation(src: &str, target: &str) -> Vec<u8> {
    ask(src, target, Some(PEER)).frame(group(target).1, PEER)
}

/// What we ask ourselves: everybody, or the one at `at`.
pub fn our_question(target: &str, at: Option<Mac>) -> Vec<u8> {
    let own = OUR_MAC.link_local().to_string();
    match at {
        None => ask(&own, target, Some(OUR_MAC)).frame(group(target).1, OUR_MAC),
        Some(at) => Message { dst: target.into(), ..ask(&own, target, Some(OUR_MAC)) }.frame(at, OUR_MAC),
    }
}

fn tell(target: &str, mac: Option<Mac>, flags: u8) -> Message {
    let options = mac.map(|mac| option(TARGET, mac)).unwrap_or_default();
    let dst = OUR_MAC.link_local().to_string();
    Message { kind: 136, code: 0, flags, src: target.into(), dst, target: target.into(), options, hop_limit: 255 }
}

/// "`target` is at `mac`", to us, with these flags.
pub fn advertisement(target: &str, mac: Mac, flags: u8) -> Vec<u8> {
    tell(target, Some(mac), flags).frame(OUR_MAC, mac)
}

/// Our announcement of `target`: router and override.
pub fn unsolicited(target: &str) -> Vec<u8> {
    Message { dst: "ff02::1".into(), ..tell(target, Some(OUR_MAC), 0xa0) }.frame(ALL_NODES, OUR_MAC)
}

/// Our answer: router, solicited and override.
fn our_answer(target: &str, to: &str, at: Mac) -> Vec<u8> {
    Message { dst: to.into(), ..tell(target, Some(OUR_MAC), 0xe0) }.frame(at, OUR_MAC)
}

pub fn rows() -> Vec<Row> {
    let vip = "2001:db8:f::10";
    let (multicast, at) = group(vip);
    let good = ask("fd20::254", vip, Some(PEER));
    let probe = ask("::", vip, None);
    let to_us = |message: &Message| message.frame(at, PEER);
    let mut bad_checksum = to_us(&good);
    *bad_checksum.last_mut().expect("an option") ^= 1;
    let cut = |len: usize| {
        let mut frame = to_us(&good);
        frame.truncate(frame.len() - len);
        // The length in the IPv6 header goes with it: the message itself is short.
        frame[19] -= len as u8;
        frame
    };
    let unicast = Message { dst: vip.into(), ..good.clone() };
    let bad = DropReason::BadNdp;
    let conflict = DropReason::AddressConflict;
    vec![
        answer("who has the VIP?", to_us(&good), our_answer(vip, "fd20::254", PEER)),
        answer(
            "who has our own address?",
            solicitation("fd20::254", "fd20::2"),
            our_answer("fd20::2", "fd20::254", PEER),
        ),
        answer(
            "who has our link-local address?",
            solicitation("fe80::9", &OUR_MAC.link_local().to_string()),
            our_answer(&OUR_MAC.link_local().to_string(), "fe80::9", PEER),
        ),
        answer(
            "asked directly, as a neighbour probes",
            unicast.frame(OUR_MAC, PEER),
            our_answer(vip, "fd20::254", PEER),
        ),
        answer(
            "asked directly without an option: the answer goes back to the frame's sender",
            Message { options: vec![], ..unicast.clone() }.frame(OUR_MAC, PEER),
            our_answer(vip, "fd20::254", PEER),
        ),
        answer(
            "the option says where to, not the frame",
            ask("fd20::254", vip, Some(OTHER)).frame(at, PEER),
            our_answer(vip, "fd20::254", OTHER),
        ),
        answer(
            "an unknown option is skipped",
            to_us(&Message {
                options: [&[14, 1, 0, 0, 0, 0, 0, 0], &option(SOURCE, PEER)[..]].concat(),
                ..good.clone()
            }),
            our_answer(vip, "fd20::254", PEER),
        ),
        answer("somebody tests whether our VIP is free", to_us(&probe), unsolicited(vip)),
        row("who has somebody else's address?", solicitation("fd20::254", "fd20::11"), FrameVerdict::Consumed),
        row(
            "somebody tests an address that is not ours",
            ask("::", "fd20::11", None).frame(group("fd20::11").1, PEER),
            FrameVerdict::Consumed,
        ),
        row("an advertisement that nobody asked for", advertisement("fd20::11", PEER, 0x60), FrameVerdict::Consumed),
        row(
            "a router's advertisement",
            Message { kind: 134, dst: "ff02::1".into(), ..good.clone() }.frame(ALL_NODES, PEER),
            FrameVerdict::Consumed,
        ),
        row("a redirect", Message { kind: 137, ..unicast.clone() }.frame(OUR_MAC, PEER), FrameVerdict::Consumed),
        drop("an advertisement of our VIP", advertisement(vip, PEER, 0x20), conflict),
        drop("a question in the name of our address", solicitation("fd20::2", "fd20::11"), conflict),
        drop("a question with our MAC", ask("fd20::254", vip, Some(OUR_MAC)).frame(at, PEER), DropReason::SpoofedMac),
        drop(
            "a question with the MAC of a group",
            ask("fd20::254", vip, Some(ALL_NODES)).frame(at, PEER),
            DropReason::SpoofedMac,
        ),
        drop("a question with no MAC", ask("fd20::254", vip, Some(Mac::ZERO)).frame(at, PEER), DropReason::SpoofedMac),
        drop("it came through a router", to_us(&Message { hop_limit: 254, ..good.clone() }), bad),
        drop("a wrong checksum", bad_checksum, bad),
        drop("a wrong code", to_us(&Message { code: 1, ..good.clone() }), bad),
        drop("too short", cut(9), bad),
        drop("half an option", cut(1), bad),
        drop("the frame ends before the packet", to_us(&good)[..80].to_vec(), bad),
        drop(
            "an option of length zero",
            to_us(&Message { options: vec![1, 0, 0, 0, 0, 0, 0, 0], ..good.clone() }),
            bad,
        ),
        drop(
            "an option that goes on behind the end",
            to_us(&Message { options: vec![1, 2, 0, 0, 0, 0, 0, 0], ..good.clone() }),
            bad,
        ),
        drop("a multicast target", to_us(&Message { target: multicast.clone(), ..good.clone() }), bad),
        drop("a multicast source", to_us(&Message { src: "ff02::9".into(), ..good.clone() }), bad),
        drop("a test of an address with a MAC", ask("::", vip, Some(PEER)).frame(at, PEER), bad),
        drop(
            "a test of an address to one host",
            Message { dst: vip.into(), ..probe.clone() }.frame(OUR_MAC, PEER),
            bad,
        ),
        drop(
            "an answer to everybody that says it was asked for",
            Message { dst: "ff02::1".into(), ..tell("fd20::11", Some(PEER), 0x40) }.frame(ALL_NODES, PEER),
            bad,
        ),
        drop(
            "an advertisement from nowhere",
            Message { src: "::".into(), ..tell("fd20::11", Some(PEER), 0x20) }.frame(OUR_MAC, PEER),
            bad,
        ),
    ]
}

#[test]
fn a_conflict_is_answered() {
    let (mut link, now) = link();
    receive(&mut link, now, &advertisement("2001:db8:f::10", PEER, 0x20));
    assert_eq!(frames(&mut link), announcement(addr("2001:db8:f::10")));
    receive(&mut link, now, &advertisement("2001:db8:f::10", PEER, 0x20));
    assert_eq!(frames(&mut link).len(), 0);
}

#[test]
fn a_message_whose_checksum_is_left_to_the_device_is_believed() {
    let (mut link, now) = link();
    let mut frame = solicitation("fd20::254", "2001:db8:f::10");
    frame[14 + 40 + 2] ^= 0x55;
    let mut buf = gatun::wire::PacketBuf::with_capacity(2048);
    assert!(buf.replace(&frame));
    buf.vnet = gatun::wire::VnetHdr::partial(14 + 40, 2);
    assert_eq!(link.handle_frame(now, &mut buf), FrameVerdict::Answer);
    assert_eq!(buf.vnet, gatun::wire::VnetHdr::default(), "the answer is complete");
}
