//! Which servers a destination is at home with: what `lblc` and `lblcr` remember.
//!
//! Bounded by [`DESTINATIONS`] and [`REPLICAS`]. A destination that nobody asked for during [`FORGOTTEN`] is a new one. When
//! there is no room left those go that were not asked for during [`STALE`]; they are looked for once in [`SWEEP`] at most,
//! and a destination for which no room was made is not remembered. The figures are those of Linux
//! (`net/netfilter/ipvs/ip_vs_lblc.c`, `ip_vs_lblcr.c`), where the number of destinations may pass the bound for a while and
//! that of replicas has none.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::time::Instant;
use crate::wire::Addr;

/// Destinations remembered at a time by one service.
pub(super) const DESTINATIONS: usize = 16 * 1024;
/// Servers that one destination may have.
pub(super) const REPLICAS: usize = 16;
/// A destination unasked for this long is a new one; a set of servers unchanged for this long loses one.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);
/// A destination unasked for this long may give way to another.
const STALE: Duration = Duration::from_secs(6 * 60);
const SWEEP: Duration = Duration::from_secs(60);

/// The homes of all destinations of a service.
#[derive(Clone, Debug)]
pub struct Homes {
    by_destination: HashMap<Addr, Home, BuildHasherDefault<SipHasher13>>,
    swept: Option<Instant>,
}

/// The servers of one destination, as indexes in the service's list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home {
    members: [u32; REPLICAS],
    count: usize,
    /// When the destination was asked for last.
    used: Instant,
    /// When a server was added or taken out last.
    pub(super) changed: Instant,
}

impl Homes {
    pub(super) fn new() -> Homes {
        // A service has one VIP: its place is set aside, so that no pick has to.
        Homes { by_destination: HashMap::with_capacity_and_hasher(1, BuildHasherDefault::default()), swept: None }
    }

    pub(super) fn len(&self) -> usize {
        self.by_destination.len()
    }

    /// The home of `destination`, if it has one; it is used by that.
    pub(super) fn find(&mut self, now: Instant, destination: Addr) -> Option<&mut Home> {
        let home = self.by_destination.get_mut(&destination)?;
        if now - home.used >= FORGOTTEN {
            home.count = 0;
        } else {
            home.used = now;
        }
        if home.count > 0 { Some(home) } else { None }
    }

    /// Gives `destination` a home with the server `index` alone.
    pub(super) fn settle(&mut self, now: Instant, destination: Addr, index: usize) {
        if self.by_destination.len() >= DESTINATIONS && !self.by_destination.contains_key(&destination) {
            if self.swept.is_some_and(|swept| now - swept < SWEEP) {
                return;
            }
            self.swept = Some(now);
            self.by_destination.retain(|_, home| now - home.used < STALE);
            if self.by_destination.len() >= DESTINATIONS {
                return;
            }
        }
        let mut home = Home { members: [0; REPLICAS], count: 0, used: now, changed: now };
        home.add(now, index);
        self.by_destination.insert(destination, home);
    }

    /// The same with the servers where they stand in another list; those that are not in it are no homes any more.
    pub(super) fn moved(mut self, places: &[Option<usize>]) -> Homes {
        self.by_destination.retain(|_, home| {
            let (old, changed) = (*home, home.changed);
            home.count = 0;
            let moved = old.members().filter_map(|index| places.get(index).copied().flatten());
            moved.for_each(|index| home.add(changed, index));
            home.count > 0
        });
        self
    }
}

impl Home {
    pub(super) fn members(&self) -> impl Iterator<Item = usize> + use<> {
        self.members.into_iter().take(self.count).map(|index| index as usize)
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == REPLICAS
    }

    /// Adds a server where there is room.
    pub(super) fn add(&mut self, now: Instant, index: usize) {
        if self.count < REPLICAS && !self.members().any(|member| member == index) {
            self.members[self.count] = index as u32;
            self.count += 1;
            self.changed = now;
        }
    }

    /// Takes a server out.
    pub(super) fn remove(&mut self, now: Instant, index: usize) {
        if let Some(at) = self.members().position(|member| member == index) {
            self.members.copy_within(at + 1..self.count, at);
            self.count -= 1;
            self.changed = now;
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.count > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(number: usize) -> Addr {
        Addr::from_v4((number as u32).to_be_bytes())
    }

    fn home(homes: &mut Homes, now: Instant, number: usize) -> Option<Vec<usize>> {
        homes.find(now, destination(number)).map(|home| home.members().collect())
    }

    #[test]
    fn destinations_are_bounded_and_those_in_use_stay() {
        let (mut homes, at) = (Homes::new(), Instant::from_secs);
        (0..DESTINATIONS).for_each(|number| homes.settle(at(0), destination(number), 1));
        homes.settle(at(1), destination(DESTINATIONS), 2);
        assert_eq!((homes.len(), home(&mut homes, at(1), DESTINATIONS)), (DESTINATIONS, None), "all are in use");
        // Six minutes later all but one are stale.
        assert_eq!(home(&mut homes, at(300), 7), Some(vec![1]));
        homes.settle(at(360), destination(DESTINATIONS), 2);
        assert_eq!((homes.len(), home(&mut homes, at(360), 7)), (2, Some(vec![1])));
        assert_eq!(home(&mut homes, at(360), DESTINATIONS), Some(vec![2]));
    }

    #[test]
    fn stale_ones_are_looked_for_once_a_minute() {
        let (mut homes, at) = (Homes::new(), Instant::from_secs);
        (0..DESTINATIONS).for_each(|number| homes.settle(at(number as u64 % 2 * 50), destination(number), 1));
        homes.settle(at(355), destination(DESTINATIONS), 2);
        homes.settle(at(365), destination(DESTINATIONS), 2);
        assert_eq!(homes.len(), DESTINATIONS, "half were stale at 360, but somebody had looked at 355");
        homes.settle(at(415), destination(DESTINATIONS), 2);
        assert_eq!(homes.len(), 1);
    }

    #[test]
    fn a_day_unasked_is_forgotten() {
        let (mut homes, day) = (Homes::new(), 24 * 60 * 60);
        homes.settle(Instant::ZERO, destination(1), 3);
        assert_eq!(home(&mut homes, Instant::from_secs(day - 1), 1), Some(vec![3]));
        assert_eq!(home(&mut homes, Instant::from_secs(2 * day - 1), 1), None);
        assert_eq!(homes.moved(&[Some(0); 4]).len(), 0);
    }

    #[test]
    fn replicas_are_bounded_and_no_server_is_one_twice() {
        let (mut homes, now) = (Homes::new(), Instant::ZERO);
        homes.settle(now, destination(1), 0);
        let home = homes.find(now, destination(1)).expect("it was settled");
        (0..40).for_each(|index| home.add(now, index / 2));
        assert!(home.is_full());
        assert!(home.members().eq(0..REPLICAS));
        home.remove(now, 3);
        assert!(home.members().eq((0..3).chain(4..REPLICAS)));
    }

    #[test]
    fn homes_move_with_their_servers() {
        let (mut homes, now) = (Homes::new(), Instant::ZERO);
        homes.settle(now, destination(1), 0);
        homes.settle(now, destination(2), 1);
        homes.find(now, destination(1)).expect("it was settled").add(now, 2);
        let mut homes = homes.moved(&[Some(1), None, Some(0)]);
        assert_eq!((homes.len(), home(&mut homes, now, 1)), (1, Some(vec![1, 0])));
    }
}
