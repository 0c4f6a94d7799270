//! Active health checks: asks servers whether they work, and tells the data path.
//!
//! # Theory of operation
//!
//! A *check* is what the configuration says about one server of one service; a *probe* is one question put to one address.
//! Servers whose checks are the same, and which are the same address and port, share one probe, however many services they
//! serve (`table`). A probe that goes through the data path, or that is a command, belongs to one server of one service.
//!
//! One task runs all of it ([`Health::run`]). Idle probes are entries of a queue by the time at which they start next: no task
//! and no timer each. A probe that is due becomes a task, if there is room: the number of those that run is bounded by the
//! descriptors that the process may have. One that has no room waits, and is late; that is logged.
//!
//! Each answer goes into the probe's `standing::Standing`, which is up or down: up after `rise` good answers in a row,
//! down after `fall` bad ones. From the start of one probe to the start of the next is an interval, less the jitter and
//! never more, and an answer comes within the timeout. So a server that dies is out after `fall` intervals and a timeout at
//! the latest: the failure may happen right after a probe has begun well.
//!
//! A standing becomes the [`ServerState`](crate::service::ServerState) of every server that shares the probe. What the gateway
//! itself could not do (no descriptor, no memory, no free port, no time to listen) is no answer, and changes nothing.
//!
//! The engine takes a server down by itself when clients' connections fail (`passive`). That is looked for ten times a
//! second, told, and left alone for the time that such a server is held down. After that it comes up by `rise` good answers
//! to its check; without a check it is tried again. Until a check agrees with the clients only flows that the server has not
//! answered are ended; when one does, that is told as another fall, for its own reason.
//!
//! On a reload [`Health::foresee`] is told the new snapshot *before* the engines are, and [`Health::configure`] when the
//! reload can no longer be refused, so that a refused one leaves no trace. Probes that are the same as before
//! keep their standing and their place in the queue, and one that runs runs on. A server whose check changes keeps its
//! state until the new check has something to say. New servers are up (IPVS), or down where `initial` says so.

mod dice;
pub mod path;
pub mod probe;
mod quorum;
pub mod spec;
mod standing;
mod table;
#[cfg(test)]
mod tests;
pub mod transport;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use self::probe::{Bad, Outcome, Probe};
use self::quorum::{Commands, Job, QuorumChange, Quorums};
use self::spec::{CheckSpec, HealthSpec, Via};
use self::table::{COMPLAINT, Complaint, Due, Table};
use self::transport::{Connect, Host};
use super::api;
use super::config::format_duration;
use super::evacuate::evacuate;
use crate::io::{Cause, Gateway};
use crate::service::{Server, ServerId, Service, ServiceId, Snapshot, SnapshotSpec};

/// How often what is not an answer is looked at: clients' failures, the end of a hold.
const LOOK: Duration = Duration::from_millis(100);
/// How often every service's servers are counted, besides when one of them changes: weights and drain marks change as well.
const COUNT: Duration = Duration::from_secs(1);
/// A timeout that is noticed by so much too late, and by half of it, is no answer: the control thread did not run.
const STALL: Duration = Duration::from_millis(100);
/// Programs of checks that may run at a time. A process is a thousand times what a descriptor is.
const MAX_PROGRAMS: usize = 64;
/// Changes kept for watchers that are behind; one that is further behind is told how many it lost.
const CHANGES_KEPT: usize = 4096;
/// Lines of the log about checks that cannot be made, in the time between two about the same one: all of many may want for
/// the same.
const MOST_COMPLAINTS: usize = 50;

/// The checks of a running gateway.
pub struct Health {
    gateway: Arc<Gateway>,
    host: Arc<dyn Connect>,
    path: OnceLock<Arc<dyn Connect>>,
    table: Mutex<Table>,
    prepared: Mutex<Arc<Prepared>>,
    quorums: Mutex<Quorums>,
    /// Commands that are to be run.
    jobs: Mutex<Vec<Job>>,
    told: broadcast::Sender<Arc<api::ServerEvent>>,
    /// The snapshot has other weights than the checks say.
    reweigh: Notify,
    /// Something is due earlier than it was.
    changed: Notify,
    /// Probes that may run at a time.
    room: usize,
}

/// A configuration's checks with what they need, ready to be used.
#[derive(Default)]
pub struct Prepared {
    spec: HealthSpec,
    probes: HashMap<Arc<CheckSpec>, Arc<dyn Probe>>,
}

/// A server went up or down.
#[derive(Clone, Debug)]
struct Change {
    service: Arc<Service>,
    server: Arc<Server>,
    is_up: bool,
    /// For a human: what the check said, and its type.
    why: String,
}

impl Prepared {
    /// # Errors
    /// One sentence about a file that a check needs and that cannot be used.
    pub fn new(spec: HealthSpec) -> Result<Prepared, String> {
        Prepared::following(spec, &Prepared::default())
    }

    /// Takes from `known` what is the same there, so that no file is read again.
    fn following(spec: HealthSpec, known: &Prepared) -> Result<Prepared, String> {
        let mut probes: HashMap<Arc<CheckSpec>, Arc<dyn Probe>> = HashMap::new();
        for (service, check) in spec.checks() {
            if !probes.contains_key(check) {
                let built = known.probes.get(check).cloned().map_or_else(|| probe::build(check), Ok);
                let built = built.map_err(|error| format!("service {:?}: check: {error}", service.name))?;
                probes.insert(check.clone(), built);
            }
        }
        Ok(Prepared { spec, probes })
    }
}

impl Health {
    /// `room`: probes that may run at a time.
    pub fn new(gateway: Arc<Gateway>, room: usize) -> Health {
        Health::by(gateway, Arc::new(Host), room)
    }

    fn by(gateway: Arc<Gateway>, host: Arc<dyn Connect>, room: usize) -> Health {
        let room = room.max(1);
        Health {
            gateway,
            host,
            path: OnceLock::new(),
            table: Mutex::default(),
            prepared: Mutex::default(),
            quorums: Mutex::default(),
            jobs: Mutex::default(),
            told: broadcast::channel(CHANGES_KEPT).0,
            reweigh: Notify::new(),
            changed: Notify::new(),
            room,
        }
    }

    /// Has checks by "path" carried by `path`. The first one stays.
    pub fn set_path(&self, path: Arc<dyn Connect>) {
        let _ = self.path.set(path);
    }

    /// As [`Prepared::new`], but what files had when the checks that run were built still holds.
    ///
    /// # Errors
    /// As those of [`Prepared::new`].
    pub fn prepare(&self, spec: HealthSpec) -> Result<Prepared, String> {
        let known = self.prepared.lock().clone();
        Prepared::following(spec, &known)
    }

    /// Marks what is new in `snapshot`, which is about to be used, as it is to begin: servers that are not to serve unasked,
    /// or of which is known that they do not work, and services without their quorum. Nobody is told or asked, and
    /// nothing that is known already changes.
    pub fn foresee(&self, prepared: &Prepared, snapshot: &Snapshot) {
        self.table.lock().foresee(prepared, snapshot, self.gateway.now());
        self.quorums.lock().foresee(&prepared.spec, snapshot);
    }

    /// Goes on with what `snapshot` has, which is used from now on, or about to be.
    pub fn configure(&self, prepared: Prepared, snapshot: &Snapshot) {
        *self.prepared.lock() = Arc::new(prepared);
        self.follow(snapshot);
    }

    /// The same checks for another snapshot of the same configuration.
    pub fn follow(&self, snapshot: &Snapshot) {
        let prepared = self.prepared.lock().clone();
        let changes = self.table.lock().configure(&prepared, snapshot, Instant::now(), self.gateway.now());
        self.quorums.lock().configure(&prepared.spec, snapshot);
        self.tell(changes);
        self.count_all();
        self.changed.notify_one();
    }

    /// Every change from now on.
    pub fn watch(&self) -> broadcast::Receiver<Arc<api::ServerEvent>> {
        self.told.subscribe()
    }

    /// Waits until [`Health::weigh`] has something else to say than before.
    pub async fn weights_changed(&self) {
        self.reweigh.notified().await;
    }

    /// Gives servers the weights that their checks say. A server of weight 0 keeps that.
    pub fn weigh(&self, spec: &mut SnapshotSpec) {
        let table = self.table.lock();
        let weights: HashMap<(&str, &str), u32> =
            table.weights().map(|(service, server, weight)| ((service, server), weight)).collect();
        if weights.is_empty() {
            return;
        }
        for service in &mut spec.services {
            for server in &mut service.servers {
                // Who sets a server to 0 means it.
                if server.weight > 0
                    && let Some(weight) = weights.get(&(service.name.as_str(), server.name.as_str()))
                {
                    server.weight = *weight;
                }
            }
        }
    }

    /// Asks, until it is dropped.
    pub async fn run(self: Arc<Health>) -> &'static str {
        let mut running = Running::default();
        let mut look = super::daemon::every(LOOK);
        let mut count = super::daemon::every(COUNT);
        let mut commands = Commands::default();
        let mut complained = Complaints::default();
        loop {
            self.jobs.lock().drain(..).for_each(|job| commands.run(job));
            let has_room = running.tasks.len() < self.room;
            let due = self.table.lock().next_due(running.programs < MAX_PROGRAMS);
            tokio::select! {
                () = sleep_until(due.unwrap_or_else(Instant::now)), if has_room && due.is_some() => {
                    self.start_due(&mut running);
                }
                Some(ended) = running.tasks.join_next_with_id() => {
                    if let Some((id, outcome, latency)) = running.ended(ended) {
                        let mut table = self.table.lock();
                        let changes = table.note(id, outcome, latency, Instant::now(), self.gateway.now());
                        let complaints = std::mem::take(&mut table.complaints);
                        drop(table);
                        complaints.iter().for_each(|complaint| complained.about(complaint));
                        self.tell(changes);
                    }
                }
                _ = look.tick() => {
                    let mut table = self.table.lock();
                    complained.about_lateness(table.next_due(true), has_room, &running);
                    let changes = table.look_at_clients(self.gateway.now());
                    drop(table);
                    self.tell(changes);
                    if std::mem::take(&mut self.table.lock().weights_changed) {
                        self.reweigh.notify_one();
                    }
                }
                _ = count.tick() => self.count_all(),
                Some(()) = commands.ended() => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn start_due(&self, running: &mut Running) {
        let now = Instant::now();
        let mut table = self.table.lock();
        while running.tasks.len() < self.room
            && let Some(due) = table.take_due(now, running.programs < MAX_PROGRAMS)
        {
            let carrier = match due.check.via {
                Via::Host => Some(self.host.clone()),
                Via::Path => self.path.get().cloned(),
            };
            let (id, is_program) = (due.id, due.check.probe.is_program());
            let task = running.tasks.spawn(ask(due, carrier));
            running.programs += usize::from(is_program);
            running.ids.insert(task.id(), (id, is_program));
            table.started(id, task);
        }
    }

    /// Tells the log and watchers of changes, has flows of servers that went down dealt with, and counts those that are left.
    fn tell(&self, changes: Vec<Change>) {
        let mut touched: Vec<ServiceId> = Vec::new();
        for change in &changes {
            let Change { service, server, is_up, why, .. } = change;
            let (service_name, name) = (&service.spec.name, &server.name);
            match is_up {
                true => tracing::info!("service {service_name:?}: server {name:?} is up: {why}"),
                false => tracing::warn!("service {service_name:?}: server {name:?} is down: {why}"),
            }
            let _ = self.told.send(Arc::new(view::server_event(change)));
            if touched.last() != Some(&service.id) {
                touched.push(service.id);
            }
        }
        let down: Vec<ServerId> =
            changes.iter().filter(|change| !change.is_up).map(|change| change.server.id).collect();
        if !down.is_empty() {
            self.evacuate(&down);
        }
        let mut quorums = self.quorums.lock();
        let counted: Vec<QuorumChange> = touched.into_iter().filter_map(|service| quorums.count(service)).collect();
        drop(quorums);
        self.tell_quorums(counted);
    }

    fn count_all(&self) {
        let counted = self.quorums.lock().count_all();
        self.tell_quorums(counted);
    }

    fn tell_quorums(&self, changes: Vec<QuorumChange>) {
        for change in &changes {
            let QuorumChange { service, quorum, holds, live, is_first } = change;
            let name = &service.spec.name;
            match (holds, is_first) {
                (true, true) => tracing::debug!("service {name:?} has its quorum: weight {live}"),
                (true, false) => tracing::info!("service {name:?} gained its quorum: weight {live}"),
                (false, _) => tracing::warn!("service {name:?} has no quorum: weight {live}, quorum {}", quorum.weight),
            }
            if !(*holds && *is_first) {
                let _ = self.told.send(Arc::new(view::quorum_event(change)));
            }
            self.jobs.lock().extend(Job::of(change));
        }
        if !changes.is_empty() {
            self.changed.notify_one();
        }
    }

    /// Deals with the flows of servers that went down, as their services say.
    fn evacuate(&self, servers: &[ServerId]) {
        let (gateway, servers) = (self.gateway.clone(), servers.to_vec());
        tokio::spawn(async move {
            let ended = evacuate(&gateway, &servers, Cause::Down).await;
            if ended > 0 {
                tracing::info!("flows of servers that are down: {ended} ended");
            }
        });
    }
}

/// Asks once, for no longer than the check's timeout.
async fn ask(due: Due, carrier: Option<Arc<dyn Connect>>) -> (Outcome, Duration) {
    let began = Instant::now();
    let Some(carrier) = carrier else {
        return (Err(Bad::Ours("there is no way for checks by \"path\"".to_owned())), Duration::ZERO);
    };
    let limit = due.check.timeout;
    let outcome = timeout(limit, due.probe.ask(&due.asked, &*carrier)).await;
    let outcome = outcome.unwrap_or_else(|_| {
        // An answer may have come that nobody was there to read.
        if let Some(late) = began.elapsed().checked_sub(limit).filter(|late| *late > (limit / 2).max(STALL)) {
            return Err(Bad::Ours(format!("the gateway itself was held up, for {}", format_duration(late))));
        }
        let nothing = || Bad::Server(format!("no answer within {}", format_duration(limit)));
        due.probe.silence().ok_or_else(nothing)
    });
    (outcome, began.elapsed())
}

/// The probes that run.
#[derive(Default)]
struct Running {
    tasks: JoinSet<(Outcome, Duration)>,
    /// Which line each is of, and whether it is a program.
    ids: HashMap<tokio::task::Id, (u32, bool)>,
    programs: usize,
}

type Ended = Result<(tokio::task::Id, (Outcome, Duration)), tokio::task::JoinError>;

impl Running {
    fn forget(&mut self, task: tokio::task::Id) -> Option<u32> {
        let (id, is_program) = self.ids.remove(&task)?;
        self.programs -= usize::from(is_program);
        Some(id)
    }

    /// `None` for one that was called off.
    fn ended(&mut self, ended: Ended) -> Option<((u32, tokio::task::Id), Outcome, Duration)> {
        match ended {
            Ok((task, (outcome, latency))) => Some(((self.forget(task)?, task), outcome, latency)),
            Err(error) => {
                let id = self.forget(error.id())?;
                if error.is_cancelled() {
                    return None;
                }
                tracing::error!("a probe failed: {error}");
                Some(((id, error.id()), Err(Bad::Ours("the probe failed".to_owned())), Duration::ZERO))
            }
        }
    }
}

/// What the gateway itself lacks for its checks, told now and then.
#[derive(Default)]
struct Complaints {
    /// When lateness was told last.
    last: Option<Instant>,
    /// When the count of the others began.
    since: Option<Instant>,
    told: usize,
}

impl Complaints {
    fn about(&mut self, complaint: &Complaint) {
        let Complaint { service, server, why } = complaint;
        if self.since.is_none_or(|since| since.elapsed() >= COMPLAINT) {
            (self.since, self.told) = (Some(Instant::now()), 0);
        }
        self.told += 1;
        match self.told {
            ..=MOST_COMPLAINTS => tracing::warn!(
                "service {service:?}: the check of server {server:?} could not be made, and nothing follows from that: {why}"
            ),
            _ => tracing::debug!("service {service:?}: the check of server {server:?} could not be made: {why}"),
        }
    }

    fn about_lateness(&mut self, due: Option<Instant>, has_room: bool, running: &Running) {
        let is_full = !has_room || running.programs >= MAX_PROGRAMS;
        let Some(late) = due.map(|due| due.elapsed()).filter(|late| is_full && *late > LOOK) else { return };
        if self.last.is_none_or(|last| last.elapsed() >= COMPLAINT) {
            self.last = Some(Instant::now());
            let late = format_duration(late);
            match has_room {
                true => {
                    tracing::warn!("checks by programs are {late} late: {MAX_PROGRAMS} run, and no more may at a time")
                }
                false => {
                    tracing::warn!(
                        "checks are {late} late: as many run as may at a time; raise the limit of open files"
                    );
                }
            }
        }
    }
}
