//! The options of a TCP segment that a connection begins with (RFC 9293 section 3.1, RFC 7323, RFC 2018).

use super::tcp::MIN_LEN;
use super::{PacketBuf, Transport, View};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;

/// The largest shift of a window (RFC 7323 section 2.3).
pub const MAX_SCALE: u8 = 14;

/// Those that matter between two ends; all others are for hosts that know them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    /// How far its sender's windows are shifted, 0 to 14.
    pub scale: Option<u8>,
    pub sack: bool,
    /// A value of the sender's clock, and what it echoes.
    pub timestamps: Option<(u32, u32)>,
}

impl Options {
    /// Those of a segment; none of what is no TCP. `view` must be of this packet.
    pub fn of(buf: &PacketBuf, view: &View) -> Options {
        let Transport::Tcp(header) = view.transport else { return Options::default() };
        let bytes = buf.packet().get(view.l4 + MIN_LEN..view.l4 + header.header_len);
        Options::read(bytes.unwrap_or_default())
    }

    /// Reads up to the first that is malformed.
    pub fn read(mut bytes: &[u8]) -> Options {
        let mut options = Options::default();
        let long = |value: &[u8]| value.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        loop {
            let (kind, rest) = match bytes {
                [] | [END, ..] => return options,
                [NOP, rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, rest @ ..] => (*kind, rest),
            };
            let Some(len) = rest.first().map(|len| usize::from(*len)).filter(|len| *len >= 2) else { return options };
            let Some(value) = bytes.get(2..len) else { return options };
            match (kind, value) {
                (MSS, [high, low]) => options.mss = Some(u16::from_be_bytes([*high, *low])),
                // A larger one is to be taken for 14 (RFC 7323 section 2.3).
                (SCALE, [scale]) => options.scale = Some((*scale).min(MAX_SCALE)),
                (SACK_PERMITTED, []) => options.sack = true,
                (TIMESTAMPS, value) if value.len() == 8 => options.timestamps = Some((long(value), long(&value[4..]))),
                _ => {}
            }
            bytes = &bytes[len..];
        }
    }

    /// Writes them as hosts do, padded to four bytes each; how many bytes that makes.
    pub fn write(&self, out: &mut [u8; 40]) -> usize {
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            out[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        if let Some(mss) = self.mss {
            put(&[MSS, 4]);
            put(&mss.to_be_bytes());
        }
        match (self.sack, self.timestamps) {
            (true, _) => put(&[SACK_PERMITTED, 2]),
            (false, Some(_)) => put(&[NOP, NOP]),
            (false, None) => {}
        }
        match self.timestamps {
            Some((value, echo)) => {
                put(&[TIMESTAMPS, 10]);
                put(&value.to_be_bytes());
                put(&echo.to_be_bytes());
            }
            None if self.sack => put(&[NOP, NOP]),
            None => {}
        }
        if let Some(scale) = self.scale {
            put(&[NOP, SCALE, 3, scale]);
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for mss in [None, Some(1460)] {
            for scale in [None, Some(0), Some(14)] {
                for timestamps in [None, Some((0xffff_ffff, 1))] {
                    for sack in [false, true] {
                        let options = Options { mss, scale, sack, timestamps };
                        let mut bytes = [0xff; 40];
                        let len = options.write(&mut bytes);
                        assert!(len.is_multiple_of(4) && len <= 24);
                        assert_eq!(Options::read(&bytes[..len]), options);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_malformed_ends_them() {
        let good = [MSS, 4, 5, 0xb4];
        for bad in [&[SCALE][..], &[SCALE, 0, 1], &[SCALE, 1, 7], &[SCALE, 9, 7], &[END, SCALE, 3, 7]] {
            let options = Options::read(&[&good[..], bad].concat());
            assert_eq!(options, Options { mss: Some(1460), ..Options::default() });
        }
        // Others are skipped, those of another length as well.
        let odd = [30, 4, 1, 2, MSS, 3, 1, NOP, SCALE, 3, 200, SACK_PERMITTED, 3, 0];
        assert_eq!(Options::read(&odd), Options { scale: Some(14), ..Options::default() });
    }
}
