//! What a [`Shift`] does to the packets of its flow: numbers, acknowledgements, SACK blocks (RFC 2018), timestamps and windows
//! (RFC 7323), and the lead, in place, with every checksum and length that covers them; also in what an ICMP error quotes.
//!
//! # Windows
//!
//! A window counts from the acknowledgement that comes with it, so once the server has the lead, windows mean the same to
//! both ends. Before that the client takes the window to begin with its own first byte, where it begins with the lead: it may
//! send so many bytes too many as the lead has. Servers take what fits (RFC 9293 section 3.10.7.4) and the client repeats
//! the rest, as it would after a loss. Hosts begin with windows of thousands of bytes, and clients with fewer than that.

use crate::flow::{LeadStage, Sender, Shift};
use crate::verdict::DropReason;
use crate::wire::{MAX_PACKET, PacketBuf, Transport, View, segment, tcp};

/// Brings a packet of the client's to what the server counts. `lead`: the bytes of the lead. Whether the packet has become
/// longer. What cannot be brought there is dropped, and comes again; `buf` has not changed then.
pub fn to_server(buf: &mut PacketBuf, view: &View, shift: &mut Shift, lead: &[u8]) -> Result<bool, DropReason> {
    let Transport::Tcp(header) = view.transport else { return Ok(false) };
    let ack = if header.has(tcp::ACK) { shift.from_client(header.ack) } else { header.ack };
    let mut is_longer = false;
    let seq = match () {
        () if header.has(tcp::RST) => shift.reset_to_server(header.seq),
        () if header.has(tcp::SYN) => {
            if shift.is_spent(header.seq) {
                return Err(DropReason::TooEarly);
            }
            if shift.lead.len > 0 {
                strip(buf, view)?;
            }
            // It begins a connection, or it is not taken: no lead stands before it.
            header.seq
        }
        () if shift.lead.len == 0 => header.seq,
        () if shift.lead.stage == LeadStage::Unplaced || shift.is_across(header.seq, header.seq_end()) => {
            return Err(DropReason::TooEarly);
        }
        () if shift.is_place(header.seq) => {
            put_in_front(buf, view, lead)?;
            is_longer = true;
            shift.note_sent();
            header.seq
        }
        () => shift.to_server(header.seq),
    };
    set_numbers(buf, view, &header, (seq, ack));
    if shift.server != 0 {
        segment::map_sacks(buf, view, |left, right| (shift.from_client(left), shift.from_client(right)));
    }
    if shift.time != 0 && header.has(tcp::ACK) {
        segment::map_timestamps(buf, view, |value, echo| (value, echo.wrapping_sub(shift.time)));
    }
    // The windows of segments with a SYN are never scaled (RFC 7323 section 2.2).
    if shift.scale.client != 0 && !header.has(tcp::SYN) {
        segment::set_window(buf, view, shift.scale.to_server(header.window));
    }
    Ok(is_longer)
}

/// Brings a packet of the server's to what the client counts: the packet as it is then. The client has sent everything
/// before `end`.
pub fn to_client(buf: &mut PacketBuf, view: &View, shift: &mut Shift, end: u32) -> View {
    let Transport::Tcp(header) = view.transport else { return *view };
    let (is_syn, is_ack) = (header.has(tcp::SYN), header.has(tcp::ACK));
    if is_ack && shift.lead.len > 0 {
        note(buf, view, shift, |shift| match is_syn {
            true => shift.note_syn_ack(header.ack),
            false => shift.note_ack(header.ack, end),
        });
    }
    // What a SYN-ACK acknowledges stands before the lead, whenever it comes.
    let ack = if is_ack && !is_syn { shift.acknowledged(header.ack) } else { header.ack };
    let seq = shift.to_client(header.seq);
    set_numbers(buf, view, &header, (seq, ack));
    if shift.lead.len > 0 {
        segment::map_sacks(buf, view, |left, right| (shift.acknowledged(left), shift.acknowledged(right)));
    }
    if shift.time != 0 {
        segment::map_timestamps(buf, view, |value, echo| (value.wrapping_add(shift.time), echo));
    }
    if shift.scale.server != 0 && !is_syn {
        segment::set_window(buf, view, shift.scale.to_client(header.window));
    }
    View { transport: Transport::Tcp(tcp::Header { seq, ack, ..header }), ..*view }
}

/// Brings a segment that an ICMP error from `sender`'s side quotes to what the other end has sent. `quoted`: from its first
/// byte on, as much as there is. The checksum of the error is still to be made anew.
pub fn requote(quoted: &mut [u8], shift: &Shift, sender: Sender) {
    let Some(seq) = long(quoted, tcp::SEQ) else { return };
    let ack =
        long(quoted, tcp::ACK_NUMBER).filter(|_| quoted.get(tcp::FLAGS).is_some_and(|flags| flags & tcp::ACK != 0));
    let (new, new_ack) = match sender {
        Sender::Server => (shift.acknowledged(seq), ack.map(|ack| shift.to_client(ack))),
        Sender::Client => (shift.from_client(seq), ack.map(|ack| shift.to_server(ack))),
    };
    segment::set_quoted(quoted, tcp::SEQ, new);
    if let Some(new_ack) = new_ack {
        segment::set_quoted(quoted, tcp::ACK_NUMBER, new_ack);
    }
}

/// Notes what a segment says, if it is one that its receiver would take as well.
fn note(buf: &PacketBuf, view: &View, shift: &mut Shift, change: impl FnOnce(&mut Shift)) {
    let mut next = *shift;
    change(&mut next);
    if next != *shift && segment::has_right_sum(buf, view) {
        *shift = next;
    }
}

fn set_numbers(buf: &mut PacketBuf, view: &View, header: &tcp::Header, (seq, ack): (u32, u32)) {
    if (seq, ack) != (header.seq, header.ack) {
        segment::set_numbers(buf, view, seq, ack);
    }
}

/// Takes the bytes off a SYN (RFC 7413): they would come before the lead. The server acknowledges the SYN alone, and the client
/// sends them again (RFC 7413 section 4.2.2).
fn strip(buf: &mut PacketBuf, view: &View) -> Result<(), DropReason> {
    match segment::payload(buf.packet(), view).is_empty() {
        true => Ok(()),
        false => set_payload(buf, view, &[]),
    }
}

/// Puts the lead in front of what the segment carries. What makes the packet longer than packets can be is cut off, and the
/// client sends it again.
fn put_in_front(buf: &mut PacketBuf, view: &View, lead: &[u8]) -> Result<(), DropReason> {
    let fits = MAX_PACKET - lead.len();
    let kept = View { len: view.len.min(fits), ..*view };
    let payload = [lead, segment::payload(buf.packet(), &kept)].concat();
    let pointer = segment::urgent(buf.packet(), view);
    set_payload(buf, view, &payload)?;
    if view.len > fits {
        // The FIN stands behind what was cut off.
        segment::clear_flags(buf, view, tcp::FIN);
    }
    if let Some(pointer) = pointer {
        segment::set_urgent(buf, view, pointer.saturating_add(lead.len() as u16));
    }
    Ok(())
}

fn set_payload(buf: &mut PacketBuf, view: &View, payload: &[u8]) -> Result<(), DropReason> {
    if can_be_changed(buf, view) && segment::set_payload(buf, view, payload) {
        Ok(())
    } else {
        Err(DropReason::Unreadable)
    }
}

/// Whether what a segment carries can be replaced: it is whole, and its checksum right.
pub fn can_be_changed(buf: &PacketBuf, view: &View) -> bool {
    view.fragment.is_none() && segment::has_right_sum(buf, view)
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
