//! Make one change, and undo one.

use std::io;

use tracing::{debug, warn};

use super::HostError;
use super::change::{Action, Change, Family, PROTOCOL, Rule, TABLE_LOCAL};
use super::facts::Rules;
use super::netlink::{Net, absent_family, errno, gone};
use super::plan::Zone;
use super::state::{Entry, Peer, Undo};
use super::sysctl;

/// What must be remembered to undo the change; `None` when it cannot and need not be made.
pub async fn prepare(net: &Net, change: &Change, peers: &[Peer]) -> Result<Option<Undo>, HostError> {
    let inherited = || {
        let mut entries = peers.iter().flat_map(|peer| &peer.open);
        entries.find(|entry| entry.change == *change && entry.undo != Undo::Nothing).map(|e| e.undo.clone())
    };
    let undo = match change {
        Change::Link { device, property } => {
            let link = net.current(device).await.map_err(|e| HostError::netlink(format!("read {device}"), e))?;
            let link = link.ok_or_else(|| HostError::NoSuchDevice(device.clone()))?;
            let former = link.same_property(*property);
            if former == *property { Undo::Nothing } else { Undo::Property(former) }
        }
        Change::Port { device, bridge } => {
            let port_of = net.bridge_of(device).await.map_err(|e| HostError::netlink(format!("read {device}"), e))?;
            match port_of {
                Some(name) if name == *bridge => Undo::Nothing,
                Some(name) => return Err(HostError::OtherBridge { device: device.clone(), bridge: name }),
                None => Undo::Remove,
            }
        }
        Change::Sysctl { path, value } => match sysctl::read(path) {
            Ok(current) if current == *value => inherited().unwrap_or(Undo::Nothing),
            Ok(current) => Undo::Value(current),
            Err(error) => {
                parameter_trouble(path, value, &error);
                return Ok(None);
            }
        },
        Change::ForwardAll6 => match sysctl::read(FORWARDING6) {
            Ok(value) if value == "1" => inherited().unwrap_or(Undo::Nothing),
            Ok(_) => Undo::Forwarding(forwarding_flags()),
            Err(error) => {
                parameter_trouble(FORWARDING6, "1", &error);
                return Ok(None);
            }
        },
        Change::Proxy { address, device } => {
            let proxies = net.proxies().await.map_err(|e| HostError::netlink("read the proxy entries", e))?;
            let there = proxies.iter().any(|(a, name, _)| a == address && name == device);
            if there { inherited().unwrap_or(Undo::Nothing) } else { Undo::Remove }
        }
        Change::Rule(_)
        | Change::Route { .. }
        | Change::Anchor { .. }
        | Change::Address { .. }
        | Change::Reply(_)
        | Change::MoveLocal(_) => Undo::Remove,
    };
    Ok(Some(undo))
}

#[derive(Debug)]
pub enum Failure {
    /// Somebody made the same change before.
    Exists,
    /// A kernel parameter cannot be set; much may still work.
    Parameter(io::Error),
    Fatal(HostError),
}

pub async fn perform(net: &Net, change: &Change, replace: bool) -> Result<(), Failure> {
    let fatal = |error: rtnetlink::Error| Failure::Fatal(HostError::netlink(format!("do `{change}`"), error));
    match change {
        Change::Link { device, property } => net.set_link(device, *property).await.map_err(fatal),
        Change::Port { bridge, .. } if net.link(bridge).is_none() => {
            Err(Failure::Fatal(HostError::NoSuchBridge(bridge.clone())))
        }
        Change::Port { device, bridge } => match net.set_port(device, Some(bridge)).await {
            // Not a bridge, or one that takes no such port.
            Err(error) if matches!(errno(&error), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                Err(Failure::Fatal(HostError::NotABridge(bridge.clone())))
            }
            other => other.map_err(fatal),
        },
        Change::Sysctl { path, value } => match sysctl::read(path) {
            // A read-only /proc/sys does not matter then.
            Ok(current) if current == *value => Ok(()),
            _ => sysctl::write(path, value).map_err(Failure::Parameter),
        },
        Change::ForwardAll6 => match sysctl::read(FORWARDING6).as_deref() {
            Ok("1") => Ok(()),
            _ => sysctl::write(FORWARDING6, "1").map_err(|error| {
                parameter_trouble(FORWARDING6, "1", &error);
                Failure::Parameter(error)
            }),
        },
        Change::Rule(rule) => match net.add_rule(rule, PROTOCOL).await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => Err(Failure::Exists),
            Err(error) if rule.family == Family::V6 && absent_family(&error) => Err(Failure::Exists),
            other => other.map_err(fatal),
        },
        Change::Route { table, destination, device, source } => {
            match net.add_route(*table, *destination, device, *source, replace).await {
                Err(error) if errno(&error) == Some(libc::EEXIST) => {
                    let found = net.lookup(destination.addr()).await.map_err(fatal)?;
                    let leads_to = found.and_then(|found| found.device);
                    if leads_to.as_deref() == Some(device) || destination.prefix_len() == 0 {
                        return Err(Failure::Exists);
                    }
                    Err(Failure::Fatal(HostError::RouteTaken { vip: destination.addr(), device: leads_to }))
                }
                other => other.map_err(fatal),
            }
        }
        Change::Anchor { device } => match net.add_anchor(device).await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => Err(Failure::Exists),
            other => other.map_err(fatal),
        },
        Change::Address { address, device } => match net.add_address(*address, device).await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => Err(Failure::Exists),
            other => other.map_err(fatal),
        },
        Change::Reply(route) => match net.add_reply_route(route, replace).await {
            Ok(()) => Ok(()),
            // The main table changes while it is copied, and may have what a copy cannot: that is then left to it.
            Err(error) => {
                debug!(%route, %error, "cannot be copied");
                net.add_reply_route(&route.throw(), true).await.map_err(fatal)
            }
        },
        Change::Proxy { address, device } => {
            // Adding it again would put our mark on somebody else's entry.
            let there = net.proxies().await.map_err(fatal)?.iter().any(|(a, name, _)| a == address && name == device);
            if there { Ok(()) } else { net.add_proxy(*address, device).await.map_err(fatal) }
        }
        Change::MoveLocal(family) => {
            let rules = Rules::read(net).await.map_err(Failure::Fatal)?;
            // The new one first: there is no moment without a local table.
            for (from, to) in rules.to_move(*family) {
                match net.add_rule(&local_rule(*family, to), PROTOCOL).await {
                    Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                    other => other.map_err(fatal)?,
                }
                net.delete_rule(&local_rule(*family, from)).await.map_err(fatal)?;
            }
            Ok(())
        }
    }
}

/// Undo one change. What is gone already, or was changed by somebody else since, counts as undone.
pub async fn revert(net: &Net, entry: &Entry, peers: &[Peer]) -> Result<(), HostError> {
    let shared = matches!(entry.change, Change::Sysctl { .. } | Change::ForwardAll6 | Change::Proxy { .. });
    let wanted = |peer: &Peer| peer.live && peer.open.iter().any(|other| other.change == entry.change);
    if shared && peers.iter().any(wanted) {
        return Ok(());
    }
    let failed = |error: rtnetlink::Error| HostError::netlink(format!("undo `{}`", entry.change), error);
    let gone = |result: Result<(), rtnetlink::Error>| match result {
        Err(error) if gone(&error) => Ok(()),
        other => other.map_err(failed),
    };
    match (&entry.change, &entry.undo) {
        (_, Undo::Nothing) => Ok(()),
        (Change::Link { device, property }, Undo::Property(former)) => {
            match net.current(device).await.map_err(failed)? {
                Some(link) if link.same_property(*property) == *property => {}
                _ => return Ok(()),
            }
            gone(net.set_link(device, *former).await)
        }
        (Change::Port { device, bridge }, Undo::Remove) => match net.bridge_of(device).await.map_err(failed)? {
            Some(name) if name == *bridge => gone(net.set_port(device, None).await),
            _ => Ok(()),
        },
        (Change::Sysctl { path, value }, Undo::Value(former)) => match sysctl::read(path) {
            Ok(current) if current == *value => match sysctl::write(path, former) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(HostError::Netlink { what: format!("set {path} back to {former}"), error })
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        },
        (Change::ForwardAll6, Undo::Forwarding(flags)) => {
            restore_forwarding(flags);
            Ok(())
        }
        (Change::Rule(rule), Undo::Remove) => gone(net.delete_rule(rule).await),
        (Change::Route { table, destination, device, .. }, Undo::Remove) => {
            gone(net.delete_route(*table, *destination, device).await)
        }
        (Change::Anchor { device }, Undo::Remove) => gone(net.drop_anchor(device).await),
        (Change::Address { address, device }, Undo::Remove) => gone(net.delete_address(*address, device).await),
        (Change::Reply(route), Undo::Remove) => gone(net.delete_reply_route(route).await),
        (Change::Proxy { address, device }, Undo::Remove) => gone(net.delete_proxy(*address, device).await),
        (Change::MoveLocal(family), Undo::Remove) => move_local_back(net, *family).await,
        // Only a record that somebody wrote by hand pairs them otherwise.
        _ => Ok(()),
    }
}

/// `MoveLocal` is the last thing a gateway does in zone A and the first it undoes: who finds no other block
/// there is the last one.
async fn move_local_back(net: &Net, family: Family) -> Result<(), HostError> {
    let rules = Rules::read(net).await?;
    let mut ends = rules.of(family).iter().filter_map(|rule| match Zone::of(rule.pref) {
        Some((Zone::A, slot)) if rule.ours && rule.pref == Zone::A.end(slot) => Some(slot),
        _ => None,
    });
    // One block is our own; none when the traces of a killed gateway are removed.
    if ends.by_ref().nth(1).is_some() {
        return Ok(());
    }
    restore_local(net, family, &rules).await
}

pub async fn restore_local(net: &Net, family: Family, rules: &Rules) -> Result<(), HostError> {
    /// `RTPROT_KERNEL`: the rule was made by the kernel.
    const KERNEL: u8 = 2;
    let failed = |error| HostError::netlink("move the rule of the local table back", error);
    for (from, to) in rules.moved(family) {
        match net.add_rule(&local_rule(family, to), KERNEL).await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            other => other.map_err(failed)?,
        }
        match net.delete_rule(&local_rule(family, from)).await {
            Err(error) if gone(&error) => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

fn local_rule(family: Family, pref: u32) -> Rule {
    Rule::new(family, pref, Action::Lookup(TABLE_LOCAL))
}

pub fn parameter_trouble(path: &str, value: &str, error: &io::Error) {
    let consequence = sysctl::consequence(path);
    if error.kind() == io::ErrorKind::NotFound {
        // No IPv6, or a kernel that does not know it.
        debug!(path, "no such kernel parameter");
    } else {
        warn!(path, value, %error, "cannot set this kernel parameter, so {consequence}: set it from outside");
    }
}

pub const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

pub fn forwarding_flags() -> Vec<(String, String)> {
    let mut names = sysctl::ipv6_interfaces().unwrap_or_default();
    names.push("default".to_owned());
    names
        .into_iter()
        .filter_map(|name| {
            let value = sysctl::read(&format!("net/ipv6/conf/{name}/forwarding")).ok()?;
            Some((name, value))
        })
        .collect()
}

/// Writing `all` overwrites every interface, so those that forwarded before are switched on again.
fn restore_forwarding(flags: &[(String, String)]) {
    if !matches!(sysctl::read(FORWARDING6).as_deref(), Ok("1")) {
        return;
    }
    if let Err(error) = sysctl::write(FORWARDING6, "0") {
        warn!(%error, "cannot switch IPv6 forwarding off again");
        return;
    }
    for (name, value) in flags.iter().filter(|(_, value)| value != "0") {
        let path = format!("net/ipv6/conf/{name}/forwarding");
        if let Err(error) = sysctl::write(&path, value) {
            debug!(path, %error, "cannot be restored");
        }
    }
}
