//! Inside hosts that have a mapping: how many, and the outside address that goes with them.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::numbers::Growing;
use crate::wire::Addr;

/// No outside address, or no number.
pub(super) const NONE: u16 = u16::MAX;
const NIL: u32 = u32::MAX;
/// Hosts that memory is set aside for at a time.
const CHUNK: usize = 1024;

/// An inside host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub address: Addr,
    /// Mappings that it has; without any it is forgotten. In a free place: the next one.
    pub mappings: u32,
    /// The outside address of its next mapping, by its number.
    pub outside: u16,
    is_known: bool,
}

/// Inside hosts by number and by address. There are as many as have mappings, so mappings bound them.
pub(super) struct Hosts {
    /// In pieces that never move.
    chunks: Vec<Box<[Host]>>,
    free: u32,
    places: u32,
    index: Growing,
    key: [u64; 2],
}

impl Hosts {
    /// `key` must be a secret: addresses are inside hosts' to choose.
    pub fn new(key: [u64; 2]) -> Hosts {
        Hosts { chunks: Vec::new(), free: NIL, places: 0, index: Growing::new(), key }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn find(&self, address: Addr) -> Option<u32> {
        self.index.find(self.hash(address), |number| self.host(number).address == address)
    }

    pub fn host(&self, number: u32) -> &Host {
        &self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    pub fn host_mut(&mut self, number: u32) -> &mut Host {
        &mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }

    /// Enters a host that is not known, without mappings.
    pub fn enter(&mut self, address: Addr) -> u32 {
        let number = match self.free {
            NIL => {
                self.places += 1;
                self.places - 1
            }
            free => {
                self.free = self.host(free).mappings;
                free
            }
        };
        let host = Host { address, mappings: 0, outside: NONE, is_known: true };
        if number as usize / CHUNK == self.chunks.len() {
            self.chunks.push(vec![host; CHUNK].into_boxed_slice());
        }
        *self.host_mut(number) = host;
        let Hosts { chunks, index, key, .. } = self;
        index.insert(hash(*key, address), number, |number| hash_of(*key, chunks, number));
        number
    }

    /// Forgets a host that has no mapping.
    pub fn forget(&mut self, number: u32) {
        let address = self.host(number).address;
        let Hosts { chunks, index, key, .. } = self;
        index.remove(hash(*key, address), number, |number| hash_of(*key, chunks, number));
        let free = self.free;
        let host = self.host_mut(number);
        (host.is_known, host.mappings, host.outside) = (false, free, NONE);
        self.free = number;
    }

    /// Those that are known.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Host)> {
        let all = (0..self.places).map(|number| (number, self.host(number)));
        all.filter(|(_, host)| host.is_known)
    }

    /// A number that nobody can foretell, for choosing an address.
    pub fn hash(&self, address: Addr) -> u64 {
        hash(self.key, address)
    }
}

fn hash(key: [u64; 2], address: Addr) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
    hasher.write(address.octets());
    hasher.finish()
}

fn hash_of(key: [u64; 2], chunks: &[Box<[Host]>], number: u32) -> u64 {
    hash(key, chunks[number as usize / CHUNK][number as usize % CHUNK].address)
}
