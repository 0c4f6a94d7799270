//! ARP frames, byte by byte (RFC 826, RFC 5227).

use std::net::Ipv4Addr;
use std::time::Duration;

use gatun::link::{Conflict, FrameVerdict, Mac};
use gatun::verdict::DropReason;

use crate::{OTHER, OUR_MAC, PEER, Row, addr, announcement, answer, drop, ethernet, frames, link, receive, row};

/// A frame with an ARP packet: operation, sender, target.
pub fn frame(dst: Mac, src: Mac, operation: u8, sender: (Mac, &str), target: (Mac, &str)) -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv4Addr>().expect(text).octets();
    let packet =
        [&[0, 1, 8, 0, 6, 4, 0, operation], &sender.0.0[..], &ip(sender.1), &target.0.0, &ip(target.1)].concat();
    ethernet(dst, src, 0x0806, &packet)
}

/// "Who has `target`? Tell `sender`."
pub fn request(mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    frame(Mac::BROADCAST, mac, 1, (mac, sender), (Mac::ZERO, target))
}

/// "`sender` is at `mac`", to us.
pub fn reply(mac: Mac, sender: &str) -> Vec<u8> {
    frame(OUR_MAC, mac, 2, (mac, sender), (OUR_MAC, "10.20.0.2"))
}

fn our_answer(address: &str, to: &str) -> Vec<u8> {
    frame(PEER, OUR_MAC, 2, (OUR_MAC, address), (PEER, to))
}

pub fn rows() -> Vec<Row> {
    let edited = |at: usize, byte: u8| {
        let mut frame = request(PEER, "10.20.0.254", "203.0.113.10");
        frame[14 + at] = byte;
        frame
    };
    let ask = |target| request(PEER, "10.20.0.254", target);
    let mut padded = ask("203.0.113.10");
    padded.resize(60, 0xee);
    let unicast = frame(OUR_MAC, PEER, 1, (PEER, "10.20.0.254"), (OUR_MAC, "203.0.113.10"));
    let bad = DropReason::BadArp;
    vec![
        answer("who has the VIP?", ask("203.0.113.10"), our_answer("203.0.113.10", "10.20.0.254")),
        answer("who has our own address?", ask("10.20.0.2"), our_answer("10.20.0.2", "10.20.0.254")),
        answer("a frame with padding", padded, our_answer("203.0.113.10", "10.20.0.254")),
        answer("asked directly, as a neighbour probes", unicast, our_answer("203.0.113.10", "10.20.0.254")),
        answer(
            "a probe: somebody wants our address for himself",
            request(PEER, "0.0.0.0", "203.0.113.10"),
            our_answer("203.0.113.10", "0.0.0.0"),
        ),
        row("who has somebody else's address?", ask("10.20.0.11"), FrameVerdict::Consumed),
        row("who has a VIP that is none of ours?", ask("203.0.113.99"), FrameVerdict::Consumed),
        row("an announcement of somebody else", request(PEER, "10.20.0.11", "10.20.0.11"), FrameVerdict::Consumed),
        row("an answer that nobody asked for", reply(PEER, "10.20.0.11"), FrameVerdict::Consumed),
        row("reverse ARP", edited(7, 3), FrameVerdict::Consumed),
        drop("an announcement of our VIP", request(PEER, "203.0.113.10", "203.0.113.10"), DropReason::AddressConflict),
        drop(
            "a question in the name of our VIP",
            request(PEER, "203.0.113.10", "10.20.0.11"),
            DropReason::AddressConflict,
        ),
        drop("an answer in the name of our address", reply(PEER, "10.20.0.2"), DropReason::AddressConflict),
        drop(
            "a sender that is not the frame's",
            frame(Mac::BROADCAST, PEER, 1, (OTHER, "10.20.0.254"), (Mac::ZERO, "203.0.113.10")),
            DropReason::SpoofedMac,
        ),
        drop(
            "a sender without a MAC",
            frame(Mac::BROADCAST, PEER, 1, (Mac::ZERO, "10.20.0.254"), (Mac::ZERO, "203.0.113.10")),
            DropReason::SpoofedMac,
        ),
        drop(
            "a sender with the MAC of a group",
            frame(OUR_MAC, Mac([1; 6]), 2, (Mac([1; 6]), "10.20.0.254"), (OUR_MAC, "10.20.0.2")),
            DropReason::SpoofedMac,
        ),
        drop("our own question, back again", request(OUR_MAC, "10.20.0.2", "10.20.0.11"), DropReason::SpoofedMac),
        drop(
            "a question to somebody else",
            frame(OTHER, PEER, 1, (PEER, "10.20.0.254"), (Mac::ZERO, "203.0.113.10")),
            DropReason::OtherMac,
        ),
        drop("cut off", ask("203.0.113.10")[..41].to_vec(), bad),
        drop("another kind of link", edited(1, 24), bad),
        drop("another kind of address", edited(2, 9), bad),
        drop("a MAC of another length", edited(4, 8), bad),
        drop("an address of another length", edited(5, 16), bad),
        drop("no operation", edited(7, 0), bad),
        drop("a multicast sender", request(PEER, "224.0.0.1", "203.0.113.10"), bad),
        drop("a loopback sender", request(PEER, "127.0.0.1", "203.0.113.10"), bad),
        drop("a multicast target", ask("224.0.0.1"), bad),
    ]
}

#[test]
fn a_conflict_is_answered_once_in_ten_seconds() {
    let (mut link, start) = link();
    let claim = request(PEER, "203.0.113.10", "203.0.113.10");
    let conflict = FrameVerdict::Drop(DropReason::AddressConflict);
    for millis in [0, 1, 5000, 9999] {
        let now = start + Duration::from_millis(millis);
        assert_eq!(receive(&mut link, now, &claim).0, conflict);
        let expected = if millis == 0 { announcement(addr("203.0.113.10")) } else { Vec::new() };
        assert_eq!(frames(&mut link), expected, "at {millis} ms");
    }
    assert_eq!(link.poll_conflict(), Some(Conflict { addr: addr("203.0.113.10"), mac: PEER }));
    assert_eq!(link.poll_conflict(), None);
    // Another address has its own ten seconds; so has the first one after them.
    let now = start + Duration::from_secs(10);
    assert_eq!(receive(&mut link, now, &reply(PEER, "10.20.0.2")).0, conflict);
    assert_eq!(frames(&mut link), announcement(addr("10.20.0.2")));
    assert_eq!(receive(&mut link, now, &claim).0, conflict);
    assert_eq!(frames(&mut link), announcement(addr("203.0.113.10")));
    assert_eq!(link.drops()[DropReason::AddressConflict as usize], 6);
}
