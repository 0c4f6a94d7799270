//! Whom inside endpoints have sent to, where a masquerade lets nobody else in ([`crate::service::Filtering::Address`]).
//!
//! Flows count: an address is known as long as a flow by the mapping goes to it. So flows bound it.

use super::{Map, MappingId};
use crate::wire::Addr;

#[derive(Default)]
pub(super) struct Peers {
    flows: Map<(MappingId, Addr), u32>,
}

impl Peers {
    pub fn note(&mut self, mapping: MappingId, peer: Addr) {
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
