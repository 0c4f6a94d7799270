//! A probe's TCP connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stack::Stack;
use super::{Probe, Side};

/// Bytes that a connection holds each way. Answers to probes are small; the window makes a server wait with more.
const BUFFER: usize = 16 << 10;
/// How long a connection that is closed may take to end in an orderly way.
const CLOSING: Duration = Duration::from_secs(2);

/// A TCP connection of a probe. Dropped, it is closed as the kernel's sockets are.
pub struct Stream {
    /// `None` once it is dropped.
    stack: Option<Stack>,
}

impl Stream {
    pub(super) async fn connect(probe: Probe) -> io::Result<Stream> {
        let original = probe.original;
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let mut stream = Stream { stack: Some(Stack::new(probe, socket)) };
        if let Some(stack) = &mut stream.stack {
            let (socket, interface) = stack.parts::<Socket<'_>>();
            let (remote, local) = ((original.dst.ip(), original.dport), (original.src.ip(), original.sport));
            socket
                .connect(interface.context(), remote, local)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        }
        poll_fn(|context| stream.poll_connected(context)).await?;
        Ok(stream)
    }

    fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stack = self.stack(Side::Write, context)?;
        match stack.socket::<Socket<'_>>().state() {
            State::SynSent | State::SynReceived => match stack.told.take() {
                Some(kind) => Poll::Ready(Err(kind.into())),
                None => Poll::Pending,
            },
            State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// The stack, after it has done what it can.
    fn stack(&mut self, side: Side, context: &mut Context<'_>) -> io::Result<&mut Stack> {
        let stack = self.stack.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        stack.progress(side, context);
        Ok(stack)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stack = self.stack(Side::Read, context)?;
        let socket = stack.socket::<Socket<'_>>();
        match socket.recv_slice(into.initialize_unfilled()) {
            Ok(0) if into.remaining() > 0 => Poll::Pending,
            Ok(read) => {
                into.advance(read);
                // The window is open again, and the server may want to know.
                stack.progress(Side::Read, context);
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stack = self.stack(Side::Write, context)?;
        let socket = stack.socket::<Socket<'_>>();
        if !socket.may_send() {
            let reset = socket.state() == State::Closed;
            let kind = if reset { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe };
            return Poll::Ready(Err(kind.into()));
        }
        match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => Poll::Pending,
            Ok(sent) => {
                stack.progress(Side::Write, context);
                Poll::Ready(Ok(sent))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stack(Side::Write, context).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stack(Side::Write, context)?.socket::<Socket<'_>>().close();
        Poll::Ready(self.stack(Side::Write, context).map(drop))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(mut stack) = self.stack.take() else { return };
        let socket = stack.socket::<Socket<'_>>();
        let is_over = matches!(socket.state(), State::Closed | State::SynSent | State::TimeWait);
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| !is_over && socket.recv_queue() == 0);
        let Some(runtime) = runtime else {
            if !is_over {
                socket.abort();
            }
            return stack.finish();
        };
        socket.close();
        // Who waits for a place does not wait for this.
        stack.probe.place = None;
        runtime.spawn(close(stack));
    }
}

/// Sees a connection to its end.
async fn close(mut stack: Stack) {
    let ended = poll_fn(|context| {
        stack.progress(Side::Read, context);
        match stack.socket::<Socket<'_>>().state() {
            State::Closed | State::TimeWait => Poll::Ready(()),
            _ => Poll::Pending,
        }
    });
    if tokio::time::timeout(CLOSING, ended).await.is_err() {
        stack.socket::<Socket<'_>>().abort();
        stack.finish();
    }
}
