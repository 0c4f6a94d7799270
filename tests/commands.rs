//! What the control plane asks of an engine while packets flow: deletion in slices, and letting go of what was retired.

mod support;

use std::sync::Arc;

use gatun::command::{Command, DELETE_BUDGET, FlowFilter, Outcome};
use gatun::engine::Engine;
use gatun::service::{ServerId, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::wire::Addr;
use support::traffic::established;

/// How many flows one call ended, and where to go on.
fn delete(engine: &mut Engine, filter: &FlowFilter, cursor: usize) -> (u64, Option<usize>) {
    match engine.apply(Instant::from_millis(1), Command::Delete { filter: filter.clone(), cursor }) {
        Outcome::Deleted { count, next } => (count, next),
        other => panic!("a deletion says how many, not {other:?}"),
    }
}

#[test]
fn one_call_deletes_a_slice_and_all_calls_delete_everything() {
    let flows = 2 * DELETE_BUDGET + 100;
    let mut engine = established(true, flows as u32, flows);
    let budget = DELETE_BUDGET as u64;
    let all = FlowFilter::default();
    assert_eq!(delete(&mut engine, &all, 0), (budget, Some(DELETE_BUDGET)));
    assert_eq!(engine.occupancy().0, flows - DELETE_BUDGET);
    // A place that was looked at counts, also one without a flow.
    assert_eq!(delete(&mut engine, &all, 0), (0, Some(DELETE_BUDGET)));
    assert_eq!(delete(&mut engine, &all, DELETE_BUDGET), (budget, Some(2 * DELETE_BUDGET)));
    assert_eq!(delete(&mut engine, &all, 2 * DELETE_BUDGET), (100, None));
    assert_eq!(engine.occupancy().0, 0);
    assert_eq!(engine.stats().flows_deleted, flows as u64);
    assert_eq!(delete(&mut engine, &all, usize::MAX), (0, None));
    engine.check_invariants();
}

#[test]
fn a_slice_ends_only_what_matches() {
    let mut engine = established(true, 200, 200);
    let filter = FlowFilter { sport: Some(1024), ..FlowFilter::default() };
    // The clients are 64 to an address, from port 1024 on.
    assert_eq!(delete(&mut engine, &filter, 0), (4, None));
    assert_eq!(engine.occupancy().0, 196);
}

#[test]
fn what_was_retired_goes_with_its_last_flow() {
    let mut engine = established(true, 1, 10);
    let old = engine.snapshot().clone();
    let vip = Addr::from_v4([203, 0, 113, 10]);
    let services = old.spec.services.iter().filter(|service| service.vip != vip).cloned().collect();
    let without = Snapshot::build(SnapshotSpec { services, ..old.spec.clone() }, Some(&old)).expect("it is sound");
    assert!(old.tidied().is_none(), "everything is in use");
    engine.apply(Instant::ZERO, Command::Swap(Arc::new(without)));

    // The three servers that have no flow go at once, the VIP of the fourth stays.
    let tidied = engine.snapshot().tidied().expect("three servers are idle");
    assert!(tidied.is_vip(vip));
    assert_eq!(tidied.generation, engine.snapshot().generation);
    engine.apply(Instant::ZERO, Command::Swap(Arc::new(tidied)));
    assert!(engine.snapshot().tidied().is_none(), "a flow needs what is left");
    assert_eq!(engine.occupancy().0, 1);

    assert_eq!(delete(&mut engine, &FlowFilter::default(), 0), (1, None));
    let tidied = engine.snapshot().tidied().expect("nothing needs it any more");
    assert!(!tidied.is_vip(vip));
    assert_eq!(tidied.live.len(), 1);
    assert!(tidied.tidied().is_none());
}

/// Without what is at `vip`.
fn without(old: &Snapshot, vip: Addr) -> Snapshot {
    let services = old.spec.services.iter().filter(|service| service.vip != vip).cloned().collect();
    Snapshot::build(SnapshotSpec { services, ..old.spec.clone() }, Some(old)).expect("it is sound")
}

#[test]
fn what_is_given_up_leaves_no_trace() {
    let mut engine = established(true, 1, 10);
    let old = engine.snapshot().clone();
    let vip = Addr::from_v4([203, 0, 113, 10]);
    for (index, server) in old.all_servers().enumerate() {
        server.state.set_draining(index % 2 == 0);
        server.state.set_up(Instant::ZERO, index % 3 == 0);
    }
    let mut spec = without(&old, vip).spec;
    spec.services[0].servers[0].weight += 1;
    spec.services[0].name = "another".to_owned();
    let tried = Snapshot::build(spec, Some(&old)).expect("it is sound");
    let back = Snapshot::build_back(old.spec.clone(), &old, &tried).expect("it was sound before");
    assert_eq!(back.generation, old.generation);
    for (service, was) in back.live.iter().zip(&old.live) {
        assert!(Arc::ptr_eq(service, was), "{}", was.spec.name);
    }
    let known = |id: u32, snapshot: &Snapshot| snapshot.server(ServerId(id)).map(Arc::as_ptr);
    let ids = u32::try_from(old.server_ids()).expect("they are few");
    assert!((0..ids).all(|id| known(id, &back) == known(id, &old)));
    // A flow that only the one that was given up has admitted still finds its server.
    let news: Vec<_> = tried.live.iter().flat_map(|service| &service.servers).collect();
    assert!(!news.is_empty() && news.iter().all(|server| known(server.id.0, &back) == Some(Arc::as_ptr(server))));
    engine.apply(Instant::ZERO, Command::Swap(Arc::new(tried)));
    engine.apply(Instant::ZERO, Command::Swap(Arc::new(back)));
    assert_eq!(engine.occupancy().0, 1);
    let tidied = engine.snapshot().tidied().expect("what was new goes");
    assert_eq!(tidied.all_servers().count(), old.all_servers().count());
}

#[test]
fn what_the_host_is_not_told_of_lets_go_of_nothing() {
    let engine = established(true, 0, 10);
    let old = engine.snapshot().clone();
    let vip = Addr::from_v4([203, 0, 113, 10]);
    let retired = without(&old, vip);
    let next = Snapshot::build_keeping(retired.spec.clone(), &retired).expect("it is sound");
    assert!(next.is_vip(vip));
    let tidied = next.tidied().expect("it is still to be let go of");
    assert!(!tidied.is_vip(vip));
}
