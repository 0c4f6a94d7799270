//! What the control plane knows besides the engines: who we are, rates, who watches, and how to reach the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::api::{self, Fault, FaultCode};
use super::device::Device;
use super::drain::{self, Drains, Then};
use super::health::Health;
use super::view::{self, Counted};
use super::zero::Baselines;
use crate::command::{Command, Event};
use crate::io::Gateway;
use crate::io::tap::Segment;
use crate::service::ServerId;
use crate::stats::Traffic;

/// Events kept for watchers that are behind; one that is further behind is told how many it lost.
const EVENTS_KEPT: usize = 8192;
/// Events taken from a shard per lock hold.
const EVENTS_PER_LOCK: usize = 256;
/// Events taken from a shard per call, so that a flood of flows cannot hold the control plane: what is left stays in
/// the engine's queue, which is bounded and counts what it loses.
const EVENTS_PER_TURN: usize = 16_384;

/// One per daemon, shared by the control socket, the metrics page and the daemon's own tasks.
pub struct Control {
    gateway: Arc<Gateway>,
    about: About,
    started: Instant,
    pub reloads: Reloads,
    /// What runs has changes that the file does not have.
    pub unsaved: AtomicBool,
    drains: Drains,
    baselines: Baselines,
    rates: Mutex<Sampled>,
    events: broadcast::Sender<Arc<Told>>,
    /// Locked while the engines are told, so that a watcher that comes and one that goes cannot overtake each other.
    watchers: Mutex<usize>,
    events_lost: AtomicU64,
    orders: Option<mpsc::Sender<Order>>,
}

/// What this gateway is.
#[derive(Default)]
pub struct About {
    pub device: Option<Device>,
    /// In mode "tap".
    pub segment: Option<Arc<Segment>>,
    /// That the device is a port of.
    pub bridge: Option<String>,
    /// Its checks; `None` where nothing is checked.
    pub health: Option<Arc<Health>>,
    /// The file it runs by; a reload may name another.
    pub config: Mutex<Option<PathBuf>>,
}

/// How often the configuration was reloaded.
#[derive(Debug, Default)]
pub struct Reloads {
    pub ok: AtomicU64,
    pub failed: AtomicU64,
}

/// What a control client may ask of the daemon itself.
#[derive(Debug)]
pub struct Order {
    pub what: What,
    pub done: oneshot::Sender<Result<api::Difference, Fault>>,
}

/// Changes of the configuration; the daemon's main loop does one after the other.
#[derive(Debug)]
pub enum What {
    /// `None`: the file that was loaded last.
    Reload { config: Option<PathBuf> },
    /// Only say what a reload would change.
    Diff { config: Option<PathBuf> },
    /// To what runs; with `save` also in the file.
    Edit { edits: Vec<api::Edit>, save: bool },
    /// Write what runs into the file; with `force` over what somebody has changed there.
    Save { force: bool },
}

/// What watchers are told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it stands behind an Arc")]
pub enum Told {
    Event {
        event: Event,
        shown: api::FlowEvent,
    },
    /// The engines lost so many because they were not taken in time.
    Lost(u64),
}

#[derive(Default)]
struct Sampled {
    at: Option<Instant>,
    /// By server id: flows admitted, and traffic.
    last: Vec<(u64, Traffic)>,
    rates: Vec<api::Rates>,
    /// Flows that were admitted so far, those of masquerades included, and how many a second.
    created: u64,
    new_flows: f64,
}

impl Control {
    /// `orders` reaches the daemon's main loop; without it `reload` and `diff` are refused.
    pub fn new(gateway: Arc<Gateway>, about: About, orders: Option<mpsc::Sender<Order>>) -> Control {
        Control {
            gateway,
            about,
            started: Instant::now(),
            reloads: Reloads::default(),
            unsaved: AtomicBool::new(false),
            drains: Drains::default(),
            baselines: Baselines::default(),
            rates: Mutex::default(),
            events: broadcast::channel(EVENTS_KEPT).0,
            watchers: Mutex::new(0),
            events_lost: AtomicU64::new(0),
            orders,
        }
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What the device counts; `None` without a device.
    pub fn device(&self) -> Option<api::Device> {
        self.about.device.as_ref().map(Device::counters)
    }

    /// Who the gateway is on its segment; `None` in mode "tun".
    pub fn segment(&self) -> Option<api::Segment> {
        let segment = self.about.segment.as_ref()?;
        Some(view::segment(&segment.settings(), self.about.bridge.as_deref(), segment.neighbour_count()))
    }

    pub fn neighbours(&self) -> Result<Vec<api::Neighbour>, Fault> {
        let segment = self.about.segment.as_ref().ok_or_else(|| {
            let message = "only mode \"tap\" has neighbours of its own; in mode \"tun\" they are the host's: ip neigh";
            Fault::new(FaultCode::NotSupported, message)
        })?;
        Ok(segment.neighbours().iter().map(view::neighbour).collect())
    }

    /// All shards, and what the link dropped before or behind them.
    fn total(&self, shards: &[Counted]) -> Counted {
        let mut total = view::total(shards);
        if let Some(segment) = &self.about.segment {
            for (sum, more) in total.stats.drops.iter_mut().zip(segment.drops()) {
                *sum += more;
            }
        }
        total
    }

    /// For people: counters that were set to zero start there.
    pub fn status(&self) -> api::Status {
        self.status_from(Some(&self.baselines))
    }

    /// For metrics, whose counters never fall.
    pub fn status_since_start(&self) -> api::Status {
        self.status_from(None)
    }

    fn status_from(&self, baselines: Option<&Baselines>) -> api::Status {
        let snapshot = self.gateway.snapshot();
        let (shards, traffic) = view::count(&self.gateway, &snapshot);
        let total = self.total(&shards);
        let sampled = self.rates.lock();
        let shown = view::Shown {
            now: self.gateway.now(),
            traffic: &traffic,
            rates: &sampled.rates,
            baselines,
            drains: &self.drains,
            health: self.about.health.as_deref(),
        };
        let services = shown.services(&snapshot);
        let mut rates = api::Rates::default();
        for server in services.iter().flat_map(|service| &service.servers) {
            rates.add(&server.rates);
        }
        rates.flows = sampled.new_flows;
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.uptime().as_secs(),
            device: self.device(),
            segment: self.segment(),
            config: self.about.config.lock().as_ref().map(|path| path.display().to_string()),
            generation: snapshot.generation,
            reloads_ok: self.reloads.ok.load(Ordering::Relaxed),
            reloads_failed: self.reloads.failed.load(Ordering::Relaxed),
            unsaved: self.unsaved.load(Ordering::Relaxed),
            shards: shards.len(),
            flows: total.flows,
            flows_limit: total.limit,
            rates,
            services,
            nat: self.nat(),
            drops: view::top_drops(&total.stats),
            timeouts: view::timeouts(snapshot.spec.timeouts),
        }
    }

    /// Masquerades, pools and forwarded ports.
    pub fn nat(&self) -> api::Nat {
        view::nat(&self.gateway, &self.gateway.snapshot())
    }

    pub fn services(&self) -> Vec<api::Service> {
        self.status().services
    }

    pub fn stats(&self) -> api::Stats {
        let (shards, _) = view::count(&self.gateway, &self.gateway.snapshot());
        api::Stats {
            total: view::shard_stats(&self.total(&shards), None),
            shards: shards.iter().map(|counted| view::shard_stats(counted, Some(counted.shard))).collect(),
            device: self.device(),
        }
    }

    pub fn count(&self) -> api::Count {
        let occupancy = self.gateway.shards().iter().map(|engine| engine.lock().occupancy());
        let (flows, limit) = occupancy.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
        api::Count { count: flows as u64, limit: limit as u64 }
    }

    /// Begins to drain a server, or ends that.
    pub fn drain(
        &self,
        service: &str,
        server: &str,
        deadline: Option<(Duration, Then)>,
        cancel: bool,
    ) -> Result<api::Draining, Fault> {
        let snapshot = self.gateway.snapshot();
        let server = view::server_of(view::live_service(&snapshot, service)?, server)?;
        let now = Instant::now();
        if cancel {
            if self.drains.cancel(server) {
                tracing::info!(service, server = server.name, "not drained any more");
            }
        } else {
            self.drains.begin(server, now, deadline);
            let flows = server.load.flows();
            match deadline {
                None => tracing::info!(service, server = server.name, flows, "draining"),
                Some((after, then)) => {
                    tracing::info!(service, server = server.name, flows, ?after, then = then.word(), "draining");
                }
            }
        }
        Ok(api::Draining { flows: server.load.flows(), drain: self.drains.told(server, now) })
    }

    /// What drains have come to since the last call.
    pub fn drain_steps(&self) -> Vec<drain::Step> {
        self.drains.steps(&self.gateway.snapshot(), Instant::now())
    }

    /// Lets what is shown of servers count from zero again; says of how many.
    pub fn zero(&self, service: Option<&str>) -> Result<u64, Fault> {
        let snapshot = self.gateway.snapshot();
        let only = service.map(|name| view::live_service(&snapshot, name)).transpose()?;
        let (_, traffic) = view::count(&self.gateway, &snapshot);
        let services = snapshot.live.iter().filter(|service| only.is_none_or(|only| only.id == service.id));
        Ok(self.baselines.set(services.flat_map(|service| service.all_servers()), &traffic))
    }

    /// Measures the rates since the last call. To be called every two seconds or so.
    pub fn sample(&self) {
        let snapshot = self.gateway.snapshot();
        let (shards, traffic) = view::count(&self.gateway, &snapshot);
        let created = shards.iter().map(|counted| counted.stats.flows_created).sum();
        let admitted = |id: usize| {
            let server = snapshot.server(ServerId(u32::try_from(id).ok()?));
            server.map(|server| server.load.admitted())
        };
        let now: Vec<(u64, Traffic)> =
            traffic.into_iter().enumerate().map(|(id, traffic)| (admitted(id).unwrap_or(0), traffic)).collect();
        self.baselines.tidy(&snapshot);
        let mut sampled = self.rates.lock();
        let at = Instant::now();
        if let Some(before) = sampled.at {
            let seconds = at.duration_since(before).as_secs_f64().max(0.001);
            sampled.new_flows = per_second(created, sampled.created, seconds);
            sampled.rates = now.iter().enumerate().map(|(id, now)| rates(sampled.last.get(id), now, seconds)).collect();
        }
        sampled.at = Some(at);
        sampled.created = created;
        sampled.last = now;
    }

    /// Sends the order to the daemon's main loop and waits for its answer.
    pub async fn order(&self, what: What) -> Result<api::Difference, Fault> {
        let gone = Fault::stopping;
        let orders = self.orders.as_ref().ok_or_else(|| {
            Fault::new(FaultCode::NotSupported, "this gateway was not started from a configuration file")
        })?;
        let (done, answer) = oneshot::channel();
        orders.send(Order { what, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Starts to listen to flow events; the engines record them from now on.
    pub fn watch(self: &Arc<Control>) -> Watcher {
        let events = self.events.subscribe();
        let mut watchers = self.watchers.lock();
        if *watchers == 0 {
            self.events_lost.store(self.lost_in_engines(), Ordering::Relaxed);
            self.record_events(true);
        }
        *watchers += 1;
        Watcher { events, control: self.clone() }
    }

    /// Hands what the engines recorded to the watchers. To be called every 50 ms or so.
    pub fn pump_events(&self) {
        if *self.watchers.lock() == 0 {
            return;
        }
        let snapshot = self.gateway.snapshot();
        for engine in self.gateway.shards() {
            for _ in 0..EVENTS_PER_TURN / EVENTS_PER_LOCK {
                let taken: Vec<Event> = {
                    let mut engine = engine.lock();
                    std::iter::from_fn(|| engine.poll_event()).take(EVENTS_PER_LOCK).collect()
                };
                let last = taken.len() < EVENTS_PER_LOCK;
                let time = microseconds_since_1970();
                for event in taken {
                    let shown = view::event(&snapshot, &event, time);
                    // Nobody listening any more is no error: the last watcher has just gone.
                    let _ = self.events.send(Arc::new(Told::Event { event, shown }));
                }
                if last {
                    break;
                }
            }
        }
        let lost = self.lost_in_engines();
        let before = self.events_lost.swap(lost, Ordering::Relaxed);
        if lost > before {
            let _ = self.events.send(Arc::new(Told::Lost(lost - before)));
        }
    }

    fn lost_in_engines(&self) -> u64 {
        self.gateway.shards().iter().map(|engine| engine.lock().stats().events_lost).sum()
    }

    fn record_events(&self, on: bool) {
        let now = self.gateway.now();
        for engine in self.gateway.shards() {
            engine.lock().apply(now, Command::Watch(on));
        }
    }
}

/// A subscription to flow events; the engines stop recording when the last one is dropped.
pub struct Watcher {
    pub events: broadcast::Receiver<Arc<Told>>,
    control: Arc<Control>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut watchers = self.control.watchers.lock();
        *watchers -= 1;
        if *watchers == 0 {
            self.control.record_events(false);
        }
    }
}

fn rates(before: Option<&(u64, Traffic)>, now: &(u64, Traffic), seconds: f64) -> api::Rates {
    let (flows, traffic) = before.copied().unwrap_or_default();
    // A server id that was given away starts at zero again.
    let per_second = |now: u64, before: u64| per_second(now, before, seconds);
    api::Rates {
        flows: per_second(now.0, flows),
        packets_to_server: per_second(now.1.to_server.packets, traffic.to_server.packets),
        bytes_to_server: per_second(now.1.to_server.bytes, traffic.to_server.bytes),
        packets_to_client: per_second(now.1.to_client.packets, traffic.to_client.packets),
        bytes_to_client: per_second(now.1.to_client.bytes, traffic.to_client.bytes),
    }
}

fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    now.saturating_sub(before) as f64 / seconds
}

fn microseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
