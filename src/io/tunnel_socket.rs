//! Sockets that tunnelled packets come to: raw ones for IP-in-IP, UDP ones for GUE.
//!
//! A raw socket gets a copy of each packet of its protocol, reassembled, and the kernel does not answer "protocol
//! unreachable" while it is open (`raw_local_deliver` in net/ipv4/raw.c, `ip6_protocol_deliver_rcu` in
//! net/ipv6/ip6_input.c). Of IPv4 it hands over the outer header as well, of IPv6 and UDP it does not; there the header is
//! built again from what recvmsg(2) tells beside the packet, so that what comes out always begins with an outer IP header.
//!
//! A packet comes in with its length only: nothing says whether the checksum inside is partial
//! ([`crate::forward::receive`] finds out).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use crate::wire::vnet::VNET_HDR_LEN;
use crate::wire::{Addr, MAX_PACKET, PacketBuf, ipv4, ipv6, udp};

/// Bytes of packets that the kernel may hold for us: 8 MiB are 50 ms at 1 Gbit/s, bookkeeping included.
const RECEIVE_BUFFER: usize = 8 << 20;
/// A receive call returns after so long without a packet, at the latest: should a wake-up ever be lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes for control messages of one packet; three of at most 40 are asked for.
const CONTROL: usize = 128;

const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_UDP: u8 = 17;
/// include/uapi/linux/udp.h: take UDP without checksum over IPv6, as RFC 6935 allows for tunnels.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
/// include/uapi/asm-generic/socket.h, and the index of `SK_MEMINFO_DROPS` (include/uapi/linux/sock_diag.h).
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_DROPS: usize = 8;

/// What a socket listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Protocol 4 (`inner` IPv4) or 41 (IPv6) in IP packets of the `outer` family.
    Ipip {
        outer: Version,
        inner: Version,
    },
    Gue {
        outer: Version,
        port: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

impl Source {
    /// Every form of IP-in-IP, and GUE on `ports`.
    pub fn all(ports: &[u16]) -> Vec<Source> {
        let versions = [Version::V4, Version::V6];
        let ipip = versions.iter().flat_map(|&outer| versions.iter().map(move |&inner| Source::Ipip { outer, inner }));
        let gue = versions.iter().flat_map(|&outer| ports.iter().map(move |&port| Source::Gue { outer, port }));
        ipip.chain(gue).collect()
    }

    pub fn outer(self) -> Version {
        match self {
            Source::Ipip { outer, .. } | Source::Gue { outer, .. } => outer,
        }
    }
}

/// One socket.
#[derive(Debug)]
pub struct TunnelSocket {
    socket: Socket,
    source: Source,
}

impl TunnelSocket {
    /// # Errors
    /// No CAP_NET_RAW, no such family, or the port is taken.
    pub fn open(source: Source) -> io::Result<TunnelSocket> {
        let domain = match source.outer() {
            Version::V4 => Domain::IPV4,
            Version::V6 => Domain::IPV6,
        };
        let (kind, protocol) = match source {
            Source::Ipip { inner: Version::V4, .. } => (Type::RAW, IPPROTO_IPIP),
            Source::Ipip { inner: Version::V6, .. } => (Type::RAW, IPPROTO_IPV6),
            Source::Gue { .. } => (Type::DGRAM, IPPROTO_UDP),
        };
        let socket = Socket::new(domain, kind, Some(Protocol::from(i32::from(protocol))))?;
        let tunnel = TunnelSocket { socket, source };
        match (source.outer(), source) {
            // The header comes with the packet.
            (Version::V4, Source::Ipip { .. }) => {}
            (Version::V4, Source::Gue { .. }) => {
                tunnel.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
                tunnel.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            }
            (Version::V6, _) => {
                tunnel.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                tunnel.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            }
        }
        if let Source::Gue { outer, port } = source {
            if outer == Version::V6 {
                tunnel.socket.set_only_v6(true)?;
                tunnel.set(libc::IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)?;
            }
            let any: IpAddr = match outer {
                Version::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Version::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            tunnel.socket.bind(&SocketAddr::new(any, port).into())?;
        }
        tunnel.socket.set_read_timeout(Some(PATIENCE))?;
        // Beyond net.core.rmem_max, which CAP_NET_ADMIN allows.
        if tunnel.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as libc::c_int).is_err()
            && let Err(error) = tunnel.socket.set_recv_buffer_size(RECEIVE_BUFFER)
        {
            debug!(%error, "the socket keeps its small receive buffer");
        }
        Ok(tunnel)
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<TunnelSocket> {
        Ok(TunnelSocket { socket: self.socket.try_clone()?, source: self.source })
    }

    /// Packets that the kernel dropped since the socket was made, because nobody took them in time.
    pub fn dropped(&self) -> io::Result<u64> {
        let mut values = [0u32; 16];
        let mut len = size_of_val(&values) as libc::socklen_t;
        // SAFETY: `values` and `len` live through the call, and `len` says how large `values` is.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::from(values[MEMINFO_DROPS]))
    }

    /// Makes a waiting receive call return, and all later ones. (A socket that is not connected says ENOTCONN, and does it
    /// all the same: `inet_shutdown` in net/ipv4/af_inet.c.)
    pub fn wake(&self) {
        let _ = self.socket.shutdown(Shutdown::Read);
    }

    /// Waits for packets, and puts as many as there are into `batch`, from the outer IP header on. Answers how many; 0
    /// when nothing came.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, batch: &mut [PacketBuf]) -> io::Result<usize> {
        let count = batch.len().min(BATCH);
        let mut names: [libc::sockaddr_storage; BATCH] = zeroed_names();
        let mut controls = [Control([0; CONTROL]); BATCH];
        let mut pieces: [libc::iovec; BATCH] = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        // SAFETY: all zeroes is a valid mmsghdr: null pointers and zero lengths.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (at, buf) in batch.iter_mut().take(count).enumerate() {
            let area = &mut buf.read_area()[VNET_HDR_LEN..];
            pieces[at] = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len().min(MAX_PACKET) };
            let header = &mut messages[at].msg_hdr;
            header.msg_name = (&raw mut names[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut pieces[at];
            header.msg_iovlen = 1;
            header.msg_control = controls[at].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: each of the first `count` headers points to a name, an iovec, a control buffer and through the iovec to a
        // packet buffer, all of which live through the call and are used by nobody else; the lengths are theirs.
        let result = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(result) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                // An ICMP error about something that a UDP socket never sent.
                io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable => Ok(0),
                _ => Err(error),
            };
        };
        let mut kept = 0;
        for at in 0..received.min(count) {
            let len = messages[at].msg_len as usize;
            let beside = Beside::read(&messages[at].msg_hdr, &names[at]);
            // A call that `wake` ended looks like an empty packet.
            if len == 0 || messages[at].msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                continue;
            }
            batch.swap(kept, at);
            let buf = &mut batch[kept];
            // `read_area` forgets the packet, not its bytes; the virtio header in front says that there are no offloads.
            buf.read_area()[..VNET_HDR_LEN].fill(0);
            if buf.read_done(VNET_HDR_LEN + len) && self.complete(buf, &beside).is_some() {
                kept += 1;
            }
        }
        Ok(kept)
    }

    /// Puts the headers back in front that the kernel kept. `None` when it did not say enough to do that.
    fn complete(&self, buf: &mut PacketBuf, beside: &Beside) -> Option<()> {
        let (src, port) = beside.src?;
        let protocol = match self.source {
            Source::Ipip { outer: Version::V4, .. } => return Some(()),
            Source::Ipip { inner: Version::V4, .. } => IPPROTO_IPIP,
            Source::Ipip { inner: Version::V6, .. } => IPPROTO_IPV6,
            Source::Gue { port: own, .. } => {
                let len = u16::try_from(buf.len() + udp::LEN).ok()?;
                let header = buf.prepend(udp::LEN)?;
                header[..2].copy_from_slice(&port.to_be_bytes());
                header[2..4].copy_from_slice(&own.to_be_bytes());
                header[4..6].copy_from_slice(&len.to_be_bytes());
                // The kernel has verified it; 0 is none.
                header[6..8].fill(0);
                IPPROTO_UDP
            }
        };
        let (dst, payload) = (beside.dst?, buf.len());
        let protocol = crate::wire::Protocol(protocol);
        match self.source.outer() {
            Version::V4 => {
                let header = buf.prepend(ipv4::MIN_LEN)?.first_chunk_mut()?;
                ipv4::emit(header, src, dst, protocol, beside.tos, payload);
            }
            Version::V6 => {
                let header = buf.prepend(ipv6::LEN)?.first_chunk_mut()?;
                ipv6::emit(header, src, dst, protocol, payload);
                header[0] |= beside.tos >> 4;
                header[1] |= beside.tos << 4;
            }
        }
        Some(())
    }
}

/// Packets taken in one call.
pub const BATCH: usize = 32;

/// Aligned as the kernel aligns control messages.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

fn zeroed_names() -> [libc::sockaddr_storage; BATCH] {
    // SAFETY: all zeroes is a valid sockaddr_storage: numbers and byte arrays.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// What recvmsg(2) tells beside the packet.
#[derive(Debug, Default)]
struct Beside {
    src: Option<(Addr, u16)>,
    dst: Option<Addr>,
    tos: u8,
}

impl Beside {
    fn read(header: &libc::msghdr, name: &libc::sockaddr_storage) -> Beside {
        let mut beside = Beside { src: address(name), ..Beside::default() };
        // SAFETY: the kernel filled the control buffer that `header` points to and set its length; the buffer lives as long
        // as `header` is used here. CMSG_NXTHDR ends with null where the next header would not fit.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: not null, so a whole header lies here, and behind it as much data as it says; each type is read only
            // for the level and type that carry it, without regard to alignment.
            unsafe {
                let data = libc::CMSG_DATA(message);
                match ((*message).cmsg_level, (*message).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                        beside.dst = Some(Addr::from_v4(info.ipi_addr.s_addr.to_ne_bytes()));
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => beside.tos = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        beside.dst = Some(Addr::from_v6(info.ipi6_addr.s6_addr));
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        beside.tos = data.cast::<libc::c_int>().read_unaligned() as u8;
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(header, message);
            }
        }
        beside
    }
}

fn address(name: &libc::sockaddr_storage) -> Option<(Addr, u16)> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a sockaddr_in here, and a sockaddr_storage is large enough
            // for, and aligned as, each kind of address.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            Some((Addr::from_v4(name.sin_addr.s_addr.to_ne_bytes()), u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a sockaddr_in6.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            Some((Addr::from_v6(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port)))
        }
        _ => None,
    }
}

impl TunnelSocket {
    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` is an int that lives through the call, and its size is passed with it.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
