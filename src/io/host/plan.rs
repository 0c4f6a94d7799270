//! From what the gateway wants of the host to the list of changes that bring it about. Pure: what has to be
//! known of the host is in [`Facts`].
//!
//! # The rules
//!
//! Every gateway of a host has a *slot*: a block of rule preferences in each of two zones, and a routing table
//! whose default route is its device.
//!
//! ```text
//!  pref     0          the local table, unless a VIP is a local address
//!  pref    16 …  271   zone A: local VIPs, 16 slots of 16
//!  pref   272 …  287   the local table, when it had to move (272 + where it was)
//!  pref   288 …  543   zone B: return traffic, 16 slots of 16
//!  pref 32766          main
//! ```
//!
//! A slot is claimed by its last rule, a `nop` that is also where `goto` leads: the kernel refuses a second one
//! like it. What comes from the own device skips the own block, else it would loop; policy rules of the operator
//! behind it still apply, hence `goto` and no `lookup main`. What the engine does not know it passes back
//! unchanged, so with two gateways a packet may visit both: the device of the later block also skips the
//! earlier block, so that it visits each once.
//!
//! A rule that matches a port never matches a fragment (`fib4_rules_early_flow_dissect` reads no ports from
//! any fragment, the first included). So after the rules with ports comes one that lets every other packet
//! that has a port go its usual way, and after that one without ports, which only fragments still reach.
//!
//! Within one preference all rules match on the same set of attributes: on deletion the kernel takes an absent
//! attribute for "any" (`rule_find` in net/core/fib_rules.c), and would find the wrong rule otherwise.
//!
//! Probes through the gateway come from own addresses and a range of ports. Answers to those would be the host's, which
//! knows nothing of them; so they are taken for the device before the local table. Only what can be an answer is, by where it
//! comes from: a packet for a connection of the host's own would not survive that, since the kernel has found its socket
//! by then, and does not forward what has one (`ip_forward`, net/ipv4/ip_forward.c).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::attract;
use super::change::{Action, Change, Family, LinkProperty, PROTOCOL, Ports, Rule, TABLE_LOCAL};
use super::returns::Returns;
use crate::io::probe::PORTS as PROBE_PORTS;

/// What the gateway wants of the host. Plain data, comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// The TUN device, which exists already.
    pub device: String,
    /// `None` leaves the device's MTU as it is.
    pub mtu: Option<u32>,
    /// Packets the kernel may queue towards the gateway; the kernel's own default of 500 drops silently.
    pub txqueuelen: u32,
    /// Where clients come from and VIPs are announced; empty: the interfaces of the default routes, and where there is
    /// none, every interface that is up and has an address.
    pub uplinks: Vec<String>,
    /// The bridge that the device is to be a port of.
    pub bridge: Option<String>,
    pub vips: Vec<VipPlan>,
    /// Prefixes whose packets the gateway takes, and that their neighbours have to route here: no host answers for a whole
    /// prefix by NDP.
    pub prefixes: Vec<IpNet>,
    /// Packets that must reach the gateway on their way back from a server, or on their way out from an inside network.
    pub returns: Vec<ReturnPath>,
    /// Servers whose replies go another way. Errors about those come back to the VIP, by the server's link as likely as not.
    pub one_way: Vec<IpNet>,
    /// Answers to probes through the gateway.
    pub probes: Vec<ProbePath>,
}

/// An address whose packets the gateway takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipPlan {
    pub address: IpAddr,
    /// What the gateway serves there. It matters only when the address is one of the host's own: whatever is
    /// not listed stays the host's. An address that is routed goes to the device as a whole.
    pub listeners: Vec<Listener>,
    /// Who answers to it: servers, as whose client the gateway comes from there.
    pub peers: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// IP protocol number.
    pub protocol: u8,
    /// `None`: all ports.
    pub ports: Option<Ports>,
}

/// Packets from `from`, of this protocol and with this source port, belong to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReturnPath {
    /// A server, or the inside network of a masquerade.
    pub from: IpNet,
    /// IP protocol number; `None`: all.
    pub protocol: Option<u8>,
    /// Source port; `None`: all. Means something only together with a protocol.
    pub ports: Option<Ports>,
}

/// What comes from there to the address `own` and one of the ports that probes use belongs to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbePath {
    pub own: IpAddr,
    pub from: ReturnPath,
}

/// What must be known of the host to plan the changes.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub slot: u8,
    /// The blocks of other gateways of this host, and the device of each.
    pub others: Vec<(Zone, u8, String)>,
    pub uplinks4: Vec<Uplink>,
    pub uplinks6: Vec<Uplink>,
    /// VIPs that are local addresses, and the interfaces that hold them.
    pub local_vips: BTreeMap<IpAddr, Option<String>>,
    pub ways: BTreeMap<IpNet, Way>,
    /// Families for which the local table is asked before zone B, without our doing.
    pub local_first4: bool,
    pub local_first6: bool,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: u8,
    /// Interfaces, of those towards servers that answer under the VIP, that take only what they would also send back
    /// (`rp_filter` is 1 there or for all).
    pub strict: BTreeSet<String>,
    /// Linux 6.17 and later forward IPv6 by interface; before that only all interfaces together can be switched.
    pub force_forwarding: bool,
    /// Interfaces that take router advertisements as a host does, and would not as a router.
    pub accepts_ra: BTreeSet<String>,
    /// Interfaces with a default route from a router advertisement.
    pub ra_default: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    /// The link resolves addresses by ARP or NDP.
    pub resolves: bool,
}

/// How the host reaches a server, or an inside network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The interface; `None` when the server is unreachable now.
    pub device: Option<String>,
    /// The link resolves addresses by ARP or NDP.
    pub resolves: bool,
    /// Further interfaces, where parts of a network are behind others.
    pub others: Vec<String>,
    /// The server's address is one of the host's own.
    pub local: bool,
    /// The address that the host itself talks to it from.
    pub source: Option<IpAddr>,
}

impl Facts {
    pub fn uplinks(&self, family: Family) -> &[Uplink] {
        match family {
            Family::V4 => &self.uplinks4,
            Family::V6 => &self.uplinks6,
        }
    }

    pub fn local_first(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.local_first4,
            Family::V6 => self.local_first6,
        }
    }
}

pub const SLOTS: u8 = 16;
const BLOCK: u32 = 16;
pub const ZONE_A: u32 = 16;
/// The local table's rule moves from pref L to `MOVED_LOCAL + L`, so that the rule itself tells where it was.
pub const MOVED_LOCAL: u32 = ZONE_A + SLOTS as u32 * BLOCK;
pub const ZONE_B: u32 = MOVED_LOCAL + ZONE_A;
pub const ZONE_END: u32 = ZONE_B + SLOTS as u32 * BLOCK;

/// Each slot's table. The kernel has 32 bits for the number of a table; few use more than 8.
pub fn table(slot: u8) -> u32 {
    (u32::from(PROTOCOL) << 8) + u32::from(slot)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    A,
    B,
}

impl Zone {
    pub const BOTH: [Zone; 2] = [Zone::A, Zone::B];

    pub fn start(self, slot: u8) -> u32 {
        let base = match self {
            Zone::A => ZONE_A,
            Zone::B => ZONE_B,
        };
        base + u32::from(slot) * BLOCK
    }

    pub fn end(self, slot: u8) -> u32 {
        self.start(slot) + BLOCK - 1
    }

    /// The zone and slot that a preference lies in.
    pub fn of(pref: u32) -> Option<(Zone, u8)> {
        let (zone, base) = match pref {
            ZONE_A..MOVED_LOCAL => (Zone::A, ZONE_A),
            ZONE_B..ZONE_END => (Zone::B, ZONE_B),
            _ => return None,
        };
        u8::try_from((pref - base) / BLOCK).ok().map(|slot| (zone, slot))
    }
}

/// Offsets in a block, in the order in which the kernel asks.
pub mod at {
    pub const OWN: u32 = 0;
    pub const LINK_LOCAL: u32 = 1;
    pub const OTHERS: u32 = 2;
    // Zone A.
    pub const PROBES: u32 = 3;
    pub const VIP_PORTS: u32 = 4;
    pub const VIP_PROTOCOL: u32 = 5;
    pub const HOST_PORTS: u32 = 6;
    pub const HOST_PROTOCOL: u32 = 7;
    pub const VIP_OTHER_PORTS: u32 = 8;
    pub const VIP_FRAGMENTS: u32 = 9;
    // Zone B.
    pub const LOCAL_TABLE: u32 = 3;
    pub const LOCAL_SERVER_PORTS: u32 = 4;
    pub const LOCAL_SERVER_PROTOCOL: u32 = 5;
    pub const OWN_ERRORS: u32 = 6;
    pub const FROM_HOST: u32 = 7;
    pub const ICMP: u32 = 8;
    pub const RETURN_PORTS: u32 = 9;
    pub const RETURN_PROTOCOL: u32 = 10;
    pub const RETURN_ALL: u32 = 11;
    pub const OTHER_PORTS: u32 = 12;
    pub const RETURN_FRAGMENTS: u32 = 13;
}

/// The changes that bring the plan about, in the order in which they are to be made: what guards against loops
/// and what brings replies back comes before what attracts traffic.
pub fn changes(plan: &HostPlan, facts: &Facts) -> Vec<Change> {
    let mut list = device(plan);
    for family in Family::BOTH {
        if !uses(plan, family) {
            continue;
        }
        device_sysctls(plan, facts, family, &mut list);
        forwarding(plan, facts, family, &mut list);
        rules(plan, facts, family, &mut list);
        attract::changes(plan, facts, family, &mut list);
    }
    list
}

/// Whether the plan needs a slot at all: only rules do.
pub fn needs_slot(plan: &HostPlan, facts: &Facts) -> bool {
    !plan.returns.is_empty()
        || !plan.probes.is_empty()
        || plan.vips.iter().any(|vip| facts.local_vips.contains_key(&vip.address))
}

pub fn uses(plan: &HostPlan, family: Family) -> bool {
    plan.vips.iter().any(|vip| Family::of(vip.address) == family)
        || plan.prefixes.iter().any(|prefix| Family::of(prefix.addr()) == family)
        || plan.returns.iter().any(|r| Family::of(r.from.addr()) == family)
        || plan.probes.iter().any(|probe| Family::of(probe.own) == family)
}

fn device(plan: &HostPlan) -> Vec<Change> {
    let link = |property| Change::Link { device: plan.device.clone(), property };
    let mut list = Vec::new();
    if let Some(mtu) = plan.mtu {
        list.push(link(LinkProperty::Mtu(mtu)));
    }
    list.push(link(LinkProperty::TxQueueLen(plan.txqueuelen)));
    // 1 is IN6_ADDR_GEN_MODE_NONE. Before the link comes up, for that is when the kernel makes the address.
    list.push(sysctl(Family::V6, "conf", &plan.device, "addr_gen_mode", "1"));
    list.push(sysctl(Family::V6, "conf", &plan.device, "accept_ra", "0"));
    list.push(link(LinkProperty::Up(true)));
    list.extend(plan.bridge.iter().map(|bridge| Change::Port { device: plan.device.clone(), bridge: bridge.clone() }));
    list
}

fn device_sysctls(plan: &HostPlan, facts: &Facts, family: Family, list: &mut Vec<Change>) {
    let set = |key, value| sysctl(family, "conf", &plan.device, key, value);
    match family {
        Family::V4 => {
            // Packets come out of the device with the clients' addresses, which are not reached through it. The
            // effective value is the larger of this and that of `all`: where that is 1, only 2 (loose) helps.
            list.push(set("rp_filter", if facts.rp_filter_all == 1 { "2" } else { "0" }));
            // They also carry the host's own addresses: a local VIP, or a client that runs on the host.
            list.push(set("accept_local", "1"));
            list.push(set("send_redirects", "0"));
            // What the engine passes on to the host itself (ping to a local VIP, errors about the host's own
            // connections, what comes to a probe's port and is none) is delivered here, and even the loose filter drops that from an interface that has no
            // address at all (`no_addr` in __fib_validate_source, net/ipv4/fib_frontend.c).
            let mut passed = facts.local_vips.keys().copied().chain(plan.probes.iter().map(|probe| probe.own));
            if facts.rp_filter_all != 0 && passed.any(|own| own.is_ipv4()) {
                list.push(Change::Anchor { device: plan.device.clone() });
            }
        }
        Family::V6 => list.push(set("disable_ipv6", "0")),
    }
}

/// Forwarding is asked of the interface that a packet comes in by.
fn forwarding(plan: &HostPlan, facts: &Facts, family: Family, list: &mut Vec<Change>) {
    let mut inbound: BTreeSet<&str> = server_links(plan, facts, family).collect();
    // Of whichever family the server is: an error about what it sends comes in that of the VIP.
    let one_way = plan.one_way.iter().filter_map(|net| facts.ways.get(net)).filter(|way| !way.local);
    inbound.extend(one_way.filter_map(|way| way.device.as_deref()).filter(|name| *name != plan.device));
    inbound.extend(facts.uplinks(family).iter().map(|uplink| uplink.name.as_str()));
    let answered = attract::answered(plan, facts, family);
    inbound.extend(answered.iter().map(|answered| answered.link));
    // Also where nobody asks for it: on a link without neighbours, or where the address is the host's own.
    inbound.extend(peer_links(plan, facts, family));
    inbound.insert(&plan.device);

    if family == Family::V4 {
        list.extend(inbound.iter().map(|name| sysctl(family, "conf", name, "forwarding", "1")));
        // Answers to probes come from the VIP, and by the interface where clients do not: 2 lets them in.
        if plan.probes.iter().any(|probe| probe.own.is_ipv4()) {
            list.extend(facts.strict.iter().map(|name| sysctl(family, "conf", name, "rp_filter", "2")));
        }
        return;
    }
    // NDP is answered for others only on an interface that is a router's (ndisc_recv_ns).
    let routers: Vec<&str> = answered.iter().map(|answered| answered.link).collect();
    // An interface that becomes a router's ignores advertisements unless told otherwise (2), and at that moment
    // the kernel throws away the advertised default routes of *all* interfaces not so told
    // (rt6_purge_dflt_routers). So this comes first.
    let keep = |name: &str| {
        if facts.force_forwarding {
            !routers.is_empty() && (routers.contains(&name) || facts.ra_default.contains(name))
        } else {
            true
        }
    };
    for name in facts.accepts_ra.iter().filter(|name| keep(name)) {
        list.push(sysctl(family, "conf", name, "accept_ra", "2"));
    }
    if facts.force_forwarding {
        list.extend(inbound.iter().map(|name| sysctl(family, "conf", name, "force_forwarding", "1")));
    } else {
        list.push(Change::ForwardAll6);
    }
    list.extend(routers.iter().map(|name| sysctl(family, "conf", name, "forwarding", "1")));
}

/// The interfaces behind which the servers are, and the inside networks.
fn server_links<'a>(plan: &'a HostPlan, facts: &'a Facts, family: Family) -> impl Iterator<Item = &'a str> + 'a {
    links_to(plan, facts, plan.returns.iter().map(|path| &path.from), family)
}

/// The interfaces behind which those are that answer to pools.
fn peer_links<'a>(plan: &'a HostPlan, facts: &'a Facts, family: Family) -> impl Iterator<Item = &'a str> + 'a {
    links_to(plan, facts, plan.vips.iter().flat_map(|vip| &vip.peers), family)
}

fn links_to<'a>(
    plan: &'a HostPlan,
    facts: &'a Facts,
    nets: impl Iterator<Item = &'a IpNet> + 'a,
    family: Family,
) -> impl Iterator<Item = &'a str> + 'a {
    nets.filter(move |net| Family::of(net.addr()) == family)
        .filter_map(|net| facts.ways.get(net))
        .filter(|way| !way.local)
        .flat_map(|way| way.device.iter().chain(&way.others))
        .map(String::as_str)
        .filter(|name| *name != plan.device)
}

fn rules(plan: &HostPlan, facts: &Facts, family: Family, list: &mut Vec<Change>) {
    if !needs_slot(plan, facts) {
        return;
    }
    let (local_returns, returns): (Vec<&ReturnPath>, Vec<&ReturnPath>) = plan
        .returns
        .iter()
        .filter(|r| Family::of(r.from.addr()) == family)
        .partition(|r| facts.ways.get(&r.from).is_some_and(|way| way.local));
    let returns = Returns::gather(&returns);
    let local_returns = Returns::gather(&local_returns);
    let vips: Vec<&VipPlan> = plan
        .vips
        .iter()
        .filter(|vip| Family::of(vip.address) == family && facts.local_vips.contains_key(&vip.address))
        .collect();
    let host = host_source(&vips, facts);

    let lookup = Action::Lookup(table(facts.slot));
    // The slot is claimed in zone B whether or not there is a rule to put there.
    block(plan, facts, family, Zone::B, list);
    list.push(Change::Route {
        table: table(facts.slot),
        destination: family.any(),
        device: plan.device.clone(),
        source: host,
    });
    zone_b(plan, facts, family, &local_returns, &returns, list);

    let probes: Vec<&ProbePath> = plan.probes.iter().filter(|probe| Family::of(probe.own) == family).collect();
    if vips.is_empty() && probes.is_empty() {
        return;
    }
    block(plan, facts, family, Zone::A, list);
    probe_rules(facts, family, &probes, list);
    zone_a(facts, family, &vips, host, &returns, lookup, list);
    list.push(Change::MoveLocal(family));
    if family == Family::V6 {
        // ICMPv6 to the VIP goes to the device, neighbour discovery must not: a proxy entry makes the kernel take
        // it out on the way (ip6_forward_proxy_check, which only looks when `all` has it).
        let holders: BTreeSet<(&IpAddr, &str)> = vips
            .iter()
            .filter_map(|vip| facts.local_vips.get_key_value(&vip.address))
            .filter_map(|(vip, holder)| Some((vip, holder.as_deref()?)))
            .collect();
        if !holders.is_empty() {
            list.push(sysctl(family, "conf", "all", "proxy_ndp", "1"));
        }
        list.extend(holders.into_iter().map(|(vip, name)| Change::Proxy { address: *vip, device: name.to_owned() }));
    }
}

/// What begins and ends every block.
fn block(plan: &HostPlan, facts: &Facts, family: Family, zone: Zone, list: &mut Vec<Change>) {
    let (start, end) = (zone.start(facts.slot), zone.end(facts.slot));
    let out = Action::Goto(end);
    list.push(Change::Rule(Rule::new(family, end, Action::Nop)));
    list.push(Change::Rule(Rule::new(family, start + at::OWN, out).iif(&plan.device)));
    if family == Family::V6 {
        // Neighbour discovery; no service has a link-local address.
        let link_local = IpNet::V6(ipnet::Ipv6Net::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10));
        list.push(Change::Rule(Rule::new(family, start + at::LINK_LOCAL, out).from(link_local)));
    }
    for (_, slot, device) in facts.others.iter().filter(|(other, ..)| *other == zone) {
        let (lower, device) = if *slot < facts.slot { (*slot, &plan.device) } else { (facts.slot, device) };
        list.push(Change::Rule(
            Rule::new(family, zone.start(lower) + at::OTHERS, Action::Goto(zone.end(lower))).iif(device),
        ));
    }
}

/// Zone A: answers to probes.
fn probe_rules(facts: &Facts, family: Family, probes: &[&ProbePath], list: &mut Vec<Change>) {
    let (pref, lookup) = (Zone::A.start(facts.slot) + at::PROBES, Action::Lookup(table(facts.slot)));
    let ports = Ports { first: *PROBE_PORTS.start(), last: *PROBE_PORTS.end() };
    for own in probes.iter().map(|probe| probe.own).collect::<BTreeSet<_>>() {
        let from: Vec<&ReturnPath> = probes.iter().filter(|probe| probe.own == own).map(|probe| &probe.from).collect();
        let from = Returns::gather(&from);
        let whole = from.whole().map(|(protocol, from)| (protocol, ANY_PORT, from));
        for (protocol, sport, from) in named(&from).chain(whole) {
            let rule = Rule::new(family, pref, lookup).from(from).to(IpNet::from(own));
            list.push(Change::Rule(rule.protocol(protocol).sport(sport).dport(ports)));
        }
    }
}

/// Zone A: what is addressed to a local VIP and belongs to a service.
fn zone_a(
    facts: &Facts,
    family: Family,
    vips: &[&VipPlan],
    host: Option<IpAddr>,
    returns: &Returns,
    lookup: Action,
    list: &mut Vec<Change>,
) {
    let start = Zone::A.start(facts.slot);
    let out = Action::Goto(Zone::A.end(facts.slot));
    let rule = |offset, action| Rule::new(family, start + offset, action);
    let mut rules = Vec::new();

    for vip in vips {
        let to = IpNet::from(vip.address);
        let whole: BTreeSet<u8> = vip.listeners.iter().filter(|l| l.ports.is_none()).map(|l| l.protocol).collect();
        let parts: BTreeSet<Listener> =
            vip.listeners.iter().filter(|l| !whole.contains(&l.protocol)).copied().collect();
        for part in &parts {
            if let Some(ports) = part.ports.and_then(nameable) {
                rules.push(rule(at::VIP_PORTS, lookup).to(to).protocol(part.protocol).dport(ports));
            }
        }
        // Errors about the gateway's own packets, and echo.
        let icmp = if vip.listeners.is_empty() { None } else { Some(family.icmp()) };
        for protocol in whole.iter().copied().chain(icmp.filter(|p| !whole.contains(p))) {
            rules.push(rule(at::VIP_PROTOCOL, lookup).to(to).protocol(protocol));
        }
        for protocol in parts.iter().map(|part| part.protocol).collect::<BTreeSet<u8>>() {
            rules.push(rule(at::VIP_OTHER_PORTS, out).to(to).protocol(protocol).dport(ANY_PORT));
            rules.push(rule(at::VIP_FRAGMENTS, lookup).to(to).protocol(protocol));
        }
    }
    // A process of this host that talks to a local VIP has `host` as its source; the replies come to a local
    // address and must not be taken for the host's.
    if let Some(host) = host.map(IpNet::from) {
        for (protocol, ports, from) in named(returns) {
            rules.push(rule(at::HOST_PORTS, lookup).from(from).to(host).protocol(protocol).sport(ports));
        }
        for (protocol, from) in returns.whole() {
            rules.push(rule(at::HOST_PROTOCOL, lookup).from(from).to(host).protocol(protocol));
        }
    }
    list.extend(rules.into_iter().map(Change::Rule));
}

/// Zone B: what comes back from servers.
fn zone_b(plan: &HostPlan, facts: &Facts, family: Family, local: &Returns, returns: &Returns, list: &mut Vec<Change>) {
    let start = Zone::B.start(facts.slot);
    let out = Action::Goto(Zone::B.end(facts.slot));
    let lookup = Action::Lookup(table(facts.slot));
    let rule = |offset, action| Rule::new(family, start + offset, action);
    let mut rules = Vec::new();

    if returns.is_empty() && local.is_empty() {
        return;
    }
    if !facts.local_first(family) {
        rules.push(rule(at::LOCAL_TABLE, Action::Lookup(TABLE_LOCAL)));
    }
    for (protocol, ports, from) in named(local) {
        rules.push(rule(at::LOCAL_SERVER_PORTS, lookup).from(from).protocol(protocol).sport(ports));
    }
    for (protocol, from) in local.whole() {
        rules.push(rule(at::LOCAL_SERVER_PROTOCOL, lookup).from(from).protocol(protocol));
    }
    // The kernel's own errors about what came out of the device (too big, time exceeded, no such neighbour)
    // quote the packet as it was sent to the server; only the gateway can turn that into what the client knows.
    // Where the kernel looks up the way of an ICMP message of its own, its type and code lie where TCP has
    // the destination port (`union flowi_uli`, include/net/flow.h), so a rule can tell errors from echo.
    for types in error_types(family) {
        rules.push(rule(at::OWN_ERRORS, lookup).iif("lo").protocol(family.icmp()).dport(*types));
    }
    // The host's own connections to servers, the health checks among them, are not the gateway's.
    rules.push(rule(at::FROM_HOST, out).iif("lo"));
    // Errors of routers between here and the servers have any source. What the gateway does not know it passes.
    for name in server_links(plan, facts, family).collect::<BTreeSet<&str>>() {
        rules.push(rule(at::ICMP, lookup).iif(name).protocol(family.icmp()));
    }
    for (protocol, ports, from) in named(returns) {
        rules.push(rule(at::RETURN_PORTS, lookup).from(from).protocol(protocol).sport(ports));
    }
    for (protocol, from) in returns.whole() {
        rules.push(rule(at::RETURN_PROTOCOL, lookup).from(from).protocol(protocol));
    }
    for from in &returns.all {
        rules.push(rule(at::RETURN_ALL, lookup).from(*from));
    }
    let fragments = returns.fragments();
    for protocol in fragments.keys() {
        rules.push(rule(at::OTHER_PORTS, out).protocol(*protocol).sport(ANY_PORT));
    }
    for (protocol, nets) in fragments {
        rules.extend(nets.into_iter().map(|from| rule(at::RETURN_FRAGMENTS, lookup).from(from).protocol(protocol)));
    }
    list.extend(rules.into_iter().map(Change::Rule));
}

/// All ports that a rule can name: the kernel refuses 0 and 65535 (`fib_rule_port_range_valid`). A packet with
/// port 65535 goes where fragments go.
const ANY_PORT: Ports = Ports { first: 1, last: u16::MAX - 1 };

/// The part of a range that a rule can name.
fn nameable(ports: Ports) -> Option<Ports> {
    let ports = Ports { first: ports.first.max(ANY_PORT.first), last: ports.last.min(ANY_PORT.last) };
    (ports.first <= ports.last).then_some(ports)
}

fn named(returns: &Returns) -> impl Iterator<Item = (u8, Ports, IpNet)> + '_ {
    returns.with_ports().filter_map(|(protocol, ports, from)| Some((protocol, nameable(ports)?, from)))
}

/// ICMP types that are errors, as `type << 8 | code`.
fn error_types(family: Family) -> &'static [Ports] {
    const fn types(first: u8, last: u8) -> Ports {
        Ports { first: (first as u16) << 8, last: (last as u16) << 8 | 0xff }
    }
    match family {
        // Destination unreachable; time exceeded and parameter problem (RFC 792).
        Family::V4 => const { &[types(3, 3), types(11, 12)] },
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
        Family::V6 => const { &[types(1, 4)] },
    }
}

/// The source address for connections of this host to a local VIP: a local VIP that the host does not also use
/// towards a server, for the replies to both would look alike.
fn host_source(vips: &[&VipPlan], facts: &Facts) -> Option<IpAddr> {
    vips.iter()
        .map(|vip| vip.address)
        .filter(|vip| facts.ways.values().all(|way| way.local || way.source != Some(*vip)))
        .min()
}

pub(super) fn sysctl(family: Family, group: &str, name: &str, key: &str, value: &str) -> Change {
    Change::Sysctl { path: format!("net/{}/{group}/{name}/{key}", family.sysctl_dir()), value: value.to_owned() }
}
