//! Where packets come from and go to.

use std::io;

use crate::wire::cut::{self, CutError};
use crate::wire::vnet::VNET_HDR_LEN;
use crate::wire::{PacketBuf, VnetHdr, Wrap};

/// A queue of packets. Each is used by one thread.
pub trait Device: Send {
    /// Waits for a packet and puts it into `buf`. `false`: nothing came (a signal, an empty read); look around and try again.
    /// An error means that the device is gone.
    fn receive(&mut self, buf: &mut PacketBuf) -> io::Result<bool>;

    /// Sends the packet in `buf`, to its `hop` and in pieces by its `wrap` if it has those. An error concerns this packet only, unless [`is_fatal`] says otherwise.
    fn send(&mut self, buf: &mut PacketBuf) -> io::Result<()>;
}

/// Has every piece of a packet written: its virtio header, its headers, its payload. The first error ends it. `front`: how
/// many bytes the device puts between the virtio header and the IP header, from where the former counts.
pub fn write_pieces(
    buf: &PacketBuf,
    wrap: &Wrap,
    front: usize,
    mut write: impl FnMut(&[u8; VNET_HDR_LEN], &[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let write = |vnet: &VnetHdr, headers: &[u8], payload: &[u8]| write(&vnet.behind(front).encode(), headers, payload);
    cut::pieces(buf, wrap, write).map(drop).map_err(|error| match error {
        CutError::Packet(reason) => io::Error::new(io::ErrorKind::InvalidData, reason.word()),
        CutError::Each(error) => error,
    })
}

/// Whether an error of a device means that it will never work again: it was deleted under us.
pub fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::EFAULT | libc::ENODEV))
}
