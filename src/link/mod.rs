//! The gateway as a host of its own on an Ethernet segment: frames in, packets out, and back. Pure like the engine, and
//! beside it: the engine knows no frames, this knows no flows.
//!
//! # Theory of operation
//!
//! What comes from the segment goes through [`Link::handle_frame`]. IP packets to our MAC are the engine's. ARP and
//! neighbour discovery are dealt with here: questions about our addresses (our own and the VIPs) are answered, and about
//! nothing else; answers feed the neighbour [`table`]. What the engine sends goes through [`Link::transmit`]: the neighbour
//! is the packet's `hop`, or a destination on one of our prefixes itself, or the router; its MAC comes from the table, or
//! the packet waits there.
//!
//! The methods come in families as the engine's do: `handle_*` takes a frame or the passing of time, `poll_*` asks what came
//! of it. After each call the caller sends what [`Link::poll_frame`] has, and hands what [`Link::poll_returned`] has to the
//! engine.
//!
//! A frame that is to be sent has its Ethernet header in front of the packet in its buffer. If the buffer's `wrap` is set,
//! the packet behind that header is still to be cut, and each piece gets the same header.
//!
//! # What is believed
//!
//! Neither ARP nor neighbour discovery has any authentication; what can be checked is. A claim to one of our own addresses
//! is never believed: it is counted, and answered with an announcement, once in [`DEFENCE`] (RFC 5227 section 2.4 c). Frames
//! from a MAC that no interface can have, or from our own, and ARP that says another sender than its frame are dropped.
//! Claims that nobody asked for change what is known of a neighbour, or servers and routers could not move; they never make
//! an entry.

mod arp;
mod ethernet;
mod mld;
mod ndp;
mod settings;
pub mod table;
mod unreachable;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

pub use ethernet::{LEN as HEADER_LEN, Mac, strip};
pub use settings::{Prefix, Settings};
pub use table::{Bounds, Neighbour, State};

use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf, ipv4, ipv6};
use arp::{Arp, Operation};
use ethernet::{Header, TYPE_ARP, TYPE_IPV4, TYPE_IPV6, TYPES_TAGGED, ethertype_of};
use ndp::Message;
use table::{Claim, Table, Way, Wish};

/// How often an address is announced, and how far apart (RFC 4861 section 10: MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER).
pub const ANNOUNCEMENTS: u8 = 3;
pub const PAUSE: Duration = Duration::from_secs(1);
/// How often a question about multicast groups is answered at most.
pub const REPORTS: Duration = Duration::from_secs(1);
/// DEFEND_INTERVAL of RFC 5227.
pub const DEFENCE: Duration = Duration::from_secs(10);
/// Errors for the engine that are kept for a caller that does not take them.
const MAX_RETURNED: usize = 1024;

/// What is to be done with the buffer after [`Link::handle_frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// It holds a packet for the engine, from its IP header on.
    Packet,
    /// It holds a frame that answers this one: send it.
    Answer,
    /// It is dealt with.
    Consumed,
    Drop(DropReason),
}

/// What is to be done with the buffer after [`Link::transmit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It holds a frame: send it.
    Frame,
    /// A copy waits for the neighbour's MAC; the buffer is free again.
    Held,
    Drop(DropReason),
}

/// Another host that claims an address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub addr: Addr,
    pub mac: Mac,
}

/// The gateway's end of a segment.
#[derive(Debug)]
pub struct Link {
    settings: Settings,
    /// Our own addresses and the VIPs, with when each was last defended.
    ours: HashMap<Addr, Option<Instant>>,
    table: Table,
    announcing: VecDeque<Announcing>,
    ready: VecDeque<PacketBuf>,
    returned: VecDeque<PacketBuf>,
    allowance: unreachable::Allowance,
    conflict: Option<Conflict>,
    reported: Option<Instant>,
    drops: [u64; DropReason::COUNT],
}

/// An address that is still to be announced; the queue is in the order of `due`.
#[derive(Debug)]
struct Announcing {
    addr: Addr,
    left: u8,
    due: Instant,
}

/// Whether this frame is a packet for the engine, and nothing that changes the link: what nearly every frame is, told
/// without the link's lock. `mac` is ours.
#[inline]
pub fn is_plain_packet(mac: Mac, frame: &[u8]) -> bool {
    let Some(header) = Header::parse(frame) else { return false };
    let packet = &frame[HEADER_LEN..];
    let version = packet.first().map(|byte| byte >> 4);
    let fits = match header.ethertype {
        TYPE_IPV4 => version == Some(4),
        TYPE_IPV6 => version == Some(6) && !ndp::is_ndp(packet),
        _ => false,
    };
    fits && header.dst == mac && header.src.is_unicast() && header.src != mac
}

impl Link {
    /// A link that has no address yet: [`Link::configure`] gives it those.
    pub fn new(settings: Settings) -> Link {
        Link {
            table: Table::new(settings.bounds),
            ours: HashMap::new(),
            announcing: VecDeque::new(),
            ready: VecDeque::new(),
            returned: VecDeque::new(),
            allowance: unreachable::Allowance::default(),
            conflict: None,
            reported: None,
            drops: [0; DropReason::COUNT],
            settings,
        }
    }

    /// The VIPs and the servers from now on. Addresses that are new are announced, our own the first time; routers and the
    /// servers of the segment are looked for, and kept in the neighbour table whatever strangers do.
    pub fn configure(&mut self, now: Instant, vips: &[Addr], servers: &[Addr]) {
        let known = std::mem::take(&mut self.ours);
        for addr in self.settings.own_addresses().chain(vips.iter().copied()) {
            let before = known.get(&addr).copied();
            if self.ours.insert(addr, before.flatten()).is_none() && before.is_none() {
                self.announcing.push_back(Announcing { addr, left: ANNOUNCEMENTS, due: now });
            }
        }
        self.announcing.retain(|announcing| self.ours.contains_key(&announcing.addr));
        self.announcing.make_contiguous().sort_by_key(|announcing| announcing.due);
        let on_segment = servers.iter().copied().filter(|server| self.settings.is_on_segment(*server));
        let kept: Vec<Addr> = self.settings.routers.iter().copied().chain(on_segment).collect();
        self.table.keep(now, &kept);
        self.fulfil(now);
        self.handle_timeout(now);
    }

    /// Decides on a frame from the segment.
    pub fn handle_frame(&mut self, now: Instant, buf: &mut PacketBuf) -> FrameVerdict {
        let verdict = self.sort(now, buf).unwrap_or_else(FrameVerdict::Drop);
        if let FrameVerdict::Drop(reason) = verdict {
            self.drops[reason as usize] += 1;
        }
        self.fulfil(now);
        verdict
    }

    /// Puts the Ethernet header in front of a packet, or keeps a copy until the neighbour's MAC is known.
    pub fn transmit(&mut self, now: Instant, buf: &mut PacketBuf) -> Sent {
        let sent = self.send(now, buf).unwrap_or_else(Sent::Drop);
        if let Sent::Drop(reason) = sent {
            self.drops[reason as usize] += 1;
        }
        self.fulfil(now);
        sent
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.table.handle_timeout(now);
        self.fulfil(now);
        while self.announcing.front().is_some_and(|next| next.due <= now) {
            let Some(announcing) = self.announcing.pop_front() else { break };
            self.announce(announcing.addr);
            if announcing.left > 1 {
                self.announcing.push_back(Announcing { left: announcing.left - 1, due: now + PAUSE, ..announcing });
            }
        }
    }

    /// When [`Link::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout().into_iter().chain(self.announcing.front().map(|next| next.due)).min()
    }

    /// The next frame to send: a question, an announcement, or a packet that waited.
    pub fn poll_frame(&mut self) -> Option<PacketBuf> {
        self.ready.pop_front()
    }

    /// The next packet for the engine, as if it had come from the segment: an error about a packet whose neighbour does not
    /// answer.
    pub fn poll_returned(&mut self) -> Option<PacketBuf> {
        self.returned.pop_front()
    }

    /// The last conflict since the last call.
    pub fn poll_conflict(&mut self) -> Option<Conflict> {
        self.conflict.take()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// By [`DropReason`].
    pub fn drops(&self) -> &[u64; DropReason::COUNT] {
        &self.drops
    }

    pub fn neighbours(&self, now: Instant) -> Vec<Neighbour> {
        self.table.neighbours(now)
    }

    /// Routers and servers of the segment that do not answer, in order.
    pub fn missing(&self) -> Vec<Addr> {
        let mut missing: Vec<Addr> = self.table.missing().collect();
        missing.sort_unstable();
        missing
    }

    pub fn neighbour_count(&self) -> usize {
        self.table.len()
    }

    /// Panics when the link contradicts itself; for tests.
    pub fn check_invariants(&self) {
        self.table.check_invariants();
        assert!(self.returned.len() <= MAX_RETURNED);
        assert!(self.announcing.iter().is_sorted_by_key(|announcing| announcing.due));
    }

    fn sort(&mut self, now: Instant, buf: &mut PacketBuf) -> Result<FrameVerdict, DropReason> {
        let header = Header::parse(buf.packet()).ok_or(DropReason::BadFrame)?;
        let mac = self.settings.mac;
        if !header.src.is_unicast() || header.src == mac {
            return Err(DropReason::SpoofedMac);
        }
        if header.dst != mac && !header.dst.is_multicast() {
            return Err(DropReason::OtherMac);
        }
        match header.ethertype {
            TYPE_ARP => self.arp(now, &header, buf),
            TYPE_IPV4 | TYPE_IPV6 => {
                if !strip(buf) {
                    return Err(DropReason::BadFrame);
                }
                let version = if header.ethertype == TYPE_IPV4 { 4 } else { 6 };
                match buf.packet().first() {
                    Some(first) if first >> 4 == version => {}
                    _ => return Err(DropReason::BadFrame),
                }
                if version == 6 && ndp::is_ndp(buf.packet()) {
                    return self.ndp(now, &header, buf);
                }
                if version == 6 && header.dst != mac && mld::is_query(buf.packet()) {
                    self.report_groups(now);
                    return Ok(FrameVerdict::Consumed);
                }
                if header.dst == mac { Ok(FrameVerdict::Packet) } else { Err(DropReason::LinkBroadcast) }
            }
            tagged if TYPES_TAGGED.contains(&tagged) => Err(DropReason::VlanTagged),
            _ => Err(DropReason::OtherEtherType),
        }
    }

    fn arp(&mut self, now: Instant, header: &Header, buf: &mut PacketBuf) -> Result<FrameVerdict, DropReason> {
        let Some(arp) = Arp::parse(&buf.packet()[HEADER_LEN..])? else { return Ok(FrameVerdict::Consumed) };
        // The frame's source is not ours, as has been seen.
        if arp.sender_mac != header.src {
            return Err(DropReason::SpoofedMac);
        }
        if self.ours.contains_key(&arp.sender) {
            return Err(self.defend(now, arp.sender, arp.sender_mac));
        }
        let solicited = arp.operation == Operation::Reply && header.dst == self.settings.mac;
        let claim = Claim { mac: arp.sender_mac, solicited, overrides: true, locked: !arp.is_gratuitous() };
        self.table.learn(now, arp.sender, claim);
        if arp.operation == Operation::Reply || !self.ours.contains_key(&arp.target) {
            return Ok(FrameVerdict::Consumed);
        }
        let answer = Arp {
            operation: Operation::Reply,
            sender_mac: self.settings.mac,
            sender: arp.target,
            target_mac: arp.sender_mac,
            target: arp.sender,
        };
        Ok(answered(buf, &answer.frame(arp.sender_mac)))
    }

    fn ndp(&mut self, now: Instant, header: &Header, buf: &mut PacketBuf) -> Result<FrameVerdict, DropReason> {
        let Some(ndp) = ndp::parse(buf.packet(), &buf.vnet)? else { return Ok(FrameVerdict::Consumed) };
        let ours = self.ours.contains_key(&ndp.target);
        let mac = match ndp.message {
            Message::Solicitation { mac } | Message::Advertisement { mac, .. } => mac,
        };
        if mac.is_some_and(|mac| !mac.is_unicast() || mac == self.settings.mac) {
            return Err(DropReason::SpoofedMac);
        }
        match ndp.message {
            Message::Solicitation { .. } if self.ours.contains_key(&ndp.src) => {
                Err(self.defend(now, ndp.src, mac.unwrap_or(header.src)))
            }
            Message::Solicitation { .. } => {
                if let Some(mac) = mac {
                    let claim = Claim { mac, solicited: false, overrides: true, locked: false };
                    self.table.learn(now, ndp.src, claim);
                }
                if !ours {
                    return Ok(FrameVerdict::Consumed);
                }
                // Who tests whether our address is free has none to be answered at (RFC 4861 section 7.2.4).
                let to = (ndp.src != Addr::UNSPECIFIED).then_some((mac.unwrap_or(header.src), ndp.src));
                Ok(answered(buf, &ndp::advertisement(self.settings.mac, ndp.target, to)))
            }
            Message::Advertisement { .. } if ours => Err(self.defend(now, ndp.target, mac.unwrap_or(header.src))),
            Message::Advertisement { solicited, overrides, .. } => {
                // Without the option it says that the neighbour lives where we know it (RFC 4861 section 7.2.5).
                if let Some(mac) = mac.or_else(|| self.table.mac(ndp.target)) {
                    let solicited = solicited && header.dst == self.settings.mac;
                    self.table.learn(now, ndp.target, Claim { mac, solicited, overrides, locked: false });
                }
                Ok(FrameVerdict::Consumed)
            }
        }
    }

    /// Somebody else says that `addr`, which is ours, is his.
    fn defend(&mut self, now: Instant, addr: Addr, mac: Mac) -> DropReason {
        self.conflict = Some(Conflict { addr, mac });
        if let Some(defended) = self.ours.get_mut(&addr)
            && defended.is_none_or(|last| now.since(last) >= DEFENCE)
        {
            *defended = Some(now);
            self.announce(addr);
        }
        DropReason::AddressConflict
    }

    fn announce(&mut self, addr: Addr) {
        let mac = self.settings.mac;
        if !addr.is_v4() {
            self.ready.push_back(PacketBuf::from_packet(&ndp::advertisement(mac, addr, None)));
            self.ready
                .extend(mld::reports(mac, &[ndp::solicited_node(addr)]).map(|frame| PacketBuf::from_packet(&frame)));
            return;
        }
        // Some neighbours heed only the request, some only the reply.
        for (operation, target_mac) in [(Operation::Request, Mac::ZERO), (Operation::Reply, mac)] {
            let arp = Arp { operation, sender_mac: mac, sender: addr, target_mac, target: addr };
            self.ready.push_back(PacketBuf::from_packet(&arp.frame(Mac::BROADCAST)));
        }
    }

    /// Somebody asks who listens to what: we to the groups that neighbours ask for our addresses in.
    fn report_groups(&mut self, now: Instant) {
        if self.reported.is_some_and(|last| now.since(last) < REPORTS) {
            return;
        }
        self.reported = Some(now);
        let groups: BTreeSet<Addr> =
            self.ours.keys().filter(|addr| !addr.is_v4()).map(|addr| ndp::solicited_node(*addr)).collect();
        let groups: Vec<Addr> = groups.into_iter().collect();
        let frames = mld::reports(self.settings.mac, &groups).map(|frame| PacketBuf::from_packet(&frame));
        self.ready.extend(frames);
    }

    fn send(&mut self, now: Instant, buf: &mut PacketBuf) -> Result<Sent, DropReason> {
        let (hop, ethertype) = self.next_hop(buf)?;
        match self.table.look_up(now, hop, buf) {
            Way::Send(mac) => {
                let header = Header { dst: mac, src: self.settings.mac, ethertype };
                put_in_front(buf, &header).then_some(Sent::Frame).ok_or(DropReason::BadFrame)
            }
            Way::Wait => Ok(Sent::Held),
            Way::Refuse(reason) => {
                if reason == DropReason::NeighbourUnreachable {
                    self.give_back(now, hop, buf);
                }
                Err(reason)
            }
        }
    }

    /// The neighbour that the packet goes to, and its EtherType.
    fn next_hop(&self, buf: &PacketBuf) -> Result<(Addr, u16), DropReason> {
        let dst = match buf.wrap {
            Some(wrap) => wrap.outer.dst,
            None => destination(buf.packet()).ok_or(DropReason::NotIp)?,
        };
        let hop = match buf.hop {
            Some(hop) => hop,
            None if self.ours.contains_key(&dst) => return Err(DropReason::NoRoute),
            None => self.route(dst).ok_or(DropReason::NoRoute)?,
        };
        Ok((hop, ethertype_of(dst)))
    }

    fn route(&self, dst: Addr) -> Option<Addr> {
        if dst.is_multicast_or_broadcast() {
            return None;
        }
        if self.settings.is_on_segment(dst) {
            return Some(dst);
        }
        let mut routers = self.settings.routers.iter().copied().filter(|router| router.is_v4() == dst.is_v4());
        let first = routers.next()?;
        // Another one only while the first is not there.
        match self.table.mac(first) {
            Some(_) => Some(first),
            None => routers.find(|router| self.table.mac(*router).is_some()).or(Some(first)),
        }
    }

    /// Does what the neighbour table wants.
    fn fulfil(&mut self, now: Instant) {
        while let Some(wish) = self.table.poll_wish() {
            match wish {
                Wish::Solicit { addr, at } => self.solicit(addr, at),
                Wish::Send { to, mut buf } => {
                    let ethertype = match buf.wrap {
                        Some(wrap) => Some(ethertype_of(wrap.outer.dst)),
                        None => destination(buf.packet()).map(ethertype_of),
                    };
                    let header = ethertype.map(|ethertype| Header { dst: to, src: self.settings.mac, ethertype });
                    if header.is_some_and(|header| put_in_front(&mut buf, &header)) {
                        self.ready.push_back(buf);
                    }
                }
                Wish::Return { addr, buf, reason } => {
                    self.drops[reason as usize] += 1;
                    if reason == DropReason::NeighbourUnreachable {
                        self.give_back(now, addr, &buf);
                    }
                }
            }
        }
    }

    fn solicit(&mut self, addr: Addr, at: Option<Mac>) {
        let mac = self.settings.mac;
        if !addr.is_v4() {
            let frame = ndp::solicitation(mac, mac.link_local(), addr, at);
            return self.ready.push_back(PacketBuf::from_packet(&frame));
        }
        let Some(sender) = self.settings.source_towards(addr) else { return };
        let arp = Arp { operation: Operation::Request, sender_mac: mac, sender, target_mac: Mac::ZERO, target: addr };
        self.ready.push_back(PacketBuf::from_packet(&arp.frame(at.unwrap_or(Mac::BROADCAST))));
    }

    /// Tells the engine, and so the packet's sender, that the neighbour is not there.
    fn give_back(&mut self, now: Instant, neighbour: Addr, buf: &PacketBuf) {
        if self.returned.len() >= MAX_RETURNED || !self.allowance.take(now) {
            return;
        }
        // The neighbour's own address if we have none of that family: the engine puts the VIP in its place in any case.
        let source = destination(buf.packet()).and_then(|dst| self.settings.source_towards(dst));
        self.returned.extend(unreachable::error(buf.packet(), source.unwrap_or(neighbour)));
    }
}

fn answered(buf: &mut PacketBuf, frame: &[u8]) -> FrameVerdict {
    if buf.replace(frame) { FrameVerdict::Answer } else { FrameVerdict::Consumed }
}

/// What is cut later has its offsets counted from the packet's first byte until then.
fn put_in_front(buf: &mut PacketBuf, header: &Header) -> bool {
    if buf.wrap.is_none() {
        return ethernet::prepend(buf, &header.emit());
    }
    buf.prepend(HEADER_LEN).map(|room| room.copy_from_slice(&header.emit())).is_some()
}

fn destination(packet: &[u8]) -> Option<Addr> {
    match packet.first()? >> 4 {
        4 => packet.get(ipv4::DST..)?.first_chunk().copied().map(Addr::from_v4),
        6 => packet.get(ipv6::DST..)?.first_chunk().copied().map(Addr::from_v6),
        _ => None,
    }
}
