//! The start, step by step; a step that fails takes back those before it.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use caps::Capability;
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::host_plan::segment_plan;
use super::probe_source::warn_of_ports;
use super::reload::{Loaded, load};
use super::thread::on_its_own_thread;
use super::{Daemon, Options, feed_watchdog, host_plan, keep_time, notify, pump_events, sample_rates, watch_drains};
use crate::control::config::{Compiled, GatewayConfig, Origin, local_pools, narrow_pools};
use crate::control::context::{About, Control, Order};
use crate::control::device::Device;
use crate::control::health::{self, Health, Prepared};
use crate::control::metrics::{self, Bounds};
use crate::control::names::Names;
use crate::control::socket::{Limits, Socket};
use crate::io::direct::{PacketSocket, Places};
use crate::io::host::{self, Host};
use crate::io::own_errors::OwnErrors;
use crate::io::tap;
use crate::io::tun::{self, TunQueue, TunSettings};
use crate::io::worker::{self, Workers};
use crate::io::{Gateway, link_mtu, neighbours, open_files, path_mtu, privilege};
use crate::service::{Method, Snapshot};

/// The device, routes, rules and the sysctls of the network; neighbour announcements.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// Servers up to this number are each asked about when the MTU is looked for.
const ASKED_ONE_BY_ONE: usize = 256;

/// What has to be undone.
#[derive(Default)]
pub(super) struct Done {
    /// `None` where the operator looks after the host.
    pub(super) host: Option<Host>,
    pub(super) workers: Option<Workers>,
}

impl Done {
    /// Takes everything back. The routes go before the device they lead to, so that what was theirs before is restored
    /// in one piece.
    pub(super) async fn undo(self) {
        if let Some(host) = self.host {
            host.undo().await;
        }
        if let Some(mut workers) = self.workers {
            workers.stop();
        }
    }
}

/// Brings the gateway up. When this returns, packets are forwarded and control clients are answered.
pub(super) async fn start(options: &Options, orders: mpsc::Sender<Order>) -> Result<Daemon> {
    let options = Options {
        config: std::path::absolute(&options.config)?,
        state_dir: std::path::absolute(&options.state_dir)?,
        ..options.clone()
    };
    let (names, renamed) = Names::new();
    let Loaded { compiled, text, learned } = load(&options.config, None, &names).await?;
    let lists: Vec<PathBuf> = learned
        .resolved()
        .into_keys()
        .filter_map(|origin| match origin {
            Origin::File { path } => Some(path),
            Origin::Host { .. } | Origin::Srv { .. } => None,
        })
        .collect();
    names.follow(learned);
    let snapshot = Arc::new(Snapshot::build(compiled.snapshot.clone(), None)?);
    let prepared = Prepared::new(compiled.health.clone()).map_err(Error::msg)?;
    if compiled.gateway.routes && !options.no_routes {
        host::sweep(&options.state_dir);
    }
    // A port below 1024 may need a capability that is given up next. Whether it went well is asked later: where another
    // gateway has the device, that is the better reason.
    let metrics = compiled.gateway.metrics.map(listen).transpose();
    let config = &compiled.gateway;
    let ordinary = privilege::nice();
    raise_priority(config.priority);
    let lists = lists.iter().map(PathBuf::as_path);
    drop_privileges(std::iter::once(&*options.config).chain(compiled.health.files()).chain(lists))?;

    let queues = config.queues.count();
    let gateway = Arc::new(Gateway::new(snapshot.clone(), queues, config.max_flows, random_seed()?));
    let health = Arc::new(Health::new(gateway.clone(), room_for_probes()));
    health.set_path(Arc::new(health::path::Path::new(gateway.clone())));
    health.configure(prepared, &snapshot);
    let mut done = Done::default();
    let brought = bring_up(&mut done, &options, &compiled, &gateway, &health, orders, metrics).await;
    // The workers have theirs; what follows on this thread is no more urgent than other programs.
    if let Err(error) = privilege::set_nice(ordinary) {
        tracing::debug!(%error, "the control thread keeps the workers' priority");
    }
    let (control, mut tasks) = match brought {
        Ok(brought) => brought,
        Err(error) => {
            done.undo().await;
            return Err(error);
        }
    };
    let pool_warnings = pools_in_trouble(config, &snapshot);
    pool_warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    notify(&[NotifyState::Ready]);
    let services = snapshot.live.len();
    tracing::info!(
        "gatun {} is up on {}; services: {services}, queues: {queues}",
        env!("CARGO_PKG_VERSION"),
        config.device
    );
    tasks.spawn(names.clone().watch());
    let in_file = text.clone();
    let pending = Vec::new();
    Ok(Daemon {
        options,
        compiled,
        text,
        in_file,
        gateway,
        health,
        control,
        tasks,
        names,
        renamed,
        done,
        pending,
        missed: None,
        pool_warnings,
    })
}

async fn bring_up(
    done: &mut Done,
    options: &Options,
    compiled: &Compiled,
    gateway: &Arc<Gateway>,
    health: &Arc<Health>,
    orders: mpsc::Sender<Order>,
    metrics: Result<Option<tokio::net::TcpListener>>,
) -> Result<(Arc<Control>, JoinSet<&'static str>)> {
    let config = &compiled.gateway;
    let snapshot = gateway.snapshot();
    // The name of the device is taken before the device is touched: it may be that of a gateway that runs.
    if config.routes && !options.no_routes {
        done.host = Some(Host::claim(&config.device, &options.state_dir).await?);
    }
    let socket = Socket::bind(options.control.as_ref().unwrap_or(&config.control))?;
    let settings = TunSettings {
        name: config.device.clone(),
        queues: config.queues.count(),
        mtu: snapshot.spec.mtu,
        offload: config.offload,
    };
    let mut tasks = JoinSet::new();
    let (workers, segment) = match &config.tap {
        None => (start_tun(gateway, &settings, &snapshot, &mut tasks).await?, None),
        Some(tap) => {
            let mac = tap.mac(&config.device, &std::fs::read("/etc/machine-id").unwrap_or_default());
            let (queues, segment) = tap::open(&settings, tap.link_settings(mac))?;
            if let Some(queue) = queues.first() {
                gateway.set_outlet(Box::new(queue.sender()?));
            }
            (worker::start(gateway, queues)?, Some(segment))
        }
    };
    let device = Device::new(&config.device, workers.counters());
    done.workers = Some(workers);
    let metrics = metrics?;
    if let Some(host) = &mut done.host {
        host.apply(&host_plan(config, &snapshot)).await?;
    }
    if let Some(segment) = &segment {
        let (vips, servers) = segment_plan(&snapshot);
        segment.configure(&vips, &servers);
        tracing::info!("on the segment as {}", segment.mac());
    }

    let bridge = config.tap.as_ref().and_then(|tap| tap.bridge.clone());
    let config = Mutex::new(Some(options.config.clone()));
    let about = About { config, device: Some(device), segment: segment.clone(), bridge, health: Some(health.clone()) };
    let control = Arc::new(Control::new(gateway.clone(), about, Some(orders)));
    tasks.spawn(keep_time(gateway.clone(), segment));
    tasks.spawn(on_its_own_thread("checks", health.clone().run()));
    tasks.spawn(pump_events(control.clone()));
    tasks.spawn(sample_rates(control.clone()));
    tasks.spawn(watch_drains(control.clone()));
    tracing::info!("control socket {}", socket.path().display());
    let clients = control.clone();
    tasks.spawn(async move {
        socket.serve(clients, Limits::default()).await;
        "control socket"
    });
    if let Some(listener) = metrics {
        tasks.spawn(metrics::serve(listener, control.clone(), Bounds::default()));
    }
    if let Some(timeout) = sd_notify::watchdog_enabled() {
        tasks.spawn(feed_watchdog(gateway.clone(), timeout));
    }
    Ok((control, tasks))
}

/// The workers of mode "tun", and what goes on beside them: finding the servers of method direct, and picking up the errors
/// about tunnels that the kernel delivers to the host.
async fn start_tun(
    gateway: &Arc<Gateway>,
    settings: &TunSettings,
    snapshot: &Snapshot,
    tasks: &mut JoinSet<&'static str>,
) -> Result<Workers> {
    let places = Arc::new(Places::default());
    let queues: Vec<TunQueue> =
        tun::open(settings)?.into_iter().map(|queue| queue.with_frames(packet_socket(&places))).collect();
    let has_frames = queues.iter().all(TunQueue::has_frames);
    warn_without_raw_sockets(snapshot);
    warn_of_ports(snapshot);
    let sender = queues.first().map(TunQueue::sender).transpose()?;
    if let Some(queue) = queues.first() {
        gateway.set_outlet(Box::new(queue.sender()?.with_frames(packet_socket(&places))));
    }
    let workers = worker::start(gateway, queues)?;
    // Before the host sends anybody here.
    let watcher = neighbours::begin(gateway, places, has_frames).await;
    tasks.spawn(neighbours::watch(gateway.clone(), watcher));
    if let (Some(errors), Some(sender)) = (OwnErrors::open().ok(), sender) {
        tasks.spawn(errors.serve(gateway.clone(), sender));
    }
    Ok(workers)
}

/// A way out for frames; `None` where there is none.
fn packet_socket(places: &Arc<Places>) -> Option<PacketSocket> {
    let opened = PacketSocket::open(places.clone());
    opened.inspect_err(|error| tracing::debug!(%error, "no packet socket")).ok()
}

/// What does not work in mode "tun" without CAP_NET_RAW, as far as this snapshot needs it.
pub(super) fn warn_without_raw_sockets(snapshot: &Snapshot) {
    if privilege::has(Capability::CAP_NET_RAW) {
        return;
    }
    if has_server(snapshot, Method::Direct) {
        tracing::error!("method direct does not work without packet sockets: give gatun CAP_NET_RAW");
    }
    if has_server(snapshot, Method::Tunnel) {
        tracing::warn!(
            "errors on the way to tunnelled servers are not seen, and a narrow path loses packets: give gatun CAP_NET_RAW"
        );
    }
}

/// Pools with too few ports, or whose ports this host gives to its own connections. In mode "tap" it has none from there.
pub(super) fn pools_in_trouble(config: &GatewayConfig, snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = narrow_pools::warnings(&snapshot.spec, config.queues.count());
    if config.tap.is_none() {
        let is_local = |address| snapshot.is_local(address);
        warnings.extend(local_pools::warnings(&snapshot.spec, is_local, Path::new("/proc")));
    }
    warnings
}

fn has_server(snapshot: &Snapshot, method: Method) -> bool {
    snapshot.all_servers().any(|server| server.method == method)
}

/// The commands that set the host up, for an operator who does it by hand. Needs no privilege.
pub fn print_routes(config: &Path) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Loaded { compiled, .. } = load(config, None, &Names::new().0).await?;
        let snapshot = Snapshot::build(compiled.snapshot.clone(), None)?;
        Ok(Host::print_commands(&host_plan(&compiled.gateway, &snapshot)).await?)
    })
}

/// The MTU of the narrowest link that packets of a flow may pass here, so that TCP never sends what does not fit.
pub(super) fn automatic_mtu(compiled: &Compiled) -> u16 {
    if let Some(tap) = &compiled.gateway.tap {
        let bridge = tap.bridge.as_ref().and_then(|name| link_mtu(name).ok());
        return bridge.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(GatewayConfig::AUTO_MTU).max(1280);
    }
    let uplinks = compiled.gateway.uplinks.iter().filter_map(|name| link_mtu(name).ok());
    // Without uplinks in the file they are where the default routes lead, and so does every address that no route names.
    let anywhere: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let default_routes = anywhere.into_iter().filter(|_| compiled.gateway.uplinks.is_empty());
    let servers = compiled.snapshot.services.iter().flat_map(|service| service.servers.iter().chain(&service.sorry));
    let inside = compiled.snapshot.masquerades.iter().flat_map(|masquerade| &masquerade.from);
    let inside = inside.map(|network| network.address).chain(compiled.snapshot.forwards.iter().map(|to| to.to));
    // The kernel is asked once for each address.
    let destinations: HashSet<IpAddr> =
        servers.map(|server| server.address).chain(inside).map(|addr| addr.ip()).chain(default_routes).collect();
    let destinations =
        if destinations.len() > ASKED_ONE_BY_ONE { one_of_each_network(destinations) } else { destinations };
    let ways = destinations.into_iter().filter_map(|ip| path_mtu(ip).ok());
    let least = uplinks.chain(ways).min().unwrap_or(u32::from(GatewayConfig::AUTO_MTU));
    // RFC 8200 section 5: less than 1280 is no link for IPv6.
    u16::try_from(least).unwrap_or(u16::MAX).max(1280)
}

/// Of many servers, those of one IPv4 /24 or IPv6 /64 are taken to be behind the same link: a socket for each of 20,000 servers
/// would make every reload wait.
fn one_of_each_network(all: HashSet<IpAddr>) -> HashSet<IpAddr> {
    let network = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => (true, u64::from(u32::from(*ip) >> 8)),
        IpAddr::V6(ip) => (false, (u128::from(*ip) >> 64) as u64),
    };
    let one: HashMap<(bool, u64), IpAddr> = all.into_iter().map(|ip| (network(&ip), ip)).collect();
    one.into_values().collect()
}

fn listen(address: SocketAddr) -> Result<tokio::net::TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    bind().with_context(|| {
        format!("cannot serve metrics on {address}; set `metrics` in [gateway] to another address or \"off\"")
    })
}

/// Every packet that a worker sends on may wake up a program of this host, which then takes the worker's place: with
/// an ordinary priority a worker is interrupted every few packets.
fn raise_priority(priority: u8) {
    let nice = privilege::nice().min(-i32::from(priority)).max(-20);
    if let Err(error) = privilege::set_nice(nice) {
        tracing::debug!(%error, nice, "packet workers have an ordinary priority");
    }
}

/// Gives up every capability that neither the data path nor a reload nor the end needs. Threads that are started later
/// have no more than this one. `files`: what is read again later.
pub(in crate::control) fn drop_privileges<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut keep = NEEDED.to_vec();
    // Root that may not overrule permissions may not be able to read a file again: it can be another user's.
    if let Some(file) = out_of_reach(&keep, files)?
        && privilege::has(Capability::CAP_DAC_READ_SEARCH)
    {
        tracing::info!("keeping CAP_DAC_READ_SEARCH: without it {} could not be read again", file.display());
        keep.push(Capability::CAP_DAC_READ_SEARCH);
    }
    privilege::keep_only(&keep).context("capabilities cannot be given up")?;
    privilege::forbid_new_privileges().context("no_new_privs")?;
    Ok(())
}

/// The first of `files` that cannot be read without any capability but `keep`.
fn out_of_reach<'a>(keep: &[Capability], files: impl IntoIterator<Item = &'a Path>) -> Result<Option<&'a Path>> {
    let is_refused = |path: &&Path| File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    privilege::as_if_only(keep, || files.into_iter().find(is_refused)).context("capabilities")
}

/// Probes that may run at a time: as many as there are descriptors, less what the gateway needs for itself (queues, control
/// clients, scrapers).
fn room_for_probes() -> usize {
    const OTHERS: usize = 256;
    const MOST: usize = 16_384;
    let limit = open_files::raise_limit().unwrap_or(1024);
    limit.saturating_sub(OTHERS).clamp(16, MOST)
}

/// Secret: who knows it can make flows collide.
fn random_seed() -> Result<[u64; 2]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    let both = u128::from_ne_bytes(bytes);
    Ok([both as u64, (both >> 64) as u64])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn files_of_others_are_told_from_those_that_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (own, public, private) = (make("own", 0o600), make("public", 0o644), make("private", 0o600));
        // Only root can make a file somebody else's.
        if chown(&public, Some(4321), None).is_err() {
            return;
        }
        chown(&private, Some(4321), None).unwrap();
        let missing = directory.path().join("missing");
        let found = |files: &[&Path]| out_of_reach(&NEEDED, files.iter().copied()).unwrap().map(Path::to_owned);
        assert_eq!(found(&[&own, &public, &missing]), None);
        assert_eq!(found(&[&own, &public, &missing, &private]), Some(private.clone()));
        assert!(File::open(&private).is_ok(), "nothing was given up");
    }
}
