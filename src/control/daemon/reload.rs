//! Another configuration for the running gateway.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Error, Result};

use super::host_plan::segment_plan;
use super::probe_source::{Place, probe_sources, warn_of_ports};
use super::start::{automatic_mtu, pools_in_trouble, warn_without_raw_sockets};
use super::{Daemon, host_plan};
use crate::control::api::Difference;
use crate::control::config::{Change, Compiled, Config, GatewayConfig, difference};
use crate::control::evacuate::evacuate;
use crate::control::health::Prepared;
use crate::control::names::{Learned, Names};
use crate::io::{self, AddressWatch, addresses_of_links, source_towards};
use crate::service::{Method, ServerSpec, Snapshot, SnapshotError, SnapshotSpec};
use crate::wire::Addr;

/// A configuration that can run, the text that it was read from, and what the names in it stand for.
pub(super) struct Loaded {
    pub(super) compiled: Compiled,
    pub(super) text: Arc<str>,
    pub(super) learned: Learned,
}

/// A change around the gateway that could not be followed.
#[derive(Debug)]
pub(super) struct Missed {
    cause: Cause,
    why: String,
}

/// What a change of what runs is called in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Reload,
    Edit,
    /// Another state of the host.
    Host,
    /// Servers come and go behind a name.
    Names,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Cause::Reload => "reload",
            Cause::Edit => "edit",
            Cause::Host => "host",
            Cause::Names => "names",
        }
    }
}

/// Reads the file, and adds what only this host can tell. `running`: the gateway that is to go on by it.
pub(super) async fn load(path: &Path, running: Option<&GatewayConfig>, names: &Names) -> Result<Loaded> {
    compile(Config::load(path)?, running, names).await
}

/// Adds what only this host can tell: what names stand for, an automatic MTU, and which VIPs are its own addresses.
pub(super) async fn compile(config: Config, running: Option<&GatewayConfig>, names: &Names) -> Result<Loaded> {
    let text = config.source.text.clone();
    let learned = names.learn(config.origins(), &config.gateway.resolvers).await;
    let (mut config, left_out) = config.expanded(&learned.resolved());
    for reason in left_out {
        tracing::warn!("left out: {reason}");
    }
    let in_file = config.gateway.tap.clone();
    // Who the gateway is on a segment, if it is on one, changes at a restart only.
    if let Some(running) = running {
        config.gateway.tap.clone_from(&running.tap);
    }
    let mut compiled = look_around(config.compiled()?).await?;
    compiled.gateway.tap = in_file;
    Ok(Loaded { compiled, text, learned })
}

async fn look_around(mut compiled: Compiled) -> Result<Compiled> {
    if compiled.gateway.mtu.is_none() {
        compiled.snapshot.mtu = automatic_mtu(&compiled);
    }
    if let Some(tap) = &compiled.gateway.tap {
        // What the host's addresses are, and how it reaches the servers, does not matter there.
        compiled.snapshot.probe_sources = probe_sources(&compiled, &Place::Segment(tap));
        return Ok(compiled);
    }
    let own = addresses_of_links().await.context("the addresses of this host")?;
    let is_own = |vip: &Addr| own.iter().any(|(_, address)| *address == vip.ip());
    compiled.snapshot.local_vips = compiled.snapshot.public_addresses().into_iter().filter(is_own).collect();
    compiled.snapshot.tunnel_sources = tunnel_sources(&compiled.snapshot);
    compiled.snapshot.probe_sources = probe_sources(&compiled, &Place::Host(&own));
    Ok(compiled)
}

/// Where tunnels begin: the host's address towards each server behind one. A server without a route is told of once here,
/// and to clients for as long as the next reload does not find one.
fn tunnel_sources(snapshot: &SnapshotSpec) -> Vec<(Addr, Addr)> {
    let (mut sources, mut asked) = (Vec::new(), HashSet::new());
    for service in &snapshot.services {
        let tunnelled = |server: &&ServerSpec| server.method.unwrap_or(service.method) == Method::Tunnel;
        for server in service.servers.iter().chain(&service.sorry).filter(tunnelled) {
            if !asked.insert(server.address) {
                continue;
            }
            match source_towards(server.address.ip()) {
                Ok(source) => sources.push((server.address, Addr::from(source))),
                Err(error) => tracing::warn!(
                    server = server.name,
                    %error,
                    "no way to this server, so no tunnel: reload when there is one"
                ),
            }
        }
    }
    sources
}

impl Daemon {
    /// What a reload would change; changes nothing.
    pub(super) async fn diff(&self, config: Option<PathBuf>) -> Result<Difference> {
        let path = config.as_deref().unwrap_or(&self.options.config);
        let new = load(path, Some(&self.compiled.gateway), &self.names).await?.compiled;
        Ok(Difference {
            changes: lines(&difference(&self.compiled, &new)),
            generation: self.gateway.snapshot().generation,
            ..Difference::default()
        })
    }

    /// Does everything or nothing. A file named here is the one that later reloads read.
    pub(super) async fn try_reload(&mut self, config: Option<PathBuf>) -> Result<Difference> {
        let path = config.unwrap_or_else(|| self.options.config.clone());
        let new = load(&path, Some(&self.compiled.gateway), &self.names).await?;
        let in_file = new.text.clone();
        let (changes, generation) = self.adopt(new, Cause::Reload).await?;
        self.in_file = in_file;
        *self.control.about().config.lock() = Some(path.clone());
        self.options.config = path;
        self.tell_unsaved();
        Ok(Difference { changes, generation, ..Difference::default() })
    }

    /// Runs by `new` from now on, or goes on as before and says why. Returns what has changed, and the generation.
    pub(super) async fn adopt(&mut self, new: Loaded, cause: Cause) -> Result<(Vec<String>, u64)> {
        let Loaded { compiled: new, text, learned } = new;
        // Files are read again when the operator says so, and not because something else changes.
        let prepared = match cause {
            Cause::Reload => Prepared::new(new.health.clone()),
            Cause::Edit | Cause::Host | Cause::Names => self.health.prepare(new.health.clone()),
        };
        let prepared = prepared.map_err(Error::msg)?;
        let changes = difference(&self.compiled, &new);
        // A file of the other mode cannot name uplinks; until the restart that it needs they are what they were.
        let same_mode = new.gateway.tap.is_some() == self.compiled.gateway.tap.is_some();
        let uplinks = if same_mode { new.gateway.uplinks } else { self.compiled.gateway.uplinks.clone() };
        let (mtu, resolvers) = (new.gateway.mtu, new.gateway.resolvers);
        let gateway = GatewayConfig { uplinks, mtu, resolvers, ..self.compiled.gateway.clone() };
        let old = self.gateway.snapshot();
        // The device's MTU and the host's own addresses are part of it, and no line of the difference.
        let same = new.snapshot == self.compiled.snapshot;
        let snapshot = if same { old.clone() } else { Arc::new(successor(&self.weighed(&new.snapshot), &old)?) };
        let plan = host_plan(&gateway, &snapshot);
        if let Some(host) = &self.done.host {
            host.check(&plan).await.context("the host could not be set up for it")?;
        }
        // Before the engine: a new server that is not to serve unasked must not do so for a moment. The checks themselves,
        // and what follows from them (events, commands), wait until the host has agreed.
        self.health.foresee(&prepared, &snapshot);
        // The engine before the host: it must know a VIP before the network is told of it. What was removed stays known for now.
        if !same {
            self.gateway.swap(snapshot.clone());
        }
        // Also when nothing changes in the file: the host may be another meanwhile.
        if let Some(host) = &mut self.done.host
            && let Err(error) = host.apply(&plan).await
        {
            if !same {
                let back = Snapshot::build_back(with_kept_vips(&old.spec, &snapshot), &old, &snapshot)?;
                self.gateway.swap(Arc::new(back));
            }
            return Err(error).context("the host could not be set up for it");
        }
        // From here on nothing can fail.
        self.health.configure(prepared, &snapshot);
        if gateway.tap.is_none() {
            warn_without_raw_sockets(&snapshot);
            if old.spec.probe_sources.is_empty() {
                warn_of_ports(&snapshot);
            }
        }
        let pool_warnings = pools_in_trouble(&gateway, &snapshot);
        for warning in pool_warnings.iter().filter(|warning| !self.pool_warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.pool_warnings = pool_warnings;
        self.tell_segment(&snapshot);
        let generation = snapshot.generation;
        self.compiled = Compiled { gateway, snapshot: new.snapshot, health: new.health };
        self.text = text;
        self.names.follow(learned);
        // All of it was looked at.
        self.missed = None;
        self.log(&changes, generation, cause.word());
        let retired = snapshot.retired_since(&old);
        let ended = evacuate(&self.gateway, &retired, io::Cause::Removed).await;
        if ended > 0 {
            tracing::info!("ended flows of servers that were removed: {ended}");
        }
        // What was removed and has no flow need not wait.
        self.tidy().await;
        Ok((lines(&changes), generation))
    }

    /// `None` where the host's addresses do not matter.
    pub(super) fn watch_addresses(&self) -> Option<AddressWatch> {
        if self.compiled.gateway.tap.is_some() {
            return None;
        }
        let watch = AddressWatch::open();
        watch.inspect_err(|error| tracing::warn!(%error, "new addresses of this host are seen at a reload only")).ok()
    }

    /// The host's addresses are others now: a VIP may have become one, or is one no more; a tunnel may begin elsewhere.
    pub(super) async fn look_again(&mut self) {
        match self.adopt_if_changed(Cause::Host).await {
            Ok(false) => {}
            Ok(true) => tracing::info!("the addresses of this host have changed"),
            Err(error) => {
                self.miss(Cause::Host, "the addresses of this host have changed, and cannot be followed", &error);
            }
        }
    }

    /// Other servers stand behind the names of the configuration that runs.
    pub(super) async fn follow_names(&mut self) {
        if let Err(error) = self.adopt_if_changed(Cause::Names).await {
            self.miss(Cause::Names, "names stand for other servers now, but these cannot serve", &error);
        }
    }

    /// What could not be followed when it happened may be by now; nobody tells of it a second time.
    pub(super) async fn try_again(&mut self) {
        match self.missed {
            Some(Missed { cause: Cause::Names, .. }) => self.follow_names().await,
            Some(_) => self.look_again().await,
            None => {}
        }
    }

    fn miss(&mut self, cause: Cause, what: &str, error: &Error) {
        let why = format!("{error:#}");
        match &self.missed {
            Some(missed) if missed.why == why => tracing::debug!("{what}: {why}"),
            _ => tracing::error!("{what}: {why}; this is tried again"),
        }
        self.missed = Some(Missed { cause, why });
    }

    /// Compiles what runs once more, and goes on by it if it has become something else.
    async fn adopt_if_changed(&mut self, cause: Cause) -> Result<bool> {
        let config = Config::parse(&self.options.config, &self.text)?;
        let new = compile(config, Some(&self.compiled.gateway), &self.names).await?;
        let changed = new.compiled.snapshot != self.compiled.snapshot;
        if changed {
            self.adopt(new, cause).await?;
        } else {
            self.names.follow(new.learned);
            self.missed = None;
        }
        Ok(changed)
    }

    /// Whether what runs is what the file had when it was last read or written.
    pub(super) fn tell_unsaved(&self) {
        self.control.unsaved.store(self.text != self.in_file, Ordering::Relaxed);
    }

    /// As the file has it, but for the weights that checks set.
    fn weighed(&self, spec: &SnapshotSpec) -> SnapshotSpec {
        let mut spec = spec.clone();
        self.health.weigh(&mut spec);
        spec
    }

    /// Gives servers the weights that their checks set. No reload: the configuration is the same.
    pub(super) fn reweigh(&self) {
        let old = self.gateway.snapshot();
        let spec = with_kept_vips(&self.weighed(&self.compiled.snapshot), &old);
        // The host is not told: letting go of what is idle by now is for `tidy`.
        match Snapshot::build_keeping(spec, &old) {
            Ok(mut snapshot) if snapshot.spec.services != old.spec.services => {
                snapshot.generation = old.generation;
                self.health.follow(&snapshot);
                self.gateway.swap(Arc::new(snapshot));
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("the weights that checks set cannot be used: {error}"),
        }
    }

    /// What waits for a restart is told once, not at every reload until then.
    fn log(&mut self, changes: &[Change], generation: u64, word: &str) {
        let (pending, done): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| change.needs_restart);
        for change in &done {
            tracing::info!("{word}: {change}");
        }
        for change in pending.iter().filter(|change| !self.pending.contains(change)) {
            tracing::warn!("not changed before a restart: {change}");
        }
        self.pending = pending.into_iter().cloned().collect();
        match done.len() {
            0 => tracing::info!("{word} done: nothing changed, generation {generation}"),
            count => tracing::info!("{word} done: changes: {count}, generation {generation}"),
        }
    }

    /// After the engine, which must know a VIP before the network is told of it.
    fn tell_segment(&self, snapshot: &Snapshot) {
        if let Some(segment) = &self.control.about().segment {
            let (vips, servers) = segment_plan(snapshot);
            segment.configure(&vips, &servers);
        }
    }

    /// Lets go of services and servers that were kept for their old flows and have none any more.
    pub(super) async fn tidy(&mut self) {
        let Some(snapshot) = self.gateway.snapshot().tidied() else { return };
        if let Some(host) = &mut self.done.host
            && let Err(error) = host.apply(&host_plan(&self.compiled.gateway, &snapshot)).await
        {
            tracing::warn!("the routes of what was removed stay for now: {:#}", anyhow::Error::from(error));
            return;
        }
        self.tell_segment(&snapshot);
        tracing::info!("let go of what was kept for flows that have ended now");
        self.gateway.swap(Arc::new(snapshot));
    }
}

/// What follows `old`.
fn successor(spec: &SnapshotSpec, old: &Snapshot) -> Result<Snapshot, SnapshotError> {
    Snapshot::build(with_kept_vips(spec, old), Some(old))
}

/// A VIP or pool that is removed stays one while its flows live, and the host's own if it was that.
fn with_kept_vips(spec: &SnapshotSpec, old: &Snapshot) -> SnapshotSpec {
    let mut spec = spec.clone();
    let public = spec.public_addresses();
    let is_known = |addr: &Addr| old.is_vip(*addr) || old.pools.of(*addr).is_some();
    let kept = old.spec.local_vips.iter().copied().filter(|addr| is_known(addr) && !public.contains(addr));
    spec.local_vips.extend(kept);
    spec
}

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(Change::to_string).collect()
}
