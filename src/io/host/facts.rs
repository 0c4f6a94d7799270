//! Ask the kernel what [`plan`](super::plan) must know. Works without privilege.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;

use super::HostError;
use super::change::{Action, Change, Family};
use super::netlink::{Found, KernelRule, Net, OwnTable, absent_family};
use super::plan::{
    Facts, HostPlan, MOVED_LOCAL, SLOTS, Uplink, Way, ZONE_A, ZONE_B, Zone, at, needs_slot, table, uses,
};
use super::sysctl;

/// The rules of both families, as the kernel has them.
#[derive(Debug, Default)]
pub struct Rules {
    v4: Vec<KernelRule>,
    v6: Vec<KernelRule>,
}

impl Rules {
    pub async fn read(net: &Net) -> Result<Rules, HostError> {
        let mut rules = Rules::default();
        for family in Family::BOTH {
            let found = match net.rules(family).await {
                Err(error) if absent_family(&error) => Vec::new(),
                other => other.map_err(|error| HostError::netlink("read the policy rules", error))?,
            };
            match family {
                Family::V4 => rules.v4 = found,
                Family::V6 => rules.v6 = found,
            }
        }
        Ok(rules)
    }

    pub fn of(&self, family: Family) -> &[KernelRule] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (Family, &KernelRule)> {
        self.v4.iter().map(|rule| (Family::V4, rule)).chain(self.v6.iter().map(|rule| (Family::V6, rule)))
    }

    /// The blocks of all gateways and the device of each, by the rule that lets the device's packets skip the
    /// block.
    pub fn blocks(&self) -> BTreeSet<(Zone, u8, String)> {
        self.all()
            .filter(|(_, rule)| rule.ours)
            .filter_map(|(_, rule)| {
                let (zone, slot) = Zone::of(rule.pref)?;
                let own = rule.pref == zone.start(slot) && rule.rule.as_ref()?.action == Action::Goto(zone.end(slot));
                own.then(|| (zone, slot, rule.iif.clone()))
            })
            .filter_map(|(zone, slot, device)| Some((zone, slot, device?)))
            .collect()
    }

    /// Preferences of the plain rules for the local table.
    pub fn local(&self, family: Family) -> impl Iterator<Item = &KernelRule> {
        self.of(family).iter().filter(|rule| rule.rule.as_ref().is_some_and(|rule| rule.is_plain_local()))
    }

    /// The rules that [`Change::MoveLocal`] has to move: (from, to).
    pub fn to_move(&self, family: Family) -> Vec<(u32, u32)> {
        self.local(family).filter(|rule| rule.pref < ZONE_A).map(|rule| (rule.pref, MOVED_LOCAL + rule.pref)).collect()
    }

    /// What was moved, by whichever gateway: (where it is, where it was).
    pub fn moved(&self, family: Family) -> Vec<(u32, u32)> {
        self.local(family)
            .filter(|rule| rule.ours && (MOVED_LOCAL..ZONE_B).contains(&rule.pref))
            .map(|rule| (rule.pref, rule.pref - MOVED_LOCAL))
            .collect()
    }
}

/// `done` is what this gateway has changed already: its own traces are not taken for somebody else's.
pub async fn gather(net: &Net, plan: &HostPlan, slot: Option<u8>, done: &[Change]) -> Result<Facts, HostError> {
    let rules = Rules::read(net).await?;
    let mut facts = Facts {
        rp_filter_all: sysctl::read("net/ipv4/conf/all/rp_filter").ok().and_then(|v| v.parse().ok()).unwrap_or(0),
        force_forwarding: sysctl::exists("net/ipv6/conf/all/force_forwarding"),
        ..Facts::default()
    };

    let own = net.own_table().await.map_err(|error| HostError::netlink("read the table of own addresses", error))?;
    uplinks(net, plan, &mut facts).await?;
    vips(net, plan, &own, &mut facts).await?;
    let peers = plan.vips.iter().flat_map(|vip| &vip.peers);
    let nets: BTreeSet<IpNet> =
        plan.returns.iter().map(|path| &path.from).chain(&plan.one_way).chain(peers).copied().collect();
    let networks = nets.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
    let main = main_routes(net, plan.prefixes.iter().chain(networks)).await?;
    prefixes(plan, &main)?;
    for peer in nets {
        let way = match peer.prefix_len() == peer.max_prefix_len() {
            true => way(net, &own, peer.addr()).await?,
            false => way_to_network(net, &own, peer, (&main, &plan.device)).await?,
        };
        facts.ways.insert(peer, way);
    }
    strict(plan, done, &mut facts);
    advertisements(net, plan, done, &mut facts).await?;

    facts.local_first4 = rules.local(Family::V4).any(|rule| rule.pref < ZONE_B);
    facts.local_first6 = rules.local(Family::V6).any(|rule| rule.pref < ZONE_B);
    if needs_slot(plan, &facts) {
        facts.slot = match slot {
            Some(slot) => slot,
            None => free_slot(net, &rules).await?,
        };
        facts.others = rules
            .blocks()
            .into_iter()
            .filter(|(_, slot, device)| *slot != facts.slot && *device != plan.device)
            .collect();
        local_table_behind(plan, &facts, &rules)?;
    }
    Ok(facts)
}

async fn uplinks(net: &Net, plan: &HostPlan, facts: &mut Facts) -> Result<(), HostError> {
    if !plan.uplinks.is_empty() {
        for name in &plan.uplinks {
            let link = net.link(name).ok_or_else(|| HostError::NoSuchUplink(name.clone()))?;
            let uplink = Uplink { name: name.clone(), resolves: link.resolves };
            facts.uplinks4.push(uplink.clone());
            facts.uplinks6.push(uplink);
        }
        return Ok(());
    }
    for family in Family::BOTH {
        if !uses(plan, family) {
            continue;
        }
        let defaults =
            net.default_links(family).await.map_err(|error| HostError::netlink("read the default routes", error))?;
        let mut names: BTreeSet<String> = defaults.into_iter().map(|(name, _)| name).collect();
        if names.is_empty() {
            names = connected(net, plan, family).await?;
        }
        let found = names
            .iter()
            .filter_map(|name| net.link(name))
            .map(|link| Uplink { name: link.name.clone(), resolves: link.resolves })
            .collect();
        match family {
            Family::V4 => facts.uplinks4 = found,
            Family::V6 => facts.uplinks6 = found,
        }
    }
    Ok(())
}

/// Without a default route clients can only be where the host itself has an address: every interface that is up and has
/// one, but for the loopback and the own device. Link-local addresses do not count, every interface has one of those.
async fn connected(net: &Net, plan: &HostPlan, family: Family) -> Result<BTreeSet<String>, HostError> {
    let addresses = net.addresses().await.map_err(|error| HostError::netlink("read the addresses", error))?;
    let beyond_link = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    Ok(addresses
        .into_iter()
        .filter(|(address, name)| Family::of(*address) == family && beyond_link(address) && *name != plan.device)
        .filter(|(_, name)| net.link(name).is_some_and(|link| link.up && !link.loopback))
        .map(|(_, name)| name)
        .collect())
}

async fn vips(net: &Net, plan: &HostPlan, own: &OwnTable, facts: &mut Facts) -> Result<(), HostError> {
    let addresses = net.addresses().await.map_err(|error| HostError::netlink("read the addresses", error))?;
    for vip in &plan.vips {
        match look_up(net, own, vip.address).await?.map(|found| found.kind) {
            Some(RouteType::Local) => {
                let holder = addresses.iter().find(|(address, _)| *address == vip.address);
                let holder = holder.map(|(_, name)| name.clone()).filter(|name| {
                    // No neighbour asks on the loopback or on a tunnel.
                    net.link(name).is_some_and(|link| link.resolves)
                });
                facts.local_vips.insert(vip.address, holder);
            }
            Some(RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast) => {
                return Err(HostError::NotUnicast(vip.address));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The main table, of the families of these networks: a dump of it may be long.
async fn main_routes(net: &Net, networks: impl Iterator<Item = &IpNet>) -> Result<Vec<(IpNet, String)>, HostError> {
    let families: BTreeSet<bool> = networks.map(|network| network.addr().is_ipv6()).collect();
    let mut routes = Vec::new();
    for is_v6 in families {
        let of_family = net.main_routes(if is_v6 { Family::V6 } else { Family::V4 }).await;
        routes.extend(of_family.map_err(|error| HostError::netlink("read the routes of the main table", error))?);
    }
    Ok(routes)
}

/// IPv6 takes a second route to the same prefix, and goes by the one with the lower metric: that of the interface.
fn prefixes(plan: &HostPlan, main: &[(IpNet, String)]) -> Result<(), HostError> {
    for prefix in &plan.prefixes {
        let taken = main.iter().find(|(destination, device)| destination == prefix && *device != plan.device);
        if let Some((_, device)) = taken {
            return Err(HostError::PrefixTaken { prefix: *prefix, device: device.clone() });
        }
    }
    Ok(())
}

/// Asked without a protocol the kernel looks for the way of a UDP packet (`inet_rtm_getroute`, net/ipv4/route.c), and one to
/// an own address may belong to a gateway already. So the host's own table has the first word on what it is.
async fn look_up(net: &Net, own: &OwnTable, address: IpAddr) -> Result<Option<Found>, HostError> {
    match own.lookup(address) {
        Some(found) => Ok(Some(found)),
        None => net.lookup(address).await.map_err(|error| HostError::netlink(format!("look up {address}"), error)),
    }
}

async fn way(net: &Net, own: &OwnTable, address: IpAddr) -> Result<Way, HostError> {
    Ok(look_up(net, own, address).await?.map_or_else(Way::default, |found| Way {
        local: found.kind == RouteType::Local,
        resolves: found.device.as_deref().and_then(|name| net.link(name)).is_some_and(|link| link.resolves),
        device: found.device,
        others: Vec::new(),
        source: found.source,
    }))
}

/// Where the routes to its parts lead, and the one that what is of none of these goes by; without any part, where the network as
/// a whole is.
async fn way_to_network(
    net: &Net,
    own: &OwnTable,
    network: IpNet,
    (main, gateway): (&[(IpNet, String)], &str),
) -> Result<Way, HostError> {
    let mut devices = towards(network, main, gateway);
    if devices.is_empty() {
        // An address of the network may be the host's own, which says nothing of the rest.
        return Ok(Way { local: false, source: None, ..way(net, own, network.network()).await? });
    }
    let device = devices.remove(0);
    let resolves = net.link(&device).is_some_and(|link| link.resolves);
    Ok(Way { device: Some(device), resolves, others: devices, ..Way::default() })
}

/// The devices of routes to parts of the network, and of the narrowest route to all of it. A default route leads anywhere.
fn towards(network: IpNet, main: &[(IpNet, String)], own: &str) -> Vec<String> {
    let routes = || main.iter().filter(|(_, device)| device != own);
    let parts = routes().filter(|(destination, _)| network.contains(destination));
    let covering = routes().filter(|(destination, _)| destination.prefix_len() > 0 && destination.contains(&network));
    let narrowest = covering.clone().map(|(destination, _)| destination.prefix_len()).max();
    let narrowest = covering.filter(|(destination, _)| Some(destination.prefix_len()) == narrowest);
    let devices: BTreeSet<&String> = parts.chain(narrowest).map(|(_, device)| device).collect();
    devices.into_iter().cloned().collect()
}

/// Which of the links to servers that answer under the VIP take only what they would also send back.
fn strict(plan: &HostPlan, done: &[Change], facts: &mut Facts) {
    let ways = plan.one_way.iter().filter_map(|net| facts.ways.get(net)).filter(|way| !way.local);
    let links = ways.filter_map(|way| way.device.clone());
    for name in links.filter(|name| *name != plan.device).collect::<BTreeSet<_>>() {
        let path = format!("net/ipv4/conf/{name}/rp_filter");
        let value = sysctl::read(&path).ok().and_then(|value| value.parse::<u8>().ok()).unwrap_or(0);
        let ours = Change::Sysctl { path, value: "2".into() };
        if value.max(facts.rp_filter_all) == 1 || done.contains(&ours) {
            facts.strict.insert(name);
        }
    }
}

async fn advertisements(net: &Net, plan: &HostPlan, done: &[Change], facts: &mut Facts) -> Result<(), HostError> {
    if !uses(plan, Family::V6) {
        return Ok(());
    }
    let defaults =
        net.default_links(Family::V6).await.map_err(|error| HostError::netlink("read the default routes", error))?;
    facts.ra_default = defaults.into_iter().filter(|(_, advertised)| *advertised).map(|(name, _)| name).collect();
    let path = |name: &str, key: &str| format!("net/ipv6/conf/{name}/{key}");
    for name in sysctl::ipv6_interfaces().unwrap_or_default() {
        if name == plan.device {
            continue;
        }
        let value = |key: &str| sysctl::read(&path(&name, key)).unwrap_or_default();
        let ours = Change::Sysctl { path: path(&name, "accept_ra"), value: "2".into() };
        if done.contains(&ours) {
            facts.ra_default.insert(name.clone());
            facts.accepts_ra.insert(name);
        } else if value("accept_ra") == "1" && value("forwarding") == "0" {
            facts.accepts_ra.insert(name);
        }
    }
    Ok(())
}

async fn free_slot(net: &Net, rules: &Rules) -> Result<u8, HostError> {
    // The rule by which another gateway skips a block stays when the block's own gateway goes.
    let leftover = |rule: &KernelRule, zone: Zone, slot| {
        rule.ours && rule.pref == zone.start(slot) + at::OTHERS && rule.iif.is_some()
    };
    let taken: BTreeSet<u8> = rules
        .all()
        .filter_map(|(_, rule)| Zone::of(rule.pref).map(|(zone, slot)| (rule, zone, slot)))
        .filter(|(rule, zone, slot)| !leftover(rule, *zone, *slot))
        .map(|(_, _, slot)| slot)
        .collect();
    for slot in (0..SLOTS).filter(|slot| !taken.contains(slot)) {
        let empty = net
            .table_is_empty(table(slot))
            .await
            .map_err(|error| HostError::netlink("read the routing tables", error))?;
        if empty {
            return Ok(slot);
        }
    }
    Err(HostError::NoSlot)
}

/// Somebody else moved the local table, to a place ahead of ours: then local VIPs cannot work.
fn local_table_behind(plan: &HostPlan, facts: &Facts, rules: &Rules) -> Result<(), HostError> {
    for family in Family::BOTH {
        let local_vip = plan
            .vips
            .iter()
            .map(|vip| vip.address)
            .find(|vip| Family::of(*vip) == family && facts.local_vips.contains_key(vip));
        let in_the_way =
            rules.local(family).map(|rule| rule.pref).find(|pref| (ZONE_A..Zone::A.end(facts.slot)).contains(pref));
        if let (Some(vip), Some(pref)) = (local_vip, in_the_way) {
            return Err(HostError::LocalTableInTheWay { vip, pref });
        }
    }
    Ok(())
}

/// A link-local address of the link, the source of neighbour advertisements.
pub async fn link_local(net: &Net, name: &str) -> Option<Ipv6Addr> {
    let addresses = net.addresses().await.ok()?;
    addresses.into_iter().find_map(|(address, link)| match address {
        IpAddr::V6(address) if link == name && address.is_unicast_link_local() => Some(address),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_where_its_parts_and_the_rest_are() {
        let table = |routes: &[(&str, &str)]| -> Vec<(IpNet, String)> {
            routes.iter().map(|(to, device)| (to.parse().expect(to), (*device).to_owned())).collect()
        };
        let to = |routes: &[(&str, &str)]| towards("10.0.0.0/16".parse().expect("a network"), &table(routes), "gatun0");
        let (default, wide, part) = (("0.0.0.0/0", "wan"), ("10.0.0.0/8", "lan"), ("10.0.5.0/24", "far"));
        assert_eq!(to(&[default, wide, part]), ["far", "lan"]);
        assert_eq!(to(&[default, ("10.0.0.0/12", "other"), wide, part]), ["far", "other"]);
        assert_eq!(to(&[default, wide, ("10.0.0.0/16", "all"), part]), ["all", "far"]);
        assert_eq!(to(&[default, part, ("10.0.6.0/24", "far"), ("10.1.0.0/16", "beside")]), ["far"]);
        assert_eq!(to(&[default, ("10.0.0.0/16", "gatun0"), ("fd00::/8", "six")]), [""; 0]);
    }
}
