//! What takes more flows than an engine can be given in a test.

use super::counts::{ANSWERED, MAX_ANSWERED};
use super::*;
use crate::service::{MasqueradeSpec, Network, PoolSpec, PortRange, Snapshot, SnapshotSpec};

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().expect(text))
}

/// Mappings of one inside host, and the snapshot that has a masquerade for it.
struct World {
    mappings: Mappings,
    snapshot: Snapshot,
    now: Instant,
}

impl World {
    fn new(max: usize) -> World {
        let pool = PoolSpec { addresses: vec![addr("203.0.113.1")], ports: PortRange { first: 1024, last: 65535 } };
        let from = vec![Network { address: addr("10.0.0.0"), len: 8 }];
        let lan =
            MasqueradeSpec { name: "lan".into(), from, pool, max_mappings: u32::MAX, ..MasqueradeSpec::default() };
        let spec = SnapshotSpec { masquerades: vec![lan], ..SnapshotSpec::default() };
        let snapshot = Snapshot::build(spec, None).expect("it is valid");
        World { mappings: Mappings::new(max, 0, 1, [1, 2]), snapshot, now: Instant::ZERO }
    }

    fn map(&mut self, kind: Kind, port: u16) -> MappingId {
        let inside = (addr("10.0.0.1"), port);
        let masquerade = self.snapshot.pools.masquerade_for(inside.0, addr("192.0.2.1")).expect("it goes out");
        let wanted = Wanted { inside, kind, masquerade, pools: &self.snapshot.pools };
        self.mappings.map(self.now, &wanted, 7).expect("there is room")
    }

    fn counts(&self, number: MappingId) -> (u32, u32) {
        let record = &self.mappings.records[number as usize];
        (record.answered(), record.unanswered())
    }
}

#[test]
fn flows_of_either_sort_have_a_bound() {
    let mut world = World::new(16);
    let number = world.map(Kind::Tcp, 40000);
    let now = world.now;
    world.mappings.records[number as usize].flows = (MAX_ANSWERED - 1) * ANSWERED;
    assert_eq!(world.mappings.has_room(number, true), Ok(()));
    world.mappings.start(number, true);
    assert_eq!(world.mappings.has_room(number, true), Err(DropReason::SourceLimit));
    // One that is answered then goes on as it was.
    assert_eq!(world.mappings.has_room(number, false), Ok(()));
    world.mappings.start(number, false);
    assert!(!world.mappings.answer(number));
    assert_eq!(world.counts(number), (MAX_ANSWERED, 1));
    world.mappings.end(number, true, now);
    assert!(world.mappings.answer(number));
    assert_eq!(world.counts(number), (MAX_ANSWERED, 0));
    for _ in 0..MAX_UNANSWERED {
        assert_eq!(world.mappings.has_room(number, false), Ok(()));
        world.mappings.start(number, false);
    }
    assert_eq!(world.mappings.has_room(number, false), Err(DropReason::Unanswered));
    assert!(!world.mappings.unanswer(number));
    assert_eq!(world.counts(number), (MAX_ANSWERED, MAX_UNANSWERED));
}

#[test]
fn a_hold_keeps_a_mapping_and_does_not_open_it() {
    let mut world = World::new(16);
    let number = world.map(Kind::Tcp, 40000);
    let (mappings, now) = (&mut world.mappings, world.now);
    mappings.hold(number);
    mappings.hold(number);
    assert!(!mappings.is_open(number));
    mappings.start(number, true);
    assert!(mappings.is_open(number));
    mappings.end(number, true, now);
    mappings.discard(number);
    mappings.let_go(number, now);
    assert_eq!((mappings.len(), mappings.known(number).holds), (1, 1));
    mappings.check_invariants();
    mappings.let_go(number, now);
    assert!(mappings.is_empty());
    mappings.check_invariants();
}

#[test]
fn a_full_quarantine_lets_the_oldest_ports_go() {
    let mut world = World::new(16);
    let until = world.now + std::time::Duration::from_secs(60);
    for kind in [Kind::Udp, Kind::Tcp] {
        for port in 2000..40_000 {
            let number = world.map(kind, port);
            assert_eq!(world.mappings.outside(number).1, port);
            world.mappings.start(number, true);
            world.mappings.end(number, true, until);
        }
    }
    let waiting = |world: &World| world.mappings.usage()[0].1[1] as usize;
    assert_eq!((world.mappings.len(), waiting(&world)), (0, MAX_QUARANTINED));
    world.mappings.check_invariants();
    // So many more have ended than there is room for, and the first ones' ports are free.
    let first_kept = 2000 + (2 * 38_000 - MAX_QUARANTINED) as u16;
    for (kind, port, is_free) in [
        (Kind::Udp, 2000, true),
        (Kind::Udp, first_kept - 1, true),
        (Kind::Udp, first_kept, false),
        (Kind::Udp, 39_999, false),
        (Kind::Tcp, 2000, false),
        (Kind::Tcp, 39_999, false),
    ] {
        let number = world.map(kind, port);
        assert_eq!(world.mappings.outside(number).1 == port, is_free, "{kind:?} {port}");
        world.mappings.start(number, true);
    }
    world.mappings.check_invariants();
    // In time the others are let go as well, a few with each new mapping.
    world.now = until;
    for port in 40_000..40_000 + (MAX_QUARANTINED / RELEASED) as u16 {
        let number = world.map(Kind::Tcp, port);
        world.mappings.start(number, true);
        world.mappings.end(number, true, until + std::time::Duration::from_secs(60));
    }
    assert_eq!(waiting(&world), MAX_QUARANTINED / RELEASED);
}
