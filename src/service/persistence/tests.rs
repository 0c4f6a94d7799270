use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn table(max: usize) -> Persisted {
    let table = Persisted::new(&Persistence::DEFAULT);
    table.prepare([3, 4], max);
    table
}

fn client(number: u32) -> Addr {
    Addr::from_v4((0x0a00_0000 + number).to_be_bytes())
}

fn server(number: u8) -> Place {
    (Addr::from_v4([10, 20, 0, number]), Some(80))
}

fn at(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

/// The client opens a flow; `to` is where it is scheduled if it is not known.
fn open(table: &Persisted, secs: u64, number: u32, to: u8) -> Place {
    let place = table.claim(at(secs), client(number), (6 * MINUTE, true), |known| {
        let place = known.map_or(server(to), |known| known.server);
        (place, Some(place))
    });
    table.check_invariants();
    place
}

fn close(table: &Persisted, number: u32, to: u8) {
    close_of(table, u64::from(u32::MAX), number, to);
}

/// A flow that was opened then ends.
fn close_of(table: &Persisted, secs: u64, number: u32, to: u8) {
    table.release(client(number), server(to).0, at(secs));
    table.check_invariants();
}

fn expire(table: &Persisted, secs: u64) {
    table.expire(at(secs), &mut 1000);
    table.check_invariants();
    assert!(table.next_deadline().is_none_or(|next| next > at(secs)), "work is left over");
}

#[test]
fn a_client_stays_until_it_has_opened_nothing_for_the_timeout() {
    let table = table(16);
    assert_eq!(open(&table, 0, 1, 1), server(1));
    assert_eq!(open(&table, 300, 1, 2), server(1));
    close(&table, 1, 1);
    close(&table, 1, 1);
    expire(&table, 659);
    assert_eq!(table.find(at(659), client(1)).map(|known| known.server), Some(server(1)));
    // Its time is over, whether it was swept or not.
    assert_eq!(table.find(at(660), client(1)), None);
    expire(&table, 660);
    assert_eq!((table.occupancy().0, table.next_deadline()), (0, None));
}

#[test]
fn an_entry_with_flows_lives_on_minute_by_minute() {
    let table = table(16);
    open(&table, 0, 1, 1);
    for minute in 6..20 {
        expire(&table, minute * 60);
        assert_eq!(table.next_deadline(), Some(at(minute * 60 + 60)));
        assert_eq!(table.find(at(minute * 60), client(1)).map(|known| known.server), Some(server(1)));
    }
    close(&table, 1, 1);
    expire(&table, 1199);
    assert_eq!(table.occupancy().0, 1);
    expire(&table, 1200);
    assert_eq!(table.occupancy().0, 0);
}

#[test]
fn a_full_table_lets_go_of_who_has_been_without_flows_for_longest_and_then_of_the_oldest() {
    let table = table(16);
    for n in 0..16 {
        open(&table, n.into(), n, 1);
    }
    close(&table, 7, 1);
    close(&table, 3, 1);
    let known = |n: u32| table.find(at(50), client(n)).is_some();
    open(&table, 20, 100, 1);
    assert!(!known(7) && known(3) && known(0));
    open(&table, 21, 101, 1);
    assert!(!known(3) && known(0));
    // All have flows. The first one has opened another since.
    open(&table, 22, 0, 1);
    open(&table, 23, 102, 1);
    assert!(!known(1) && known(0));
    // A million strangers.
    for n in 1000..1000 + (if cfg!(debug_assertions) { 2000 } else { 1_000_000 }) {
        open(&table, 60, n, 1);
        assert_eq!(table.occupancy(), (16, 16));
    }
    // Ends of flows whose entry gave way.
    (0..16).for_each(|n| close(&table, n, 1));
}

#[test]
fn a_large_table_has_parts_and_keeps_its_bound_as_well() {
    let table = table(65_536);
    assert_eq!(table.occupancy(), (0, 65_536));
    for n in 0..200_000 {
        table.claim(at(0), client(n), (MINUTE, false), |_| ((), Some(server(1))));
    }
    assert_eq!(table.occupancy(), (65_536, 65_536));
    table.check_invariants();
    assert_eq!(table.clients_by_server(), [(server(1), 65_536)]);
    let mut budget = 10_000;
    table.expire(at(60), &mut budget);
    assert_eq!((budget, table.occupancy().0), (0, 55_536), "a sweep is bounded");
    table.expire(at(60), &mut usize::MAX.clone());
    assert_eq!((table.occupancy().0, table.next_deadline(), table.clients_by_server().len()), (0, None, 0));
}

#[test]
fn another_server_takes_the_client_over_and_old_flows_count_for_nobody() {
    let table = table(16);
    open(&table, 0, 1, 1);
    open(&table, 0, 1, 1);
    table.claim(at(1), client(1), (MINUTE, true), |known| {
        assert_eq!(known.map(|known| known.server), Some(server(1)));
        ((), Some(server(2)))
    });
    close(&table, 1, 1);
    let (entries, _) = table.entries(at(1), 0, 10);
    assert_eq!(entries, [Entry { client: client(1), server: server(2), flows: 1, remaining: MINUTE }]);
    assert_eq!(table.clients_by_server(), [(server(2), 1)]);
    // Nothing is remembered of a choice that is not to be kept.
    table.claim(at(2), client(2), (MINUTE, true), |_| ((), None));
    assert_eq!(table.find(at(2), client(2)), None);
}

#[test]
fn clients_are_named_by_their_networks() {
    let settings = Persistence { prefix_v4: 24, prefix_v6: 64, ..Persistence::DEFAULT };
    let table = Persisted::new(&settings);
    table.prepare([1, 1], 16);
    let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
    for (from, same, other) in
        [("192.0.2.1", "192.0.2.254", "192.0.3.1"), ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1")]
    {
        table.claim(at(0), addr(from), (MINUTE, false), |_| ((), Some(server(1))));
        assert_eq!(table.find(at(0), addr(same)).map(|known| known.server), Some(server(1)));
        assert_eq!(table.find(at(0), addr(other)), None);
    }
    let shown: Vec<Addr> = table.entries(at(0), 0, 10).0.iter().map(|entry| entry.client).collect();
    assert!(shown.contains(&addr("192.0.2.0")) && shown.contains(&addr("2001:db8::")), "{shown:?}");
    let whole = Persisted::new(&Persistence { prefix_v6: 1, ..settings });
    whole.prepare([1, 1], 16);
    whole.claim(at(0), addr("2001:db8::1"), (MINUTE, false), |_| ((), Some(server(1))));
    assert_eq!(whole.find(at(0), addr("7fff::1")).map(|known| known.server), Some(server(1)));
    assert_eq!(whole.find(at(0), addr("8000::1")), None);
}

#[test]
fn a_shorter_timeout_holds_at_once_and_a_lower_bound_little_by_little() {
    let table = table(64);
    for n in 0..64 {
        open(&table, 0, n, 1);
        close(&table, n, 1);
    }
    table.claim(at(1), client(5), (MINUTE, false), |known| ((), known.map(|known| known.server)));
    expire(&table, 61);
    assert_eq!((table.find(at(61), client(5)), table.occupancy().0), (None, 63));
    table.prepare([9, 9], 16);
    for n in 100..200 {
        open(&table, 62, n, 1);
    }
    assert_eq!(table.occupancy(), (16, 16));
}

#[test]
fn a_listing_shows_every_client_once_whatever_the_slices() {
    let table = table(3 * PART);
    for n in 0..5000 {
        table.claim(at(0), client(n), (MINUTE, false), |_| ((), Some(server((n % 3) as u8))));
    }
    for slice in [1, 7, 1000, 100_000] {
        let (mut seen, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            let (entries, next) = table.entries(at(0), from, slice);
            assert!(entries.len() <= slice);
            seen.extend(entries.iter().map(|entry| entry.client));
            cursor = next;
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..5000).map(client).collect::<Vec<_>>(), "in slices of {slice}");
    }
    let mut counts: Vec<u64> = table.clients_by_server().iter().map(|(_, clients)| *clients).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1666, 1667, 1667]);
}

#[test]
fn shards_that_ask_at_once_agree_on_a_client() {
    let table = table(65_536);
    let firsts: Vec<Vec<Place>> = std::thread::scope(|scope| {
        let ask = |shard: u8| {
            let table = &table;
            move || (0..5000).map(|n| open_unchecked(table, n, shard)).collect()
        };
        let threads: Vec<_> = (0..4).map(|shard| scope.spawn(ask(shard))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(firsts.iter().all(|places| *places == firsts[0]));
    table.check_invariants();
    assert!(table.entries(at(0), 0, usize::MAX).0.iter().all(|entry| entry.flows == 4));
}

fn open_unchecked(table: &Persisted, number: u32, to: u8) -> Place {
    table.claim(at(0), client(number), (MINUTE, true), |known| {
        let place = known.map_or(server(to), |known| known.server);
        (place, Some(place))
    })
}

#[test]
fn old_flows_are_not_counted_off_those_that_came_after_a_change() {
    let table = table(16);
    let flows = |secs| table.entries(at(secs), 0, 9).0.iter().map(|entry| entry.flows).collect::<Vec<_>>();
    // To a first server, to another, and back; each by a choice of the scheduler.
    for (secs, to) in [(0, 1), (1, 1), (2, 2), (3, 1)] {
        table.claim(at(secs), client(1), (6 * MINUTE, true), |_| ((), Some(server(to))));
    }
    assert_eq!(flows(3), [1]);
    for (opened, to) in [(0, 1), (1, 1), (2, 2)] {
        close_of(&table, opened, 1, to);
        assert_eq!(flows(3), [1], "of {opened}");
    }
    // A shard whose clock is behind.
    table.claim(at(2), client(1), (6 * MINUTE, true), |_| ((), Some(server(1))));
    assert_eq!(flows(3), [2]);
    close_of(&table, 2, 1, 1);
    close_of(&table, 3, 1, 1);
    assert_eq!(flows(3), [0]);
}

#[test]
fn flows_of_an_entry_that_gave_way_are_not_counted_off_its_successor() {
    let table = table(1);
    open(&table, 0, 1, 1);
    open(&table, 1, 2, 1);
    open(&table, 2, 1, 1);
    close_of(&table, 0, 1, 1);
    assert!(table.find(at(3), client(1)).is_some_and(|known| known.has_flows));
    close_of(&table, 2, 1, 1);
    assert!(table.find(at(3), client(1)).is_some_and(|known| !known.has_flows));
}
