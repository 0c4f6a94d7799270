//! Direct routing in TUN mode: frames to servers on the host's own segments, past the TUN device.
//!
//! A packet socket with virtio headers (`PACKET_VNET_HDR`; Linux, `net/packet/af_packet.c`) takes super-packets whole, as
//! the TUN device does. Where a server is, the kernel's neighbour table tells; [`super::neighbours`] watches it.

use std::collections::HashMap;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::wire::{Addr, PacketBuf, VnetHdr};

const ETHERNET: usize = 14;
const MAC: usize = 6;
/// A hundred super-packets or so.
const SEND_BUFFER: libc::c_int = 8 << 20;

/// Where on its segment a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub interface: u32,
    pub mac: [u8; MAC],
    /// Of the interface.
    pub own_mac: [u8; MAC],
}

/// Where the servers of method `direct` are, for all workers.
#[derive(Debug, Default)]
pub struct Places(ArcSwap<HashMap<Addr, Place>>);

impl Places {
    pub fn set(&self, places: HashMap<Addr, Place>) {
        self.0.store(Arc::new(places));
    }

    pub fn all(&self) -> Arc<HashMap<Addr, Place>> {
        self.0.load_full()
    }

    fn of(&self, neighbour: Addr) -> Option<Place> {
        self.0.load().get(&neighbour).copied()
    }
}

/// Sends frames; receives none.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    places: Arc<Places>,
}

impl PacketSocket {
    /// # Errors
    /// No CAP_NET_RAW, or no packet sockets in this kernel.
    pub fn open(places: Arc<Places>) -> io::Result<PacketSocket> {
        // Protocol 0: nothing is ever received.
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: socket(2) returned it just now, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = PacketSocket { fd, places };
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // Frames that an interface has not sent yet; the socket's own limit comes before that of the interface's queue.
        if let Err(error) = socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER) {
            tracing::debug!(%error, "the packet socket keeps a small send buffer");
        }
        Ok(socket)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option is an int; `value` lives through the call, and `len` is its size.
        let done = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends the packet in `buf` to `neighbour`.
    ///
    /// # Errors
    /// Nobody knows yet where the neighbour is (`HostUnreachable`); its interface has as many frames waiting as it may
    /// (`WouldBlock`: a slow link must not hold up those of others); or the interface does not take the frame.
    pub fn send(&self, neighbour: Addr, buf: &mut PacketBuf) -> io::Result<()> {
        let place = self.places.of(neighbour).ok_or(io::ErrorKind::HostUnreachable)?;
        let ethertype =
            if buf.packet().first().is_some_and(|first| first >> 4 == 6) { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
        let ethertype = ethertype as u16;
        let header = buf.prepend(ETHERNET).ok_or(io::ErrorKind::InvalidInput)?;
        header[..MAC].copy_from_slice(&place.mac);
        header[MAC..2 * MAC].copy_from_slice(&place.own_mac);
        header[2 * MAC..].copy_from_slice(&ethertype.to_be_bytes());
        buf.vnet = in_frame(buf.vnet);
        let bytes = buf.write_area().ok_or(io::ErrorKind::InvalidInput)?;

        // SAFETY: all zeroes is a valid sockaddr_ll: numbers and a byte array.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = ethertype.to_be();
        to.sll_ifindex = place.interface as i32;
        to.sll_halen = MAC as u8;
        to.sll_addr[..MAC].copy_from_slice(&place.mac);
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `bytes` and `to` live through the call, and the lengths are theirs.
        let sent = unsafe {
            let (fd, flags) = (self.fd.as_raw_fd(), libc::MSG_DONTWAIT);
            libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), flags, (&raw const to).cast(), len)
        };
        if sent >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            full if full.raw_os_error() == Some(libc::ENOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            error => Err(error),
        }
    }
}

/// Offsets count from the start of the frame.
fn in_frame(vnet: VnetHdr) -> VnetHdr {
    let ethernet = ETHERNET as u16;
    VnetHdr {
        csum_start: if vnet.needs_csum() { vnet.csum_start + ethernet } else { vnet.csum_start },
        hdr_len: if vnet.is_gso() { vnet.hdr_len.saturating_add(ethernet) } else { vnet.hdr_len },
        ..vnet
    }
}
