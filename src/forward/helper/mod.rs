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
//!
//! Where the server knows the client by another address, what the client announces is replaced as well.

pub mod expect;
pub mod ftp;
pub mod sequence;
mod session;
pub mod tftp;

use std::ops::Range;

use expect::{Expectation, Expectations, Key, LIFETIME};

use crate::flow::{Flow, FlowId, Marks, Owner, Sender};
use crate::forward::masquerade::{Kind, MappingId, Mappings, Wanted};
use crate::forward::ports::Slice;
use crate::service::{HelperKind, Masquerade, Method, PortRange, Server, Service, ServiceId, Snapshot};
use crate::time::Instant;
use crate::wire::{Addr, Tuple};

pub use session::{Outcome, Session};

/// Ports below are no client's to announce, nor a server's: an expectation must not open a way to a well-known service
/// (RFC 2577 section 3).
const LOWEST_PORT: u16 = 1024;
/// Other ports tried when the announced one is taken at the VIP.
const PORT_ATTEMPTS: u16 = 16;

/// In place of a mapping's number.
const NO_MAPPING: MappingId = u32::MAX;

/// A protocol whose flows announce further ones.
pub trait Helper: Send {
    /// Reads the next bytes that `sender` has sent: of TCP in their order and each once, of UDP a datagram.
    fn read(&mut self, sender: Sender, bytes: &[u8], desk: &mut Desk<'_>);
}

/// The helper of a new flow; `asks` is the end that asks the other one for something.
pub fn start(kind: HelperKind, asks: Sender) -> Box<dyn Helper> {
    match kind {
        HelperKind::Ftp => Box::new(ftp::Ftp::new(asks)),
        HelperKind::Tftp => Box::new(tftp::Tftp::new(asks)),
    }
}

/// The marks that a new flow gets for its service's helper.
pub fn marks(service: &Service, server: &Server) -> Marks {
    match service.spec.helper {
        Some(_) if !server.method.is_one_way() => Marks::HELPED,
        _ => Marks::NONE,
    }
}

/// What reads a flow of a masquerade, and which of its ends asks the other one for something; by the port (RFC 4787 REQ-10,
/// RFC 5382 REQ-6: only what was switched on). The inside host asks, or it is asked, by a forwarded port. (Who asks a TFTP server
/// inside gets its answer as from any inside host.)
pub fn of_masquerade(masquerade: &Masquerade, original: &Tuple, reply: &Tuple) -> Option<(HelperKind, Sender)> {
    let is_of = |kind: &&HelperKind| kind.protocol() == original.protocol;
    masquerade.spec.helpers.iter().filter(is_of).find_map(|kind| match kind {
        _ if original.dport == kind.port() => Some((*kind, Sender::Client)),
        HelperKind::Ftp if reply.dport == kind.port() => Some((*kind, Sender::Server)),
        _ => None,
    })
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
    pub mappings: &'a mut Mappings,
    /// For the choice of a port.
    pub random: u64,
    /// Which shard this is, of how many: it gives away its own ports of a pool alone.
    pub shard: (u16, u16),
    pub(super) edits: Vec<Edit>,
    /// Edits that there is room for.
    pub(super) room: usize,
    /// From here on the connection is none of the helper's.
    pub(super) is_left_alone: bool,
}

impl<'a> Desk<'a> {
    pub fn new(
        now: Instant,
        (id, flow): (FlowId, &'a Flow),
        snapshot: &'a Snapshot,
        (expectations, mappings): (&'a mut Expectations, &'a mut Mappings),
        random: u64,
        shard: (u16, u16),
    ) -> Desk<'a> {
        let (edits, room, is_left_alone) = (Vec::new(), 0, false);
        Desk { now, id, flow, snapshot, expectations, mappings, random, shard, edits, room, is_left_alone }
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

    /// Whether `end` is known to the other one by another address or port than its own, so that what it announces of itself has
    /// to be replaced.
    pub fn is_hidden(&self, end: Sender) -> bool {
        match Method::numbered(self.flow.owner.method) {
            Method::Nat => end == Sender::Server,
            Method::Fullnat => true,
            Method::Masquerade => end == Sender::Client,
            Method::Direct | Method::Tunnel => false,
        }
    }

    /// `end` announces that the other one will connect to its `port`; at which of its addresses, if it says so. What the other end
    /// is to be told instead; `None`: what it said. An end announces itself and nobody else.
    pub fn announce(&mut self, end: Sender, address: Option<Addr>, port: u16) -> Option<(Addr, u16)> {
        if port < LOWEST_PORT {
            return None;
        }
        let is_own = |own: &[Addr]| address.is_none_or(|address| own.contains(&address));
        let is_masqueraded = Method::numbered(self.flow.owner.method) == Method::Masquerade;
        match end {
            Sender::Client if is_masqueraded && is_own(&[self.client(), self.flow.reply().dst]) => {
                self.expect_outside(port)
            }
            // What an inside host connects to goes out as anything else.
            _ if is_masqueraded => None,
            Sender::Server if is_own(&[self.server(), self.vip()]) => self.expect_client(port),
            Sender::Client if is_own(&[self.client()]) => self.expect_server(port),
            _ => None,
        }
    }

    /// The client will connect to `port` of the server, which it is to know as a port of the VIP: the answer. `None`: no port is
    /// free.
    fn expect_client(&mut self, port: u16) -> Option<(Addr, u16)> {
        let (flow, server) = (self.flow, (self.server(), Some(port)));
        let key = |dport| Key { protocol: flow.protocol, src: self.client(), dst: self.vip(), dport };
        let shown = self
            .ports(port)
            .find(|shown| self.is_nobodys(*shown) && !self.expectations.is_taken(self.now, &key(*shown), server))?;
        self.expect(key(shown), Sender::Client, (Some(port), None), NO_MAPPING);
        Some((self.vip(), shown))
    }

    /// The server will connect to `port` of the client, which it is to know as the answer says. The client sees it come from the
    /// port of the VIP before that of the control connection (RFC 959 section 3.2).
    fn expect_server(&mut self, port: u16) -> Option<(Addr, u16)> {
        let key = match Method::numbered(self.flow.owner.method) {
            Method::Fullnat => self.of_pool()?,
            _ => Key { protocol: self.flow.protocol, src: self.server(), dst: self.client(), dport: port },
        };
        let shown = Some(self.flow.original().dport.wrapping_sub(1)).filter(|shown| *shown != 0);
        self.expect(key, Sender::Server, (shown, Some(port)), NO_MAPPING);
        Some((key.dst, key.dport))
    }

    /// The other end will connect to `port` of an inside host, which it is to know as a port of the outside address that it knows
    /// already. That is mapped from now on. `None`: it cannot be.
    fn expect_outside(&mut self, port: u16) -> Option<(Addr, u16)> {
        let (protocol, outside) = (self.flow.protocol, self.flow.reply().dst);
        let (inside, kind, pools) = ((self.client(), port), Kind::of(protocol)?, &self.snapshot.pools);
        let mapping = match pools.forward_from(inside, protocol) {
            Some(forwarded) if forwarded.0 == outside => self.mappings.map_forward(inside, forwarded, kind, pools),
            Some(_) => return None,
            None => {
                let masquerade = pools.masquerade(ServiceId(self.flow.owner.service))?;
                let wanted = Wanted { inside, kind, masquerade, pools };
                self.mappings.map_at(self.now, &wanted, outside, self.random)
            }
        };
        let mapping = mapping.ok()?;
        self.mappings.hold(mapping);
        let (dst, dport) = self.mappings.outside(mapping);
        let key = Key { protocol, src: self.server(), dst, dport };
        self.expect(key, Sender::Server, (None, Some(port)), mapping);
        Some((dst, dport))
    }

    /// The server will answer from another port, which the client is to see as the same one of the VIP.
    pub fn expect_answer(&mut self) {
        let reply = self.flow.reply();
        let key = Key { protocol: reply.protocol, src: reply.src, dst: reply.dst, dport: reply.dport };
        let mapping = match Method::numbered(self.flow.owner.method) {
            Method::Masquerade => self.flow.mapping,
            _ => NO_MAPPING,
        };
        if mapping != NO_MAPPING {
            self.mappings.hold(mapping);
        }
        self.expect(key, Sender::Server, (None, Some(self.flow.original().sport)), mapping);
    }

    /// `port` and `client_port` as an [`Expectation`] has them.
    fn expect(
        &mut self,
        key: Key,
        opener: Sender,
        (port, client_port): (Option<u16>, Option<u16>),
        mapping: MappingId,
    ) {
        let expectation = Expectation {
            key,
            opener,
            owner: Owner { marks: Marks::EXPECTED, ..self.flow.owner },
            by: self.id,
            client: self.client(),
            vip: self.vip(),
            server: self.server(),
            peer: self.flow.reply().dst,
            port,
            client_port,
            mapping,
            deadline: self.now + LIFETIME,
        };
        self.expectations.add(expectation, self.snapshot.spec.limits.expectations);
    }

    /// What comes from the server to a port of the pool that nothing is expected at: at the address that the server knows the
    /// client by already, for some take data from no other one. `None`: none was found.
    fn of_pool(&self) -> Option<Key> {
        let (pool, (shard, shards)) = (self.snapshot.pools.of(self.flow.reply().dst)?, self.shard);
        let slice = Slice::new(pool.ports, shard, shards);
        let start = self.random as usize % slice.places().max(1);
        // Whoever knows one port of a client's is not to know the next one.
        let stride = 1 + 2 * ((self.random >> 32) as usize % 1021);
        let places = (0..usize::from(PORT_ATTEMPTS)).map(|n| (start + n * stride) % slice.places().max(1));
        let ports = places.filter_map(|place| slice.port(place)).filter(|port| *port >= LOWEST_PORT);
        let (protocol, src, dst) = (self.flow.protocol, self.server(), pool.address);
        ports.map(|dport| Key { protocol, src, dst, dport }).find(|key| !self.expectations.is_known(self.now, key))
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
