//! A probe's exchange of UDP datagrams.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};

use super::stack::Stack;
use super::{Probe, Side};

/// Bytes that wait each way, and datagrams.
const BUFFER: usize = 16 << 10;
const DATAGRAMS: usize = 16;

/// UDP from one port of the gateway's to one server.
pub struct Datagrams {
    stack: Stack,
}

impl Datagrams {
    pub(super) fn open(probe: Probe) -> io::Result<Datagrams> {
        let original = probe.original;
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; DATAGRAMS], vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket
            .bind((original.src.ip(), original.sport))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        Ok(Datagrams { stack: Stack::new(probe, socket) })
    }

    /// Sends one, which must fit into a packet.
    ///
    /// # Errors
    /// It does not, or an ICMP error came about an earlier one.
    pub async fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        poll_fn(|context| self.poll_send(context, payload)).await
    }

    /// The next one; what does not fit into `into` is cut off.
    ///
    /// # Errors
    /// An ICMP error came about one that was sent.
    pub async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| self.poll_receive(context, into)).await
    }

    fn poll_send(&mut self, context: &mut Context<'_>, payload: &[u8]) -> Poll<io::Result<()>> {
        self.stack.progress(Side::Write, context);
        if let Some(kind) = self.stack.told.take() {
            return Poll::Ready(Err(kind.into()));
        }
        let (to, mtu) = (self.stack.probe.original, self.stack.probe.mtu);
        let headers = 8 + if to.dst.is_v4() { crate::wire::ipv4::MIN_LEN } else { crate::wire::ipv6::LEN };
        if payload.len() + headers > mtu.min(BUFFER) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not fit into a packet")));
        }
        if self.stack.socket::<Socket<'_>>().send_slice(payload, (to.dst.ip(), to.dport)).is_err() {
            return Poll::Pending;
        }
        self.stack.progress(Side::Write, context);
        Poll::Ready(Ok(()))
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.stack.progress(Side::Read, context);
        let socket = self.stack.socket::<Socket<'_>>();
        if let Ok((payload, _)) = socket.recv() {
            let len = payload.len().min(into.len());
            into[..len].copy_from_slice(&payload[..len]);
            return Poll::Ready(Ok(len));
        }
        match self.stack.told.take() {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Pending,
        }
    }
}
