//! One helped flow: its packets are put in order for the helper, and what the helper replaced is carried out.

use super::sequence::{Stream, distance};
use super::{Desk, Edit, Helper};
use crate::flow::Sender;
use crate::verdict::DropReason;
use crate::wire::{PacketBuf, Transport, View, segment, tcp};

/// How far an acknowledgement that is believed may lie from what has been sent: control connections carry little.
const WINDOW: i32 = 1 << 20;

/// A helper at work on a flow.
pub struct Session {
    helper: Box<dyn Helper>,
    /// By [`Sender`].
    ways: [Way; 2],
    is_left_alone: bool,
}

/// What one end sends.
struct Way {
    stream: Stream,
    /// The number of the first byte that has not been read.
    next: u32,
    /// The last byte that was read.
    last: u8,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The packet as its sender numbers it, with the acknowledgement in the numbers of whom it is for: for the flow's record.
    pub sent: View,
    /// It carries other bytes now, more or fewer than before.
    pub is_changed: bool,
}

impl Session {
    /// `starts`: the number of the first byte of each end, by [`Sender`].
    pub fn new(helper: Box<dyn Helper>, starts: [u32; 2]) -> Session {
        let ways = starts.map(|next| Way { stream: Stream::default(), next, last: 0 });
        Session { helper, ways, is_left_alone: false }
    }

    /// Lets the helper read a packet of its flow from `sender`, and changes it accordingly.
    pub fn handle(
        &mut self,
        buf: &mut PacketBuf,
        view: &View,
        sender: Sender,
        desk: &mut Desk<'_>,
    ) -> Result<Outcome, DropReason> {
        match view.transport {
            Transport::Tcp(header) => self.segment(buf, view, &header, sender, desk),
            Transport::Udp(_) => {
                let datagram = buf.packet().get(view.l4 + crate::wire::udp::LEN..view.len).unwrap_or_default();
                if view.fragment.is_none() {
                    self.helper.read(sender, datagram, desk);
                }
                Ok(Outcome { sent: *view, is_changed: false })
            }
            _ => Ok(Outcome { sent: *view, is_changed: false }),
        }
    }

    /// What `sender`'s number `seq` is to the other end.
    pub fn place(&self, sender: Sender, seq: u32) -> u32 {
        self.ways[sender as usize].stream.place(seq)
    }

    fn segment(
        &mut self,
        buf: &mut PacketBuf,
        view: &View,
        header: &tcp::Header,
        sender: Sender,
        desk: &mut Desk<'_>,
    ) -> Result<Outcome, DropReason> {
        let at = header.seq.wrapping_add(u32::from(header.has(tcp::SYN)));
        if !self.is_left_alone && (header.has(tcp::FIN) || !segment::payload(buf.packet(), view).is_empty()) {
            self.read(buf, view, at, sender, desk)?;
        }
        let acked = self.acknowledge(buf, view, header, sender);
        let stream = &self.ways[sender as usize].stream;
        let mut is_changed = false;
        let mut seq = header.seq;
        if !stream.is_untouched() {
            let place = stream.place(at);
            seq = place.wrapping_sub(u32::from(header.has(tcp::SYN)));
            if let Some(pointer) = segment::urgent(buf.packet(), view) {
                let pointer = stream.place(at.wrapping_add(u32::from(pointer))).wrapping_sub(place);
                segment::set_urgent(buf, view, u16::try_from(pointer).unwrap_or(u16::MAX));
            }
            if let Some(mut bytes) = stream.rewritten(at, segment::payload(buf.packet(), view)) {
                if view.fragment.is_some() || !segment::has_right_sum(buf, view) {
                    return Err(DropReason::Unreadable);
                }
                if let (true, Some(before)) = (bytes.is_empty(), stream.before(at)) {
                    // All of it waits. A byte that the receiver has already makes it say so (RFC 9293 section 3.10.7.4),
                    // and what it says acknowledges what waits.
                    bytes.push(before);
                    seq = seq.wrapping_sub(1);
                }
                is_changed = true;
                if !segment::set_payload(buf, view, &bytes) {
                    return Err(DropReason::Unreadable);
                }
            }
        }
        if (seq, acked.ack) != (header.seq, header.ack) {
            segment::set_numbers(buf, view, seq, acked.ack);
        }
        Ok(Outcome { sent: View { transport: Transport::Tcp(acked), ..*view }, is_changed })
    }

    /// Has the helper read what is new in a segment whose bytes begin at `at`. What ends the connection is not let through
    /// before the rest, either: where it is to stand is not known yet.
    fn read(
        &mut self,
        buf: &PacketBuf,
        view: &View,
        at: u32,
        sender: Sender,
        desk: &mut Desk<'_>,
    ) -> Result<(), DropReason> {
        let way = &mut self.ways[sender as usize];
        let payload = segment::payload(buf.packet(), view);
        let next = way.next;
        let known = distance(at, next);
        if known < 0 {
            return Err(DropReason::TooEarly);
        }
        let Some(fresh) = payload.get(known.unsigned_abs() as usize..).filter(|fresh| !fresh.is_empty()) else {
            return Ok(());
        };
        if view.fragment.is_some() || !segment::has_right_sum(buf, view) {
            return Err(DropReason::Unreadable);
        }
        desk.room = way.stream.room();
        if !desk.has_room(1) {
            // It comes again, and by then the other end may have acknowledged what it got. No part of a line waits: for
            // that one there would be room.
            return Err(DropReason::TooEarly);
        }
        self.helper.read(sender, fresh, desk);
        for Edit { range, text } in desk.edits.drain(..) {
            let before = range.start.checked_sub(1).and_then(|before| fresh.get(before)).copied().unwrap_or(way.last);
            let (at, taken) = (next.wrapping_add(range.start as u32), range.len() as u32);
            way.stream.replace(at, taken, text, before);
        }
        way.next = next.wrapping_add(fresh.len() as u32);
        way.last = fresh.last().copied().unwrap_or(way.last);
        self.is_left_alone |= desk.is_left_alone;
        Ok(())
    }

    /// Turns what the segment acknowledges into the other end's own numbers.
    fn acknowledge(&mut self, buf: &mut PacketBuf, view: &View, header: &tcp::Header, sender: Sender) -> tcp::Header {
        let own_next = self.ways[sender as usize].next;
        let other = &mut self.ways[sender.other() as usize];
        if other.stream.is_untouched() || !header.has(tcp::ACK) {
            return *header;
        }
        segment::map_sacks(buf, view, |left, right| other.stream.block(left, right));
        let ack = other.stream.source(header.ack);
        // Nobody acknowledges what was not sent; what lies far off is a stranger's.
        let is_near = |before: u32, at: u32| (0..WINDOW).contains(&distance(before, at));
        if distance(header.seq, own_next).abs() < WINDOW && is_near(header.ack, other.stream.place(other.next)) {
            other.stream.acknowledged(header.ack);
        }
        tcp::Header { ack, ..*header }
    }
}
