//! SYN cookies: what a SYN said, in the numbers of the answer to it, so that nothing has to be kept until the client has shown
//! that it is where it says (RFC 4987 section 3.6).
//!
//! # The sequence number
//!
//! | bits | |
//! |---|---|
//! | 31 to 3 | keyed SipHash-2-4 of the tuple, the client's sequence number, the time slot, and the three bits below |
//! | 2 to 0 | the largest of eight values that is not above the client's MSS |
//!
//! A slot lasts 64 s, and an answer counts in its slot and in the next: 64 s to 128 s. Without a payload it may have two
//! sequence numbers ([`Cookies::verify`]). So who guesses succeeds with four of 2^29 answers, one in 2^27, and is not denied by a
//! limit: at 100,000 guesses a second one SYN in 22 minutes comes to a server. With a payload it is one in 2^28.
//!
//! # The timestamp
//!
//! With timestamps (RFC 7323) the client echoes another 32 bits. As Linux has it (`net/ipv4/syncookies.c`,
//! `cookie_init_timestamp`), the low six bits of a clock give way to what the client offered:
//!
//! | bits | |
//! |---|---|
//! | 3 to 0 | its window scale; 15: none |
//! | 4 | SACK permitted |
//! | 5 | 0 |
//!
//! Bit 5 is ECN with Linux, and is not used here: whether a server does ECN is known only when the client has been told, and
//! a client that believes in it would not see that it is not heard. Nothing authenticates these bits, and nothing needs to: a
//! client that changes them deceives itself.
//!
//! Without timestamps there is room for the MSS alone, and the connection goes without window scale and SACK.

use siphasher::sip::{SipHasher13, SipHasher24};

use crate::time::Instant;
use crate::wire::options::MAX_SCALE;
use crate::wire::{Options, Tuple, tcp};

/// Of TCP over IPv4 and IPv6 without options (RFC 9293 section 3.7.1), and over the usual links and tunnels.
const MSS: [u16; 8] = [216, 536, 1220, 1320, 1400, 1440, 1460, 8940];
/// What a host takes that does not say (RFC 9293 section 3.7.1).
const DEFAULT_MSS: [u16; 2] = [536, 1220];
const SLOT_SECS: u64 = 64;

const NO_SCALE: u32 = 15;
const SACK: u32 = 1 << 4;
const OPTION_BITS: u32 = 0x3f;

/// Makes cookies and knows them again.
#[derive(Clone, Debug)]
pub struct Cookies {
    key: [u64; 2],
}

/// What the answer to a SYN carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its sequence number.
    pub seq: u32,
    /// Its timestamp, never 0; `None`: it has none.
    pub time: Option<u32>,
}

/// What a client offered, and showed that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The sequence number of its SYN.
    pub isn: u32,
    pub cookie: Cookie,
}

impl Cookies {
    /// `seed` must be a secret, and may be used for other things.
    pub fn new(seed: [u64; 2]) -> Cookies {
        let hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
        Cookies { key: [hasher.hash(b"SYN cookie, first half"), hasher.hash(b"SYN cookie, second half")] }
    }

    /// The cookie for a SYN of `tuple` with sequence number `isn` and these options. With `timestamps` it has one if the SYN
    /// has.
    pub fn bake(&self, now: Instant, tuple: &Tuple, isn: u32, offered: &Options, timestamps: bool) -> Cookie {
        let mss = offered.mss.unwrap_or(DEFAULT_MSS[usize::from(!tuple.src.is_v4())]);
        let class = MSS.iter().rposition(|known| *known <= mss).unwrap_or(0) as u32;
        let hash = self.hash(tuple, isn, slot(now), class);
        let time = offered.timestamps.filter(|_| timestamps).map(|_| {
            let scale = offered.scale.map_or(NO_SCALE, u32::from);
            let sack = if offered.sack { SACK } else { 0 };
            // Where it begins nobody can tell; from then on it goes as fast as a server's.
            let clock = ((hash >> 32) as u32).wrapping_add(now.millis() as u32);
            clock & !OPTION_BITS | sack | scale
        });
        // Zero is taken for none.
        let time = time.map(|time| if time == 0 { OPTION_BITS + 1 } else { time });
        Cookie { seq: number(hash, class), time }
    }

    /// What the client offered, if `segment` acknowledges a cookie. A client that has nothing to say, or asks for a larger
    /// window, repeats the last number that was acknowledged (RFC 9293 section 3.8.6.1, RFC 1122 section 4.2.3.6): that of the
    /// SYN. What carries something goes on from there.
    pub fn verify(&self, now: Instant, tuple: &Tuple, segment: &tcp::Header, echo: Option<u32>) -> Option<Offer> {
        let seq = segment.ack.wrapping_sub(1);
        let class = seq % MSS.len() as u32;
        let slots = [slot(now), slot(now).wrapping_sub(1)];
        let isns = [Some(segment.seq.wrapping_sub(1)), (segment.seq_len == 0).then_some(segment.seq)];
        let is_right = |isn| slots.iter().any(|slot| number(self.hash(tuple, isn, *slot, class), class) == seq);
        let isn = isns.into_iter().flatten().find(|isn| is_right(*isn))?;
        Some(Offer { isn, cookie: Cookie { seq, time: echo.filter(|echo| *echo != 0) } })
    }

    fn hash(&self, tuple: &Tuple, isn: u32, slot: u32, class: u32) -> u64 {
        let mut bytes = [0; 48];
        bytes[..16].copy_from_slice(tuple.src.octets());
        bytes[16..32].copy_from_slice(tuple.dst.octets());
        bytes[32..34].copy_from_slice(&tuple.sport.to_be_bytes());
        bytes[34..36].copy_from_slice(&tuple.dport.to_be_bytes());
        bytes[36..40].copy_from_slice(&isn.to_be_bytes());
        bytes[40..44].copy_from_slice(&slot.to_be_bytes());
        bytes[44..].copy_from_slice(&class.to_be_bytes());
        SipHasher24::new_with_keys(self.key[0], self.key[1]).hash(&bytes)
    }
}

impl Cookie {
    /// What the client offered: its MSS at most, and the rest if it came with timestamps.
    pub fn offered(&self) -> Options {
        let mss = Some(MSS[(self.seq % MSS.len() as u32) as usize]);
        let Some(time) = self.time else { return Options { mss, ..Options::default() } };
        let scale = (time & 15 != NO_SCALE).then_some((time & 15) as u8).map(|scale| scale.min(MAX_SCALE));
        Options { mss, scale, sack: time & SACK != 0, timestamps: Some((0, time)) }
    }
}

fn number(hash: u64, class: u32) -> u32 {
    (hash as u32) << 3 | class
}

fn slot(now: Instant) -> u32 {
    (now.micros() / 1_000_000 / SLOT_SECS) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::{Addr, Protocol};

    const NOW: Instant = Instant::from_secs(64 * 1000);

    fn tuple(sport: u16) -> Tuple {
        let [src, dst] = [[198, 51, 100, 2], [203, 0, 113, 10]].map(Addr::from_v4);
        Tuple { src, dst, sport, dport: 80, protocol: Protocol::TCP }
    }

    fn ack(seq: u32, ack: u32) -> tcp::Header {
        let flags = tcp::ACK;
        tcp::Header { sport: 1, dport: 80, seq, ack, flags, window: 0, header_len: 20, seq_len: 0 }
    }

    fn offers() -> Vec<Options> {
        let mut offers = Vec::new();
        for mss in [None, Some(100), Some(536), Some(1219), Some(1460), Some(9000), Some(65535)] {
            for scale in [None, Some(0), Some(7), Some(14)] {
                for timestamps in [None, Some((77, 0))] {
                    offers.extend([false, true].map(|sack| Options { mss, scale, sack, timestamps }));
                }
            }
        }
        offers
    }

    #[test]
    fn what_was_offered_comes_back() {
        let cookies = Cookies::new([1, 2]);
        for offered in offers() {
            for timestamps in [false, true] {
                let cookie = cookies.bake(NOW, &tuple(1), 1000, &offered, timestamps);
                for seq in [1000, 1001] {
                    let found = cookies.verify(NOW, &tuple(1), &ack(seq, cookie.seq.wrapping_add(1)), cookie.time);
                    assert_eq!(found, Some(Offer { isn: 1000, cookie }));
                }
                let known = cookie.offered();
                assert!(known.mss <= offered.mss.or(Some(536)).max(Some(216)));
                match offered.timestamps.filter(|_| timestamps) {
                    Some(_) => assert_eq!((known.scale, known.sack), (offered.scale, offered.sack)),
                    None => assert_eq!((cookie.time, known.scale, known.sack), (None, None, false)),
                }
            }
        }
    }

    #[test]
    fn nothing_else_is_taken() {
        let cookies = Cookies::new([1, 2]);
        let cookie = cookies.bake(NOW, &tuple(1), 1000, &Options::default(), true);
        let taken = |cookies: &Cookies, after, tuple: &Tuple, seq, number: u32| {
            cookies.verify(NOW + Duration::from_secs(after), tuple, &ack(seq, number), None).is_some()
        };
        let right = cookie.seq.wrapping_add(1);
        assert!(taken(&cookies, 127, &tuple(1), 1001, right));
        assert!(!taken(&cookies, 128, &tuple(1), 1001, right), "old");
        assert!(!taken(&cookies, 0, &tuple(2), 1001, right), "another tuple's");
        assert!(!taken(&cookies, 0, &tuple(1), 1002, right), "for another SYN");
        assert!(taken(&cookies, 0, &tuple(1), 1000, right));
        let full = |seq| cookies.verify(NOW, &tuple(1), &tcp::Header { seq_len: 1, ..ack(seq, right) }, None).is_some();
        assert!(full(1001));
        assert!(!full(1000), "a byte that stands where the SYN does");
        assert!(!taken(&Cookies::new([1, 3]), 0, &tuple(1), 1001, right), "another secret's");
        for bit in 0..32 {
            assert!(!taken(&cookies, 0, &tuple(1), 1001, (cookie.seq ^ 1 << bit).wrapping_add(1)), "bit {bit}");
        }
    }

    #[test]
    fn the_clock_of_a_client_does_not_go_back_within_a_slot() {
        let cookies = Cookies::new([1, 2]);
        let offered = Options { timestamps: Some((1, 0)), scale: Some(14), sack: true, ..Options::default() };
        let mut before = None;
        for ms in (0..60_000).step_by(64) {
            let time = cookies.bake(NOW + Duration::from_millis(ms), &tuple(1), 1, &offered, true).time;
            assert!(before.is_none_or(|before: u32| time.is_some_and(|time| time.wrapping_sub(before) as i32 > 0)));
            before = time;
        }
    }
}
