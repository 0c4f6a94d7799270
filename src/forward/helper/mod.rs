//! Helpers: they read protocols whose flows announce further ones.
//!
//! # Theory of operation
//!
//! A service may name a helper. Its flows are marked ([`Marks::HELPED`](crate::flow::Marks::HELPED)), and each packet of
//! theirs goes through a [`Session`] before it is translated. The session puts the bytes of a TCP connection in order for
//! the helper: each once, none before those in front of it. What comes too early is dropped, for it comes again; what has
//! been read is not read again. The helper answers on a [`Desk`]: flows to expect, bytes to replace by others.
//!
//! * [`sequence`] keeps what was replaced, and moves sequence numbers, acknowledgements and repeated bytes accordingly.
//! * [`expect`] keeps what was announced until it begins. The engine asks for it when a packet has no flow.
//! * One file a helper: [`ftp`], [`tftp`].
//!
//! A helper adds a variant to [`HelperKind`], a file here with an implementation of [`Helper`], and its line in [`start`].
//!
//! What a session holds is bounded: the changes of a stream, the bytes of a line that a helper keeps, the sessions and the
//! expectations of a shard. A connection beyond the bounds goes on, unread.
//!
//! Methods that go one way have no helpers: the server answers under the VIP by itself, and takes announced connections at
//! it if the service has all ports and persistence.

pub mod expect;
pub mod ftp;
pub mod sequence;
mod session;
pub mod tftp;

use std::ops::Range;

use expect::{Expectation, Expectations, Key, LIFETIME};

use crate::flow::{Flow, FlowId, Marks, Owner, Sender};
use crate::service::{HelperKind, PortRange, Server, Service, Snapshot};
use crate::time::Instant;
use crate::wire::{Addr, Protocol};

pub use session::{Outcome, Session};

/// Ports below are no client's to announce, nor a server's: an expectation must not open a way to a well-known service
/// (RFC 2577 section 3).
const LOWEST_PORT: u16 = 1024;
/// Other ports tried when the announced one is taken at the VIP.
const PORT_ATTEMPTS: u16 = 16;

/// A protocol whose flows announce further ones.
pub trait Helper: Send {
    /// Reads the next bytes that `sender` has sent: of TCP in their order and each once, of UDP a datagram.
    fn read(&mut self, sender: Sender, bytes: &[u8], desk: &mut Desk<'_>);
}

/// The helper of a new flow.
pub fn start(kind: HelperKind) -> Box<dyn Helper> {
    match kind {
        HelperKind::Ftp => Box::<ftp::Ftp>::default(),
        HelperKind::Tftp => Box::new(tftp::Tftp),
    }
}

/// The marks that a new flow gets for its service's helper.
pub fn marks(service: &Service, server: &Server) -> Marks {
    match service.spec.helper {
        Some(_) if !server.method.is_one_way() => Marks::HELPED,
        _ => Marks::NONE,
    }
}

/// Bytes to be replaced: a range of those that were read, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub text: Vec<u8>,
}

/// Where a helper works: what it may know of its flow, and where it leaves what is to be done.
pub struct Desk<'a> {
    pub now: Instant,
    pub id: FlowId,
    pub flow: &'a Flow,
    pub snapshot: &'a Snapshot,
    pub expectations: &'a mut Expectations,
    /// For the choice of a port.
    pub random: u64,
    pub(super) edits: Vec<Edit>,
    /// Edits that there is room for.
    pub(super) room: usize,
    /// From here on the connection is none of the helper's.
    pub(super) is_left_alone: bool,
}

impl<'a> Desk<'a> {
    pub fn new(
        now: Instant,
        id: FlowId,
        flow: &'a Flow,
        snapshot: &'a Snapshot,
        expectations: &'a mut Expectations,
        random: u64,
    ) -> Desk<'a> {
        Desk { now, id, flow, snapshot, expectations, random, edits: Vec::new(), room: 0, is_left_alone: false }
    }

    pub fn client(&self) -> Addr {
        self.flow.original().src
    }

    pub fn vip(&self) -> Addr {
        self.flow.original().dst
    }

    pub fn server(&self) -> Addr {
        self.flow.reply().src
    }

    /// Whether so many edits can still be made.
    pub fn has_room(&self, edits: usize) -> bool {
        self.room >= edits
    }

    /// Replaces bytes of those that are read, behind all that has been replaced before. There must be room.
    pub fn replace(&mut self, range: Range<usize>, text: Vec<u8>) {
        if !range.is_empty() {
            self.room = self.room.saturating_sub(1);
            self.edits.push(Edit { range, text });
        }
    }

    /// What follows is not to be read: it is encrypted.
    pub fn leave_alone(&mut self) {
        self.is_left_alone = true;
    }

    /// The client will connect to `port` of the server, which it is to know as a port of the VIP: the answer. `None`: this
    /// is not allowed, or no port is free.
    pub fn expect_client(&mut self, port: u16) -> Option<u16> {
        if port < LOWEST_PORT {
            return None;
        }
        let (flow, server) = (self.flow, (self.server(), Some(port)));
        let key = |dport| Key { protocol: flow.protocol, src: self.client(), dst: self.vip(), dport };
        let shown = self
            .ports(port)
            .find(|shown| self.is_nobodys(*shown) && !self.expectations.is_taken(self.now, &key(*shown), server))?;
        self.expect(key(shown), Sender::Client, Some(port));
        Some(shown)
    }

    /// The server will connect to, or answer from another port at, `port` of the client, which is to see it as `shown` of
    /// the VIP; `None`: as the port it uses. Whether this is allowed.
    pub fn expect_server(&mut self, port: u16, shown: Option<u16>) -> bool {
        if port < LOWEST_PORT && self.flow.protocol == Protocol::TCP {
            return false;
        }
        let key = Key { protocol: self.flow.protocol, src: self.server(), dst: self.flow.reply().dst, dport: port };
        self.expect(key, Sender::Server, shown);
        true
    }

    fn expect(&mut self, key: Key, opener: Sender, port: Option<u16>) {
        let expectation = Expectation {
            key,
            opener,
            owner: Owner { marks: Marks::EXPECTED, ..self.flow.owner },
            by: self.id,
            client: self.client(),
            vip: self.vip(),
            server: self.server(),
            port,
            deadline: self.now + LIFETIME,
        };
        self.expectations.add(expectation, self.snapshot.spec.limits.expectations);
    }

    /// Ports of the VIP for `port` of the server: the same one, and then others at random. They lie among those that the
    /// service says announced flows come to, if it says so.
    fn ports(&self, port: u16) -> impl Iterator<Item = u16> + use<> {
        let (first, last) = match self.own_service().and_then(|service| service.spec.data_ports) {
            Some(range) => (range.first, range.last),
            None => (LOWEST_PORT, u16::MAX),
        };
        let size = u64::from(last - first) + 1;
        let random = self.random;
        let others = (0..PORT_ATTEMPTS).map(move |attempt| first + ((random + u64::from(attempt)) % size) as u16);
        (first..=last).contains(&port).then_some(port).into_iter().chain(others)
    }

    /// Whether no other service wants this port of the VIP for itself.
    fn is_nobodys(&self, port: u16) -> bool {
        let found = self.snapshot.service_for(self.vip(), self.flow.protocol, port);
        let gives_way =
            |service: &Service| service.id.0 == self.flow.owner.service || service.spec.ports == PortRange::ALL;
        found.is_none_or(|service| gives_way(service))
    }

    fn own_service(&self) -> Option<&Service> {
        self.snapshot.service(crate::service::ServiceId(self.flow.owner.service)).map(AsRef::as_ref)
    }
}
