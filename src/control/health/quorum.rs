//! Whether services have enough servers, and the commands that are run when that changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::spec::{Command, HealthSpec, Quorum};
use crate::control::config::format_duration;
use crate::io::program::{Privileges, Program};
use crate::service::{Server, Service, ServiceId, Snapshot};

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The quorum of every service.
#[derive(Default)]
pub(super) struct Quorums {
    services: HashMap<ServiceId, Counted>,
}

struct Counted {
    service: Arc<Service>,
    quorum: Quorum,
    /// `None`: nobody has counted yet.
    holds: Option<bool>,
}

/// A service gained or lost its quorum.
#[derive(Clone, Debug)]
pub(super) struct QuorumChange {
    pub service: Arc<Service>,
    pub quorum: Quorum,
    pub holds: bool,
    pub live: u64,
    /// The service has just come.
    pub is_first: bool,
}

impl Quorums {
    pub fn configure(&mut self, spec: &HealthSpec, snapshot: &Snapshot) {
        let mut old = std::mem::take(&mut self.services);
        let mut quorums: HashMap<&str, &Quorum> =
            spec.services.iter().map(|service| (service.name.as_str(), &service.quorum)).collect();
        for service in &snapshot.live {
            let known = old.remove(&service.id).filter(|known| Arc::ptr_eq(&known.service.state, &service.state));
            let counted = Counted {
                service: service.clone(),
                quorum: quorums.remove(service.spec.name.as_str()).cloned().unwrap_or_default(),
                holds: known.and_then(|known| known.holds),
            };
            self.services.insert(service.id, counted);
        }
    }

    /// Marks services that are new in `snapshot` and do not have their quorum.
    pub fn foresee(&self, spec: &HealthSpec, snapshot: &Snapshot) {
        let quorums: HashMap<&str, &Quorum> =
            spec.services.iter().map(|service| (service.name.as_str(), &service.quorum)).collect();
        for service in snapshot.live.iter().filter(|service| self.known(service).is_none()) {
            let weight = quorums.get(service.spec.name.as_str()).map_or(1, |quorum| u64::from(quorum.weight));
            service.state.set_quorum(live_weight(service) >= weight);
        }
    }

    fn known(&self, service: &Service) -> Option<&Counted> {
        self.services.get(&service.id).filter(|known| Arc::ptr_eq(&known.service.state, &service.state))
    }

    /// Counts every service's servers.
    pub fn count_all(&mut self) -> Vec<QuorumChange> {
        self.services.values_mut().filter_map(Counted::count).collect()
    }

    pub fn count(&mut self, service: ServiceId) -> Option<QuorumChange> {
        self.services.get_mut(&service)?.count()
    }

    pub fn of(&self, service: ServiceId) -> Option<&Quorum> {
        self.services.get(&service).map(|counted| &counted.quorum)
    }
}

impl Counted {
    fn count(&mut self) -> Option<QuorumChange> {
        let live = live_weight(&self.service);
        // One that comes has its quorum without the hysteresis.
        let holds = self.quorum.holds(live, self.holds.unwrap_or(true));
        let holds = if self.holds.is_none() { live >= u64::from(self.quorum.weight) } else { holds };
        self.service.state.set_quorum(holds);
        let before = self.holds.replace(holds);
        (before != Some(holds)).then(|| QuorumChange {
            service: self.service.clone(),
            quorum: self.quorum.clone(),
            holds,
            live,
            is_first: before.is_none(),
        })
    }
}

/// The weight of the servers that may serve, however full they are.
pub(super) fn live_weight(service: &Service) -> u64 {
    let serves =
        |server: &&Arc<Server>| server.state.is_up() && !server.state.is_draining() && !server.path.is_unreachable();
    service.servers.iter().filter(serves).map(|server| u64::from(server.weight)).sum()
}

/// Runs commands: for one service one after the other, and of those that wait only the last.
#[derive(Default)]
pub(super) struct Commands {
    tasks: JoinSet<ServiceId>,
    /// Services whose command runs, and what is to be run next.
    running: HashMap<ServiceId, Option<Job>>,
}

pub(super) struct Job {
    service: ServiceId,
    name: String,
    command: Command,
    environment: Vec<(&'static str, String)>,
}

impl Job {
    /// What is to be run for a change, if anything is.
    pub fn of(change: &QuorumChange) -> Option<Job> {
        let QuorumChange { service, quorum, holds, live, .. } = change;
        let command = if *holds { quorum.up.clone() } else { quorum.down.clone() };
        let ports = service.spec.ports;
        Some(Job {
            service: service.id,
            name: service.spec.name.clone(),
            command: command?,
            environment: vec![
                ("GATUN_SERVICE", service.spec.name.clone()),
                ("GATUN_VIP", service.vip().to_string()),
                ("GATUN_VIP_PORT", if ports.is_single() { ports.first.to_string() } else { String::new() }),
                ("GATUN_QUORUM", if *holds { "up" } else { "down" }.to_owned()),
                ("GATUN_WEIGHT", live.to_string()),
            ],
        })
    }

    async fn run(self) -> ServiceId {
        let Command(words) = &self.command;
        let program = Program { command: words, environment: &self.environment, privileges: Privileges::Ours };
        let shown = words.join(" ");
        let name = &self.name;
        match timeout(PATIENCE, program.run()).await {
            Ok(Ok(ended)) if ended.code == Some(0) => {
                tracing::info!("service {name:?}: ran {shown:?}");
                tracing::debug!("service {name:?}: it printed {:?}", ended.output);
            }
            Ok(Ok(ended)) => {
                let how = ended.code.map_or("was killed".to_owned(), |code| format!("ended with exit code {code}"));
                tracing::warn!("service {name:?}: {shown:?} {how}; it printed {:?}", ended.output);
            }
            Ok(Err(error)) => tracing::warn!("service {name:?}: {shown:?} cannot be run: {error}"),
            Err(_) => {
                tracing::warn!("service {name:?}: {shown:?} was killed after {}", format_duration(PATIENCE));
            }
        }
        self.service
    }
}

impl Commands {
    pub fn run(&mut self, job: Job) {
        let service = job.service;
        match self.running.get_mut(&service) {
            Some(next) => *next = Some(job),
            None => {
                self.running.insert(service, None);
                self.tasks.spawn(job.run());
            }
        }
    }

    /// Waits until one has ended, and starts the one that waited for it. `None`: none runs.
    pub async fn ended(&mut self) -> Option<()> {
        match self.tasks.join_next().await? {
            Ok(service) => {
                if let Some(Some(next)) = self.running.remove(&service) {
                    self.run(next);
                }
            }
            Err(error) => tracing::error!("a command failed: {error}"),
        }
        Some(())
    }
}
