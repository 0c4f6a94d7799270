//! `gatun real-server`: brings the real server's end of the tunnels up, keeps it running, takes it down.
//!
//! # Theory of operation
//!
//! Packets go from sockets to the device on threads of their own ([`crate::io::receiver`]). Here, on one thread, signals
//! are taken one after the other, the control socket is answered, and every few seconds the copy of the routes is compared
//! with the main table. What the start has done is undone in reverse, whether the start failed half-way or the daemon is
//! stopped.
//!
//! A packet is let in only while its VIP is an address of the host: for another one the host might look for a way, and it
//! would come back by the gateway. So a reload lets in what is there before and after, changes the host, and then lets in
//! the rest; and the end lets in nothing before it takes the addresses away. What belongs to the device or to sockets
//! stays until a restart, and is warned of.

mod status;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use sd_notify::NotifyState;

use super::config::RealServerConfig;
use super::daemon::{Signals, drop_privileges, every, notify};
use super::socket::{Limits, Socket};
use crate::forward::receive::RealServer;
use crate::io::host::real_server::RealServerPlan;
use crate::io::host::{self, Host};
use crate::io::path_mtu;
use crate::io::receiver::Receivers;
use crate::io::tun::{self, TunSettings};
use crate::io::tunnel_socket::{Source, TunnelSocket, Version};
use crate::wire::{Addr, Encapsulation};

pub use status::Status;

/// How often it is looked whether a thread has ended.
const TICK: Duration = Duration::from_millis(100);
/// How often the main table is looked at.
const ROUTES: Duration = Duration::from_secs(3);
/// The MTU of nearly every network, for gateways that no route leads to yet.
const USUAL_MTU: u32 = 1500;
/// No link that carries IPv6 has less (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// What `gatun real-server` was told.
#[derive(Clone, Debug)]
pub struct Options {
    pub setup: Setup,
    /// Instead of the configured one.
    pub control: Option<PathBuf>,
    /// Where the record of changes to the host is kept.
    pub state_dir: PathBuf,
}

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Setup {
    File(PathBuf),
    /// The command line; there is nothing to reload.
    Given(RealServerConfig),
}

impl Setup {
    fn load(&self) -> Result<RealServerConfig> {
        match self {
            Setup::File(path) => Ok(RealServerConfig::load(path)?),
            Setup::Given(config) => Ok(config.clone()),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Setup::File(path) => Some(path),
            Setup::Given(_) => None,
        }
    }
}

/// Runs until it is told to stop.
///
/// # Errors
/// It could not start, or it had to stop; what it had done to the host is undone.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut daemon = Daemon::start(options).await?;
        let ended = daemon.run(&mut signals).await;
        notify(&[NotifyState::Stopping]);
        daemon.stop().await;
        ended
    })
}

/// What is shown of a running real server, shared with the control socket.
struct Shown {
    started: Instant,
    file: Option<PathBuf>,
    running: Mutex<(RealServerConfig, u32)>,
    receivers: Mutex<Receivers>,
}

struct Daemon {
    setup: Setup,
    host: Host,
    plan: RealServerPlan,
    shown: Arc<Shown>,
    socket: tokio::task::JoinHandle<&'static str>,
}

impl Daemon {
    async fn start(options: &Options) -> Result<Daemon> {
        let mut options = options.clone();
        options.state_dir = std::path::absolute(&options.state_dir)?;
        if let Setup::File(path) = &mut options.setup {
            *path = std::path::absolute(&*path)?;
        }
        let config = options.setup.load()?;
        host::sweep(&options.state_dir);
        drop_privileges(options.setup.path())?;
        let mut host = Host::claim(&config.device, &options.state_dir).await?;
        match bring_up(&mut host, &options, &config).await {
            Ok((plan, shown, socket)) => {
                notify(&[NotifyState::Ready]);
                tracing::info!(
                    vips = %list(&config.vips),
                    gateways = %list(&config.gateways),
                    tunnels = %list(&config.tunnels),
                    tunnel_mtu = plan.tunnel_mtu,
                    "gatun {} is up as a real server on {}",
                    env!("CARGO_PKG_VERSION"),
                    config.device
                );
                Ok(Daemon { setup: options.setup, host, plan, shown, socket })
            }
            Err(error) => {
                host.undo().await;
                Err(error)
            }
        }
    }

    async fn run(&mut self, signals: &mut Signals) -> Result<()> {
        let mut tick = every(TICK);
        let mut routes = every(ROUTES);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if self.shown.receivers.lock().have_failed() {
                        return Err(anyhow!("a packet thread ended; the log says why"));
                    }
                }
                _ = routes.tick() => self.follow_routes().await,
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
                    self.reload().await;
                }
                ended = &mut self.socket => {
                    return Err(anyhow!("the control socket ended: {ended:?}"));
                }
            }
        }
    }

    async fn follow_routes(&mut self) {
        let result = match self.host.replies_are_stale(&self.plan).await {
            Ok(true) => self.host.apply_real_server(&self.plan).await,
            Ok(false) => return,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => tracing::debug!("the main table's routes were copied again"),
            Err(error) => tracing::warn!(%error, "the main table's routes cannot be copied"),
        }
    }

    async fn reload(&mut self) {
        let mut reloading = vec![NotifyState::Reloading];
        reloading.extend(NotifyState::monotonic_usec_now().ok());
        notify(&reloading);
        match self.try_reload().await {
            Ok(()) => tracing::info!("reloaded"),
            Err(error) => tracing::error!("reload failed, nothing was changed: {error:#}"),
        }
        notify(&[NotifyState::Ready]);
    }

    async fn try_reload(&mut self) -> Result<()> {
        let Setup::File(path) = &self.setup else {
            return Err(anyhow!("there is no file: what runs was given on the command line"));
        };
        let new = RealServerConfig::load(path)?;
        let old = self.shown.running.lock().0.clone();
        for (key, changed) in [
            ("device", new.device != old.device),
            ("control", new.control != old.control),
            ("tunnel", new.tunnels != old.tunnels),
        ] {
            if changed {
                tracing::warn!("not changed before a restart: {key}");
            }
        }
        let config = RealServerConfig { vips: new.vips, gateways: new.gateways, mtu: new.mtu, ..old.clone() };
        let plan = plan(&config);
        let let_in = |accepts: RealServer| self.shown.receivers.lock().swap(accepts);
        let both = |vip: &Addr| config.vips.contains(vip);
        let_in(RealServer { vips: old.vips.iter().copied().filter(both).collect(), ..accepts(&old) });
        if let Err(error) = self.host.apply_real_server(&plan).await {
            let_in(accepts(&old));
            return Err(error.into());
        }
        let_in(accepts(&config));
        *self.shown.running.lock() = (config, plan.tunnel_mtu);
        self.plan = plan;
        Ok(())
    }

    /// Undoes what the start did, last thing first. The VIPs go before the device that holds them.
    async fn stop(self) {
        self.socket.abort();
        let nothing = RealServer { vips: Vec::new(), ..accepts(&self.shown.running.lock().0) };
        self.shown.receivers.lock().swap(nothing);
        self.host.undo().await;
        // The device goes with the last of the threads.
        self.shown.receivers.lock().stop();
        tracing::info!("stopped");
    }
}

type Up = (RealServerPlan, Arc<Shown>, tokio::task::JoinHandle<&'static str>);

async fn bring_up(host: &mut Host, options: &Options, config: &RealServerConfig) -> Result<Up> {
    let socket = Socket::bind(options.control.as_ref().unwrap_or(&config.control))?;
    let plan = plan(config);
    let settings = TunSettings { name: config.device.clone(), queues: 1, mtu: u16::try_from(plan.mtu)?, offload: true };
    let queues = tun::open(&settings)?;
    let queue = queues.first().context("a device without a queue")?;
    // Before the addresses are there: the kernel must not answer for protocols that nobody listens to.
    let sockets = open_sockets(config)?;
    host.apply_real_server(&plan).await?;
    let receivers = Receivers::start(accepts(config), sockets, || queue.sender()).context("packet threads")?;
    let shown = Arc::new(Shown {
        started: Instant::now(),
        file: options.setup.path().map(Path::to_owned),
        running: Mutex::new((config.clone(), plan.tunnel_mtu)),
        receivers: Mutex::new(receivers),
    });
    tracing::info!("control socket {}", socket.path().display());
    let seen = shown.clone();
    let task = tokio::spawn(socket.answer(Limits::default(), move || Status::of(&seen)));
    Ok((plan, shown, task))
}

/// IP-in-IP is listened to even where it is not allowed, so that such packets are counted.
fn open_sockets(config: &RealServerConfig) -> Result<Vec<TunnelSocket>> {
    let mut sockets = Vec::new();
    for source in Source::all(&config.gue_ports()) {
        match TunnelSocket::open(source) {
            Ok(socket) => sockets.push(socket),
            Err(error) if absent(&error) && !is_needed(config, source) => {
                tracing::debug!(?source, %error, "not listened to");
            }
            Err(error) => return Err(explain(source, &error)),
        }
    }
    Ok(sockets)
}

/// The kernel was built or started without IPv6.
fn absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn is_needed(config: &RealServerConfig, source: Source) -> bool {
    config.gateways.iter().any(|gateway| gateway.is_v4() == (source.outer() == Version::V4))
}

fn explain(source: Source, error: &io::Error) -> anyhow::Error {
    match (source, error.kind()) {
        (Source::Gue { port, .. }, io::ErrorKind::AddrInUse) => anyhow!(
            "UDP port {port} is taken: stop what listens there (a kernel tunnel made by `ip fou add`?), or set another port"
        ),
        (Source::Ipip { .. }, io::ErrorKind::PermissionDenied) => {
            anyhow!("not allowed to open a raw socket: run as root or with CAP_NET_RAW")
        }
        _ => anyhow!("cannot listen to {source:?}: {error}"),
    }
}

fn accepts(config: &RealServerConfig) -> RealServer {
    RealServer {
        vips: config.vips.clone(),
        gateways: config.gateways.clone(),
        ipip: config.allows_ipip(),
        gue_ports: config.gue_ports(),
    }
}

fn plan(config: &RealServerConfig) -> RealServerPlan {
    let ways = config.gateways.iter().map(|gateway| (*gateway, path_mtu(gateway.ip()).unwrap_or(USUAL_MTU)));
    let ways: Vec<(Addr, u32)> = ways.collect();
    RealServerPlan {
        device: config.device.clone(),
        vips: config.vips.iter().map(Addr::ip).collect(),
        mtu: ways.iter().map(|(_, mtu)| *mtu).min().unwrap_or(USUAL_MTU).clamp(LEAST_MTU, 65_535),
        tunnel_mtu: config.mtu.map_or_else(|| tunnel_mtu(&ways, &config.tunnels), u32::from),
    }
}

/// What the narrowest way leaves to the packet inside, with the largest outer headers that may be on it.
fn tunnel_mtu(ways: &[(Addr, u32)], tunnels: &[Encapsulation]) -> u32 {
    let headers = |gateway: &Addr| {
        let outer = if gateway.is_v4() { 20 } else { 40 };
        // UDP and GUE without options.
        let gue = tunnels.iter().any(|tunnel| matches!(tunnel, Encapsulation::Gue { .. }));
        if gue { outer + 12 } else { outer }
    };
    let left = ways.iter().map(|(gateway, mtu)| mtu.saturating_sub(headers(gateway)));
    left.min().unwrap_or(USUAL_MTU).min(65_535)
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::outer::GUE_PORT;

    #[test]
    fn the_narrowest_way_and_the_largest_headers_count() {
        let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
        let (v4, v6) = ((addr("10.20.0.1"), 1500), (addr("fd20::1"), 1500));
        let gue = Encapsulation::Gue { port: GUE_PORT };
        for (ways, tunnels, expected) in [
            (vec![v4], vec![Encapsulation::Ipip], 1480),
            (vec![v4], vec![Encapsulation::Ipip, gue], 1468),
            (vec![v4, v6], vec![Encapsulation::Ipip], 1460),
            (vec![v4, v6], vec![gue], 1448),
            (vec![v4, (addr("10.20.0.2"), 1400)], vec![Encapsulation::Ipip], 1380),
        ] {
            assert_eq!(tunnel_mtu(&ways, &tunnels), expected, "{ways:?} {tunnels:?}");
        }
    }
}
