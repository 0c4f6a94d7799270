//! Where packets come from and go to.

use std::io;

use crate::wire::PacketBuf;

/// A queue of packets. Each is used by one thread.
pub trait Device: Send {
    /// Waits for a packet and puts it into `buf`. `false`: nothing came (a signal, an empty read); look around and try again.
    /// An error means that the device is gone.
    fn receive(&mut self, buf: &mut PacketBuf) -> io::Result<bool>;

    /// Sends the packet in `buf`. An error concerns this packet only, unless [`is_fatal`] says otherwise.
    fn send(&mut self, buf: &mut PacketBuf) -> io::Result<()>;
}

/// Whether an error of a device means that it will never work again: it was deleted under us.
pub fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::EFAULT | libc::ENODEV))
}
