//! Lists that are too long to be told at once: a slice per lock hold, and other tasks in between.

use std::io;
use std::sync::Arc;

use crate::command::FlowFilter;
use crate::control::api;
use crate::control::context::Control;
use crate::control::socket::client::Out;
use crate::control::view;
use crate::service::Persisted;

/// Sends the flow table slice by slice; the lock of a shard is held for one slice only.
pub(super) async fn flows(control: &Control, filter: &FlowFilter, out: &mut Out) -> io::Result<()> {
    let gateway = control.gateway();
    let mut shown = 0;
    for shard in gateway.shards() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let flows;
            (flows, cursor) = shard.lock().flows(gateway.now(), from, out.limits.slice);
            let snapshot = gateway.snapshot();
            for flow in flows.iter().filter(|flow| filter.matches(flow)) {
                out.item(&view::flow(&snapshot, flow));
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

/// Sends the flows that helpers have announced and that have not begun.
pub(super) async fn expected(control: &Control, out: &mut Out) -> io::Result<()> {
    let gateway = control.gateway();
    let mut shown = 0;
    for shard in gateway.shards() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let expected;
            (expected, cursor) = shard.lock().expected_flows(gateway.now(), from, out.limits.slice);
            let snapshot = gateway.snapshot();
            for record in &expected {
                out.item(&view::expectation(&snapshot, record));
                shown += 1;
            }
            out.flush().await?;
            tokio::task::yield_now().await;
        }
    }
    out.ok(&api::Shown { shown });
    Ok(())
}

/// Sends what inside endpoints are mapped to.
pub(super) async fn mappings(control: &Control, filter: &view::MappingFilter, out: &mut Out) -> io::Result<()> {
    let gateway = control.gateway();
    let mut shown = 0;
    for shard in gateway.shards() {
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let mappings;
            (mappings, cursor) = shard.lock().mappings(gateway.now(), from, out.limits.slice);
            let snapshot = gateway.snapshot();
            for record in mappings.iter().filter(|record| filter.matches(record)) {
                out.item(&view::mapping(&snapshot, record));
                shown += 1;
            }
            out.flush().await?;
            tokio::task::yield_now().await;
        }
    }
    out.ok(&api::Shown { shown });
    Ok(())
}
