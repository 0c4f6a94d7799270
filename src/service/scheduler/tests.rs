//! What holds for every scheduler.

use proptest::prelude::*;

use super::fixture::{admit, request, servers, take};
use super::*;

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

/// Weights as operators write them, zero often among them.
fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![2 => Just(0), 6 => 1..10_u32, 1 => 1..=65535_u32], 0..12)
}

/// The kinds that go by a table of hashes.
const HASHING: [Kind; 3] = [Kind::Sh, Kind::Mh, Kind::Dh];

/// What may happen to a server between two picks.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Start { active: bool },
    End,
    Shift { to_active: bool },
    Up(bool),
    Draining(bool),
    Reachable(bool),
}

impl Happening {
    fn befall(self, server: &Server) {
        let (active, inactive) = (server.load.active(), server.load.inactive());
        match self {
            Happening::Start { active } => server.start(active),
            Happening::End if active > 0 => server.end(true),
            Happening::End if inactive > 0 => server.end(false),
            Happening::Shift { to_active: true } if inactive > 0 => server.load.shift(true),
            Happening::Shift { to_active: false } if active > 0 => server.load.shift(false),
            Happening::End | Happening::Shift { .. } => (),
            Happening::Up(up) => drop(server.state.set_up(Instant::from_secs(1), up)),
            Happening::Draining(draining) => drop(server.state.set_draining(draining)),
            Happening::Reachable(reachable) => server.path.set_unreachable(!reachable),
        }
    }
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => any::<bool>().prop_map(|active| Happening::Start { active }),
        3 => Just(Happening::End),
        3 => any::<bool>().prop_map(|to_active| Happening::Shift { to_active }),
        2 => any::<bool>().prop_map(Happening::Up),
        1 => any::<bool>().prop_map(Happening::Draining),
        1 => any::<bool>().prop_map(Happening::Reachable),
    ]
}

/// Servers of which some are full at a few flows and some warm up.
fn varied(weights: &[u32]) -> Vec<Arc<Server>> {
    let mut list = servers(weights);
    for (index, server) in list.iter_mut().enumerate() {
        let server = Arc::get_mut(server).expect("nobody else has it yet");
        server.thresholds = if index % 3 == 0 { (Some(3), None) } else { (None, None) };
        server.slow_start = (index % 4 == 1).then_some(std::time::Duration::from_secs(100));
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Also when the servers' availability is not what it was when the scheduler was built.
    #[test]
    fn an_available_server_is_picked_if_there_is_one(
        kind in kinds(),
        weights in weights(),
        down in prop::collection::vec(any::<bool>(), 12),
        loads in prop::collection::vec(0..4_usize, 12),
        seed in any::<u64>(),
    ) {
        let scheduler = build(kind, Flags::default(), &servers(&weights), seed);
        let now: Vec<u32> = weights.iter().zip(&down).map(|(&weight, &down)| if down { 0 } else { weight }).collect();
        let list = servers(&now);
        list.iter().zip(&loads).for_each(|(server, &load)| admit(server, load, load * 3));
        let any = list.iter().any(|server| server.is_available());
        for client in 0..40 {
            let picked = scheduler.pick(&list, &request(client * 77_777));
            prop_assert_eq!(picked.is_some(), any);
            prop_assert!(picked.is_none_or(|index| list[index].is_available()));
        }
    }

    #[test]
    fn a_fork_goes_on_as_the_original_does(kind in kinds(), weights in weights(), before in 0..30_u32) {
        let list = servers(&weights);
        let scheduler = build(kind, Flags::default(), &list, 1);
        take(&*scheduler, &list, before);
        let (fork, state) = (scheduler.fork(), scheduler.state());
        let ahead = take(&*fork, &list, 30);
        prop_assert_eq!(scheduler.state(), state, "picking from the fork moved the original");
        prop_assert_eq!(take(&*scheduler, &list, 30), ahead);
        prop_assert_eq!(scheduler.state(), fork.state());
    }

    /// Many servers are not looked at one by one: what was noticed must be what is so. Forks do look at every one.
    #[test]
    fn a_pick_among_many_is_that_of_a_scan(
        kind in kinds(),
        weights in prop::collection::vec(prop_oneof![1 => Just(0), 6 => 1..6_u32], 13..70),
        happenings in prop::collection::vec((any::<u16>(), happening()), 0..200),
    ) {
        let list = varied(&weights);
        let scheduler = build(kind, Flags::default(), &list, 1);
        for (number, (at, happening)) in happenings.into_iter().enumerate() {
            happening.befall(&list[usize::from(at) % list.len()]);
            let request = Request { now: Instant::from_secs(number as u64), ..request(u32::from(at)) };
            if number % 3 != 2 {
                let scanned = scheduler.fork().pick(&list, &request);
                prop_assert_eq!(scheduler.pick(&list, &request), scanned, "{:?}", happening);
                prop_assert!(scanned.is_none_or(|index| list[index].takes(&request)));
                if let Some(index) = scanned {
                    list[index].start(true);
                }
            }
        }
    }

    /// Flows that stay, and are all active, come in the shares of the weights, within one flow a server.
    #[test]
    fn those_that_weigh_loads_share_by_weight(
        kind in prop::sample::select(vec![Kind::Wlc, Kind::Sed]),
        weights in prop::collection::vec(0..20_u32, 1..30),
    ) {
        let (list, total) = (servers(&weights), weights.iter().sum::<u32>());
        let scheduler = build(kind, Flags::default(), &list, 0);
        for client in 0..total * 5 {
            list[scheduler.pick(&list, &request(client)).expect("some have a weight")].start(true);
        }
        for (server, weight) in list.iter().zip(&weights) {
            let off = server.load.active().abs_diff(u64::from(weight * 5));
            prop_assert!(off <= u64::from(*weight > 0), "{weight}: {}", server.load.active());
        }
    }

    /// `lc` levels loads whatever the weights; `rr` gives everybody one in turn.
    #[test]
    fn those_that_do_not_look_at_weights_share_evenly(
        kind in prop::sample::select(vec![Kind::Lc, Kind::Rr]),
        weights in prop::collection::vec(1..20_u32, 1..30),
    ) {
        let list = servers(&weights);
        let scheduler = build(kind, Flags::default(), &list, 0);
        for client in 0..weights.len() as u32 * 5 {
            list[scheduler.pick(&list, &request(client)).expect("all have a weight")].start(true);
        }
        prop_assert!(list.iter().all(|server| server.load.active() == 5));
    }

    /// When a server goes away, only its clients go elsewhere; and they come back with it.
    #[test]
    fn only_the_clients_of_a_server_that_goes_away_move(
        kind in prop::sample::select(HASHING.to_vec()),
        weights in prop::collection::vec(1..10_u32, 2..12),
        gone in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let (list, gone) = (servers(&weights), gone.index(weights.len()));
        let scheduler = build(kind, Flags::default(), &list, seed);
        let picks = || -> Vec<_> { (0..200).map(|client| scheduler.pick(&list, &request(client * 7919))).collect() };
        let before = picks();
        list[gone].state.set_up(Instant::ZERO, false);
        for (before, after) in before.iter().zip(picks()) {
            prop_assert!(after.is_some() && after != Some(gone));
            prop_assert!(*before == after || *before == Some(gone));
        }
        list[gone].state.set_up(Instant::ZERO, true);
        prop_assert_eq!(picks(), before);
    }

    #[test]
    fn strict_refuses_the_clients_of_an_unavailable_server_and_nobody_else(
        kind in prop::sample::select(vec![Kind::Sh, Kind::Mh]),
        weights in prop::collection::vec(1..10_u32, 1..12),
        gone in any::<prop::sample::Index>(),
        port in any::<bool>(),
    ) {
        let (list, gone) = (servers(&weights), gone.index(weights.len()));
        let scheduler = build(kind, Flags { port, strict: true, fallback: false }, &list, 5);
        let picks = || -> Vec<_> { (0..200).map(|client| scheduler.pick(&list, &request(client * 7919))).collect() };
        let before = picks();
        prop_assert!(before.iter().all(Option::is_some));
        list[gone].state.set_up(Instant::ZERO, false);
        for (before, after) in before.into_iter().zip(picks()) {
            prop_assert_eq!(after, before.filter(|&index| index != gone));
        }
    }

    /// Picks follow from the servers, the requests and the seed alone.
    #[test]
    fn equal_seeds_pick_alike(
        kind in kinds(),
        weights in weights(),
        seed in any::<u64>(),
        requests in prop::collection::vec((any::<u32>(), any::<bool>()), 0..40),
    ) {
        let run = || -> Vec<_> {
            let list = servers(&weights);
            let scheduler = build(kind, Flags::default(), &list, seed);
            let pick = |&(client, stays): &(u32, bool)| {
                let picked = scheduler.pick(&list, &request(client));
                picked.filter(|_| stays).into_iter().for_each(|index| list[index].start(client % 2 == 0));
                picked
            };
            requests.iter().map(pick).collect()
        };
        prop_assert_eq!(run(), run());
    }

    /// `wrr` is exact over one cycle, from wherever it starts.
    #[test]
    fn wrr_shares_are_exactly_the_weights(weights in prop::collection::vec(0..20_u32, 1..8), before in 0..50_u32) {
        let list = servers(&weights);
        let scheduler = build(Kind::Wrr, Flags::default(), &list, 0);
        take(&*scheduler, &list, before);
        let divisor = weights.iter().fold(0, |divisor, &weight| gcd(divisor, weight));
        let cycle: u32 = weights.iter().sum::<u32>().checked_div(divisor).unwrap_or(0);
        let mut counts = vec![0; weights.len()];
        take(&*scheduler, &list, cycle).into_iter().for_each(|index| counts[index] += divisor);
        prop_assert_eq!(counts, weights);
    }

    /// The hashing ones go by nothing but the client's address, or with the flag its port as well.
    #[test]
    fn the_port_counts_if_it_should(weights in weights(), seed in any::<u64>()) {
        let list = servers(&weights);
        for kind in [Kind::Sh, Kind::Mh] {
            for port in [false, true] {
                let scheduler = build(kind, Flags { port, ..Flags::default() }, &list, seed);
                let pick = |client_port| scheduler.pick(&list, &Request { client_port, ..request(7) });
                let differ = (0..64).any(|port| pick(port) != pick(0));
                let several = weights.iter().filter(|&&weight| weight > 0).count() > 1;
                prop_assert!(port || !differ);
                // One server may have nearly all of the weight.
                prop_assert!(!port || !several || differ || weights.iter().any(|&weight| weight > 9));
            }
        }
    }
}

/// What a scheduler had learned is still known after a reload that only changes weights, or takes out a server.
#[test]
fn a_turn_goes_on_where_it_was() {
    let list = servers(&[1, 1, 1, 1]);
    let old = build(Kind::Rr, Flags::default(), &list, 0);
    take(&*old, &list, 2);
    let successor = |kind: Kind, places: &[Option<usize>], weights: &[u32]| {
        let list = servers(weights);
        let mut new = build(kind, Flags::default(), &list, 0);
        new.inherit(old.memory().moved(places));
        take(&*new, &list, 4)
    };
    assert_eq!(successor(Kind::Rr, &[Some(0), Some(1), Some(2), Some(3)], &[1, 1, 5, 1]), [2, 3, 0, 1]);
    assert_eq!(
        successor(Kind::Rr, &[Some(0), Some(1), None, Some(2)], &[1, 1, 1]),
        [2, 0, 1, 2],
        "its turn is the next one's"
    );
    assert_eq!(successor(Kind::Rr, &[Some(2), None, None, None], &[1, 1, 1]), [2, 0, 1, 2]);
    assert_eq!(successor(Kind::Rr, &[None; 4], &[1, 1]), [0, 1, 0, 1]);
    assert_eq!(successor(Kind::Wrr, &[Some(0), Some(1), Some(2), Some(3)], &[1, 1, 2, 1]), [2, 0, 1, 2]);
    assert_eq!(
        successor(Kind::Wlc, &[Some(0), Some(1), Some(2), Some(3)], &[1; 4]),
        [0; 4],
        "it has no use for a turn"
    );
}

#[test]
fn a_destination_keeps_its_home() {
    for kind in [Kind::Lblc, Kind::Lblcr] {
        let list = servers(&[5, 5, 5]);
        let old = build(kind, Flags::default(), &list, 0);
        admit(&list[0], 1, 0);
        assert_eq!(old.pick(&list, &request(1)), Some(1));
        let list = servers(&[5, 5]);
        let mut new = build(kind, Flags::default(), &list, 0);
        new.inherit(old.memory().moved(&[Some(0), Some(1), None]));
        assert_eq!(new.pick(&list, &request(1)), Some(1));
    }
}

/// Old and new snapshot pick by turns while a reload is on its way.
#[test]
fn two_schedulers_of_one_service_share_its_marks() {
    let list = servers(&[1; 20]);
    let (old, new) = (build(Kind::Wlc, Flags::default(), &list, 0), build(Kind::Lc, Flags::default(), &list, 0));
    for round in 0..60 {
        let scheduler = if round % 3 == 0 { &new } else { &old };
        let picked = scheduler.pick(&list, &request(round)).expect("all are available");
        assert_eq!(picked, round as usize % 20);
        list[picked].start(true);
    }
}

#[test]
fn shards_picking_at_once_spread_over_many() {
    let list = servers(&[1; 100]);
    let scheduler = build(Kind::Wlc, Flags::default(), &list, 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for client in 0..2000 {
                    let picked = scheduler.pick(&list, &request(client)).expect("all are available");
                    list[picked].start(true);
                }
            });
        }
    });
    // Three pickers see a server as the cheapest at once; no more than that may come on top.
    assert!(list.iter().all(|server| server.load.active().abs_diff(60) <= 3));
    assert_eq!(scheduler.pick(&list, &request(1)), scheduler.fork().pick(&list, &request(1)));
}
