//! Whom inside endpoints have sent to, where a masquerade lets nobody else in ([`crate::service::Filtering::Address`]).
//!
//! Flows count: an address is known as long as a flow by the mapping goes to it. So flows bound it.

use super::{HashKey, Map, MappingId};
use crate::wire::Addr;

pub(super) struct Peers {
    flows: Map<(MappingId, Addr), u32>,
    max: usize,
}

impl Peers {
    /// For so many flows; `key` must be a secret.
    pub fn new(max: usize, key: [u64; 2]) -> Peers {
        Peers { flows: Map::with_hasher(HashKey(key)), max }
    }

    pub fn note(&mut self, mapping: MappingId, peer: Addr) {
        // All at once: no packet is to wait until it has grown.
        if self.flows.capacity() == 0 {
            self.flows.reserve(self.max);
        }
        *self.flows.entry((mapping, peer)).or_insert(0) += 1;
    }

    pub fn forget(&mut self, mapping: MappingId, peer: Addr) {
        if let Some(flows) = self.flows.get_mut(&(mapping, peer)) {
            *flows -= 1;
            if *flows == 0 {
                self.flows.remove(&(mapping, peer));
            }
        }
    }

    pub fn knows(&self, mapping: MappingId, peer: Addr) -> bool {
        self.flows.contains_key(&(mapping, peer))
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// The mappings that know somebody.
    pub fn mappings(&self) -> impl Iterator<Item = MappingId> + '_ {
        self.flows.keys().map(|(mapping, _)| *mapping)
    }
}
