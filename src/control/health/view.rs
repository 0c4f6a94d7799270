//! The checks as the control API tells them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::quorum::{QuorumChange, live_weight};
use super::table::Answered;
use super::{Change, Health};
use crate::control::api;
use crate::service::{Server, Service};

impl Health {
    /// What is known of a server besides its state; `None` for one that is not watched.
    pub fn of_server(&self, server: &Server) -> Option<api::Health> {
        let table = self.table.lock();
        let (watched, line) = table.look(server)?;
        let check = line.map(|Answered { check, last, trouble }| {
            let told = last.filter(|_| trouble.is_none());
            api::Check {
                kind: check.probe.word().to_owned(),
                via: check.via.word().to_owned(),
                ok: told.map(|last| last.is_good),
                said: trouble.map(|why| format!("cannot be made: {why}")).or(told.map(|last| last.said.clone())),
                latency: told.map(|last| u64::try_from(last.latency.as_micros()).unwrap_or(u64::MAX)),
                age: told.map(|last| last.at.elapsed().as_secs()),
                sets_weight: watched.weight,
                done: watched.checks,
                failed: watched.failures,
            }
        });
        let since = watched.since.elapsed().as_secs();
        Some(api::Health { since, transitions: watched.transitions, check })
    }

    pub fn of_service(&self, service: &Service) -> Option<api::Quorum> {
        let quorums = self.quorums.lock();
        let quorum = quorums.of(service.id)?;
        Some(api::Quorum { weight: quorum.weight, hysteresis: quorum.hysteresis, live: live_weight(service) })
    }
}

pub(super) fn server_event(change: &Change) -> api::ServerEvent {
    let Change { service, server, is_up, why } = change;
    api::ServerEvent {
        time: microseconds_since_1970(),
        change: if *is_up { api::ServerChange::Up } else { api::ServerChange::Down },
        service: service.spec.name.clone(),
        server: Some(server.name.clone()),
        address: Some(server.address.ip()),
        port: server.port,
        reason: why.clone(),
    }
}

pub(super) fn quorum_event(change: &QuorumChange) -> api::ServerEvent {
    let QuorumChange { service, quorum, holds, live, .. } = change;
    api::ServerEvent {
        time: microseconds_since_1970(),
        change: if *holds { api::ServerChange::QuorumGained } else { api::ServerChange::QuorumLost },
        service: service.spec.name.clone(),
        server: None,
        address: None,
        port: None,
        reason: format!("weight {live}, quorum {}", quorum.weight),
    }
}

fn microseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
