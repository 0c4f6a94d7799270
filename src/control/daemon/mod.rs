//! The daemon: brings the gateway up, keeps it running, takes it down.
//!
//! # Theory of operation
//!
//! Packet workers are threads of their own ([`crate::io::worker`]). Checks of servers have a thread and a runtime of their own
//! (`thread`). Everything else here runs on one thread, in a tokio runtime: the main loop (`Daemon::run`) takes signals and
//! orders of control clients one after the other, so that two reloads can never overlap; small tasks beside it give the
//! engines the time, pump events, measure rates, and serve the control socket and the metrics page. None of these tasks ends
//! while the gateway runs: one that does, and a worker that does, stops the gateway with an error.
//!
//! What the start has done is undone in reverse, whether the start failed half-way or the gateway is stopped.

mod edit;
mod host_plan;
mod lease;
mod probe_source;
mod reload;
mod save;
mod start;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::api::{Difference, Fault, FaultCode};
use super::config::{Change, Compiled};
use super::context::{Control, Order, What};
use super::drain::{Step, Then};
use super::evacuate::evacuate;
use super::health::Health;
use super::names::Names;
use crate::io::tap::Segment;
use crate::io::worker::Workers;
use crate::io::{AddressWatch, Cause, Gateway};
use crate::service::FlowPolicy;

pub use host_plan::host_plan;
pub use lease::OnDemand;
use lease::{Lease, Work};
use reload::Missed;
use start::Done;
pub(in crate::control) use start::drop_privileges;
pub use start::print_routes;

/// How often every shard is told the time. A flow outlives its deadline by so much at most.
const TICK: Duration = Duration::from_millis(100);
const EVENT_PUMP: Duration = Duration::from_millis(50);
const SAMPLING: Duration = Duration::from_secs(2);
/// How often drains are looked at: a deadline is kept with so much delay at most.
const DRAINING: Duration = Duration::from_millis(500);
/// How often what is kept for old flows is looked at: a removed VIP's route outlives its last flow by so much at most. And
/// how often what could not be followed is tried again.
const TIDYING: Duration = Duration::from_secs(3);
/// Orders of control clients that may wait for the one that is carried out.
const ORDERS_WAITING: usize = 16;

/// What `gatun run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: PathBuf,
    /// Instead of the configured one.
    pub control: Option<PathBuf>,
    /// Leave the host's routes, rules and sysctls to the operator.
    pub no_routes: bool,
    /// Where the record of changes to the host is kept.
    pub state_dir: PathBuf,
    /// It was started for want of one, and stops when it is needed no more.
    pub on_demand: Option<OnDemand>,
}

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// It could not start, or it had to stop; what it had done to the host is undone.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // First of all, so that a signal during the start stops the gateway in an orderly way.
        let signals = Signals::new()?;
        let (sender, orders) = mpsc::channel(ORDERS_WAITING);
        let mut daemon = start::start(options, sender).await?;
        let mut lease = options.on_demand.clone().map(|on_demand| Lease::begin(on_demand, daemon.device()));
        let ended = daemon.run(signals, orders, lease.as_mut()).await;
        notify(&[NotifyState::Stopping]);
        daemon.stop().await;
        if let Some(lease) = lease.filter(|_| ended.is_ok()) {
            lease.end();
        }
        ended
    })
}

/// A running gateway.
pub(super) struct Daemon {
    options: Options,
    /// What runs, in terms of the file.
    compiled: Compiled,
    /// The same as the text of a file; edits change it.
    text: Arc<str>,
    /// What the file had when it was last read or written.
    in_file: Arc<str>,
    gateway: Arc<Gateway>,
    health: Arc<Health>,
    control: Arc<Control>,
    tasks: JoinSet<&'static str>,
    /// What stands behind the names of the configuration, and how a change of that is told.
    names: Arc<Names>,
    renamed: mpsc::Receiver<()>,
    done: Done,
    /// What the file has otherwise, and only a restart changes.
    pending: Vec<Change>,
    missed: Option<Missed>,
    /// What has been said of pools: it is not said again.
    pool_warnings: Vec<String>,
}

/// The signals that end a program, or make it read its configuration again.
pub(crate) struct Signals {
    pub hangup: Signal,
    pub terminate: Signal,
    pub interrupt: Signal,
}

impl Signals {
    pub fn new() -> Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

impl Daemon {
    async fn run(
        &mut self,
        mut signals: Signals,
        mut orders: mpsc::Receiver<Order>,
        mut lease: Option<&mut Lease>,
    ) -> Result<()> {
        let mut addresses = self.watch_addresses();
        let mut look = every(lease::LOOK);
        let mut tick = every(TICK);
        let mut tidy = every(TIDYING);
        loop {
            tokio::select! {
                _ = tidy.tick() => {
                    self.tidy().await;
                    self.try_again().await;
                }
                _ = tick.tick() => {
                    if self.done.workers.as_ref().is_some_and(Workers::have_failed) {
                        return Err(anyhow!("a packet worker ended; the log says why"));
                    }
                }
                () = changed(addresses.as_mut()) => self.look_again().await,
                _ = look.tick(), if lease.is_some() => {
                    if let Some(reason) = lease.as_mut().and_then(|lease| lease.is_over(Instant::now(), self.work())) {
                        tracing::info!("{reason}: stopping");
                        return Ok(());
                    }
                }
                _ = signals.terminate.recv() => {
                    tracing::info!("SIGTERM: stopping");
                    return Ok(());
                }
                _ = signals.interrupt.recv() => {
                    tracing::info!("SIGINT: stopping");
                    return Ok(());
                }
                _ = signals.hangup.recv() => {
                    tracing::info!("SIGHUP: reloading");
                    let _ = self.reload(None).await;
                }
                Some(order) = orders.recv() => self.obey(order).await,
                () = self.health.weights_changed() => self.reweigh(),
                Some(()) = self.renamed.recv() => self.follow_names().await,
                Some(ended) = self.tasks.join_next() => {
                    return Err(match ended {
                        Ok(task) => anyhow!("the task \"{task}\" ended"),
                        Err(error) => anyhow!("a task of the control plane failed: {error}"),
                    });
                }
            }
        }
    }

    fn device(&self) -> &str {
        &self.compiled.gateway.device
    }

    fn work(&self) -> Work {
        let snapshot = self.gateway.snapshot();
        let flows = self.gateway.shards().iter().map(|shard| shard.lock().occupancy().0).sum();
        Work { services: snapshot.live.len(), flows, timeouts: snapshot.spec.timeouts }
    }

    async fn obey(&mut self, order: Order) {
        let failed = |error: anyhow::Error| Fault::new(FaultCode::Failed, format!("{error:#}"));
        let result = match order.what {
            What::Reload { config } => self.reload(config).await.map_err(failed),
            What::Diff { config } => self.diff(config).await.map_err(failed),
            What::Edit { edits, save } => self.edit(&edits, save).await,
            What::Save { force } => self.save(force),
        };
        // The client may have gone.
        let _ = order.done.send(result);
    }

    /// Reloads, tells systemd and the log, and counts.
    async fn reload(&mut self, config: Option<PathBuf>) -> Result<Difference> {
        let mut reloading = vec![NotifyState::Reloading];
        reloading.extend(NotifyState::monotonic_usec_now().ok());
        notify(&reloading);
        let result = self.try_reload(config).await;
        let reloads = &self.control.reloads;
        match &result {
            Ok(_) => {
                reloads.ok.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                reloads.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!("reload failed, nothing was changed: {error:#}");
            }
        }
        notify(&[NotifyState::Ready]);
        result
    }

    /// Undoes what the start did, last thing first.
    async fn stop(mut self) {
        // The control socket and the metrics page go first: nobody is told anything about a gateway half down.
        self.tasks.shutdown().await;
        self.done.undo().await;
        tracing::info!("stopped");
    }
}

/// Never, without a watch.
async fn changed(addresses: Option<&mut AddressWatch>) {
    match addresses {
        Some(addresses) => addresses.changed().await,
        None => std::future::pending().await,
    }
}

/// Runs beside the main loop: the clock of the engines and of the link.
async fn keep_time(gateway: Arc<Gateway>, segment: Option<Arc<Segment>>) -> &'static str {
    let mut tick = every(TICK);
    loop {
        tick.tick().await;
        gateway.handle_timeouts();
        if let Some(segment) = &segment {
            segment.tick(&gateway);
        }
    }
}

async fn pump_events(control: Arc<Control>) -> &'static str {
    let mut tick = every(EVENT_PUMP);
    loop {
        tick.tick().await;
        control.pump_events();
    }
}

async fn sample_rates(control: Arc<Control>) -> &'static str {
    let mut tick = every(SAMPLING);
    loop {
        tick.tick().await;
        control.sample();
    }
}

/// Tells what becomes of drains, and does at a deadline what was asked for.
async fn watch_drains(control: Arc<Control>) -> &'static str {
    let mut tick = every(DRAINING);
    loop {
        tick.tick().await;
        for step in control.drain_steps() {
            match step {
                Step::Empty(server, after) => {
                    tracing::info!(server = server.name, ?after, "drained: it has no flow any more");
                }
                Step::Forgotten { server, is_replaced: true } => {
                    tracing::warn!(
                        server,
                        "no longer drained: another service, address, port, method or tunnel makes it a new server"
                    );
                }
                Step::Forgotten { server, is_replaced: false } => {
                    tracing::info!(server, "its drain is forgotten: the server is gone");
                }
                Step::Deadline(server, Then::Keep, flows) => {
                    tracing::info!(server = server.name, flows, "the drain's deadline: the flows that are left go on");
                }
                Step::Deadline(server, Then::Reset, _) => {
                    let cause = Cause::Drained(FlowPolicy::Reset);
                    let flows = evacuate(control.gateway(), &[server.id], cause).await;
                    tracing::info!(
                        server = server.name,
                        flows,
                        "the drain's deadline: the flows that were left were ended"
                    );
                }
            }
        }
    }
}

/// Tells systemd's watchdog that the control thread runs and that no shard is stuck.
async fn feed_watchdog(gateway: Arc<Gateway>, timeout: Duration) -> &'static str {
    let mut tick = every(timeout / 2);
    loop {
        tick.tick().await;
        let patience = Instant::now() + timeout / 4;
        if gateway.shards().iter().all(|shard| shard.try_lock_until(patience).is_some()) {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a shard has been locked for {:?}", timeout / 4);
        }
    }
}

pub(in crate::control) fn every(period: Duration) -> tokio::time::Interval {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Tells systemd, if it started us.
pub(in crate::control) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("sd_notify: {error}");
    }
}
