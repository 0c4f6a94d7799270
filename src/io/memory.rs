//! A pair of devices in memory: what one sends, the other receives. For tests of what stands between devices.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::device::{Device, write_pieces};
use crate::wire::{PacketBuf, VnetHdr};

/// One end of the pair.
pub struct Memory {
    out: SyncSender<(Vec<u8>, VnetHdr)>,
    inbox: Receiver<(Vec<u8>, VnetHdr)>,
}

/// Two connected ends; each direction holds up to `capacity` packets and refuses more.
pub fn pair(capacity: usize) -> (Memory, Memory) {
    let (there, here_inbox) = sync_channel(capacity);
    let (here, there_inbox) = sync_channel(capacity);
    (Memory { out: there, inbox: there_inbox }, Memory { out: here, inbox: here_inbox })
}

impl Device for Memory {
    fn receive(&mut self, buf: &mut PacketBuf) -> io::Result<bool> {
        match self.inbox.recv_timeout(Duration::from_millis(10)) {
            Ok((packet, vnet)) => {
                *buf = PacketBuf::from_packet(&packet);
                buf.vnet = vnet;
                Ok(true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    fn send(&mut self, buf: &mut PacketBuf) -> io::Result<()> {
        let put = |packet: Vec<u8>, vnet: VnetHdr| match self.out.try_send((packet, vnet)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TrySendError::Disconnected(_)) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        };
        match buf.wrap {
            Some(wrap) => write_pieces(buf, &wrap, 0, |vnet, headers, payload| {
                put([headers, payload].concat(), VnetHdr::decode(vnet))
            }),
            None => put(buf.packet().to_vec(), buf.vnet),
        }
    }
}
