//! What a real server changes on its host: the VIPs on the device, what keeps it silent about them on its segment, and
//! routes by which replies announce an MSS that fits the tunnel.
//!
//! # The VIPs
//!
//! They are addresses of the TUN device, so that what comes out of the tunnel is delivered here, and programs may listen
//! on them. The segment must not learn that: there the VIP is the gateway's. For IPv4 that takes `arp_ignore` 1 (answer for
//! addresses of the asked interface only) and `arp_announce` 2 (ask under such addresses only), as for any real server of
//! IPVS. IPv6 does both without being told (`ndisc_recv_ns`, `ndisc_solicit` in net/ipv6/ndisc.c look for addresses of
//! the interface; an unsolicited advertisement goes out of the address's own interface).
//!
//! # The MSS of replies
//!
//! What a client sends goes through the tunnel, which carries less than its link. The client learns how much it may send
//! in a segment from the MSS option of the SYN-ACK, and that comes from the route by which the SYN-ACK leaves
//! (`RTAX_ADVMSS`, `dst_metric_advmss` in tcp_make_synack). So what comes from a VIP is routed by a table of its own: the
//! main table's routes once more, each with that MSS. A rule leads there that stands right before the main table's, so
//! rules of the operator still come first. What such a copy cannot express is a `throw` route, behind which the main table
//! goes on; nothing is routed otherwise than before, at worst without the MSS. The copy is compared with the main table
//! every few seconds.
//!
//! Each real server of a host has a slot: one rule preference for each family, and a table.

use std::net::IpAddr;

use ipnet::IpNet;
use tracing::{info, warn};

use super::change::{Action, Change, Family, LinkProperty, PROTOCOL, ReplyRoute, Rule};
use super::facts::Rules;
use super::netlink::{Net, gone};
use super::plan::sysctl;
use super::state::Entry;
use super::{Host, HostError, connect, sysctl as parameters};

/// What a real server wants of its host. Plain data, comparable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServerPlan {
    /// The TUN device, which exists already.
    pub device: String,
    pub vips: Vec<IpAddr>,
    /// MTU of the device; at least 1280.
    pub mtu: u32,
    /// What the tunnel carries in one packet.
    pub tunnel_mtu: u32,
}

impl RealServerPlan {
    /// The payload of a TCP segment that fits the tunnel, options not counted (RFC 6691).
    fn mss(&self, family: Family) -> u32 {
        let headers = match family {
            Family::V4 => 40,
            Family::V6 => 60,
        };
        self.tunnel_mtu.saturating_sub(headers).max(1)
    }

    fn uses(&self, family: Family) -> bool {
        self.vips.iter().any(|vip| Family::of(*vip) == family)
    }
}

/// What must be known of the host to plan the changes.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub slot: u8,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: u8,
    /// Of `net.ipv4.conf.all`, as they would be without us.
    pub arp_ignore: u8,
    pub arp_announce: u8,
    /// The copies to be made.
    pub replies: Vec<ReplyRoute>,
}

/// One preference each, right before the main table's rule at 32766.
const PREFERENCES: u32 = 32_700;
const SLOTS: u8 = 16;
/// Beyond this a copy of the routes costs more than it gives.
pub const MAX_ROUTES: usize = 1024;

fn preference(slot: u8) -> u32 {
    PREFERENCES + u32::from(slot)
}

/// Behind the tables of the gateways' slots.
fn table(slot: u8) -> u32 {
    (u32::from(PROTOCOL) << 8) + 0x80 + u32::from(slot)
}

/// The changes that bring the plan about, in order: the segment is kept from learning of the VIPs before they are there,
/// and the first reply has its MSS.
pub fn changes(plan: &RealServerPlan, facts: &Facts) -> Vec<Change> {
    let link = |property| Change::Link { device: plan.device.clone(), property };
    let own = |family, key, value| sysctl(family, "conf", &plan.device, key, value);
    let mut list = vec![
        link(LinkProperty::Mtu(plan.mtu)),
        // 1 is IN6_ADDR_GEN_MODE_NONE. Before the link comes up, for that is when the kernel makes the address.
        own(Family::V6, "addr_gen_mode", "1"),
        own(Family::V6, "accept_ra", "0"),
    ];
    if plan.uses(Family::V4) {
        // The effective value of each is the larger of that of the interface and that of `all`.
        if facts.arp_ignore < 1 {
            list.push(sysctl(Family::V4, "conf", "all", "arp_ignore", "1"));
        }
        if facts.arp_announce < 2 {
            list.push(sysctl(Family::V4, "conf", "all", "arp_announce", "2"));
        }
        // Packets come out of the device with the clients' addresses, which are not reached through it. Where `all` is 1
        // (strict), only 2 (loose) helps.
        list.push(own(Family::V4, "rp_filter", if facts.rp_filter_all == 1 { "2" } else { "0" }));
    }
    if plan.uses(Family::V6) {
        list.push(own(Family::V6, "disable_ipv6", "0"));
    }
    list.push(link(LinkProperty::Up(true)));
    list.extend(facts.replies.iter().cloned().map(Change::Reply));
    for vip in &plan.vips {
        let rule = Rule::new(Family::of(*vip), preference(facts.slot), Action::Lookup(table(facts.slot)));
        list.push(Change::Rule(rule.from(IpNet::from(*vip))));
    }
    list.extend(plan.vips.iter().map(|vip| Change::Address { address: *vip, device: plan.device.clone() }));
    list
}

impl Host {
    /// Brings the host to what the plan says, as [`Host::apply`] does for a gateway. Also to be called when only the main
    /// table has changed.
    pub async fn apply_real_server(&mut self, plan: &RealServerPlan) -> Result<(), HostError> {
        if plan.device != self.device {
            return Err(HostError::DeviceChanged { old: self.device.clone(), new: plan.device.clone() });
        }
        let _turn = self.turn().await?;
        let net = connect().await?;
        if net.link(&plan.device).is_none() {
            return Err(HostError::NoSuchDevice(plan.device.clone()));
        }
        self.forget_lost_replies(&net).await?;
        let made: Vec<Change> = self.done.iter().map(|entry| entry.change.clone()).collect();
        let facts = gather(&net, plan, self.slot, &made).await?;
        if made.is_empty() {
            warn_of_trouble(&net, &facts);
        }
        self.slot = Some(facts.slot);
        self.reach(&net, &plan.device, &changes(plan, &facts)).await
    }

    /// Whether the main table has other routes than were copied last, or a copy got lost.
    pub async fn replies_are_stale(&self, plan: &RealServerPlan) -> Result<bool, HostError> {
        let Some(slot) = self.slot else { return Ok(false) };
        let net = connect().await?;
        let wanted = replies(&net, plan, slot).await?;
        let made = self.copied();
        let lost = lost(&net, slot, &made).await?;
        Ok(!lost.is_empty() || wanted.len() != made.len() || wanted.iter().any(|route| !made.contains(&route)))
    }

    fn copied(&self) -> Vec<&ReplyRoute> {
        let reply = |entry| match entry {
            &Entry { change: Change::Reply(ref route), .. } => Some(route),
            _ => None,
        };
        self.done.iter().filter_map(reply).collect()
    }

    /// What the kernel took away by itself is to be made anew.
    async fn forget_lost_replies(&mut self, net: &Net) -> Result<(), HostError> {
        let Some(slot) = self.slot else { return Ok(()) };
        let lost = lost(net, slot, &self.copied()).await?;
        let is_lost = |entry: &Entry| matches!(&entry.change, Change::Reply(route) if lost.contains(route));
        let (gone, kept): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut self.done).into_iter().partition(is_lost);
        self.done = kept;
        gone.iter().for_each(|entry| self.settle(entry.id));
        Ok(())
    }
}

async fn lost(net: &Net, slot: u8, copied: &[&ReplyRoute]) -> Result<Vec<ReplyRoute>, HostError> {
    let there = net.has_reply_routes(table(slot), copied).await;
    let there = there.map_err(|error| HostError::netlink("read the routes", error))?;
    Ok(copied.iter().zip(there).filter(|(_, there)| !there).map(|(route, _)| (*route).clone()).collect())
}

async fn gather(net: &Net, plan: &RealServerPlan, slot: Option<u8>, made: &[Change]) -> Result<Facts, HostError> {
    let slot = match slot {
        Some(slot) => slot,
        None => free_slot(net).await?,
    };
    let value = |key: &str| {
        let text = parameters::read(&format!("net/ipv4/conf/all/{key}")).ok();
        text.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    // What is there because of us is still wanted.
    let without_us = |key: &str, wanted: &str| {
        if made.contains(&sysctl(Family::V4, "conf", "all", key, wanted)) { 0 } else { value(key) }
    };
    Ok(Facts {
        slot,
        rp_filter_all: value("rp_filter"),
        arp_ignore: without_us("arp_ignore", "1"),
        arp_announce: without_us("arp_announce", "2"),
        replies: replies(net, plan, slot).await?,
    })
}

async fn replies(net: &Net, plan: &RealServerPlan, slot: u8) -> Result<Vec<ReplyRoute>, HostError> {
    let mut all = Vec::new();
    for family in Family::BOTH.into_iter().filter(|family| plan.uses(*family)) {
        let routes = net.reply_routes(family, table(slot), plan.mss(family), MAX_ROUTES).await;
        let routes = routes.map_err(|error| HostError::netlink("read the routes", error))?;
        all.extend(routes.unwrap_or_default());
    }
    Ok(all)
}

async fn free_slot(net: &Net) -> Result<u8, HostError> {
    let rules = Rules::read(net).await?;
    for slot in 0..SLOTS {
        let taken = rules.all().any(|(_, rule)| rule.pref == preference(slot));
        let empty = net.table_is_empty(table(slot)).await;
        if !taken && empty.map_err(|error| HostError::netlink("read the routing tables", error))? {
            return Ok(slot);
        }
    }
    Err(HostError::NoReplySlot)
}

/// Says what keeps the tunnel from working as it should, as far as the host shows it.
fn warn_of_trouble(net: &Net, facts: &Facts) {
    for name in ["tunl0", "sit0", "ip6tnl0"] {
        // Such a link takes the packets as well: each would be delivered twice.
        if net.link(name).is_some_and(|link| link.up) {
            warn!(
                link = name,
                "the kernel's own tunnel takes packets as well: set it down, or use it instead of gatun (docs/REAL-SERVER.md)"
            );
        }
    }
    if facts.rp_filter_all == 1 {
        info!(
            "net.ipv4.conf.all.rp_filter is 1: the device gets 2, so what comes by it from clients that no route leads to is dropped"
        );
    }
    if facts.replies.is_empty() {
        warn!(
            routes = MAX_ROUTES,
            "the main table has no route, or more than are copied: replies announce the link's MSS, and uploads rely on the gateway's ICMP errors"
        );
    }
}

/// Removes rules and copied routes with our mark that lead from an address that this host does not have: their device
/// went with a real server that was killed, and its record is lost.
pub async fn clean_replies(net: &Net) -> Result<usize, HostError> {
    let failed = |error| HostError::netlink("clean up after a real server that was killed", error);
    let mut removed = 0;
    let local: Vec<IpAddr> = net.addresses().await.map_err(failed)?.into_iter().map(|(address, _)| address).collect();
    let rules = Rules::read(net).await?;
    for slot in 0..SLOTS {
        let ours: Vec<&Rule> = rules
            .all()
            .filter(|(_, rule)| rule.ours && rule.pref == preference(slot))
            .filter_map(|(_, rule)| rule.rule.as_ref())
            .collect();
        let alive = ours.iter().any(|rule| rule.from.is_some_and(|from| local.contains(&from.addr())));
        if alive {
            continue;
        }
        for rule in ours {
            match net.delete_rule(rule).await {
                Err(error) if gone(&error) => {}
                other => other.map_err(failed)?,
            }
            removed += 1;
        }
        removed += net.empty_table(table(slot)).await.map_err(failed)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::super::change::Hop;
    use super::*;

    fn plan() -> RealServerPlan {
        RealServerPlan {
            device: "gatun-rs0".into(),
            vips: vec!["203.0.113.10".parse().unwrap(), "2001:db8:f::10".parse().unwrap()],
            mtu: 1500,
            tunnel_mtu: 1448,
        }
    }

    fn default_route() -> ReplyRoute {
        let hop =
            Hop { device: "eth0".into(), gateway: Some("10.20.0.254".parse().unwrap()), weight: 0, onlink: false };
        ReplyRoute {
            table: table(0),
            destination: "0.0.0.0/0".parse().unwrap(),
            tos: 0,
            priority: 0,
            advmss: 1408,
            mtu: None,
            hops: vec![hop],
        }
    }

    #[test]
    fn changes_of_a_plain_host() {
        let facts = Facts { replies: vec![default_route()], ..Facts::default() };
        let lines: Vec<String> = changes(&plan(), &facts).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "ip link set dev gatun-rs0 mtu 1500",
                "sysctl -w net.ipv6.conf.gatun-rs0.addr_gen_mode=1",
                "sysctl -w net.ipv6.conf.gatun-rs0.accept_ra=0",
                "sysctl -w net.ipv4.conf.all.arp_ignore=1",
                "sysctl -w net.ipv4.conf.all.arp_announce=2",
                "sysctl -w net.ipv4.conf.gatun-rs0.rp_filter=0",
                "sysctl -w net.ipv6.conf.gatun-rs0.disable_ipv6=0",
                "ip link set dev gatun-rs0 up",
                "ip route add 0.0.0.0/0 via 10.20.0.254 dev eth0 table 26496 advmss 1408",
                "ip rule add pref 32700 from 203.0.113.10/32 lookup 26496",
                "ip -6 rule add pref 32700 from 2001:db8:f::10/128 lookup 26496",
                "ip addr add 203.0.113.10/32 dev gatun-rs0 scope host",
                "ip -6 addr add 2001:db8:f::10/128 dev gatun-rs0 preferred_lft 0 nodad noprefixroute",
            ]
        );
    }

    #[test]
    fn stricter_values_of_the_operator_stay() {
        let facts = Facts { arp_ignore: 2, arp_announce: 2, rp_filter_all: 1, ..Facts::default() };
        let lines: Vec<String> = changes(&plan(), &facts).iter().map(ToString::to_string).collect();
        assert!(!lines.iter().any(|line| line.contains("arp_")), "{lines:?}");
        assert!(lines.contains(&"sysctl -w net.ipv4.conf.gatun-rs0.rp_filter=2".to_owned()), "{lines:?}");
    }

    #[test]
    fn the_mss_fits_the_tunnel() {
        assert_eq!((plan().mss(Family::V4), plan().mss(Family::V6)), (1408, 1388));
    }
}
