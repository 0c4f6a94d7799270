//! When flows are looked at again: intrusive lists of flows, by time.
//!
//! # Theory of operation
//!
//! Every flow is in exactly one list.
//!
//! * Flows that may be evicted (half-open, finished, or answered just once) are in a *queue* by their class. All of a class have the same
//!   timeout and go to the tail with each packet, so a queue's head is both the next to expire and the oldest to evict.
//! * All others are in a hierarchical *timer wheel*: four levels of 64 lists, a tick of 131 ms. A packet of such a flow
//!   touches no list: when the wheel comes to the flow and finds that it has lived on, it puts it further ahead.
//!
//! The wheel's clock only moves past a list when that list is empty, so a sweep may stop anywhere (it has a budget) and go
//! on next time. Lateness is all that an overloaded sweep costs.

use crate::time::Instant;

pub(super) const NIL: u32 = u32::MAX;

const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const TICK_MICROS_BITS: u32 = 17; // 131 ms
const WHEEL_LISTS: usize = LEVELS * SLOTS;
/// The furthest that the wheel reaches, in ticks; what is due later is looked at then and put ahead again.
const REACH: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// Number of queues.
pub(super) const QUEUES: usize = 14;

/// Where a flow stands in its list; part of the flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    prev: u32,
    next: u32,
    list: u16,
}

impl Link {
    pub const UNLINKED: Link = Link { prev: NIL, next: NIL, list: u16::MAX };

    /// The queue that the flow is in, if it is in one.
    pub fn queue(&self) -> Option<usize> {
        (self.list as usize).checked_sub(WHEEL_LISTS).filter(|&q| q < QUEUES)
    }
}

/// Access to the links of flows by their number.
pub(super) trait Links {
    fn link(&mut self, flow: u32) -> &mut Link;
}

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

/// All the lists.
pub(super) struct Expiry {
    lists: Vec<List>,
    /// One bit a list that is not empty, by level.
    occupied: [u64; LEVELS],
    /// The tick that the wheel is at: its list on level 0, and those above that start here, may not be empty yet.
    tick: u64,
    in_wheel: usize,
}

impl Expiry {
    pub fn new() -> Expiry {
        let empty = List { head: NIL, tail: NIL };
        Expiry { lists: vec![empty; WHEEL_LISTS + QUEUES], occupied: [0; LEVELS], tick: 0, in_wheel: 0 }
    }

    /// Puts an unlinked flow at the tail of a queue.
    pub fn enqueue(&mut self, links: &mut impl Links, flow: u32, queue: usize) {
        self.append(links, flow, WHEEL_LISTS + queue);
    }

    /// Puts an unlinked flow into the wheel, to be looked at when `deadline` has come.
    pub fn schedule(&mut self, links: &mut impl Links, flow: u32, now: Instant, deadline: Instant) {
        if self.in_wheel == 0 {
            // Nothing to come to on the way: the clock may jump.
            self.tick = self.tick.max(tick_of(now));
        }
        // A tick late rather than early: a list's tick begins before the deadlines in it.
        let due = tick_of(deadline) + 1;
        let ahead = due.saturating_sub(self.tick).clamp(1, REACH - 1);
        let due = self.tick + ahead;
        let level = (63 - ahead.leading_zeros()) / SLOT_BITS;
        let slot = (due >> (level * SLOT_BITS)) as usize % SLOTS;
        self.occupied[level as usize] |= 1 << slot;
        self.in_wheel += 1;
        self.append(links, flow, level as usize * SLOTS + slot);
    }

    /// Takes a flow out of whatever list it is in.
    pub fn unlink(&mut self, links: &mut impl Links, flow: u32) {
        let Link { prev, next, list } = *links.link(flow);
        let list = list as usize;
        let Some(ends) = self.lists.get_mut(list) else { return };
        match prev {
            NIL => ends.head = next,
            prev => links.link(prev).next = next,
        }
        match next {
            NIL => ends.tail = prev,
            next => links.link(next).prev = prev,
        }
        if list < WHEEL_LISTS {
            self.in_wheel -= 1;
            if ends.head == NIL {
                self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
            }
        }
        *links.link(flow) = Link::UNLINKED;
    }

    /// The flow at the head of a queue.
    pub fn head(&self, queue: usize) -> Option<u32> {
        Some(self.lists[WHEEL_LISTS + queue].head).filter(|&flow| flow != NIL)
    }

    /// The next flow that the wheel has come to by `now`; the caller unlinks it and, if it lives on, schedules it again.
    pub fn due(&mut self, now: Instant) -> Option<u32> {
        let target = tick_of(now);
        while self.in_wheel > 0 {
            // From the top down: lists above the ground level spread over those below before these are emptied.
            for level in (0..LEVELS).rev() {
                let shift = level as u32 * SLOT_BITS;
                if self.tick & ((1 << shift) - 1) != 0 {
                    continue;
                }
                let slot = (self.tick >> shift) as usize % SLOTS;
                if self.occupied[level] & (1 << slot) != 0 {
                    return Some(self.lists[level * SLOTS + slot].head);
                }
            }
            let next = self.next_tick()?;
            if next > target {
                self.tick = self.tick.max(target);
                return None;
            }
            self.tick = next;
        }
        self.tick = self.tick.max(target);
        None
    }

    /// When [`Expiry::due`] has something to give, at the earliest.
    pub fn next_due(&self) -> Option<Instant> {
        let at_current = (0..LEVELS).any(|level| {
            let shift = level as u32 * SLOT_BITS;
            let slot = (self.tick >> shift) as usize % SLOTS;
            self.tick & ((1 << shift) - 1) == 0 && self.occupied[level] & (1 << slot) != 0
        });
        let tick = if at_current { self.tick } else { self.next_tick()? };
        Some(Instant::from_micros(tick << TICK_MICROS_BITS))
    }

    /// The next tick after the current one at which a list that is not empty comes up.
    fn next_tick(&self) -> Option<u64> {
        let on_level = |level: usize| {
            let occupied = self.occupied[level];
            if occupied == 0 {
                return None;
            }
            let shift = level as u32 * SLOT_BITS;
            let at = self.tick >> shift;
            // Bit 0 of the rotated map is the list after the current one; the current one comes last, a lap later.
            let rotated = occupied.rotate_right(((at + 1) % SLOTS as u64) as u32);
            Some((at + 1 + u64::from(rotated.trailing_zeros())) << shift)
        };
        (0..LEVELS).filter_map(on_level).min()
    }

    fn append(&mut self, links: &mut impl Links, flow: u32, list: usize) {
        let tail = self.lists[list].tail;
        *links.link(flow) = Link { prev: tail, next: NIL, list: list as u16 };
        match tail {
            NIL => self.lists[list].head = flow,
            tail => links.link(tail).next = flow,
        }
        self.lists[list].tail = flow;
    }

    /// Walks every list and checks that links agree both ways; returns how many flows are linked.
    pub fn check(&self, links: &mut impl Links) -> usize {
        let mut linked = 0;
        let mut in_wheel = 0;
        for (number, ends) in self.lists.iter().enumerate() {
            let (mut prev, mut at) = (NIL, ends.head);
            while at != NIL {
                let link = *links.link(at);
                assert_eq!((link.prev, link.list as usize), (prev, number), "links of flow {at}");
                (prev, at) = (at, link.next);
                linked += 1;
                in_wheel += usize::from(number < WHEEL_LISTS);
            }
            assert_eq!(ends.tail, prev, "tail of list {number}");
            if number < WHEEL_LISTS {
                let bit = self.occupied[number / SLOTS] & (1 << (number % SLOTS)) != 0;
                assert_eq!(bit, ends.head != NIL, "occupancy bit of list {number}");
            }
        }
        assert_eq!(in_wheel, self.in_wheel);
        linked
    }
}

fn tick_of(time: Instant) -> u64 {
    time.micros() >> TICK_MICROS_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Vec<Link>);

    impl Links for Plain {
        fn link(&mut self, flow: u32) -> &mut Link {
            &mut self.0[flow as usize]
        }
    }

    #[test]
    fn every_deadline_comes_up_once_in_time_and_not_early() {
        let deadlines: Vec<u64> = (0..2000u64).map(|n| n * n * 7919 % 3_000_000_000 + n).collect();
        let mut links = Plain(vec![Link::UNLINKED; deadlines.len()]);
        let mut wheel = Expiry::new();
        let start = Instant::from_secs(1_000_000);
        for (n, &ms) in deadlines.iter().enumerate() {
            wheel.schedule(&mut links, n as u32, start, start + std::time::Duration::from_millis(ms));
        }
        let mut seen = 0;
        let mut now = start;
        while let Some(next) = wheel.next_due() {
            assert!(next >= now, "{next:?} after {now:?}");
            now = next;
            while let Some(flow) = wheel.due(now) {
                wheel.unlink(&mut links, flow);
                let deadline = start + std::time::Duration::from_millis(deadlines[flow as usize]);
                if deadline > now {
                    wheel.schedule(&mut links, flow, now, deadline);
                } else {
                    assert!((now - deadline).as_millis() < 300, "flow {flow} late by {:?}", now - deadline);
                    seen += 1;
                }
            }
            wheel.check(&mut links);
        }
        assert_eq!(seen, deadlines.len());
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut links = Plain(vec![Link::UNLINKED; 64]);
        let mut wheel = Expiry::new();
        for n in 0..64 {
            wheel.schedule(&mut links, n, Instant::ZERO, Instant::from_secs(1 + u64::from(n) * 97));
        }
        let now = Instant::from_secs(10_000_000);
        let mut seen = 0;
        while let Some(flow) = wheel.due(now) {
            wheel.unlink(&mut links, flow);
            seen += 1;
        }
        assert_eq!((seen, wheel.next_due()), (64, None));
    }
}
