//! How the two ends of a TCP connection count differently, where the gateway has a part in what they say.
//!
//! # Theory of operation
//!
//! A [`Shift`] is kept beside the flow table for flows with [`Marks::SHIFTED`](super::Marks::SHIFTED). It holds three
//! differences, each of which may be none:
//!
//! * `lead`: bytes that the gateway puts in front of what the client sends. They stand right behind the SYN, where for the
//!   client its own first byte stands.
//! * `server`: the server's sequence numbers are so much higher for the client (mod 2^32), because the gateway has answered
//!   the client's SYN in the server's name, with a number of its own.
//! * `time`: so much higher are the server's timestamps (RFC 7323) for the client, for the same reason.
//! * `scale`: what windows mean, where the gateway had to say so before it knew what the server would say.
//!
//! While the server has not answered yet, the flow `is_opening`: `server` and `time` are then the numbers that the gateway has
//! answered with, and nothing is brought from one end to the other by this record.
//!
//! Flow records, and all that goes by them, count as the client does: what comes from the server is brought to the client's
//! numbers before anything else is done with it, and what goes to the server is brought to the server's last of all.
//!
//! Where the lead stands is what the server's SYN-ACK acknowledges, and nothing else: a client could name several places, and
//! anybody can send a SYN in its name. A server that has a connection answers a SYN by an ACK (RFC 5961 section 4.2); a SYN-ACK with
//! another place is that of another connection, whatever became of the last one, and the lead begins anew there. By the place
//! alone they are told apart, so a SYN for the place of a finished lead must not come to the server ([`Shift::is_spent`]).
//!
//! | stage | | what becomes of the client's number `n` |
//! |---|---|---|
//! | `Unplaced` | no SYN-ACK yet | stays; nothing but a SYN or a RST goes to the server |
//! | `Placed` | the server knows where the stream begins, and has no byte of it | moved from the place on |
//! | `Sent` | the lead has been sent, and may be lost | moved from the place on |
//! | `Done` | the server has acknowledged it | moved |
//!
//! In the two stages between, what the client sends at the place carries the lead, each time it is sent. So it takes no timer to bring the
//! lead to the server: as long as the server does not have it, the client has an unacknowledged byte at that very place, or the server
//! has an unacknowledged SYN-ACK.
//!
//! What cannot happen: a byte of the client's own that the server takes for one of the lead. Numbers from the place on are
//! moved beyond it, and a segment that reaches over the place from before is dropped
//! ([`Shift::is_across`]); once `Done`, the server has the lead, and takes no other byte for it.

/// The difference between two ends; plain data that the flow table keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    pub lead: Lead,
    /// What the server's sequence numbers gain towards the client.
    pub server: u32,
    /// What the server's timestamps gain towards the client.
    pub time: u32,
    pub scale: Scale,
    /// The gateway has answered the client in the server's name, and the server has not answered yet.
    pub is_opening: bool,
}

/// By how many bits windows are shifted (RFC 7323 section 2) for the other end, besides what that believes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scale {
    /// The client's, to the left, 0 to 14.
    pub client: u8,
    /// The server's, to the left, or to the right where it is negative: -7 to 7.
    pub server: i8,
}

impl Scale {
    /// A window field of the client's as the server takes it.
    pub fn to_server(self, window: u16) -> u16 {
        scaled(window, self.client.min(14) as i8)
    }

    /// A window field of the server's as the client takes it: never more than it was.
    pub fn to_client(self, window: u16) -> u16 {
        scaled(window, self.server)
    }
}

fn scaled(window: u16, bits: i8) -> u16 {
    match u32::from(bits.unsigned_abs()).min(15) {
        right if bits < 0 => window >> right,
        left => u16::try_from(u32::from(window) << left).unwrap_or(u16::MAX),
    }
}

/// Bytes that the gateway puts in front of the client's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lead {
    /// How many; 0: none.
    pub len: u8,
    /// What they say: a number that the flow table only keeps.
    pub form: u8,
    pub stage: Stage,
    /// The client's number of its first byte; meaningless until `Placed`.
    pub at: u32,
}

/// How far the lead has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Unplaced,
    Placed,
    Sent,
    Done,
}

impl Shift {
    /// The client's number `seq` as the server counts.
    pub fn to_server(&self, seq: u32) -> u32 {
        let Lead { len, stage, at, .. } = self.lead;
        match stage {
            Stage::Unplaced => seq,
            Stage::Placed | Stage::Sent if distance(at, seq) < 0 => seq,
            Stage::Placed | Stage::Sent | Stage::Done => seq.wrapping_add(u32::from(len)),
        }
    }

    /// As [`Shift::to_server`], of a RST: its number must be the very next that the server expects (RFC 5961 section 3.2).
    pub fn reset_to_server(&self, seq: u32) -> u32 {
        match self.lead.stage {
            Stage::Placed if seq == self.lead.at => seq,
            _ => self.to_server(seq),
        }
    }

    /// What the client has sent, as it counts, when the server has everything before its `ack`.
    pub fn acknowledged(&self, ack: u32) -> u32 {
        let Lead { len, stage, at, .. } = self.lead;
        let len = u32::from(len);
        match stage {
            Stage::Unplaced => ack,
            Stage::Placed | Stage::Sent => match distance(at, ack) {
                ..0 => ack,
                into => at.wrapping_add((into as u32).saturating_sub(len)),
            },
            Stage::Done => ack.wrapping_sub(len),
        }
    }

    /// The server's number `seq` as the client counts.
    pub fn to_client(&self, seq: u32) -> u32 {
        seq.wrapping_add(self.server)
    }

    /// The server's number, as it counts, that the client knows as `ack`.
    pub fn from_client(&self, ack: u32) -> u32 {
        ack.wrapping_sub(self.server)
    }

    /// Whether what the client sends from `seq` on has to carry the lead.
    pub fn is_place(&self, seq: u32) -> bool {
        self.lead.len > 0 && matches!(self.lead.stage, Stage::Placed | Stage::Sent) && seq == self.lead.at
    }

    /// Whether bytes from `seq` to `end` begin before the place of a lead that the server may not have, and go beyond it.
    pub fn is_across(&self, seq: u32, end: u32) -> bool {
        let is_open = matches!(self.lead.stage, Stage::Placed | Stage::Sent);
        is_open && distance(seq, self.lead.at) > 0 && distance(self.lead.at, end) > 0
    }

    /// Whether a SYN of this number is for the place of a lead that the server has acknowledged. It is late; or else a server that
    /// has lost the connection would begin another one there, which nothing tells from the old one, and would get no lead.
    pub fn is_spent(&self, seq: u32) -> bool {
        self.lead.len > 0 && self.lead.stage == Stage::Done && self.lead.at == seq.wrapping_add(1)
    }

    /// The server has answered a SYN, and acknowledges all before `ack`: a connection begins there, or this is a repeated answer.
    pub fn note_syn_ack(&mut self, ack: u32) {
        if self.lead.stage == Stage::Unplaced || self.lead.at != ack {
            (self.lead.at, self.lead.stage) = (ack, Stage::Placed);
        }
    }

    /// The lead goes to the server.
    pub fn note_sent(&mut self) {
        if self.lead.stage == Stage::Placed {
            self.lead.stage = Stage::Sent;
        }
    }

    /// The server has everything before `ack`. The client has sent everything before `end`: nobody acknowledges more.
    pub fn note_ack(&mut self, ack: u32, end: u32) {
        let Lead { len, stage, at, .. } = self.lead;
        if stage != Stage::Sent {
            return;
        }
        let (into, sent) = (distance(at, ack), distance(at, end));
        if into >= i32::from(len) && into - i32::from(len) <= sent.max(0) {
            self.lead.stage = Stage::Done;
        } else if into == 0 {
            // It has nothing of it.
            self.lead.stage = Stage::Placed;
        }
    }

    /// As four words: of memory that is zero nobody has to write any.
    pub(super) fn words(self) -> [u32; 4] {
        let Lead { len, form, stage, at } = self.lead;
        let Scale { client, server } = self.scale;
        // A client's scale of 15 there is not, nor a server's of -8.
        let windows = match (self.is_opening, self.scale == Scale::default()) {
            (true, _) => 0x0f,
            (false, true) => 0,
            (false, false) => (server.clamp(-7, 7) + 8) as u8 * 16 + client.min(14),
        };
        [at, self.server, self.time, u32::from_be_bytes([windows, len, form, stage as u8])]
    }

    pub(super) fn from_words([at, server, time, rest]: [u32; 4]) -> Shift {
        let [windows, len, form, stage] = rest.to_be_bytes();
        let scale = match windows / 16 {
            0 => Scale::default(),
            server => Scale { client: windows % 16, server: server as i8 - 8 },
        };
        let stages = [Stage::Unplaced, Stage::Placed, Stage::Sent, Stage::Done];
        let stage = stages.get(usize::from(stage)).copied().unwrap_or_default();
        Shift { lead: Lead { len, form, stage, at }, server, time, scale, is_opening: windows == 0x0f }
    }
}

/// How far `to` lies ahead of `from` in sequence space; negative when it lies behind.
const fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(stage: Stage) -> Shift {
        let lead = Lead { len: 28, form: 2, stage, at: u32::MAX - 9 };
        Shift { lead, server: 0x8000_0001, time: 7, ..Shift::default() }
    }

    #[test]
    fn words_hold_all_of_it() {
        for stage in [Stage::Unplaced, Stage::Placed, Stage::Sent, Stage::Done] {
            assert_eq!(Shift::from_words(led(stage).words()), led(stage));
        }
        assert_eq!(Shift::from_words([0; 4]), Shift::default());
        for client in 0..=14 {
            for server in -7..=7 {
                let shift = Shift { scale: Scale { client, server }, ..led(Stage::Done) };
                assert_eq!(Shift::from_words(shift.words()), shift);
            }
        }
        let opening = Shift { is_opening: true, ..led(Stage::Unplaced) };
        assert_eq!(Shift::from_words(opening.words()), opening);
    }

    #[test]
    fn windows_are_never_more_than_they_were() {
        for window in [0_u16, 1, 63, 64, 500, 1 << 12, u16::MAX] {
            for bits in -7..=7_i8 {
                // The server means so many bytes at a scale of 7 + bits, and the client understands so many at 7.
                let meant = u64::from(window) << (7 + bits);
                let understood = u64::from(Scale { client: 0, server: bits }.to_client(window)) << 7;
                assert!(understood <= meant, "{window} {bits}");
                assert!(meant - understood < 128 || understood == 0xffff << 7);
            }
            let client = Scale { client: 7, server: 0 };
            assert_eq!(client.to_server(window), (u32::from(window) << 7).min(0xffff) as u16);
        }
    }

    #[test]
    fn every_byte_of_the_client_keeps_its_place_behind_the_lead() {
        let shift = led(Stage::Sent);
        let at = shift.lead.at;
        for n in [0, 1, 27, 28, 29, 1 << 20] {
            let seq = at.wrapping_add(n);
            assert_eq!(shift.acknowledged(shift.to_server(seq)), seq);
        }
        assert_eq!(shift.to_server(at), at.wrapping_add(28));
        assert_eq!(shift.to_server(at.wrapping_sub(1)), at.wrapping_sub(1));
        // Part of the lead is nothing of the client's.
        assert!((0..=28).all(|n| shift.acknowledged(at.wrapping_add(n)) == at));
    }

    #[test]
    fn a_finished_lead_moves_numbers_for_good() {
        let shift = led(Stage::Done);
        let far = shift.lead.at.wrapping_add(3 << 30);
        assert_eq!(shift.to_server(far), far.wrapping_add(28));
        assert_eq!(shift.acknowledged(shift.to_server(far)), far);
    }

    #[test]
    fn the_server_alone_moves_the_place() {
        for stage in [Stage::Unplaced, Stage::Placed, Stage::Sent, Stage::Done] {
            let mut shift = led(stage);
            let at = shift.lead.at;
            assert_eq!(shift.is_spent(at.wrapping_sub(1)), stage == Stage::Done);
            assert!(!shift.is_spent(at));
            shift.note_syn_ack(at);
            assert_eq!(shift.lead.stage, if stage == Stage::Unplaced { Stage::Placed } else { stage });
            shift.note_syn_ack(70);
            assert_eq!((shift.lead.at, shift.lead.stage), (70, Stage::Placed));
        }
    }

    #[test]
    fn only_what_can_have_been_sent_is_acknowledged() {
        let mut shift = led(Stage::Sent);
        let at = shift.lead.at;
        shift.note_ack(at.wrapping_add(129), at.wrapping_add(100));
        assert_eq!(shift.lead.stage, Stage::Sent);
        shift.note_ack(at, at);
        assert_eq!(shift.lead.stage, Stage::Placed);
        shift.note_sent();
        shift.note_ack(at.wrapping_add(27), at);
        assert_eq!(shift.lead.stage, Stage::Sent);
        shift.note_ack(at.wrapping_add(28), at);
        assert_eq!(shift.lead.stage, Stage::Done);
    }
}
