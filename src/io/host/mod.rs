//! Host set-up and clean-up over netlink: what has to be changed around the TUN device so that packets for the
//! VIPs, and the servers' replies, come to it.
//!
//! # Theory of operation
//!
//! The caller says what it wants ([`HostPlan`]). `facts` asks the kernel how the host is, [`plan`] makes of both
//! a list of [`Change`]s, and [`Host`] makes those that are not made yet and takes back those no longer wanted.
//! So the first set-up, a reload and the end are one thing: the difference between two lists.
//!
//! Every change is on disk before it is made (`state`), together with how it is undone. A gateway that was
//! killed is cleaned up after by the next one with the same device name, from that file, and from the marks that
//! our rules, routes and proxy entries carry in the kernel should the file be lost.
//!
//! Gateways with different devices share a host. Rules and tables are apart ([`plan`]). What they share
//! (parameters of an uplink, the place of the local table's rule) stays as long as one of them lives that wants
//! it: the last one takes it back, to the value from before the first.
//!
//! What somebody else changed in the meantime is left alone.

pub mod announce;
mod attract;
mod by_hand;
pub mod change;
mod facts;
mod leftovers;
mod make;
pub mod neighbour_table;
mod netlink;
pub mod plan;
pub mod real_server;
mod returns;
mod state;
mod sweep;
mod sysctl;

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use thiserror::Error;
use tracing::{debug, info, warn};

use announce::Announcement;
use change::{Change, Family};
use leftovers::clean_marks;
use make::{Failure, parameter_trouble, perform, prepare, revert};
use netlink::{Net, errno, into_io};
use plan::Facts;
use state::{Entry, Peer, Record, Refused, Saved, Trouble, Turn, Undo};

pub use change::Ports;
pub use plan::{HostPlan, Listener, ProbePath, ReturnPath, VipPlan};
pub(in crate::io) use state::lock;
pub use sweep::sweep;

/// Where the record of changes is kept unless the operator says otherwise.
pub const STATE_DIRECTORY: &str = "/run/gatun";

#[derive(Debug, Error)]
pub enum HostError {
    #[error("another gateway{} uses device {device} already: stop it, or give this one another `device`", pid_note(.pid))]
    InUse { device: String, pid: Option<u32> },
    #[error("cannot keep the record of changes: {}: {error}{}; name another directory with --state-dir", .path.display(), owner_note(.path, .error))]
    State { path: PathBuf, error: io::Error },
    #[error(
        "somebody has had {} locked for {} s, and only one may change the host at a time: `fuser -v {}` tells who, as root", .0.display(), state::PATIENCE.as_secs(), .0.display()
    )]
    NoTurn(PathBuf),
    #[error(
        "no privilege to {what}: run as root or give gatun CAP_NET_ADMIN, or set the host up by hand and use --no-routes"
    )]
    NoPrivilege { what: String },
    #[error("there is no network device {0}: it has to be opened before the host is set up")]
    NoSuchDevice(String),
    #[error("bridge {0} does not exist: make it (`ip link add {0} type bridge`), or name another one")]
    NoSuchBridge(String),
    #[error("{0} is no bridge, or one that takes no such port: name a bridge (`ip link show type bridge` lists them)")]
    NotABridge(String),
    #[error(
        "{device} is a port of {bridge} already: take it out (`ip link set dev {device} nomaster`), or name that bridge"
    )]
    OtherBridge { device: String, bridge: String },
    #[error("uplink {0} does not exist: name interfaces that `ip link` shows")]
    NoSuchUplink(String),
    #[error("the device changes from {old} to {new}: that needs a restart")]
    DeviceChanged { old: String, new: String },
    #[error("{vip} is already routed to {}: remove that route or take the address out of the configuration", .device.as_deref().unwrap_or("somewhere else"))]
    RouteTaken { vip: IpAddr, device: Option<String> },
    #[error(
        "{prefix} is a network of {device} already: a masquerade needs an outside prefix of its own, to which routers outside have a route by this host"
    )]
    PrefixTaken { prefix: IpNet, device: String },
    #[error("{0} is a broadcast, multicast or anycast address here: it cannot be a VIP")]
    NotUnicast(IpAddr),
    #[error(
        "no room for the rule and the table of replies: 16 real servers run here already, or others use rule preferences 32700 to 32715"
    )]
    NoReplySlot,
    #[error("no room for the routing rules: all {} places between rule preference {} and {} are taken", plan::SLOTS, plan::ZONE_A, plan::ZONE_END - 1)]
    NoSlot,
    #[error(
        "{vip} is an address of this host, but the rule of the local table at preference {pref} comes before ours: move that rule to preference {} or above",
        plan::ZONE_END
    )]
    LocalTableInTheWay { vip: IpAddr, pref: u32 },
    #[error("cannot {what}: {error}")]
    Netlink { what: String, error: io::Error },
}

fn pid_note(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Root without CAP_DAC_OVERRIDE, which the gateway gives up, may not write where only another user may.
fn owner_note(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let owner = |path: &Path| Some((path.to_owned(), std::fs::symlink_metadata(path).ok()?.uid()));
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let me = unsafe { libc::geteuid() };
    match owner(path).or_else(|| owner(path.parent()?)) {
        Some((path, uid)) if uid != me => {
            format!(" ({} belongs to user {uid}, and gatun runs as user {me} without CAP_DAC_OVERRIDE)", path.display())
        }
        _ => String::new(),
    }
}

impl HostError {
    fn no_turn(trouble: Trouble) -> Self {
        match trouble.error.kind() {
            io::ErrorKind::WouldBlock => HostError::NoTurn(trouble.path),
            _ => HostError::state(trouble),
        }
    }

    fn state(trouble: Trouble) -> Self {
        HostError::State { path: trouble.path, error: trouble.error }
    }

    fn netlink(what: impl Into<String>, error: rtnetlink::Error) -> Self {
        let what = what.into();
        match errno(&error) {
            Some(libc::EPERM | libc::EACCES) => HostError::NoPrivilege { what },
            _ => HostError::Netlink { what, error: into_io(error) },
        }
    }
}

/// What one gateway has changed on this host.
#[derive(Debug)]
pub struct Host {
    device: String,
    directory: PathBuf,
    record: Record,
    /// Oldest first.
    done: Vec<Entry>,
    slot: Option<u8>,
    announcer: Option<tokio::task::JoinHandle<()>>,
}

impl Host {
    /// Reserve the device's name for this process and clean up after a predecessor that could not.
    ///
    /// # Errors
    /// A live gateway has the device; no privilege; the record cannot be written.
    pub async fn claim(device: &str, directory: &Path) -> Result<Host, HostError> {
        let _turn = Turn::take(directory).await.map_err(HostError::no_turn)?;
        let (record, saved) = Record::open(directory, device).map_err(|refused| match refused {
            Refused::InUse(pid) => HostError::InUse { device: device.to_owned(), pid },
            Refused::Trouble(trouble) => HostError::state(trouble),
        })?;
        let mut host = Host {
            device: device.to_owned(),
            directory: directory.to_owned(),
            record,
            done: Vec::new(),
            slot: None,
            announcer: None,
        };
        host.clean(saved).await?;
        let path = host.record.path().to_owned();
        host.record.start(device).map_err(|error| HostError::State { path, error })?;
        Ok(host)
    }

    /// Tell whether the plan names what is not there, as far as that is cheap to know; changes nothing.
    ///
    /// # Errors
    /// As those of [`Host::apply`].
    pub async fn check(&self, plan: &HostPlan) -> Result<(), HostError> {
        if plan.device != self.device {
            return Err(HostError::DeviceChanged { old: self.device.clone(), new: plan.device.clone() });
        }
        let net = connect().await?;
        match plan.uplinks.iter().find(|uplink| net.link(uplink).is_none()) {
            Some(missing) => Err(HostError::NoSuchUplink(missing.clone())),
            None => Ok(()),
        }
    }

    /// Bring the host to what the plan says. After the first time only the difference is made; what fails is
    /// taken back, so that the host is as before the call.
    pub async fn apply(&mut self, plan: &HostPlan) -> Result<(), HostError> {
        if plan.device != self.device {
            return Err(HostError::DeviceChanged { old: self.device.clone(), new: plan.device.clone() });
        }
        let _turn = self.turn().await?;
        let net = connect().await?;
        if net.link(&plan.device).is_none() {
            return Err(HostError::NoSuchDevice(plan.device.clone()));
        }
        let made: Vec<Change> = self.done.iter().map(|entry| entry.change.clone()).collect();
        let facts = facts::gather(&net, plan, self.slot, &made).await?;
        warn_of_trouble(plan, &facts, &net);
        self.slot = plan::needs_slot(plan, &facts).then_some(facts.slot);

        self.reach(&net, &plan.device, &plan::changes(plan, &facts)).await?;
        self.announce(&net, plan, &facts, &made).await;
        Ok(())
    }

    /// Make what is wanted and not there yet, then take back what is no longer wanted.
    async fn reach(&mut self, net: &Net, device: &str, wanted: &[Change]) -> Result<(), HostError> {
        let peers = state::peers(&self.directory, self.record.path());
        let first = self.done.is_empty();
        let mark = self.done.len();
        let mut replaced = Vec::new();
        for change in wanted {
            if let Err(error) = self.make(net, change, &peers, &mut replaced).await {
                self.take_back(net, mark, replaced, &peers).await;
                return Err(error);
            }
        }
        if first && let Err(error) = net.drop_link_local(device).await {
            debug!(%error, "the device keeps its link-local address");
        }
        for entry in std::mem::take(&mut self.done).into_iter().rev() {
            if wanted.contains(&entry.change) {
                self.done.insert(0, entry);
            } else {
                self.undo_one(net, &entry, &peers).await;
            }
        }
        Ok(())
    }

    /// Take everything back. What cannot be is logged and stays in the record for the next start.
    pub async fn undo(mut self) {
        if let Some(announcer) = self.announcer.take() {
            announcer.abort();
        }
        let turn = self.turn().await;
        let net = match connect().await {
            Ok(net) => net,
            Err(error) => {
                warn!(%error, "the changes to this host stay: they are undone at the next start");
                return;
            }
        };
        let peers = state::peers(&self.directory, self.record.path());
        let mut clean = true;
        for entry in std::mem::take(&mut self.done).iter().rev() {
            clean &= self.undo_one(&net, entry, &peers).await;
        }
        drop_stray_address(&net, &self.device).await;
        if clean && let Err(error) = self.record.remove() {
            warn!(%error, "cannot remove the record of changes");
        }
        drop(turn);
    }

    /// The changes as commands, for an operator who makes them by hand, and the way back. Needs no privilege, and no device.
    pub async fn print_commands(plan: &HostPlan) -> Result<String, HostError> {
        let net = connect().await?;
        by_hand::commands(&net, plan).await
    }

    async fn turn(&self) -> Result<Turn, HostError> {
        Turn::take(&self.directory).await.map_err(HostError::no_turn)
    }

    /// Make one change unless it is made already.
    async fn make(
        &mut self,
        net: &Net,
        change: &Change,
        peers: &[Peer],
        replaced: &mut Vec<Entry>,
    ) -> Result<(), HostError> {
        if self.done.iter().any(|entry| entry.change == *change) {
            return Ok(());
        }
        let former = self.done.iter().position(|entry| entry.change.same_place(change));
        let Some(mut undo) = prepare(net, change, peers).await? else { return Ok(()) };
        if let Some(former) = former {
            // The way back leads to where things were before the first of the two.
            undo = self.done[former].undo.clone();
        }
        let id = self
            .record
            .before(change, &undo)
            .map_err(|error| HostError::State { path: self.record.path().to_owned(), error })?;
        let made = perform(net, change, former.is_some()).await;
        match made {
            Ok(()) => debug!(%change, "changed"),
            Err(Failure::Exists) => {
                debug!(%change, "is there already");
                self.settle(id);
                undo = Undo::Nothing;
            }
            Err(Failure::Parameter(error)) => {
                self.settle(id);
                let Change::Sysctl { path, value } = change else { return Ok(()) };
                parameter_trouble(path, value, &error);
                return Ok(());
            }
            Err(Failure::Fatal(error)) => {
                self.settle(id);
                return Err(error);
            }
        }
        if let Some(former) = former {
            let former = self.done.remove(former);
            self.settle(former.id);
            replaced.push(former);
        }
        self.done.push(Entry { id, change: change.clone(), undo });
        Ok(())
    }

    /// Undo what a failed call of `apply` did.
    async fn take_back(&mut self, net: &Net, mark: usize, replaced: Vec<Entry>, peers: &[Peer]) {
        // Those replaced are gone from the older part of the list.
        let mark = mark.saturating_sub(replaced.len());
        for entry in self.done.split_off(mark).into_iter().rev() {
            match replaced.iter().find(|former| former.change.same_place(&entry.change)) {
                None => {
                    self.undo_one(net, &entry, peers).await;
                }
                Some(former) => {
                    if let Err(error) = perform(net, &former.change, true).await {
                        warn!(change = %former.change, ?error, "cannot be restored");
                    }
                    self.settle(entry.id);
                    if let Ok(id) = self.record.before(&former.change, &former.undo) {
                        self.done.push(Entry { id, ..former.clone() });
                    }
                }
            }
        }
        if self.done.is_empty() {
            self.slot = None;
            drop_stray_address(net, &self.device).await;
        }
    }

    /// True when the change is no longer there.
    async fn undo_one(&mut self, net: &Net, entry: &Entry, peers: &[Peer]) -> bool {
        match revert(net, entry, peers).await {
            Ok(()) => {
                debug!(change = %entry.change, "undone");
                self.settle(entry.id);
                true
            }
            Err(error) => {
                warn!(change = %entry.change, %error, "cannot be undone");
                false
            }
        }
    }

    fn settle(&mut self, id: u64) {
        if let Err(error) = self.record.undone(id) {
            // At worst the next start tries to undo it once more.
            debug!(%error, "cannot write to the record of changes");
        }
    }

    /// What a killed predecessor left: first by its record, then by the marks in the kernel.
    async fn clean(&mut self, saved: Saved) -> Result<(), HostError> {
        let net = connect().await?;
        let peers = state::peers(&self.directory, self.record.path());
        if saved.here && !saved.open.is_empty() {
            info!(device = self.device, changes = saved.open.len(), "cleaning up after a gateway that was killed");
            for entry in saved.open.iter().rev() {
                self.undo_one(&net, entry, &peers).await;
            }
            drop_stray_address(&net, &self.device).await;
        }
        if saved.damaged > 0 {
            warn!(record = %self.record.path().display(), lines = saved.damaged, "the record of changes is damaged; kernel parameters may keep changed values");
        }
        clean_marks(&net, &self.device).await
    }

    async fn announce(&mut self, net: &Net, plan: &HostPlan, facts: &Facts, before: &[Change]) {
        let mut list = Vec::new();
        for family in Family::BOTH {
            for answered in attract::answered(plan, facts, family) {
                let Some(link) = net.link(answered.link) else { continue };
                let source = match family {
                    Family::V4 => None,
                    Family::V6 => facts::link_local(net, answered.link).await,
                };
                let is_new = |address: &IpAddr| {
                    !before.contains(&Change::Proxy { address: *address, device: answered.link.to_owned() })
                };
                let new = answered.addresses.iter().filter(|address| is_new(address));
                list.extend(new.filter_map(|address| Announcement::new(*address, link, source)));
            }
        }
        match announce::announce(list) {
            Ok(Some(task)) => {
                if let Some(former) = self.announcer.replace(task) {
                    former.abort();
                }
            }
            Ok(None) => {}
            Err(error) => warn!(
                %error,
                "cannot announce the VIPs to the neighbours (CAP_NET_RAW is needed): where they moved here from another host they are found late"
            ),
        }
    }
}

async fn connect() -> Result<Net, HostError> {
    Net::connect().await.map_err(|error| HostError::Netlink { what: "talk to the kernel over netlink".into(), error })
}

/// Giving `addr_gen_mode` its former value back makes a link-local address even while the link is down, which a
/// link that is down otherwise never has.
async fn drop_stray_address(net: &Net, device: &str) {
    if let Ok(Some(link)) = net.current(device).await
        && !link.up
        && let Err(error) = net.drop_link_local(device).await
    {
        debug!(device, %error, "the device keeps a link-local address");
    }
}

fn warn_of_trouble(plan: &HostPlan, facts: &Facts, net: &Net) {
    for family in Family::BOTH {
        if plan.vips.iter().any(|vip| Family::of(vip.address) == family) && facts.uplinks(family).is_empty() {
            warn!(
                family = family.sysctl_dir(),
                "no uplink: there is no default route and no interface with an address, and `uplink` names none; what comes from clients may not be \
                 forwarded, and neighbours are not told of the VIPs"
            );
        }
    }
    for prefix in &plan.prefixes {
        debug!(%prefix, "no neighbour is told of a whole prefix: routers outside need a route to it by this host");
    }
    for (server, way) in &facts.ways {
        if way.device.is_none() {
            warn!(%server, "no route to this server or network");
        }
    }
    let mtu = plan.mtu.or(net.link(&plan.device).map(|link| link.mtu)).unwrap_or(1500);
    if mtu < 1280 && plan::uses(plan, Family::V6) {
        warn!(mtu, "the device carries no IPv6: that needs an MTU of 1280 at least (RFC 8200 section 5)");
    }
}
