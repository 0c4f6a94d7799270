//! ICMP errors that are addressed to the gateway's host itself: about its own tunnels. In TUN mode the kernel delivers them
//! to the host, where raw sockets pick up copies for the engine (raw(7); needs CAP_NET_RAW).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::Gateway;
use super::device::Device;
use crate::verdict::Verdict;
use crate::wire::{Addr, PacketBuf, icmp, ipv6};

/// Bytes of an error that matter: routers quote up to 1280 bytes in all.
const MAX_ERROR: usize = 2048;
/// Errors handled before other tasks get their turn.
const BATCH: usize = 64;

/// The raw sockets, open.
pub struct OwnErrors {
    v4: Option<AsyncFd<Socket>>,
    v6: Option<AsyncFd<Socket>>,
}

impl OwnErrors {
    /// To be called within a tokio runtime. A family that this host does not have is left out.
    ///
    /// # Errors
    /// Not permitted.
    pub fn open() -> io::Result<OwnErrors> {
        let absent = |result: io::Result<AsyncFd<Socket>>| match result {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(OwnErrors { v4: absent(open_v4())?, v6: absent(open_v6())? })
    }

    /// Hands errors to the gateway, and what it answers to `device`. Runs as long as the gateway does.
    pub async fn serve(self, gateway: Arc<Gateway>, mut device: impl Device) -> &'static str {
        let mut released = Vec::new();
        loop {
            let packets = tokio::select! {
                packets = receive(self.v4.as_ref(), read_v4) => packets,
                packets = receive(self.v6.as_ref(), read_v6) => packets,
            };
            for mut packet in packets {
                // What the engine passes is the host's, which has it already.
                let verdict = gateway.handle_packet(&mut packet, &mut released);
                if matches!(verdict, Verdict::Forward | Verdict::Refuse(_))
                    && let Err(error) = device.send(&mut packet)
                {
                    debug!(%error, "an ICMP error was not relayed");
                }
                released.clear();
            }
            tokio::task::yield_now().await;
        }
    }
}

type Reading = fn(&Socket) -> io::Result<Option<PacketBuf>>;

/// Waits for errors and returns some; for ever without a socket.
async fn receive(socket: Option<&AsyncFd<Socket>>, read: Reading) -> Vec<PacketBuf> {
    let Some(socket) = socket else { return std::future::pending().await };
    let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
    let mut packets = Vec::new();
    for _ in 0..BATCH {
        match ready.try_io(|socket| read(socket.get_ref())) {
            Ok(Ok(packet)) => packets.extend(packet),
            // An error that is pending on the socket; it is gone now.
            Ok(Err(error)) => debug!(%error, "reading ICMP errors"),
            Err(_would_block) => break,
        }
    }
    packets
}

fn open_v4() -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    // linux/icmp.h: a bit set keeps a type out.
    const ICMP_FILTER: libc::c_int = 1;
    let wanted = [icmp::V4_UNREACHABLE, icmp::V4_TIME_EXCEEDED, icmp::V4_PARAMETER_PROBLEM];
    let filter: u32 = wanted.iter().fold(!0, |filter, kind| filter & !(1 << kind));
    set_option(&socket, libc::SOL_RAW, ICMP_FILTER, &filter)?;
    socket.set_nonblocking(true)?;
    register(socket)
}

fn open_v6() -> io::Result<AsyncFd<Socket>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    // linux/icmpv6.h: the same, for 256 types.
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut filter = [!0u32; 8];
    for kind in icmp::V6_UNREACHABLE..=icmp::V6_PARAMETER_PROBLEM {
        filter[usize::from(kind / 32)] &= !(1 << (kind % 32));
    }
    set_option(&socket, libc::SOL_ICMPV6, ICMPV6_FILTER, &filter)?;
    // Which of its addresses the error came to stands beside the message.
    set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, &1i32)?;
    socket.set_nonblocking(true)?;
    register(socket)
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the descriptor belongs to the socket, which the AsyncFd owns and does not let go of while it is registered.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

fn set_option<T>(socket: &Socket, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` lives through the call, and `len` is its size; the callers pass what the option expects.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// With its IP header, as raw IPv4 sockets have it.
fn read_v4(socket: &Socket) -> io::Result<Option<PacketBuf>> {
    let mut bytes = [MaybeUninit::uninit(); MAX_ERROR];
    let (len, _) = socket.recv_from(&mut bytes)?;
    Ok(Some(PacketBuf::from_packet(&initialized(&bytes, len))))
}

/// The message alone, as raw IPv6 sockets have it, with a header made of what the kernel tells beside it.
fn read_v6(socket: &Socket) -> io::Result<Option<PacketBuf>> {
    let mut bytes = [0u8; MAX_ERROR];
    let mut control = [0u64; 16];
    // SAFETY: all zeroes is a valid sockaddr_in6, and a valid msghdr (null pointers, zero lengths).
    let (mut from, mut message): (libc::sockaddr_in6, libc::msghdr) = unsafe { std::mem::zeroed() };
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = std::mem::size_of_val(&control);
    // SAFETY: every pointer in `message` is to something that lives through the call, with its length.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let Some(to) = destination(&message) else { return Ok(None) };
    let mut buf = PacketBuf::from_packet(&bytes[..len]);
    let Some(room) = buf.prepend(ipv6::LEN).and_then(|room| room.first_chunk_mut()) else { return Ok(None) };
    ipv6::emit(room, Addr::from_v6(from.sin6_addr.s6_addr), to, crate::wire::Protocol::ICMPV6, len);
    Ok(Some(buf))
}

fn destination(message: &libc::msghdr) -> Option<Addr> {
    // SAFETY: the kernel has filled `message` in; its control buffer is alive, and CMSG_FIRSTHDR gives null when it is
    // too short for a header.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header in the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if (level, kind) == (libc::SOL_IPV6, libc::IPV6_PKTINFO) {
            // SAFETY: a header of this kind is followed by an in6_pktinfo, which may lie at any address.
            let info = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>()) };
            return Some(Addr::from_v6(info.ipi6_addr.s6_addr));
        }
        // SAFETY: `header` is one of `message`'s; CMSG_NXTHDR gives null at the end.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn initialized(bytes: &[MaybeUninit<u8>], len: usize) -> Vec<u8> {
    // SAFETY: the kernel wrote the first `len` bytes.
    bytes[..len].iter().map(|byte| unsafe { byte.assume_init() }).collect()
}

/// The address that this host uses towards `to`. Sends nothing.
///
/// # Errors
/// There is no route to it.
pub fn source_towards(to: IpAddr) -> io::Result<IpAddr> {
    let socket = Socket::new(Domain::for_address((to, 9).into()), Type::DGRAM, None)?;
    // The port does not matter: connecting a UDP socket only looks the route up.
    socket.connect(&SockAddr::from(std::net::SocketAddr::new(to, 9)))?;
    let own = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(own.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_itself_the_host_uses_the_address_itself() {
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        assert_eq!(source_towards(loopback).expect("a route to oneself"), loopback);
    }
}
