//! What brings packets for addresses of the gateway's here: routes to the device, and answers to who asks for them on a link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::change::{Change, Family, TABLE_MAIN};
use super::plan::{Facts, HostPlan, VipPlan, sysctl};

/// An interface on which the host answers by ARP or NDP for addresses that are routed to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<'a> {
    pub link: &'a str,
    pub addresses: BTreeSet<IpAddr>,
}

/// Addresses that are routed to the device: those that are none of the host's own.
pub fn routed<'a>(plan: &'a HostPlan, facts: &'a Facts) -> impl Iterator<Item = &'a VipPlan> {
    plan.vips.iter().filter(|vip| !facts.local_vips.contains_key(&vip.address))
}

/// On the uplinks, for each of them; and for a pool on the links to those who answer to it: its address may be one of their
/// segment, and then they look for it there.
pub fn answered<'a>(plan: &'a HostPlan, facts: &'a Facts, family: Family) -> Vec<Answered<'a>> {
    let mut found: Vec<Answered<'a>> = Vec::new();
    let mut answer = |link: &'a str, address: IpAddr| match found.iter_mut().find(|answered| answered.link == link) {
        Some(answered) => {
            answered.addresses.insert(address);
        }
        None => found.push(Answered { link, addresses: [address].into() }),
    };
    for vip in routed(plan, facts).filter(|vip| Family::of(vip.address) == family) {
        for uplink in facts.uplinks(family).iter().filter(|uplink| uplink.resolves) {
            answer(&uplink.name, vip.address);
        }
        let ways = vip.peers.iter().filter_map(|peer| facts.ways.get(peer)).filter(|way| way.resolves && !way.local);
        for link in ways.filter_map(|way| way.device.as_deref()).filter(|link| *link != plan.device) {
            answer(link, vip.address);
        }
    }
    found
}

/// The routes, and the answers.
pub fn changes(plan: &HostPlan, facts: &Facts, family: Family, list: &mut Vec<Change>) {
    let vips: BTreeSet<IpNet> = routed(plan, facts).map(|vip| IpNet::from(vip.address)).collect();
    let prefixes: BTreeSet<IpNet> = plan.prefixes.iter().copied().collect();
    let all = vips.into_iter().chain(prefixes).filter(|net| Family::of(net.addr()) == family);
    list.extend(all.map(|destination| Change::Route {
        table: TABLE_MAIN,
        destination,
        device: plan.device.clone(),
        source: None,
    }));
    let answered = answered(plan, facts, family);
    if family == Family::V6 && !answered.is_empty() {
        // `all` as well: without it unicast solicitations are forwarded like any packet (ip6_forward).
        list.push(sysctl(family, "conf", "all", "proxy_ndp", "1"));
    }
    for Answered { link, addresses } in answered {
        if family == Family::V6 {
            list.push(sysctl(family, "conf", link, "proxy_ndp", "1"));
        }
        // Answers for others wait up to 0.8 s otherwise.
        list.push(sysctl(family, "neigh", link, "proxy_delay", "0"));
        list.extend(addresses.into_iter().map(|address| Change::Proxy { address, device: link.to_owned() }));
    }
}
