//! What is asked of whom, when next, and what came of it. Told the time; asks nothing itself.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{self, AbortHandle};
use tokio::time::Instant;

use super::dice::Dice;
use super::probe::{Asked, Bad, Good, Outcome, Probe, Whose};
use super::spec::{CheckSpec, Jitter, ProbeSpec, ServiceHealth, Via};
use super::standing::Standing;
use super::transport::Target;
use super::{Change, Prepared};
use crate::service::{Server, ServerId, Service, Snapshot};
use crate::time;

/// Between two complaints about the same check.
pub(super) const COMPLAINT: Duration = Duration::from_secs(60);

/// Whoever has the same check asks the same once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    check: Arc<CheckSpec>,
    asked: Asked,
}

/// One probe and what its answers amount to.
pub(super) struct Line {
    key: Key,
    probe: Arc<dyn Probe>,
    standing: Standing,
    /// When it starts next; `None` while it runs.
    due: Option<Instant>,
    started: Instant,
    running: Option<AbortHandle>,
    askers: Vec<ServerId>,
    last: Option<Last>,
    /// Why it could not be made when it was tried last, if so.
    trouble: Option<String>,
    /// When that was told last.
    complained: Option<Instant>,
}

/// The last answer.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub is_good: bool,
    pub said: String,
    pub latency: Duration,
    pub at: Instant,
}

/// A check, and what it last said.
pub(super) struct Answered<'a> {
    pub check: &'a CheckSpec,
    pub last: Option<&'a Last>,
    /// Why it could not be made when it was tried last, if so.
    pub trouble: Option<&'a str>,
}

/// A check could not be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub service: String,
    pub server: String,
    pub why: String,
}

/// One server of one service.
pub(super) struct Watched {
    service: Arc<Service>,
    server: Arc<Server>,
    probe: Option<u32>,
    /// Good answers since clients' failures no longer hold it down.
    good: u32,
    /// What was told last.
    was_up: bool,
    pub since: Instant,
    pub transitions: u64,
    pub checks: u64,
    pub failures: u64,
    /// What its check says instead of the configuration.
    pub weight: Option<u32>,
}

/// A probe to be run.
pub(super) struct Due {
    pub id: u32,
    pub probe: Arc<dyn Probe>,
    pub check: Arc<CheckSpec>,
    pub asked: Asked,
}

#[derive(Default)]
pub(super) struct Table {
    lines: Vec<Option<Line>>,
    free: Vec<u32>,
    index: HashMap<Key, u32>,
    queues: Queues,
    servers: HashMap<ServerId, Watched>,
    /// Those that clients' failures may take down.
    passive: Vec<ServerId>,
    dice: Dice,
    /// A weight has changed that the snapshot does not have yet.
    pub weights_changed: bool,
    /// What is to be told of checks that could not be made; for each check now and then.
    pub complaints: Vec<Complaint>,
}

/// The idle probes by the time at which they start next. Those that are programs wait for one another only.
#[derive(Default)]
struct Queues {
    programs: BTreeSet<(Instant, u32)>,
    others: BTreeSet<(Instant, u32)>,
}

impl Queues {
    fn of(&mut self, check: &CheckSpec) -> &mut BTreeSet<(Instant, u32)> {
        if check.probe.is_program() { &mut self.programs } else { &mut self.others }
    }

    fn first(&self, with_programs: bool) -> Option<(Instant, u32)> {
        let programs = self.programs.first().filter(|_| with_programs);
        self.others.first().into_iter().chain(programs).min().copied()
    }
}

impl Table {
    /// Goes on with what `snapshot` has. Checks that are the same as before go on undisturbed.
    pub fn configure(
        &mut self,
        prepared: &Prepared,
        snapshot: &Snapshot,
        now: Instant,
        engine_now: time::Instant,
    ) -> Vec<Change> {
        let mut old_servers = std::mem::take(&mut self.servers);
        let mut old_index = std::mem::take(&mut self.index);
        self.passive.clear();
        for line in self.lines.iter_mut().flatten() {
            line.askers.clear();
        }
        let of_services: HashMap<&str, &ServiceHealth> =
            prepared.spec.services.iter().map(|service| (service.name.as_str(), service)).collect();
        for service in &snapshot.live {
            let health = of_services.get(service.spec.name.as_str());
            for server in &service.servers {
                let known =
                    old_servers.remove(&server.id).filter(|known| Arc::ptr_eq(&known.server.state, &server.state));
                let check = health.and_then(|health| health.check_of(&server.name));
                let probe = check.and_then(|check| {
                    let key = Key { check: check.clone(), asked: asked(check, service, server) };
                    let probe = prepared.probes.get(check)?.clone();
                    Some(self.join(key, probe, &mut old_index, server, known.as_ref(), now))
                });
                let mut watched = known.unwrap_or_else(|| Watched::new(service, server));
                (watched.service, watched.server, watched.probe) = (service.clone(), server.clone(), probe);
                let sets_weight =
                    check.is_some_and(|check| matches!(&check.probe, ProbeSpec::Exec(exec) if exec.sets_weight));
                if !sets_weight && watched.weight.take().is_some() {
                    self.weights_changed = true;
                }
                server.state.set_checked(probe.is_some());
                if service.spec.passive.is_some() {
                    self.passive.push(server.id);
                }
                self.servers.insert(server.id, watched);
            }
        }
        for id in old_index.into_values() {
            self.remove(id);
        }
        self.settle_all(snapshot, engine_now)
    }

    /// When all are there: what one asker knows goes for all.
    fn settle_all(&mut self, snapshot: &Snapshot, engine_now: time::Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for server in snapshot.live.iter().flat_map(|service| &service.servers) {
            let Some(watched) = self.servers.get_mut(&server.id) else { continue };
            let line = watched.probe.and_then(|id| self.lines.get(id as usize)?.as_ref());
            let why = if line.is_some() { "its check has not found it up yet" } else { "it is not checked any more" };
            changes.extend(watched.settle(line, why, engine_now));
        }
        changes
    }

    /// Takes down those servers that are new in `snapshot` and will not begin as up.
    pub fn foresee(&self, prepared: &Prepared, snapshot: &Snapshot, engine_now: time::Instant) {
        let of_services: HashMap<&str, &ServiceHealth> =
            prepared.spec.services.iter().map(|service| (service.name.as_str(), service)).collect();
        for service in &snapshot.live {
            let Some(health) = of_services.get(service.spec.name.as_str()) else { continue };
            for server in service.servers.iter().filter(|server| self.watched(server).is_none()) {
                let Some(check) = health.check_of(&server.name) else { continue };
                let line = self
                    .line(self.index.get(&Key { check: check.clone(), asked: asked(check, service, server) }).copied());
                if !line.map_or(check.starts_up, |line| line.standing.is_up) {
                    server.state.set_up(engine_now, false);
                }
            }
        }
    }

    /// The probe for `key`, which may be one that others have as well.
    fn join(
        &mut self,
        key: Key,
        probe: Arc<dyn Probe>,
        old_index: &mut HashMap<Key, u32>,
        server: &Server,
        known: Option<&Watched>,
        now: Instant,
    ) -> u32 {
        let found = self.index.get(&key).copied().or_else(|| old_index.remove(&key));
        // Clients' failures say nothing about what a check will find.
        let was_down = known.is_some() && !server.state.is_up() && !server.state.is_doubted();
        let id = found.unwrap_or_else(|| {
            let is_up = match known {
                None => key.check.starts_up && server.state.is_up(),
                Some(_) => !was_down,
            };
            // The warm-up: probes of one configuration do not all start together.
            let due = now + self.dice.part_of(key.check.interval);
            self.add(Line {
                key: key.clone(),
                probe: probe.clone(),
                standing: Standing::new(is_up),
                due: Some(due),
                started: now,
                running: None,
                askers: Vec::new(),
                last: None,
                trouble: None,
                complained: None,
            })
        });
        if let Some(Some(line)) = self.lines.get_mut(id as usize) {
            line.askers.push(server.id);
            // Whoever came first may be new, and know nothing.
            if was_down && line.last.is_none() {
                line.standing = Standing::new(false);
            }
            // Made anew: its files may be others.
            line.probe = probe;
        }
        self.index.insert(key, id);
        id
    }

    fn add(&mut self, line: Line) -> u32 {
        let (due, check) = (line.due, line.key.check.clone());
        let id = self.free.pop().unwrap_or_else(|| {
            self.lines.push(None);
            u32::try_from(self.lines.len() - 1).expect("each has a line of a configuration file")
        });
        self.lines[id as usize] = Some(line);
        self.queues.of(&check).extend(due.map(|due| (due, id)));
        id
    }

    fn remove(&mut self, id: u32) {
        let Some(line) = self.lines.get_mut(id as usize).and_then(Option::take) else { return };
        self.free.push(id);
        if let Some(due) = line.due {
            self.queues.of(&line.key.check).remove(&(due, id));
        }
        if let Some(running) = line.running {
            running.abort();
        }
    }

    fn line(&self, id: Option<u32>) -> Option<&Line> {
        self.lines.get(id? as usize)?.as_ref()
    }

    /// When the next probe starts; `with_programs`: or else the next that is no program.
    pub fn next_due(&self, with_programs: bool) -> Option<Instant> {
        self.queues.first(with_programs).map(|(due, _)| due)
    }

    /// The next probe that is due at `now`; it must be [`started`](Self::started).
    pub fn take_due(&mut self, now: Instant, with_programs: bool) -> Option<Due> {
        let (due, id) = self.queues.first(with_programs).filter(|(due, _)| *due <= now)?;
        let line = self.lines.get_mut(id as usize)?.as_mut()?;
        self.queues.of(&line.key.check).remove(&(due, id));
        line.due = None;
        line.started = now;
        Some(Due { id, probe: line.probe.clone(), check: line.key.check.clone(), asked: line.key.asked.clone() })
    }

    pub fn started(&mut self, id: u32, running: AbortHandle) {
        if let Some(Some(line)) = self.lines.get_mut(id as usize) {
            line.running = Some(running);
        }
    }

    /// Notes what a probe came to, and when it is to be run again.
    pub fn note(
        &mut self,
        (id, task): (u32, task::Id),
        outcome: Outcome,
        latency: Duration,
        now: Instant,
        engine_now: time::Instant,
    ) -> Vec<Change> {
        let Some(Some(line)) = self.lines.get_mut(id as usize) else { return Vec::new() };
        // The answer to one that was called off came all the same, and the line is another's by now.
        if line.running.take_if(|running| running.id() == task).is_none() {
            return Vec::new();
        }
        let check = line.key.check.clone();
        let early = match check.jitter {
            Jitter::Share(share) => check.interval * u32::from(share) / 100,
            Jitter::Time(time) => time,
        };
        let due = now.max(line.started + (check.interval - self.dice.part_of(early).min(check.interval)));
        line.due = Some(due);
        self.queues.of(&check).insert((due, id));
        let (is_good, said, weight) = match outcome {
            Ok(Good { said, weight }) => (true, said, weight),
            Err(Bad::Server(why)) => (false, why, None),
            // Nothing was learnt.
            Err(Bad::Ours(why)) => {
                self.complain(id, why, now);
                return Vec::new();
            }
        };
        line.trouble = None;
        line.standing.note(is_good, check.rise, check.fall);
        line.last = Some(Last { is_good, said, latency, at: now });
        let mut changes = Vec::new();
        let (servers, line) = (&mut self.servers, &*line);
        for asker in &line.askers {
            let Some(watched) = servers.get_mut(asker) else { continue };
            watched.checks += 1;
            watched.failures += u64::from(!is_good);
            if is_good && watched.weight != weight {
                watched.weight = weight;
                self.weights_changed = true;
            }
            watched.note_good(is_good, engine_now);
            let why = line.last.as_ref().map_or("", |last| &last.said);
            changes.extend(watched.settle(Some(line), why, engine_now));
        }
        changes
    }

    fn complain(&mut self, id: u32, why: String, now: Instant) {
        let Some(Some(line)) = self.lines.get_mut(id as usize) else { return };
        let is_new = line.complained.is_none_or(|last| now >= last + COMPLAINT);
        if is_new && let Some(asker) = line.askers.first().and_then(|asker| self.servers.get(asker)) {
            line.complained = Some(now);
            let (service, server) = (asker.service.spec.name.clone(), asker.server.name.clone());
            self.complaints.push(Complaint { service, server, why: why.clone() });
        }
        line.trouble = Some(why);
    }

    /// Notes what clients' connections tell, and whose time is over.
    pub fn look_at_clients(&mut self, engine_now: time::Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in &self.passive {
            let Some(watched) = self.servers.get_mut(id) else { continue };
            let line = watched.probe.and_then(|id| self.lines.get(id as usize)?.as_ref());
            changes.extend(watched.settle(line, "it has been held down long enough", engine_now));
        }
        changes
    }

    /// Every weight that a check sets.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &str, u32)> {
        self.servers.values().filter_map(|watched| {
            Some((watched.service.spec.name.as_str(), watched.server.name.as_str(), watched.weight?))
        })
    }

    fn watched(&self, server: &Server) -> Option<&Watched> {
        self.servers.get(&server.id).filter(|watched| Arc::ptr_eq(&watched.server.state, &server.state))
    }

    /// What is known of a server: its record, its check, its last answer.
    pub fn look(&self, server: &Server) -> Option<(&Watched, Option<Answered<'_>>)> {
        let watched = self.watched(server)?;
        let line = self.line(watched.probe);
        let answered = line.map(|line| Answered {
            check: &line.key.check,
            last: line.last.as_ref(),
            trouble: line.trouble.as_deref(),
        });
        Some((watched, answered))
    }

    /// Probes that there are, and those of them that run.
    #[cfg(test)]
    pub fn count(&self) -> (usize, usize) {
        let lines = self.lines.iter().flatten();
        (lines.clone().count(), lines.filter(|line| line.running.is_some()).count())
    }
}

impl Watched {
    fn new(service: &Arc<Service>, server: &Arc<Server>) -> Watched {
        Watched {
            service: service.clone(),
            server: server.clone(),
            probe: None,
            good: 0,
            was_up: server.state.is_up(),
            since: Instant::now(),
            transitions: 0,
            checks: 0,
            failures: 0,
            weight: None,
        }
    }

    /// Until when clients' failures hold it down.
    fn held_until(&self) -> Option<time::Instant> {
        let hold = self.service.spec.passive.map_or(Duration::ZERO, |passive| passive.hold);
        self.server.state.passive_down_since().map(|since| since + hold)
    }

    fn note_good(&mut self, is_good: bool, now: time::Instant) {
        let counts = is_good && self.held_until().is_some_and(|until| now >= until);
        self.good = if counts { self.good.saturating_add(1) } else { 0 };
    }

    /// Makes the server's state what is known of it; `why` is the reason of a change. Clients' failures hold it down for
    /// their time; after that its check decides anew. Without one, or while it cannot be made, the server is tried again.
    fn settle(&mut self, line: Option<&Line>, why: &str, now: time::Instant) -> Option<Change> {
        let held_until = self.held_until();
        let stands = line.is_none_or(|line| line.standing.is_up);
        let is_tried = line.is_none_or(|line| line.trouble.is_some() || self.good >= line.key.check.rise);
        let is_released = held_until.is_none_or(|until| now >= until && is_tried);
        let is_up = stands && is_released;
        // Only what differs: otherwise a server that fails its clients at this moment would be brought up again.
        // Down for good, if clients' failures alone took it down so far.
        let agrees = !stands && self.server.state.is_doubted();
        if self.server.state.is_up() != is_up || agrees {
            self.server.state.set_up(now, is_up);
            self.good = 0;
        }
        if self.was_up == is_up && !agrees {
            return None;
        }
        if self.was_up != is_up {
            self.was_up = is_up;
            self.transitions += 1;
            self.since = Instant::now();
        }
        let why = match line {
            _ if stands && !is_released => "clients' connections to it fail".to_owned(),
            Some(Line { trouble: Some(trouble), .. }) => format!("{why}, and its check cannot be made: {trouble}"),
            Some(line) => format!("{why} ({} check)", line.key.check.probe.word()),
            None => why.to_owned(),
        };
        Some(Change { service: self.service.clone(), server: self.server.clone(), is_up, why })
    }
}

fn asked(check: &CheckSpec, service: &Service, server: &Server) -> Asked {
    let (vip, ports) = (service.vip().ip(), service.spec.ports);
    // A check without a port has none; otherwise the configuration was checked for there being one.
    let port = check.port.or(if check.via == Via::Path { None } else { server.port }).unwrap_or(ports.first);
    let target = match check.via {
        Via::Host => Target { address: SocketAddr::new(server.address.ip(), port), through: None },
        Via::Path => Target { address: SocketAddr::new(vip, port), through: Some(server.id) },
    };
    let is_own = check.via == Via::Path || matches!(check.probe, ProbeSpec::Exec(_));
    let whose = is_own.then(|| {
        Arc::new(Whose {
            service: service.spec.name.clone(),
            server: server.name.clone(),
            vip,
            vip_port: ports.is_single().then_some(ports.first),
        })
    });
    Asked { target, whose }
}
