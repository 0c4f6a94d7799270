//! Any bytes as a day on the segment: frames, packets to send, reloads, and time. Whatever comes, the link keeps its bounds,
//! answers for its own addresses only, and never loses a packet without a reason.

use std::collections::VecDeque;
use std::time::Duration;

use gatun::link::{Bounds, FrameVerdict, Link, Mac, Prefix, Sent, Settings, is_plain_packet};
use gatun::time::Instant;
use gatun::verdict::DropReason;
use gatun::wire::{Addr, PacketBuf};

pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ROUTER: [u8; 4] = [10, 20, 0, 254];
const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);

pub fn run(bytes: &[u8]) {
    let mut day = Day::new();
    let mut input: VecDeque<u8> = bytes.iter().copied().collect();
    while day.step(&mut input) {}
    day.end();
}

struct Day {
    link: Link,
    now: Instant,
    /// Packets that wait, by what the link said.
    held: u64,
    router_known: bool,
}

impl Day {
    fn new() -> Day {
        let settings = Settings {
            mac: MAC,
            addresses: vec![Prefix { addr: Addr::from_v4([10, 20, 0, 2]), len: 24 }, Prefix { addr: v6(2), len: 64 }],
            routers: vec![Addr::from_v4(ROUTER), v6(254)],
            bounds: Bounds { entries: 8, queued_bytes: 4096 },
        };
        let mut day = Day { link: Link::new(settings), now: Instant::from_secs(1), held: 0, router_known: false };
        day.link.configure(day.now, &[vip(0), vip6(0)], &[Addr::from_v4([10, 20, 0, 11])]);
        day.after();
        day
    }

    /// Does one thing; `false` at the end of the input.
    fn step(&mut self, input: &mut VecDeque<u8>) -> bool {
        let Some(what) = input.pop_front() else { return false };
        let mut next = || input.pop_front().unwrap_or(0);
        match what % 8 {
            0 => {
                let len = usize::from(next());
                let frame: Vec<u8> = (0..len).map_while(|_| input.pop_front()).collect();
                self.receive(&frame);
            }
            1 => {
                let (operation, sender, target, mac) = (next(), next(), next(), next());
                self.receive(&arp(operation, sender, target, mac));
            }
            2 => {
                let (kind, target, flags, mac, wrong) = (next(), next(), next(), next(), next());
                self.receive(&ndp(kind, target, flags, mac, wrong));
            }
            3 | 4 => {
                let (family, host, len) = (next(), next(), next());
                self.send(family, host, len);
            }
            5 => {
                self.now = self.now + Duration::from_millis(u64::from(next()) * 50);
                self.link.handle_timeout(self.now);
            }
            6 => {
                let (vips, servers) = (next() % 4, next() % 4);
                let vips: Vec<Addr> = (0..vips).flat_map(|n| [vip(n), vip6(n)]).collect();
                let servers: Vec<Addr> = (0..servers).map(|n| Addr::from_v4([10, 20, 0, 11 + n])).collect();
                self.link.configure(self.now, &vips, &servers);
            }
            // The router answers: what follows must not make the link forget it.
            _ => {
                self.receive(&frame_arp(MAC, ROUTER_MAC, 2, ROUTER_MAC, ROUTER, [10, 20, 0, 2]));
            }
        }
        self.after();
        true
    }

    fn receive(&mut self, frame: &[u8]) {
        let mut buf = PacketBuf::with_capacity(4096);
        if !buf.replace(frame) {
            return;
        }
        let plain = is_plain_packet(MAC, frame);
        let before: u64 = self.link.drops().iter().sum();
        let verdict = self.link.handle_frame(self.now, &mut buf);
        assert_eq!(plain, verdict == FrameVerdict::Packet, "both ways of telling a packet agree");
        match verdict {
            FrameVerdict::Packet => assert_eq!(buf.packet(), &frame[14..]),
            FrameVerdict::Answer => {
                assert_eq!(buf.packet()[6..12], MAC.0, "we answer with our own MAC");
                assert_ne!(buf.packet()[..6], MAC.0, "and not to ourselves");
            }
            FrameVerdict::Consumed => {}
            FrameVerdict::Drop(reason) => {
                let after: u64 = self.link.drops().iter().sum();
                assert!(after > before, "{} is not counted", reason.word());
            }
        }
    }

    fn send(&mut self, family: u8, host: u8, len: u8) {
        let mut packet = vec![0; 40 + usize::from(len) * 4];
        match family % 2 {
            0 => {
                packet[0] = 0x45;
                packet[12..16].copy_from_slice(&[198, 51, 100, 2]);
                packet[16..20].copy_from_slice(&if host < 200 { [10, 20, 0, host] } else { [192, 0, 2, host] });
            }
            _ => {
                packet[0] = 0x60;
                packet[24..40].copy_from_slice(v6(host).octets());
            }
        }
        let mut buf = PacketBuf::from_packet(&packet);
        match self.link.transmit(self.now, &mut buf) {
            Sent::Frame => {
                assert_eq!(buf.packet()[14..], packet);
                assert_eq!(buf.packet()[6..12], MAC.0);
                assert_eq!(buf.packet()[0] & 1, 0, "a packet goes to one host");
            }
            Sent::Held => self.held += 1,
            Sent::Drop(_) => {}
        }
    }

    /// What must hold after everything.
    fn after(&mut self) {
        self.link.check_invariants();
        while let Some(frame) = self.link.poll_frame() {
            let frame = frame.packet();
            assert_eq!(frame[6..12], MAC.0);
            // Packets go to one host; what the link says itself is ARP, ICMPv6, or to many.
            let own =
                frame[0] & 1 != 0 || frame[12..14] == [8, 6] || (frame[12..14] == [0x86, 0xdd] && frame[20] == 58);
            if !own {
                self.held -= 1;
            }
        }
        while self.link.poll_returned().is_some() {}
        let neighbours = self.link.neighbours(self.now);
        assert!(neighbours.iter().filter(|neighbour| !neighbour.kept).count() <= 8);
        let router = neighbours.iter().find(|neighbour| neighbour.addr == Addr::from_v4(ROUTER));
        assert!(router.is_some_and(|router| router.kept), "the router is forgotten");
        self.router_known = router.is_some_and(|router| router.mac.is_some());
        // What waits, waits in the table; what no longer does was sent or counted.
        let queued: usize = neighbours.iter().map(|neighbour| neighbour.queued).sum();
        let lost = [DropReason::NeighbourQueueFull, DropReason::NeighbourUnreachable, DropReason::NeighbourEvicted];
        let dropped: u64 = lost.iter().map(|reason| self.link.drops()[*reason as usize]).sum();
        assert!(
            self.held >= queued as u64 && self.held <= queued as u64 + dropped,
            "a packet is lost without a reason"
        );
    }

    /// Time heals: with nothing going on, nobody is asked any more and nothing waits.
    fn end(mut self) {
        for _ in 0..10 {
            self.now = self.now + Duration::from_secs(1);
            self.link.handle_timeout(self.now);
            self.after();
        }
        assert_eq!(self.link.neighbours(self.now).iter().map(|n| n.queued).sum::<usize>(), 0);
    }
}

fn vip(number: u8) -> Addr {
    Addr::from_v4([203, 0, 113, 10 + number])
}

fn v6(host: u8) -> Addr {
    Addr::from_v6([0xfd, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host])
}

fn vip6(number: u8) -> Addr {
    Addr::from_v6([0x20, 1, 0xd, 0xb8, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16 + number])
}

fn frame_arp(dst: Mac, src: Mac, operation: u8, sender_mac: Mac, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [&dst.0[..], &src.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    [&head[..], &sender_mac.0, &sender, &[0; 6], &target].concat()
}

/// Mostly sensible ARP: the bytes choose among hosts of the segment, VIPs and the router.
fn arp(operation: u8, sender: u8, target: u8, mac: u8) -> Vec<u8> {
    let addr = |byte: u8| if byte < 250 { [10, 20, 0, byte] } else { [203, 0, 113, byte - 240] };
    let src = Mac([2, 0, 0, 0, 0, mac]);
    let sender_mac = if operation & 0x80 == 0 { src } else { Mac([mac; 6]) };
    let dst = if operation & 0x40 == 0 { MAC } else { Mac::BROADCAST };
    frame_arp(dst, src, operation & 3, sender_mac, addr(sender), addr(target))
}

/// Mostly valid neighbour discovery; each bit of `wrong` breaks something.
fn ndp(kind: u8, target: u8, flags: u8, mac: u8, wrong: u8) -> Vec<u8> {
    let (src, mac) = (v6(mac), Mac([2, 0, 0, 0, 0, mac]));
    let (dst, target) = (v6(2), if target < 250 { v6(target) } else { vip6(target - 250) });
    let option = if kind & 1 == 0 { 2 } else { 1 };
    let mut message = [&[134 + kind % 4, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], &[option, 1], &mac.0].concat();
    if wrong & 2 != 0 {
        message.truncate(usize::from(wrong >> 3));
    }
    let mut sum = 58 + message.len() as u32;
    for word in [src.octets(), dst.octets(), &message[..]].concat().chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    if message.len() >= 4 {
        message[2..4].copy_from_slice(&(!(sum as u16) ^ u16::from(wrong & 1)).to_be_bytes());
    }
    let hop_limit = if wrong & 4 == 0 { 255 } else { wrong };
    let header = [&[0x60, 0, 0, 0], &(message.len() as u16).to_be_bytes()[..], &[58, hop_limit]].concat();
    [&MAC.0[..], &mac.0, &[0x86, 0xdd], &header, src.octets(), dst.octets(), &message].concat()
}
