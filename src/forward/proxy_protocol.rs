//! The header of the PROXY protocol (HAProxy, `doc/proxy-protocol.txt`): it tells a server whose connection it has.
//!
//! It says what the client said: its own address and port, and those that it connected to. The gateway's own probes say that
//! they are nobody's: `UNKNOWN` in version 1 (section 2.1), the command `LOCAL` in version 2 (section 2.2), as HAProxy's do.

use std::fmt::{self, Write};

use crate::service::ProxyProtocol;
use crate::wire::Tuple;

/// Bytes of the longest header, which is one of text (section 2.1).
pub const MAX_LEN: usize = 107;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// Address family and stream.
const UNSPEC: u8 = 0x00;
const TCP_OVER_V4: u8 = 0x11;
const TCP_OVER_V6: u8 = 0x21;

/// A header, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; MAX_LEN],
    /// At most `MAX_LEN`.
    len: usize,
}

impl Header {
    /// For a connection whose client sends packets of tuple `original`; `None`: for one of the gateway's own.
    pub fn new(version: ProxyProtocol, original: Option<&Tuple>) -> Header {
        match version {
            ProxyProtocol::V1 => Header::text(original),
            ProxyProtocol::V2 => Header::binary(original),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn text(original: Option<&Tuple>) -> Header {
        let mut header = Header { bytes: [0; MAX_LEN], len: 0 };
        // The longest of them fits: see the test.
        let _ = match original {
            Some(Tuple { src, dst, sport, dport, .. }) => {
                let family = if src.is_v4() { 4 } else { 6 };
                write!(header, "PROXY TCP{family} {src} {dst} {sport} {dport}\r\n")
            }
            None => write!(header, "PROXY UNKNOWN\r\n"),
        };
        header
    }

    fn binary(original: Option<&Tuple>) -> Header {
        let mut header = Header { bytes: [0; MAX_LEN], len: 0 };
        header.push(&SIGNATURE);
        let Some(Tuple { src, dst, sport, dport, .. }) = original else {
            header.push(&[LOCAL, UNSPEC, 0, 0]);
            return header;
        };
        let family = if src.is_v4() { TCP_OVER_V4 } else { TCP_OVER_V6 };
        let len = (src.wire().len() * 2 + 4) as u16;
        header.push(&[PROXY, family]);
        header.push(&len.to_be_bytes());
        header.push(src.wire());
        header.push(dst.wire());
        header.push(&sport.to_be_bytes());
        header.push(&dport.to_be_bytes());
        header
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Write for Header {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > MAX_LEN - self.len {
            return Err(fmt::Error);
        }
        self.push(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Addr, Protocol};

    fn tuple(src: &str, dst: &str, sport: u16, dport: u16) -> Tuple {
        let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().expect(text));
        Tuple { src: addr(src), dst: addr(dst), sport, dport, protocol: Protocol::TCP }
    }

    #[test]
    fn text_is_a_line() {
        let original = tuple("198.51.100.2", "203.0.113.10", 40000, 80);
        let header = Header::new(ProxyProtocol::V1, Some(&original));
        assert_eq!(header.bytes(), b"PROXY TCP4 198.51.100.2 203.0.113.10 40000 80\r\n");
        let original = tuple("2001:db8:1::2", "2001:db8:f::10", 40000, 80);
        let header = Header::new(ProxyProtocol::V1, Some(&original));
        assert_eq!(header.bytes(), b"PROXY TCP6 2001:db8:1::2 2001:db8:f::10 40000 80\r\n");
        assert_eq!(Header::new(ProxyProtocol::V1, None).bytes(), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn the_longest_text_fits() {
        let longest = "fedc:ba98:fedc:ba98:fedc:ba98:fedc:ba98";
        let header = Header::new(ProxyProtocol::V1, Some(&tuple(longest, longest, 65535, 65535)));
        assert_eq!(header.bytes().len(), 104);
        assert!(header.bytes().ends_with(b" 65535 65535\r\n"));
    }

    #[test]
    fn binary_has_a_fixed_length() {
        let header = Header::new(ProxyProtocol::V2, Some(&tuple("198.51.100.2", "203.0.113.10", 40000, 80)));
        let expected = [
            13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10, 0x21, 0x11, 0, 12, 198, 51, 100, 2, 203, 0, 113, 10, 0x9c,
            0x40, 0, 80,
        ];
        assert_eq!(header.bytes(), expected);
        let header = Header::new(ProxyProtocol::V2, Some(&tuple("2001:db8:1::2", "2001:db8:f::10", 40000, 80)));
        assert_eq!((header.bytes().len(), header.bytes()[13], header.bytes()[15]), (52, 0x21, 36));
        let header = Header::new(ProxyProtocol::V2, None);
        assert_eq!(header.bytes()[12..], [0x20, 0, 0, 0]);
    }
}
