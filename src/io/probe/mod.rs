//! The gateway as a client of its own services: probes that go the way of clients' packets.
//!
//! # Theory of operation
//!
//! A probe is a flow of the engine's (`engine::probe`), pinned to one server, and a small TCP/IP stack of its own at its
//! client's end: an interface of smoltcp's with one socket. What the stack sends is given to the engine and leaves by the
//! gateway's outlet; what the server answers comes by the device to a packet worker, from there to the engine, and by
//! [`Verdict::Deliver`](crate::verdict::Verdict::Deliver) to the probe's inbox. Who waits for the probe is woken then, and
//! runs its stack; between two polls a stack does nothing. So probes share nothing but the table of inboxes: a server that
//! floods its probe, or sends it rubbish, harms no other one.
//!
//! Everything is bounded: probes at a time ([`MAX_AT_ONCE`]), what an inbox holds, the buffers of a socket. A probe that is
//! dropped closes its connection as a kernel's socket does: by a FIN, for which it gets a little time, or by a RST.

mod datagrams;
mod inbox;
mod stack;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

pub use datagrams::Datagrams;
use inbox::Side;
pub(super) use inbox::{Inbox, Inboxes};
pub use stream::Stream;

use super::Gateway;
use crate::command::ProbeFault;
use crate::service::{Method, ServerId};
use crate::wire::{Addr, Encapsulation, PacketBuf, Protocol, Tuple, ipv4, ipv6};

/// Source ports of probes. What Linux gives to programs by itself ends below (`net.ipv4.ip_local_port_range`, 32768-60999).
pub const PORTS: std::ops::RangeInclusive<u16> = 61000..=61999;
/// Probes at a time. The flow table has room for more: those that close.
pub const MAX_AT_ONCE: usize = 512;
/// Source ports that are tried before a probe is given up.
const PORT_ATTEMPTS: usize = 16;

/// Opens probes.
pub struct Probes {
    gateway: Arc<Gateway>,
    /// For each server the source port that was used last. Every one is used before one is used again, so that a server
    /// that keeps connections for a while after their end (TIME_WAIT) does not take a new one for an old one.
    ports: Mutex<HashMap<ServerId, u16>>,
    places: Arc<tokio::sync::Semaphore>,
}

impl Probes {
    pub fn new(gateway: Arc<Gateway>) -> Probes {
        let places = Arc::new(tokio::sync::Semaphore::new(MAX_AT_ONCE));
        Probes { gateway, ports: Mutex::default(), places }
    }

    /// A TCP connection to `server`, addressed to the VIP and port `to`.
    ///
    /// # Errors
    /// It was refused (by a RST or an ICMP error), or the gateway has no room, no port or no address for it (a raw OS error).
    pub async fn stream(&self, server: ServerId, to: SocketAddr) -> io::Result<Stream> {
        Stream::connect(self.begin(server, to, Protocol::TCP)?).await
    }

    /// UDP from one port to the VIP and port `to`, all of it to `server`.
    ///
    /// # Errors
    /// The gateway has no room, no port or no address for it.
    pub fn datagrams(&self, server: ServerId, to: SocketAddr) -> io::Result<Datagrams> {
        Datagrams::open(self.begin(server, to, Protocol::UDP)?)
    }

    fn begin(&self, server: ServerId, to: SocketAddr, protocol: Protocol) -> io::Result<Probe> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| our_own(libc::ENOBUFS))?;
        let snapshot = self.gateway.snapshot();
        let vip = Addr::from(to.ip());
        let target = snapshot.server(server).ok_or_else(|| our_own(libc::EADDRNOTAVAIL))?;
        let src = snapshot.probe_source(vip, target.address).ok_or_else(|| our_own(libc::EADDRNOTAVAIL))?;
        let overhead = match (target.method, target.encapsulation) {
            (Method::Tunnel, encapsulation) => {
                let outer = if target.address.is_v4() { ipv4::MIN_LEN } else { ipv6::LEN };
                outer + if matches!(encapsulation, Encapsulation::Gue { .. }) { GUE_OVERHEAD } else { 0 }
            }
            _ => 0,
        };
        let mtu = usize::from(target.path.mtu(self.gateway.now(), snapshot.spec.mtu)) - overhead;
        for _ in 0..PORT_ATTEMPTS {
            let original = Tuple { src, dst: vip, sport: self.next_port(server), dport: to.port(), protocol };
            match self.gateway.begin_probe(original, server) {
                Ok((shard, inbox)) => {
                    let gateway = self.gateway.clone();
                    return Ok(Probe { gateway, shard, original, inbox, mtu, place: Some(place) });
                }
                Err(ProbeFault::Taken) => {}
                Err(ProbeFault::NoServer) => return Err(our_own(libc::EADDRNOTAVAIL)),
                Err(ProbeFault::Full | ProbeFault::NoPort) => return Err(our_own(libc::ENOBUFS)),
            }
        }
        Err(our_own(libc::EADDRNOTAVAIL))
    }

    fn next_port(&self, server: ServerId) -> u16 {
        let mut ports = self.ports.lock();
        let port = ports.entry(server).or_insert_with(|| (self.gateway.secret(server) % u64::from(COUNT)) as u16);
        *port = (*port + 1) % COUNT;
        PORTS.start() + *port
    }
}

const COUNT: u16 = *PORTS.end() - *PORTS.start() + 1;
/// Headers of UDP and GUE.
const GUE_OVERHEAD: usize = 12;

/// An error that says nothing of the server.
fn our_own(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The flow of a probe, and the place that it takes; both end with it.
struct Probe {
    gateway: Arc<Gateway>,
    shard: usize,
    original: Tuple,
    inbox: Arc<Inbox>,
    mtu: usize,
    place: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Probe {
    fn send(&self, packet: &[u8]) {
        // Room for outer headers stands in front of every packet.
        self.gateway.send_probe(self.shard, &mut PacketBuf::from_packet(packet));
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.gateway.end_probe(self.shard, self.original);
    }
}
