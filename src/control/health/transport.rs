//! How a probe reaches what it asks: byte streams and datagrams, whoever carries them.
//!
//! Probes are written against these traits alone. [`Host`] carries them by the kernel's sockets; another implementation may
//! carry them by the gateway's own data path. An implementation needs no time limits: whoever runs a probe drops its
//! futures when its time is up, and dropping a stream or an exchange must release all that it holds.
//!
//! What went wrong is told by [`io::ErrorKind`]: `ConnectionRefused` for a RST and for an ICMP port unreachable,
//! `HostUnreachable` and `NetworkUnreachable` for other ICMP errors, `ConnectionReset` for a RST later on. Errors of the
//! gateway itself, such as a full table of descriptors, say nothing about the server: [`is_ours`] knows them.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, UdpSocket};

use crate::service::ServerId;

/// Where a probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The server's own address and the port of its check; with `through` the VIP and the port that clients use.
    pub address: SocketAddr,
    /// The server that must get the packets, although they are addressed to a VIP. `None`: the address is the server's.
    pub through: Option<ServerId>,
}

/// What [`Connect`] answers; it may be dropped at any time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Opens connections to targets.
pub trait Connect: Send + Sync {
    /// A TCP connection that is established.
    fn stream(&self, to: Target) -> Answer<'_, Box<dyn Stream>>;

    /// UDP datagrams from one port of ours to the target and back; none is sent yet.
    fn datagrams(&self, to: Target) -> Answer<'_, Box<dyn Datagrams>>;
}

/// The two directions of a TCP connection. Dropped, it is closed; data that was received and not read makes it a RST, as with
/// the kernel's sockets.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An exchange of datagrams with one target.
pub trait Datagrams: Send {
    fn send<'a>(&'a mut self, payload: &'a [u8]) -> Answer<'a, ()>;

    /// The next datagram from the target; what does not fit into `into` is cut off. An ICMP error about one that was sent is
    /// an error here.
    fn receive<'a>(&'a mut self, into: &'a mut [u8]) -> Answer<'a, usize>;
}

/// The kernel's sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Connect for Host {
    fn stream(&self, to: Target) -> Answer<'_, Box<dyn Stream>> {
        Box::pin(async move {
            let socket = if to.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            let stream = socket.connect(to.address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn datagrams(&self, to: Target) -> Answer<'_, Box<dyn Datagrams>> {
        Box::pin(async move {
            let any: SocketAddr = match to.address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            // Connected, so that nobody else's datagrams come, and ICMP errors do.
            socket.connect(to.address).await?;
            Ok(Box::new(socket) as Box<dyn Datagrams>)
        })
    }
}

impl Datagrams for UdpSocket {
    fn send<'a>(&'a mut self, payload: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { UdpSocket::send(self, payload).await.map(drop) })
    }

    fn receive<'a>(&'a mut self, into: &'a mut [u8]) -> Answer<'a, usize> {
        Box::pin(async move { UdpSocket::recv(self, into).await })
    }
}

/// Whether an error is the gateway's own want (descriptors, memory, free ports, permission), which says nothing of the server.
pub fn is_ours(error: &io::Error) -> bool {
    let wants = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EADDRNOTAVAIL,
        libc::EACCES,
        libc::EPERM,
        libc::EAFNOSUPPORT,
    ];
    error.raw_os_error().is_some_and(|code| wants.contains(&code))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn to(address: SocketAddr) -> Target {
        Target { address, through: None }
    }

    #[tokio::test]
    async fn streams_by_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut stream = Host.stream(to(address)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        stream.write_all(b"ask").await.unwrap();
        let mut asked = [0; 3];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"ask");
        drop(listener);
        drop(server);
        let refused = Host.stream(to(address)).await.err().expect("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(!is_ours(&refused));
    }

    #[tokio::test]
    async fn datagrams_by_the_kernel() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut exchange = Host.datagrams(to(server.local_addr().unwrap())).await.unwrap();
        exchange.send(b"ask").await.unwrap();
        let mut buffer = [0; 16];
        let (size, from) = server.recv_from(&mut buffer).await.unwrap();
        server.send_to(&buffer[..size], from).await.unwrap();
        let size = exchange.receive(&mut buffer[8..]).await.unwrap();
        assert_eq!(&buffer[8..8 + size], b"ask");
        drop(server);
        exchange.send(b"again").await.unwrap();
        let refused = exchange.receive(&mut buffer).await.expect_err("an ICMP error");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
