//! What a TCP segment does to its flow: sequence numbers, state, and whether a RST may be believed.

use super::{Flow, Sender, Sequence, TcpState, Trigger, next, next_blind};
use crate::wire::tcp;

/// How far beyond what was acknowledged a segment may reach to be believed. Windows can be larger (1 GiB, RFC 7323
/// section 2.3), receive buffers hardly are; a wider bound would let a stranger guess a number within it.
const MAX_WINDOW: i32 = 1 << 26;
/// How far beyond the highest sequence number seen a RST may lie: segments before it may have been lost on the way here.
const RST_SLACK: i32 = 1 << 16;

impl Sender {
    pub const fn other(self) -> Sender {
        match self {
            Sender::Client => Sender::Server,
            Sender::Server => Sender::Client,
        }
    }
}

/// Whether a SYN over the same ports starts a new connection rather than belonging to this flow: it is over, so it does,
/// at once (RFC 9293 section 3.6.1; RFC 6191). Where only the client's side is seen, its own FIN is all there is to go by.
pub fn starts_anew(flow: &Flow, sender: Sender, tcp_flags: u8) -> bool {
    let is_over = match flow.tcp_state {
        TcpState::TimeWait | TcpState::Close => true,
        TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck => flow.is_blind(),
        _ => false,
    };
    is_over && sender == Sender::Client && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Whether a client's SYN makes the flow, which goes on, that of another connection: what was known of the old one's bytes
/// does not hold for it.
pub fn renews(flow: &Flow, sender: Sender, segment: &tcp::Header) -> bool {
    sender == Sender::Client
        && segment.has(tcp::SYN)
        && !segment.has(tcp::ACK | tcp::RST)
        && syn_is_plausible(flow, sender, segment)
}

/// Whether the client of a flow can have sent a segment with this sequence number not long ago: an ICMP error that quotes
/// another one is forged or stale (RFC 5927 section 4.1).
pub fn client_sent(flow: &Flow, sequence: u32) -> bool {
    let own = &flow.sequence[Sender::Client as usize];
    own.is_known && (0..=MAX_WINDOW).contains(&distance(sequence, own.end))
}

/// The same of a connection of which there was only a SYN yet; some carry data (RFC 7413).
pub fn client_began(flow: &Flow, sequence: u32) -> bool {
    let own = &flow.sequence[Sender::Client as usize];
    own.is_known && (1..=1500).contains(&distance(sequence, own.end))
}

/// Whether a RST from `sender` fits what both ends have sent (RFC 5961 section 3, RFC 9293 section 3.10.7). A forged one
/// must not end the flow; it is forwarded all the same, for the end host to judge.
pub fn rst_is_plausible(flow: &Flow, sender: Sender, segment: &tcp::Header) -> bool {
    let own = &flow.sequence[sender as usize];
    let peer = &flow.sequence[sender.other() as usize];
    if !own.is_known {
        // The answer to a SYN: it must acknowledge just that.
        return segment.has(tcp::ACK) && peer.is_known && segment.ack == peer.end;
    }
    let low = if peer.has_acked { peer.ack } else { own.end };
    let high = if distance(low, own.end) > 0 { own.end } else { low };
    // One below: a keepalive probe's number.
    distance(low, segment.seq) >= -1 && distance(high, segment.seq) <= RST_SLACK
}

/// Notes a segment of the flow; a RST must have been found plausible.
pub fn segment(flow: &mut Flow, sender: Sender, segment: &tcp::Header) {
    let trigger = match () {
        () if segment.has(tcp::RST) => Some(Trigger::Rst),
        () if segment.has(tcp::SYN) => Some(Trigger::Syn),
        () if segment.has(tcp::FIN) => Some(Trigger::Fin),
        () if segment.has(tcp::ACK) => Some(Trigger::Ack),
        () => None,
    };
    if segment.has(tcp::SYN) && !syn_is_plausible(flow, sender, segment) {
        return;
    }
    let completes = completes_handshake(flow, sender, segment);
    note_sequence(flow, sender, segment);
    flow.replied |= sender == Sender::Server;
    let blind = flow.is_blind();
    let holds_back = flow.tcp_state.is_half_open() && trigger == Some(Trigger::Ack) && !completes;
    if let Some(trigger) = trigger.filter(|_| !holds_back) {
        let state = flow.tcp_state;
        flow.tcp_state = match (state, sender, trigger) {
            _ if blind => next_blind(state, trigger),
            // Whom the server connects to has answered, or refused; that the server is there its next segment will show. (The table
            // believes the server at once, and does not see a refusal.)
            (TcpState::SynSent, Sender::Client, Trigger::Syn) => TcpState::SynRecv,
            (TcpState::SynSent, Sender::Client, Trigger::Rst) => TcpState::Close,
            // Both ends have opened the connection at once: no ACK need follow (RFC 9293 section 3.5, figure 7).
            (TcpState::SynRecv, _, Trigger::Syn) if have_both_acked(flow) => TcpState::Established,
            _ => next(state, sender, trigger),
        };
    }
    flow.assured |= flow.replied && flow.tcp_state == TcpState::Established;
}

/// What was known of a connection that is over does not hold for the one that begins over its ports.
pub fn forget_connection(flow: &mut Flow) {
    flow.tcp_state = TcpState::None;
    flow.sequence = [Sequence::default(); 2];
    (flow.replied, flow.assured) = (false, false);
}

/// Whether each end has acknowledged the other's SYN.
fn have_both_acked(flow: &Flow) -> bool {
    let [client, server] = &flow.sequence;
    let acks = |own: &Sequence, peer: &Sequence| own.has_acked && peer.is_known && own.ack == peer.end;
    acks(client, server) && acks(server, client)
}

/// Whether a SYN may say anything about the flow: while it is half-open; and from a client that connects again over a
/// connection that is being closed, with numbers that lie ahead (RFC 9293 section 3.6.1). Any other is a duplicate or forged,
/// and must not move the sequence numbers that a RST is judged by.
fn syn_is_plausible(flow: &Flow, sender: Sender, segment: &tcp::Header) -> bool {
    let own = &flow.sequence[sender as usize];
    match flow.tcp_state {
        state if state.is_half_open() => true,
        TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck => {
            sender == Sender::Client && !segment.has(tcp::ACK) && distance(own.end, segment.seq) > 0
        }
        _ => false,
    }
}

/// Whether an ACK in a half-open flow is for what the other end really sent. Otherwise a stranger could make flows look
/// established, and so protected, by sending an ACK after each SYN. Where the other end is not seen, that it goes on from
/// the SYN has to do.
fn completes_handshake(flow: &Flow, sender: Sender, segment: &tcp::Header) -> bool {
    if flow.is_blind() && sender == Sender::Client {
        let own = &flow.sequence[sender as usize];
        return own.is_known && distance(own.end, segment.seq).unsigned_abs() <= RST_SLACK.unsigned_abs();
    }
    let peer = &flow.sequence[sender.other() as usize];
    peer.is_known && distance(peer.end, segment.ack).unsigned_abs() <= RST_SLACK.unsigned_abs()
}

fn note_sequence(flow: &mut Flow, sender: Sender, segment: &tcp::Header) {
    if segment.has(tcp::SYN) && !flow.tcp_state.is_half_open() {
        // Another connection: what the other end said belongs to the old one.
        flow.sequence[sender.other() as usize] = Sequence::default();
    }
    let peer = flow.sequence[sender.other() as usize];
    let one_way = flow.is_blind();
    let own = &mut flow.sequence[sender as usize];
    let end = segment.seq_end();
    if segment.has(tcp::SYN) || !own.is_known {
        *own = Sequence { end, is_known: true, ..Sequence::default() };
    } else if !segment.has(tcp::RST) {
        let acked = if peer.has_acked { peer.ack } else { own.end };
        if distance(own.end, end) > 0 && distance(acked, end) <= MAX_WINDOW {
            own.end = end;
        }
    }
    // Nobody acknowledges what was not sent; where that is not seen, the client has to be believed.
    let sent = peer.is_known && distance(segment.ack, peer.end) >= 0;
    if segment.has(tcp::ACK) && (sent || one_way && sender == Sender::Client) {
        if !own.has_acked || distance(own.ack, segment.ack) > 0 {
            own.ack = segment.ack;
        }
        own.has_acked = true;
    }
}

/// How far `to` lies ahead of `from` in sequence space; negative when it lies behind.
const fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}
