//! MTUs of links and routes.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Bytes that a packet to `to` may have on its way from here. Sends nothing.
///
/// # Errors
/// There is no route to it.
pub fn path_mtu(to: IpAddr) -> io::Result<u32> {
    let (any, level, option): (IpAddr, _, _) = match to {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // The port does not matter: connecting a UDP socket only looks the route up.
    socket.connect(SocketAddr::new(to, 9))?;
    let mut mtu: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `mtu` and `length` are live and writable for the whole call, and `length` says how large `mtu` is.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut length) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The MTU of an interface. Not from `/sys`, which may show the interfaces of another network namespace.
///
/// # Errors
/// There is no such interface.
pub fn link_mtu(name: &str) -> io::Result<u32> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all zeroes is a valid ifreq: numbers, byte arrays and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFMTU reads the name from, and writes the MTU to, one ifreq; `request` is one and lives on.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after SIOCGIFMTU the union holds the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        let lo = link_mtu("lo").unwrap();
        assert!(lo >= 1280, "{lo}");
        // The kernel lets no way be longer than a packet can be (IP_MAX_MTU in include/net/ip.h).
        assert_eq!(path_mtu(Ipv4Addr::LOCALHOST.into()).unwrap(), lo.min(65535));
    }

    #[test]
    fn an_interface_that_is_not_there_has_no_mtu() {
        assert!(link_mtu("gatun-none").is_err());
        assert!(link_mtu("a-name-that-is-far-too-long").is_err());
    }
}
