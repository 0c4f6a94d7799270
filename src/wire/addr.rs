//! IP addresses of both families in one 16-byte form, so that IPv4 and IPv6 share every table and every comparison.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address. IPv4 is held as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2); such an address never appears
/// on the wire in an IPv6 header (the parser refuses it), so the two families cannot be confused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Addr([u8; 16]);

const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Addr {
    pub const UNSPECIFIED: Addr = Addr([0; 16]);

    #[inline]
    pub fn from_v4(octets: [u8; 4]) -> Addr {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&V4_PREFIX);
        bytes[12..].copy_from_slice(&octets);
        Addr(bytes)
    }

    #[inline]
    pub const fn from_v6(octets: [u8; 16]) -> Addr {
        Addr(octets)
    }

    #[inline]
    pub fn is_v4(&self) -> bool {
        self.0[..12] == V4_PREFIX
    }

    /// The 16 bytes as held.
    #[inline]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes as they stand in an IP header: 4 or 16 of them.
    #[inline]
    pub fn wire(&self) -> &[u8] {
        if self.is_v4() { &self.0[12..] } else { &self.0 }
    }

    #[inline]
    pub fn ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15]))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }

    /// More than one host, or none: what a packet to a single host cannot be sent to.
    pub fn is_multicast_or_broadcast(&self) -> bool {
        match self.ip() {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified(),
        }
    }

    /// What no packet on a wire is for: [`Addr::is_multicast_or_broadcast`], loopback (RFC 1122 section 3.2.1.3).
    pub fn is_martian_destination(&self) -> bool {
        self.is_multicast_or_broadcast() || self.ip().is_loopback()
    }

    /// An address that no packet may legitimately come from (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7):
    /// unspecified, loopback, multicast, limited broadcast.
    pub fn is_martian_source(&self) -> bool {
        match self.ip() {
            IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240,
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_loopback() || ip.is_multicast(),
        }
    }
}

impl From<IpAddr> for Addr {
    /// An IPv4-mapped IPv6 address becomes the IPv4 address it stands for.
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(ip) => Addr::from_v4(ip.octets()),
            IpAddr::V6(ip) => Addr(ip.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> IpAddr {
        addr.ip()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}
