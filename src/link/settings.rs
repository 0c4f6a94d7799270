//! What a link is made with.

use super::ethernet::Mac;
use super::table::Bounds;
use crate::wire::Addr;

/// Who we are on the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mac: Mac,
    /// Our own addresses, each with the prefix that is on the segment.
    pub addresses: Vec<Prefix>,
    /// Ways to everywhere else; of several of one family, the first that answers.
    pub routers: Vec<Addr>,
    pub bounds: Bounds,
}

/// An address and how many of its bits it shares with its neighbours: 0 to 32 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub addr: Addr,
    pub len: u8,
}

const LINK_LOCAL: Prefix =
    Prefix { addr: Addr::from_v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), len: 10 };

impl Prefix {
    /// Whether `addr` is on the segment by this prefix.
    pub fn contains(&self, addr: Addr) -> bool {
        let (own, other) = (self.addr.wire(), addr.wire());
        if own.len() != other.len() {
            return false;
        }
        let (whole, rest) = (usize::from(self.len / 8), self.len % 8);
        let mask = !(0xff_u8.checked_shr(u32::from(rest)).unwrap_or(0));
        own[..whole] == other[..whole] && (rest == 0 || (own[whole] ^ other[whole]) & mask == 0)
    }
}

impl Settings {
    /// Those of the configuration, and the link-local one, which every host with IPv6 has (RFC 4291 section 2.8).
    pub fn own_addresses(&self) -> impl Iterator<Item = Addr> + '_ {
        self.addresses.iter().map(|prefix| prefix.addr).chain([self.mac.link_local()])
    }

    pub fn is_on_segment(&self, addr: Addr) -> bool {
        LINK_LOCAL.contains(addr) || self.addresses.iter().any(|prefix| prefix.contains(addr))
    }

    /// Our own address of the family of `addr`, of the prefix that they share if there is one.
    pub fn source_towards(&self, addr: Addr) -> Option<Addr> {
        let own = |prefix: &&Prefix| prefix.addr.is_v4() == addr.is_v4();
        let shared = self.addresses.iter().find(|prefix| prefix.contains(addr));
        shared.or_else(|| self.addresses.iter().find(own)).map(|prefix| prefix.addr)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address in a test").into()
    }

    #[test]
    fn prefixes_contain_what_shares_their_bits() {
        let rows = [
            ("10.20.0.2", 24, "10.20.0.254", true),
            ("10.20.0.2", 24, "10.20.1.2", false),
            ("10.20.0.2", 23, "10.20.1.2", true),
            ("10.20.0.2", 22, "10.20.4.2", false),
            ("10.20.0.2", 32, "10.20.0.3", false),
            ("10.20.0.2", 32, "10.20.0.2", true),
            ("10.20.0.2", 0, "203.0.113.1", true),
            ("10.20.0.2", 0, "fd20::1", false),
            ("fd20::2", 64, "fd20::254", true),
            ("fd20::2", 64, "fd20:0:0:1::254", false),
            ("fd20::2", 63, "fd20:0:0:1::254", true),
            ("fd20::2", 128, "fd20::2", true),
        ];
        for (own, len, other, expected) in rows {
            assert_eq!(Prefix { addr: addr(own), len }.contains(addr(other)), expected, "{own}/{len} {other}");
        }
    }
}
