//! Lists that are too long to be told at once: a slice per lock hold, and other tasks in between.

use std::io;
use std::sync::Arc;

use serde::Serialize;

use crate::command::{ExpectationRecord, FlowFilter, FlowRecord, MappingRecord};
use crate::control::api;
use crate::control::context::Control;
use crate::control::socket::client::Out;
use crate::control::view;
use crate::engine::Engine;
use crate::service::{Persisted, Snapshot};
use crate::time::Instant;

/// Sends the flow table.
pub(super) async fn flows(control: &Control, filter: &FlowFilter, out: &mut Out) -> io::Result<()> {
    let show = |snapshot: &Snapshot, flow: &FlowRecord| filter.matches(flow).then(|| view::flow(snapshot, flow));
    of_shards(control, out, Engine::flows, show).await
}

/// Sends the flows that helpers have announced and that have not begun.
pub(super) async fn expected(control: &Control, out: &mut Out) -> io::Result<()> {
    let show = |snapshot: &Snapshot, record: &ExpectationRecord| Some(view::expectation(snapshot, record));
    of_shards(control, out, Engine::expected_flows, show).await
}

/// Sends what inside endpoints are mapped to.
pub(super) async fn mappings(control: &Control, filter: &view::MappingFilter, out: &mut Out) -> io::Result<()> {
    let show =
        |snapshot: &Snapshot, record: &MappingRecord| filter.matches(record).then(|| view::mapping(snapshot, record));
    of_shards(control, out, Engine::mappings, show).await
}

/// Sends a list that each shard has a part of, slice by slice; the lock of a shard is held for one slice only.
async fn of_shards<R, S: Serialize, C: Default>(
    control: &Control,
    out: &mut Out,
    slice: impl Fn(&Engine, Instant, C, usize) -> (Vec<R>, Option<C>),
    show: impl Fn(&Snapshot, &R) -> Option<S>,
) -> io::Result<()> {
    let gateway = control.gateway();
    let mut shown = 0;
    for shard in gateway.shards() {
        let mut cursor = Some(C::default());
        while let Some(from) = cursor {
            let records;
            (records, cursor) = slice(&shard.lock(), gateway.now(), from, out.limits.slice);
            let snapshot = gateway.snapshot();
            for item in records.iter().filter_map(|record| show(&snapshot, record)) {
                out.item(&item);
                shown += 1;
            }
            out.flush().await?;
            // A client that reads fast must not keep the others waiting.
            tokio::task::yield_now().await;
        }
    }
    out.ok(&api::Shown { shown });
    Ok(())
}

/// Sends the clients that persistence keeps, a slice per lock hold. Services of a group share theirs: they are told once.
pub(super) async fn kept(control: &Control, out: &mut Out) -> io::Result<()> {
    let gateway = control.gateway();
    let snapshot = gateway.snapshot();
    let mut told: Vec<&Arc<Persisted>> = Vec::new();
    let mut shown = 0;
    for service in &snapshot.live {
        let Some(table) = &service.persisted else { continue };
        if service.spec.group.is_some() {
            if told.iter().any(|other| Arc::ptr_eq(other, table)) {
                continue;
            }
            told.push(table);
        }
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let entries;
            (entries, cursor) = table.entries(gateway.now(), from, out.limits.slice);
            for entry in &entries {
                out.item(&view::kept_client(service, entry));
                shown += 1;
            }
            out.flush().await?;
            tokio::task::yield_now().await;
        }
    }
    out.ok(&api::Shown { shown });
    Ok(())
}
