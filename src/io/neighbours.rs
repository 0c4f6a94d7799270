//! Where the servers of method `direct` are: watches the kernel's neighbour table, and has it ask.
//!
//! # Theory of operation
//!
//! Once a second the routes and neighbours of all such servers are looked up. A server with a valid entry gets a
//! [`Place`]. One without is resolved by the kernel when asked to *use* the entry (`NTF_USE`, `neigh_add` in
//! net/core/neighbour.c). A valid entry is *probed* every few seconds: packets that go past the kernel's own path do not
//! confirm it, and a server that died would stay valid for up to a minute. A failed entry marks the server unreachable,
//! for the engine to tell clients; it is asked for again each second, and the mark goes when somebody answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Gateway;
use super::direct::{Place, Places};
use super::host::neighbour_table::{Entry, NeighbourTable, State};
use crate::service::{Method, Server, Snapshot};
use crate::wire::Addr;

const LOOK: Duration = Duration::from_secs(1);
/// While a server has just been asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Between two probes of a server that is known.
const PROBE: Duration = Duration::from_secs(5);

/// Runs as long as the gateway does.
pub async fn watch(gateway: Arc<Gateway>, mut watcher: Watcher) -> &'static str {
    loop {
        let snapshot = gateway.snapshot();
        let settled = watcher.look(&snapshot).await;
        let begun = Instant::now();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            // A reload may have brought a server that clients are sent to by now.
            if !settled || begun.elapsed() >= LOOK || !Arc::ptr_eq(&snapshot, &gateway.snapshot()) {
                break;
            }
        }
    }
}

/// Before any packet comes: finds the servers there are, so that the first packets are not lost. Waits a second at most.
/// Without a way out for frames (`has_frames`) no server can be reached.
pub async fn begin(gateway: &Gateway, places: Arc<Places>, has_frames: bool) -> Watcher {
    let mut watcher = Watcher { places, has_frames, probed: Instant::now(), asked: BTreeMap::new(), warned: false };
    while !watcher.look(&gateway.snapshot()).await {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    watcher
}

/// What is known of the neighbours, and what was asked.
pub struct Watcher {
    places: Arc<Places>,
    has_frames: bool,
    probed: Instant,
    /// Since when servers are being resolved.
    asked: BTreeMap<Addr, Instant>,
    warned: bool,
}

impl Watcher {
    /// Whether all is known that can be known now.
    async fn look(&mut self, snapshot: &Snapshot) -> bool {
        let servers = direct_servers(snapshot);
        self.asked.retain(|address, _| servers.contains_key(address));
        if servers.is_empty() {
            if !self.places.all().is_empty() {
                self.places.set(HashMap::new());
            }
            return true;
        }
        if !self.has_frames {
            servers.values().for_each(|of| mark(of, true, "gatun has no CAP_NET_RAW"));
            return true;
        }
        match self.try_look(&servers).await {
            Ok(settled) => settled,
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(%error, "the kernel's neighbours cannot be read, so servers of method direct are not found");
                }
                true
            }
        }
    }

    async fn try_look(&mut self, servers: &BTreeMap<Addr, Vec<Arc<Server>>>) -> std::io::Result<bool> {
        let table = NeighbourTable::read().await?;
        let now = Instant::now();
        let probe = now - self.probed >= PROBE;
        if probe {
            self.probed = now;
        }
        let mut places = HashMap::new();
        let mut settled = true;
        for (&address, of) in servers {
            let Some(way) = table.way(address.ip()).await else {
                mark(of, true, "there is no route to it, or none on a segment of this host");
                continue;
            };
            let entry = table.entry(address.ip(), way.interface);
            match entry {
                Some(Entry { state: state @ (State::Valid | State::Fixed), mac: Some(mac) }) => {
                    places.insert(address, Place { interface: way.interface, mac, own_mac: way.mac });
                    mark(of, false, "");
                    self.asked.remove(&address);
                    if probe && state == State::Valid {
                        table.probe(address.ip(), way.interface).await;
                    }
                }
                entry => {
                    if entry.is_some_and(|entry| entry.state == State::Failed) {
                        mark(of, true, "nobody answers for its address");
                    }
                    let since = *self.asked.entry(address).or_insert(now);
                    // An answer comes within a millisecond; what takes longer than a look has time.
                    settled &= now - since >= LOOK;
                    table.ask(address.ip(), way.interface).await;
                }
            }
        }
        if *self.places.all() != places {
            self.places.set(places);
        }
        Ok(settled)
    }
}

/// The servers that have to be found, by address: also retired ones, whose flows go on.
fn direct_servers(snapshot: &Snapshot) -> BTreeMap<Addr, Vec<Arc<Server>>> {
    let mut found: BTreeMap<Addr, Vec<Arc<Server>>> = BTreeMap::new();
    for server in snapshot.all_servers().filter(|server| server.method == Method::Direct) {
        found.entry(server.address).or_default().push(server.clone());
    }
    found
}

pub(super) fn mark(servers: &[Arc<Server>], unreachable: bool, why: &str) {
    for server in servers {
        if server.path.is_unreachable() != unreachable {
            server.path.set_unreachable(unreachable);
            match unreachable {
                true => warn!(server = server.name, "the server cannot be reached: {why}"),
                false => info!(server = server.name, "the server can be reached again"),
            }
        }
    }
}
