//! Outside addresses: which of their ports are free, and which mapping has the others.

use std::sync::Arc;

use super::Kind;
use crate::forward::ports::{PortSet, Slice, Want};
use crate::service::{InUse, PortRange};
use crate::wire::Addr;

/// Ports below this are those of well-known services (RFC 6335 section 6).
const SYSTEM: u16 = 1024;

/// The part of an outside address that this shard owns.
pub(super) struct Outside {
    pub address: Addr,
    pub state: Arc<InUse>,
    /// Mappings that have a port of it, forwarded ones included.
    pub mappings: u32,
    /// Inside hosts whose next mapping is to have a port of it.
    pub hosts: u32,
    /// Ports in quarantine, and forwarded ones that have a record.
    pub waiting: u32,
    pub forwards: u32,
    range: PortRange,
    /// Ports that are never given away, by protocol.
    forwarded: Vec<(Kind, PortRange)>,
    ports: [Option<Box<Ports>>; Kind::COUNT],
}

/// Its ports for one protocol.
struct Ports {
    low: PortSet,
    high: PortSet,
    /// By place, the low ones first: the number of the mapping + 1; 0: none.
    numbers: Vec<u32>,
    /// Ports that are not free and have no mapping, since they are forwarded.
    forwarded: u32,
}

impl Outside {
    pub fn new(address: Addr, state: Arc<InUse>) -> Outside {
        let range = PortRange { first: 1, last: 0 };
        let (forwarded, ports) = (Vec::new(), Default::default());
        Outside { address, state, mappings: 0, hosts: 0, waiting: 0, forwards: 0, range, forwarded, ports }
    }

    /// What may be given away from now on; `None`: just what it was. Else all ports are free, and those that are not are to be
    /// taken again, of the kinds that are told.
    pub fn configure(&mut self, range: PortRange, forwarded: Vec<(Kind, PortRange)>) -> Option<Vec<Kind>> {
        if (self.range, &self.forwarded) == (range, &forwarded) {
            return None;
        }
        (self.range, self.forwarded) = (range, forwarded);
        let before = std::mem::take(&mut self.ports);
        Some(Kind::ALL.into_iter().filter(|kind| before[*kind as usize].is_some()).collect())
    }

    /// Sets aside what `kind` needs, where that has not been done. Memory that is not used costs nothing.
    pub fn prepare(&mut self, kind: Kind, shard: u16, shards: u16) {
        let at = kind as usize;
        if self.ports[at].is_none() {
            let mut ports = Ports::new(self.range, shard, shards);
            for (_, range) in self.forwarded.iter().filter(|(of, _)| *of == kind) {
                ports.forwarded += (range.first..=range.last).filter(|port| ports.take_this(*port)).count() as u32;
            }
            self.ports[at] = Some(Box::new(ports));
        }
    }

    /// Ports that are free; to be prepared first.
    pub fn left(&self, kind: Kind) -> u32 {
        self.ports[kind as usize].as_ref().map_or(0, |ports| ports.low.left() + ports.high.left())
    }

    /// Whether there is a free port. Where nobody has asked for one yet these are all that are not forwarded.
    pub fn has_room(&self, kind: Kind, shard: u16, shards: u16) -> bool {
        if self.ports[kind as usize].is_some() {
            return self.left(kind) > 0;
        }
        let slice = Slice::new(self.range, shard, shards);
        let mut ports = (0..slice.places()).filter_map(|place| slice.port(place));
        ports.any(|port| !self.is_forwarded(kind, port))
    }

    /// Whether a port is free; where nobody has asked for one yet all are.
    pub fn is_free(&self, kind: Kind, port: u16) -> bool {
        self.ports[kind as usize].as_ref().is_none_or(|ports| ports.low.is_free(port) || ports.high.is_free(port))
    }

    /// Takes a free port that is as much like `port` as there is one; `random` decides between others.
    pub fn take(&mut self, kind: Kind, port: u16, random: u64) -> Option<u16> {
        self.ports[kind as usize].as_mut()?.take(kind, port, random)
    }

    /// Takes this port out of those that are free, if it is.
    pub fn take_this(&mut self, kind: Kind, port: u16) -> bool {
        self.ports[kind as usize].as_mut().is_some_and(|ports| ports.take_this(port))
    }

    /// Frees a port, unless it is not to be given away again.
    pub fn give(&mut self, kind: Kind, port: u16) {
        let is_forwarded = self.is_forwarded(kind, port);
        if let Some(ports) = self.ports[kind as usize].as_mut().filter(|_| !is_forwarded) {
            let _ = ports.low.give(port) || ports.high.give(port);
        }
    }

    fn is_forwarded(&self, kind: Kind, port: u16) -> bool {
        self.forwarded.iter().any(|(of, range)| *of == kind && range.contains(port))
    }

    /// Notes which mapping has a port; `None`: none any more.
    pub fn note(&mut self, kind: Kind, port: u16, mapping: Option<u32>) {
        if let Some(ports) = &mut self.ports[kind as usize]
            && let Some(at) = ports.place(port)
        {
            ports.numbers[at] = mapping.map_or(0, |number| number + 1);
        }
    }

    /// The mapping that has a port.
    pub fn mapping(&self, kind: Kind, port: u16) -> Option<u32> {
        let ports = self.ports[kind as usize].as_ref()?;
        ports.numbers[ports.place(port)?].checked_sub(1)
    }

    /// Ports that may be given away, over the protocols that it has been used for.
    pub fn size(&self) -> u64 {
        self.ports.iter().flatten().map(|ports| ports.size()).sum()
    }

    /// Ports that are not free, over all protocols.
    pub fn taken(&self) -> u64 {
        self.ports.iter().flatten().map(|ports| ports.taken()).sum()
    }

    /// How much is taken of the protocol of which most is, in thousandths.
    pub fn fullest(&self) -> u16 {
        let taken = |ports: &Ports| (ports.taken() * 1000).checked_div(ports.size()).unwrap_or(0) as u16;
        self.ports.iter().flatten().map(|ports| taken(ports)).max().unwrap_or(0)
    }
}

impl Ports {
    fn size(&self) -> u64 {
        u64::from(self.low.size() + self.high.size() - self.forwarded)
    }

    fn taken(&self) -> u64 {
        let [low, high] = [&self.low, &self.high].map(|set| set.size() - set.left());
        u64::from(low + high - self.forwarded)
    }

    fn new(range: PortRange, shard: u16, shards: u16) -> Ports {
        let part = |first: u16, last: u16| {
            let part = PortRange { first: range.first.max(first), last: range.last.min(last) };
            if part.first <= part.last { PortSet::new(part, shard, shards) } else { PortSet::empty() }
        };
        let (low, high) = (part(0, SYSTEM - 1), part(SYSTEM, u16::MAX));
        let numbers = vec![0; low.places() + high.places()];
        Ports { low, high, numbers, forwarded: 0 }
    }

    /// The same port; or else one of the same parity, or else any, on the same side of 1024 (RFC 4787 REQ-3a and REQ-4, RFC
    /// 7857 section 8). Those below 1024 go to others only where there are no others; the other way round it is a matter of
    /// there being one at all. Identifiers have no sides.
    fn take(&mut self, kind: Kind, port: u16, random: u64) -> Option<u16> {
        if self.take_this(port) {
            return Some(port);
        }
        let Ports { low, high, .. } = self;
        let from = |set: &mut PortSet| set.take(Want::like(port), random).or_else(|| set.take(Want::Any, random));
        match kind {
            Kind::Icmp => from(high).or_else(|| from(low)),
            _ if port < SYSTEM => from(low).or_else(|| from(high)),
            _ if high.size() == 0 => from(low),
            _ => from(high),
        }
    }

    fn take_this(&mut self, port: u16) -> bool {
        self.low.take_this(port) || self.high.take_this(port)
    }

    fn place(&self, port: u16) -> Option<usize> {
        self.low.place(port).or_else(|| Some(self.low.places() + self.high.place(port)?))
    }
}
