//! What a killed gateway left in the kernel, found by our marks when its record is lost.

use std::collections::BTreeSet;

use netlink_packet_route::route::RouteType;
use tracing::info;

use super::HostError;
use super::change::Family;
use super::facts::Rules;
use super::make::restore_local;
use super::netlink::{Net, gone};
use super::plan::Zone;
use super::real_server::clean_replies;

/// Remove what carries our mark and belongs to `device`, or to no gateway at all.
pub async fn clean_marks(net: &Net, device: &str) -> Result<(), HostError> {
    let failed = |error| HostError::netlink("clean up after a gateway that was killed", error);
    let rules = Rules::read(net).await?;
    let blocks = rules.blocks();
    let own: Vec<u8> = blocks.iter().filter(|(.., name)| name == device).map(|(_, slot, _)| *slot).collect();
    let mut removed = 0;
    for (_, rule) in rules.all().filter(|(_, rule)| rule.ours) {
        let in_own_block = Zone::of(rule.pref).is_some_and(|(_, slot)| own.contains(&slot));
        let about_device = rule.iif.as_deref() == Some(device);
        if let Some(rule) = rule.rule.as_ref().filter(|_| in_own_block || about_device) {
            match net.delete_rule(rule).await {
                Err(error) if gone(&error) => {}
                other => other.map_err(failed)?,
            }
            removed += 1;
        }
    }
    for family in Family::BOTH {
        let rules = Rules::read(net).await?;
        let zone_a_used =
            rules.of(family).iter().any(|rule| rule.ours && matches!(Zone::of(rule.pref), Some((Zone::A, _))));
        if !zone_a_used {
            removed += rules.moved(family).len();
            restore_local(net, family, &rules).await?;
        }
    }
    if net.link(device).is_some() {
        for (table, destination) in net.own_routes(device).await.map_err(failed)? {
            net.delete_route(table, destination, device).await.map_err(failed)?;
            removed += 1;
        }
    }
    removed += clean_proxies(net, &blocks).await?;
    removed += clean_replies(net).await?;
    if removed > 0 {
        info!(device, removed, "removed rules, routes and proxy entries that a killed gateway left");
    }
    Ok(())
}

/// A proxy entry with our mark whose address leads to no TUN device any more is nobody's.
async fn clean_proxies(net: &Net, blocks: &BTreeSet<(Zone, u8, String)>) -> Result<usize, HostError> {
    let failed = |error| HostError::netlink("clean up after a gateway that was killed", error);
    let mut removed = 0;
    let own = net.own_table().await.map_err(failed)?;
    for (address, link, ours) in net.proxies().await.map_err(failed)? {
        if !ours {
            continue;
        }
        let found = match own.lookup(address) {
            Some(found) => found,
            None => net.lookup(address).await.map_err(failed)?.unwrap_or_default(),
        };
        let local = found.kind == RouteType::Local;
        let in_use = if local {
            blocks.iter().any(|(.., name)| net.link(name).is_some())
        } else {
            match &found.device {
                Some(name) => net
                    .own_routes(name)
                    .await
                    .map_err(failed)?
                    .iter()
                    .any(|(_, destination)| destination.addr() == address),
                None => false,
            }
        };
        if !in_use {
            net.delete_proxy(address, &link).await.map_err(failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}
