//! A TUN device with virtio headers, offloads and several queues.
//!
//! One read or write system call a packet, and a packet may be a super-packet of 64 KiB: see the module docs of
//! [`crate::wire::PacketBuf`] for how the virtio header comes before it in the same buffer.

use std::fs::File;
use std::io;

use super::device::Device;
use super::direct::PacketSocket;
use super::tuntap::{self, Kind};
pub use super::tuntap::{TunError, TunSettings};
use crate::wire::PacketBuf;

/// One queue of the device.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
    /// For what does not go through the device; `None` where there are no packet sockets.
    frames: Option<PacketSocket>,
}

impl TunQueue {
    /// Packets for a neighbour of their own leave by `frames`.
    pub fn with_frames(mut self, frames: Option<PacketSocket>) -> TunQueue {
        self.frames = frames;
        self
    }

    pub fn has_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// Another handle of the same queue, for sending. It has no way for frames of its own.
    pub fn sender(&self) -> io::Result<TunQueue> {
        Ok(TunQueue { file: self.file.try_clone()?, frames: None })
    }
}

/// Creates the device, brings it up, and opens its queues.
pub fn open(settings: &TunSettings) -> Result<Vec<TunQueue>, TunError> {
    let queues = tuntap::open_queues(Kind::Tun, settings)?;
    tuntap::bring_up(&queues[0], settings)?;
    Ok(queues.into_iter().map(|file| TunQueue { file, frames: None }).collect())
}

impl Device for TunQueue {
    fn receive(&mut self, buf: &mut PacketBuf) -> io::Result<bool> {
        tuntap::read(&self.file, buf)
    }

    fn send(&mut self, buf: &mut PacketBuf) -> io::Result<()> {
        match (buf.hop, buf.wrap) {
            (Some(neighbour), _) => match &self.frames {
                Some(frames) => frames.send(neighbour, buf),
                None => Err(io::ErrorKind::PermissionDenied.into()),
            },
            (None, Some(wrap)) => tuntap::write_in_pieces(&self.file, buf, &wrap, &[]),
            (None, None) => tuntap::write(&self.file, buf),
        }
    }
}
