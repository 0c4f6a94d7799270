//! The kernel's side: rtnetlink requests for what a [`Change`](super::change::Change) needs, and questions.

mod own;
mod replies;

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::packet_core::Nla;
use rtnetlink::{Error, Handle, IpVersion, LinkUnspec};

use super::change::{ANCHOR, Action, Family, LinkProperty, PROTOCOL, Ports, Rule, TABLE_MAIN};
pub use own::OwnTable;

/// A connection to rtnetlink, and the links as they were when it was made.
pub struct Net {
    pub(super) handle: Handle,
    connection: tokio::task::JoinHandle<()>,
    pub links: Vec<Link>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What is of interest of a link.
#[derive(Clone, Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub txqueuelen: u32,
    pub up: bool,
    pub loopback: bool,
    /// It resolves addresses by ARP or NDP.
    pub resolves: bool,
    pub address: Vec<u8>,
    /// The interface that it is a port of.
    pub controller: Option<u32>,
}

impl Link {
    /// The value that the link has for the same property.
    pub fn same_property(&self, property: LinkProperty) -> LinkProperty {
        match property {
            LinkProperty::Mtu(_) => LinkProperty::Mtu(self.mtu),
            LinkProperty::TxQueueLen(_) => LinkProperty::TxQueueLen(self.txqueuelen),
            LinkProperty::Up(_) => LinkProperty::Up(self.up),
        }
    }
}

/// A rule as the kernel has it.
#[derive(Clone, Debug)]
pub struct KernelRule {
    pub pref: u32,
    /// It carries our protocol number.
    pub ours: bool,
    pub iif: Option<String>,
    /// `None` when it has attributes that ours never have.
    pub rule: Option<Rule>,
}

/// What a route lookup found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub kind: RouteType,
    pub device: Option<String>,
    pub source: Option<IpAddr>,
    /// The way leads by a router.
    pub gateway: bool,
}

impl Net {
    pub async fn connect() -> std::io::Result<Net> {
        // The strict check makes the kernel filter dumps; Linux before 4.20 has none.
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().or_else(|_| rtnetlink::new_connection())?;
        let connection = tokio::spawn(connection);
        let mut net = Net { handle, connection, links: Vec::new() };
        net.links = net.read_links().await.map_err(into_io)?;
        Ok(net)
    }

    async fn read_links(&self) -> Result<Vec<Link>, Error> {
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        Ok(links.into_iter().map(Link::from).collect())
    }

    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link as it is now.
    pub async fn current(&self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.read_links().await?.into_iter().find(|link| link.name == name))
    }

    fn name(&self, index: u32) -> Option<String> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.clone())
    }

    fn index(&self, name: &str) -> Result<u32, Error> {
        self.link(name).map(|link| link.index).ok_or_else(|| errno_error(libc::ENODEV))
    }

    pub async fn set_link(&self, name: &str, property: LinkProperty) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(self.index(name)?);
        let link = match property {
            LinkProperty::Mtu(mtu) => link.mtu(mtu),
            LinkProperty::TxQueueLen(n) => link.txqueuelen(n),
            LinkProperty::Up(true) => link.up(),
            LinkProperty::Up(false) => link.down(),
        };
        self.handle.link().set(link.build()).execute().await
    }

    /// Makes `device` a port of `bridge`, or of none.
    pub async fn set_port(&self, device: &str, bridge: Option<&str>) -> Result<(), Error> {
        let link = LinkUnspec::new_with_index(self.index(device)?);
        let link = match bridge {
            Some(bridge) => link.controller(self.index(bridge)?),
            None => link.nocontroller(),
        };
        self.handle.link().set(link.build()).execute().await
    }

    /// The bridge that `device` is a port of now.
    pub async fn bridge_of(&self, device: &str) -> Result<Option<String>, Error> {
        let controller = self.current(device).await?.and_then(|link| link.controller);
        Ok(controller.and_then(|index| self.name(index)))
    }

    pub async fn rules(&self, family: Family) -> Result<Vec<KernelRule>, Error> {
        let rules: Vec<RuleMessage> = self.handle.rule().get(version(family)).execute().try_collect().await?;
        // An attribute-less rule 0 comes without its priority.
        Ok(rules.iter().map(|message| KernelRule::read(family, message)).collect())
    }

    pub async fn add_rule(&self, rule: &Rule, protocol: u8) -> Result<(), Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule, protocol);
        request.execute().await
    }

    pub async fn delete_rule(&self, rule: &Rule) -> Result<(), Error> {
        // The protocol is left out: the rule may have been made by hand, and rule_find does not look at it.
        self.handle.rule().del(rule_message(rule, 0)).execute().await
    }

    pub async fn add_route(
        &self,
        table: u32,
        destination: IpNet,
        device: &str,
        source: Option<IpAddr>,
        replace: bool,
    ) -> Result<(), Error> {
        let mut message = route_message(table, destination, self.index(device)?);
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        if let Some(source) = source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        let request = self.handle.route().add(message);
        if replace { request.replace().execute().await } else { request.execute().await }
    }

    pub async fn delete_route(&self, table: u32, destination: IpNet, device: &str) -> Result<(), Error> {
        let mut message = route_message(table, destination, self.index(device)?);
        // On deletion the scope "nowhere" stands for any (fib_table_delete).
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.handle.route().del(message).execute().await
    }

    /// Routes with our mark that lead to `device`.
    pub async fn own_routes(&self, device: &str) -> Result<Vec<(u32, IpNet)>, Error> {
        let index = self.index(device)?;
        let mut found = Vec::new();
        for family in Family::BOTH {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            filter.header.protocol = RouteProtocol::from(PROTOCOL);
            filter.attributes.push(RouteAttribute::Oif(index));
            for route in self.dump_routes(filter).await? {
                if route.header.protocol == RouteProtocol::from(PROTOCOL) && oif(&route) == Some(index) {
                    found.push((table_of(&route), destination(family, &route)));
                }
            }
        }
        Ok(found)
    }

    pub async fn table_is_empty(&self, table: u32) -> Result<bool, Error> {
        for family in Family::BOTH {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            filter.attributes.push(RouteAttribute::Table(table));
            if self.dump_routes(filter).await?.iter().any(|route| table_of(route) == table) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The interfaces of the default routes of the main table, and whether a router advertised them.
    pub async fn default_links(&self, family: Family) -> Result<Vec<(String, bool)>, Error> {
        let mut found: Vec<(String, bool)> = Vec::new();
        for route in self.unicast_routes(family).await? {
            if route.header.destination_prefix_length != 0 {
                continue;
            }
            let advertised = route.header.protocol == RouteProtocol::Ra;
            for name in self.devices_of(&route) {
                if !found.contains(&(name.clone(), advertised)) {
                    found.push((name, advertised));
                }
            }
        }
        Ok(found)
    }

    /// The main table: what leads where, once for each interface.
    pub async fn main_routes(&self, family: Family) -> Result<Vec<(IpNet, String)>, Error> {
        let routes = self.unicast_routes(family).await?;
        let named = |route: &RouteMessage| {
            let destination = destination(family, route);
            self.devices_of(route).into_iter().map(move |name| (destination, name)).collect::<Vec<_>>()
        };
        Ok(routes.iter().flat_map(named).collect())
    }

    /// The main table's, to single hosts and networks.
    async fn unicast_routes(&self, family: Family) -> Result<Vec<RouteMessage>, Error> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = address_family(family);
        filter.attributes.push(RouteAttribute::Table(TABLE_MAIN));
        let mut routes = self.dump_routes(filter).await?;
        routes.retain(|route| route.header.kind == RouteType::Unicast && table_of(route) == TABLE_MAIN);
        Ok(routes)
    }

    fn devices_of(&self, route: &RouteMessage) -> Vec<String> {
        let hops = route.attributes.iter().flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        });
        hops.filter_map(|index| self.name(index)).collect()
    }

    async fn dump_routes(&self, filter: RouteMessage) -> Result<Vec<RouteMessage>, Error> {
        let dump: Result<Vec<_>, Error> = self.handle.route().get(filter).execute().try_collect().await;
        match dump {
            // The table does not exist; the family does not.
            Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Where the host itself would send a packet for `address`; `None` when nowhere.
    pub async fn lookup(&self, address: IpAddr) -> Result<Option<Found>, Error> {
        let mut query = RouteMessage::default();
        query.header.address_family = address_family(Family::of(address));
        query.header.destination_prefix_length = IpNet::from(address).prefix_len();
        query.attributes.push(RouteAttribute::Destination(address.into()));
        let answer: Result<Vec<RouteMessage>, Error> = self.handle.route().get(query).execute().try_collect().await;
        match answer {
            Ok(routes) => Ok(routes.first().map(|route| Found {
                kind: route.header.kind,
                device: oif(route).and_then(|index| self.name(index)),
                gateway: route
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))),
                source: route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::PrefSource(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
                    _ => None,
                }),
            })),
            Err(error) if errno(&error) == Some(libc::EPERM) => Err(error),
            // Unreachable, prohibited, blackholed, no such family: all the same here.
            Err(Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The addresses of a family with the interface that has each.
    pub async fn addresses(&self) -> Result<Vec<(IpAddr, String)>, Error> {
        use netlink_packet_route::address::AddressAttribute;
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                // On a point-to-point link `Address` is the far end, `Local` the host's own.
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
                let any = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
                Some((local.or(any)?, self.name(message.header.index)?))
            })
            .collect())
    }

    /// [`ANCHOR`] on the device, with scope `host`.
    pub async fn add_anchor(&self, device: &str) -> Result<(), Error> {
        let mut request = self.handle.address().add(self.index(device)?, ANCHOR.into(), 32);
        request.message_mut().header.scope = AddressScope::Host;
        request.execute().await
    }

    pub async fn drop_anchor(&self, device: &str) -> Result<(), Error> {
        self.drop_addresses(device, |address| address == ANCHOR).await
    }

    /// Take the link-local address away that the kernel gave the device when it came up.
    pub async fn drop_link_local(&self, device: &str) -> Result<(), Error> {
        self.drop_addresses(device, |address| matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())).await
    }

    async fn drop_addresses(&self, device: &str, which: impl Fn(IpAddr) -> bool) -> Result<(), Error> {
        let index = self.index(device)?;
        let messages: Vec<_> = self.handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        for message in messages {
            let listed = message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Address(address) if which(*address)));
            if listed {
                self.handle.address().del(message).execute().await?;
            }
        }
        Ok(())
    }

    /// The proxy entries: address, interface, and whether they carry our mark.
    pub async fn proxies(&self) -> Result<Vec<(IpAddr, String, bool)>, Error> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let dump: Result<Vec<NeighbourMessage>, Error> = self
                .handle
                .neighbours()
                .get()
                .set_address_family(address_family(family))
                .proxies()
                .execute()
                .try_collect()
                .await;
            let entries = match dump {
                Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => continue,
                other => other?,
            };
            for entry in entries {
                let address = entry.attributes.iter().find_map(neighbour_address);
                let ours = entry.attributes.contains(&NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
                if let (Some(address), Some(name)) = (address, self.name(entry.header.ifindex)) {
                    found.push((address, name, ours));
                }
            }
        }
        Ok(found)
    }

    pub async fn add_proxy(&self, address: IpAddr, device: &str) -> Result<(), Error> {
        let mut request =
            self.handle.neighbours().add(self.index(device)?, address).flags(NeighbourFlags::Proxy).replace();
        request.message_mut().attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
        request.execute().await
    }

    pub async fn delete_proxy(&self, address: IpAddr, device: &str) -> Result<(), Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = address_family(Family::of(address));
        message.header.ifindex = self.index(device)?;
        message.header.flags = NeighbourFlags::Proxy;
        message.attributes.push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }));
        self.handle.neighbours().del(message).execute().await
    }
}

/// The error number behind an error, positive.
pub fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => message.code.map(|code| code.get().saturating_neg()),
        _ => None,
    }
}

/// The kernel was built or started without this family.
pub fn absent_family(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
}

/// What was to be deleted is not there, or its device is not, or the family.
pub fn gone(error: &rtnetlink::Error) -> bool {
    absent_family(error)
        || matches!(errno(error), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL))
}

pub fn into_io(error: Error) -> std::io::Error {
    match errno(&error) {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::other(error.to_string()),
    }
}

fn errno_error(code: i32) -> Error {
    let mut message = rtnetlink::packet_core::ErrorMessage::default();
    message.code = std::num::NonZeroI32::new(-code);
    Error::NetlinkError(message)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            txqueuelen: 0,
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            resolves: !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
            address: Vec::new(),
            controller: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::TxQueueLen(n) => link.txqueuelen = n,
                LinkAttribute::Address(address) => link.address = address,
                LinkAttribute::Controller(index) => link.controller = Some(index).filter(|index| *index != 0),
                _ => {}
            }
        }
        link
    }
}

impl KernelRule {
    fn read(family: Family, message: &RuleMessage) -> Self {
        let header = &message.header;
        let mut rule = Rule::new(family, 0, Action::Nop);
        let (mut table, mut target) = (u32::from(header.table), None);
        // Selectors and properties that our rules do not have.
        let mut foreign = header.tos != 0;
        let mut ours = false;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(pref) => rule.pref = *pref,
                RuleAttribute::Table(id) => table = *id,
                RuleAttribute::Goto(pref) => target = Some(*pref),
                RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
                RuleAttribute::Destination(address) => rule.to = IpNet::new(*address, header.dst_len).ok(),
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::IpProtocol(protocol) => {
                    rule.protocol = u8::try_from(i32::from(*protocol)).ok();
                }
                RuleAttribute::SourcePortRange(range) => rule.sport = Some(ports(range)),
                RuleAttribute::DestinationPortRange(range) => rule.dport = Some(ports(range)),
                RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
                // -1 is "does not suppress".
                RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                RuleAttribute::FwMark(0) | RuleAttribute::FwMask(0) => {}
                // Since Linux 6.15 a rule for one port shows a mask of all bits with it.
                RuleAttribute::Other(other) if matches!(other.kind(), FRA_SPORT_MASK | FRA_DPORT_MASK) => {
                    let mut mask = [0; 2];
                    foreign |= other.value_len() != mask.len() || {
                        other.emit_value(&mut mask);
                        mask != [0xff; 2]
                    };
                }
                _ => foreign = true,
            }
        }
        let action = match (header.action, target) {
            (RuleAction::ToTable, _) => Some(Action::Lookup(table)),
            (RuleAction::Goto, Some(pref)) => Some(Action::Goto(pref)),
            (RuleAction::Nop, _) => Some(Action::Nop),
            _ => None,
        };
        let (pref, iif) = (rule.pref, rule.iif.clone());
        let rule = action.filter(|_| !foreign).map(|action| Rule { action, ..rule });
        KernelRule { pref, ours, iif, rule }
    }
}

/// include/uapi/linux/fib_rules.h
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;

fn ports(range: &RulePortRange) -> Ports {
    Ports { first: range.start, last: range.end }
}

fn rule_message(rule: &Rule, protocol: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.pref));
    if protocol != 0 {
        attributes.push(RuleAttribute::Protocol(RouteProtocol::from(protocol)));
    }
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        attributes.push(RuleAttribute::Destination(to.network()));
    }
    if let Some(iif) = &rule.iif {
        attributes.push(RuleAttribute::Iifname(iif.clone()));
    }
    if let Some(protocol) = rule.protocol {
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(i32::from(protocol))));
    }
    let range = |ports: Ports| RulePortRange { start: ports.first, end: ports.last };
    attributes.extend(rule.sport.map(range).map(RuleAttribute::SourcePortRange));
    attributes.extend(rule.dport.map(range).map(RuleAttribute::DestinationPortRange));
    message.header.action = match rule.action {
        Action::Lookup(table) => {
            match u8::try_from(table) {
                Ok(table) => message.header.table = table,
                Err(_) => attributes.push(RuleAttribute::Table(table)),
            }
            RuleAction::ToTable
        }
        Action::Goto(pref) => {
            attributes.push(RuleAttribute::Goto(pref));
            RuleAction::Goto
        }
        Action::Nop => RuleAction::Nop,
    };
    message
}

fn route_message(table: u32, destination: IpNet, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(destination.addr()));
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.kind = RouteType::Unicast;
    message.header.scope = if destination.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    match u8::try_from(table) {
        Ok(table) => message.header.table = table,
        Err(_) => {
            message.header.table = RouteHeader::RT_TABLE_UNSPEC;
            message.attributes.push(RouteAttribute::Table(table));
        }
    }
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message.header.flags = RouteFlags::empty();
    message
}

pub(super) fn neighbour_address(attribute: &NeighbourAttribute) -> Option<IpAddr> {
    match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(route.header.table))
}

fn destination(family: Family, route: &RouteMessage) -> IpNet {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    });
    address.and_then(|address| IpNet::new(address, route.header.destination_prefix_length).ok()).unwrap_or(family.any())
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}
