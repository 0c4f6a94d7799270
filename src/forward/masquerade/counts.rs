//! How many flows a mapping has, of either sort, and what else keeps it.
//!
//! A flow counts as one that inside has sent in, or as one that it has not, and ends as what it counted for: whoever counts it
//! has to remember which ([`crate::flow::Marks::ANSWERED`]). All flows of a forwarded port count as of the first sort.

use super::{FORWARD, HELD, Mapping, MappingId, Mappings};
use crate::time::Instant;
use crate::verdict::DropReason;

/// Flows of one mapping, besides forwarded ones, that were begun outside and have not been answered, at a time.
pub const MAX_UNANSWERED: u32 = (1 << UNANSWERED_BITS) - 1;
const UNANSWERED_BITS: u32 = 12;
/// Of all others; more than one inside endpoint has use for.
pub(super) const MAX_ANSWERED: u32 = u32::MAX >> UNANSWERED_BITS;
/// One of those.
pub(super) const ANSWERED: u32 = 1 << UNANSWERED_BITS;

impl Mapping {
    pub(super) fn answered(&self) -> u32 {
        self.flows >> UNANSWERED_BITS
    }

    pub(super) fn unanswered(&self) -> u32 {
        self.flows & MAX_UNANSWERED
    }

    /// Whether nothing keeps it.
    pub(super) fn is_idle(&self) -> bool {
        self.flows == 0 && !self.has(HELD)
    }

    /// What a flow counts for.
    fn weight(&self, is_answered: bool) -> u32 {
        if is_answered || self.has(FORWARD) { ANSWERED } else { 1 }
    }
}

impl Mappings {
    /// Whether a flow from outside may begin: inside talks to somebody by this mapping.
    pub fn is_open(&self, number: MappingId) -> bool {
        let record = &self.records[number as usize];
        record.has(FORWARD) || (record.answered() > 0 && record.unanswered() < MAX_UNANSWERED)
    }

    /// Whether there is room for another flow.
    pub fn has_room(&self, number: MappingId, is_from_inside: bool) -> Result<(), DropReason> {
        let record = &self.records[number as usize];
        match record.weight(is_from_inside) {
            ANSWERED if record.answered() == MAX_ANSWERED => Err(DropReason::SourceLimit),
            1 if record.unanswered() == MAX_UNANSWERED => Err(DropReason::Unanswered),
            _ => Ok(()),
        }
    }

    /// A flow begins that inside has sent in, or one from outside; it [`Mappings::has_room`].
    pub fn start(&mut self, number: MappingId, is_from_inside: bool) {
        let record = &mut self.records[number as usize];
        record.flows += record.weight(is_from_inside);
    }

    /// Inside has sent in a flow that counted for one that it has not sent in. `false`: it still does, there are too many of the
    /// others.
    pub fn answer(&mut self, number: MappingId) -> bool {
        let record = &mut self.records[number as usize];
        if record.has(FORWARD) {
            return true;
        }
        let has_room = record.answered() < MAX_ANSWERED;
        if has_room {
            record.flows = record.flows - 1 + ANSWERED;
        }
        has_room
    }

    /// The other way round: somebody outside begins a connection anew, and inside has not sent in that one. `false`: there are too
    /// many of those.
    pub fn unanswer(&mut self, number: MappingId) -> bool {
        let record = &mut self.records[number as usize];
        if record.has(FORWARD) {
            return true;
        }
        let has_room = record.unanswered() < MAX_UNANSWERED;
        if has_room {
            record.flows = record.flows - ANSWERED + 1;
        }
        has_room
    }

    /// A flow ends; with the last one the mapping does, unless it is held. Its port can be given away again at `until`.
    pub fn end(&mut self, number: MappingId, is_answered: bool, until: Instant) {
        let record = &mut self.records[number as usize];
        record.flows -= record.weight(is_answered);
        if record.is_idle() {
            self.remove(number, Some(until));
        }
    }

    /// Something else keeps the mapping from now on; [`Mappings::let_go`] when it does no more.
    pub fn hold(&mut self, number: MappingId) {
        *self.holds.entry(number).or_insert(0) += 1;
        self.records[number as usize].marks |= HELD;
    }

    /// As [`Mappings::end`].
    pub fn let_go(&mut self, number: MappingId, until: Instant) {
        let Some(holds) = self.holds.get_mut(&number) else { return };
        *holds -= 1;
        if *holds > 0 {
            return;
        }
        self.holds.remove(&number);
        let record = &mut self.records[number as usize];
        record.marks &= !HELD;
        if record.is_idle() {
            self.remove(number, Some(until));
        }
    }

    /// Takes back a new mapping that got no flow.
    pub fn discard(&mut self, number: MappingId) {
        if self.records[number as usize].is_idle() {
            self.remove(number, None);
        }
    }
}
