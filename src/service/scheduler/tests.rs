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

    /// The hashing ones go by nothing but client, servers and seed.
    #[test]
    fn equal_seeds_choose_alike(weights in weights(), seed in any::<u64>(), clients in prop::collection::vec(any::<u32>(), 20)) {
        let list = servers(&weights);
        for kind in [Kind::Sh, Kind::Mh] {
            let (ours, theirs) = (build(kind, Flags::default(), &list, seed), build(kind, Flags::default(), &list, seed));
            for &client in &clients {
                let mut later = request(client);
                later.client_port = 9;
                prop_assert_eq!(ours.pick(&list, &request(client)), theirs.pick(&list, &later));
            }
        }
    }
}
