//! What a real server needs of rtnetlink besides: addresses on its device, and copies of routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressScope, CacheInfo};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::Error;

use super::super::change::{Family, Hop, PROTOCOL, ReplyRoute, TABLE_MAIN};
use super::{Net, address_family, destination, table_of};

/// `INFINITY_LIFE_TIME` (include/net/addrconf.h).
const FOREVER: u32 = u32::MAX;
/// `IP6_RT_PRIO_USER` (include/uapi/linux/ipv6_route.h), which an IPv6 route gets that names none.
const IPV6_PRIORITY: u32 = 1024;

impl Net {
    /// Puts an address on a link that is never the source of what the host begins by itself: in IPv4 by its scope
    /// (`inet_select_addr`), in IPv6 because it is deprecated (RFC 6724 section 5, rule 3).
    pub async fn add_address(&self, address: IpAddr, device: &str) -> Result<(), Error> {
        let prefix = IpNet::from(address).prefix_len();
        let mut request = self.handle.address().add(self.index(device)?, address, prefix);
        let message = request.message_mut();
        match address {
            IpAddr::V4(_) => message.header.scope = AddressScope::Host,
            IpAddr::V6(_) => {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
                let mut life = CacheInfo::default();
                (life.ifa_preferred, life.ifa_valid) = (0, FOREVER);
                message.attributes.push(AddressAttribute::CacheInfo(life));
            }
        }
        request.execute().await
    }

    pub async fn delete_address(&self, address: IpAddr, device: &str) -> Result<(), Error> {
        self.drop_addresses(device, |found| found == address).await
    }

    pub async fn add_reply_route(&self, route: &ReplyRoute, replace: bool) -> Result<(), Error> {
        let mut message = self.reply_route_message(route)?;
        message.header.protocol = RouteProtocol::from(PROTOCOL);
        let request = self.handle.route().add(message);
        if replace { request.replace().execute().await } else { request.execute().await }
    }

    pub async fn delete_reply_route(&self, route: &ReplyRoute) -> Result<(), Error> {
        let mut message = place_message(route);
        // On deletion the scope "nowhere" stands for any (fib_table_delete).
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        self.handle.route().del(message).execute().await
    }

    /// Whether each of `routes` is there. The kernel takes routes away by itself, when their link goes down.
    pub async fn has_reply_routes(&self, table: u32, routes: &[&ReplyRoute]) -> Result<Vec<bool>, Error> {
        let mut there = Vec::new();
        for family in Family::BOTH {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            filter.attributes.push(RouteAttribute::Table(table));
            for route in self.dump_routes(filter).await?.iter().filter(|route| table_of(route) == table) {
                there.push((destination(family, route), route.header.tos, priority(family, route)));
            }
        }
        let is_there = |route: &&ReplyRoute| there.contains(&(route.destination, route.tos, route.priority));
        Ok(routes.iter().map(is_there).collect())
    }

    /// Removes every route with our mark from a table.
    pub async fn empty_table(&self, table: u32) -> Result<usize, Error> {
        let mut removed = 0;
        for family in Family::BOTH {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            filter.attributes.push(RouteAttribute::Table(table));
            for route in self.dump_routes(filter).await? {
                if table_of(&route) == table && route.header.protocol == RouteProtocol::from(PROTOCOL) {
                    self.handle.route().del(route).execute().await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// The main table's routes of a family for a table of replies. A route that cannot be said in the same words becomes
    /// one without hops: whoever comes to it goes on to the main table. `None` when there are more than `limit`.
    pub async fn reply_routes(
        &self,
        family: Family,
        table: u32,
        advmss: u32,
        limit: usize,
    ) -> Result<Option<Vec<ReplyRoute>>, Error> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = address_family(family);
        filter.attributes.push(RouteAttribute::Table(TABLE_MAIN));
        let mut found: Vec<ReplyRoute> = Vec::new();
        for message in self.dump_routes(filter).await? {
            if table_of(&message) != TABLE_MAIN {
                continue;
            }
            let Some(route) = self.reply_route(family, table, advmss, &message) else { continue };
            // Two default routers of the same preference are two routes in IPv6; the first is enough for replies.
            if !found.iter().any(|other| other.same_place(&route)) {
                found.push(route);
            }
            if found.len() > limit {
                return Ok(None);
            }
        }
        // What is nearer first: the next hops of the others are reached by it.
        found.sort_by_key(|route| std::cmp::Reverse(route.destination.prefix_len()));
        Ok(Some(found))
    }

    /// `None` for what is not there for the moment, and what no client's way leads by.
    fn reply_route(&self, family: Family, table: u32, advmss: u32, message: &RouteMessage) -> Option<ReplyRoute> {
        let destination = destination(family, message);
        if message.header.flags.contains(RouteFlags::Dead) || is_link_local(destination) {
            return None;
        }
        let metric = |attribute: &RouteAttribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Advmss(mss) => Some(*mss),
                _ => None,
            }),
            _ => None,
        };
        let mtu = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            }),
            _ => None,
        });
        Some(ReplyRoute {
            table,
            destination,
            tos: message.header.tos,
            priority: priority(family, message),
            advmss: message.attributes.iter().find_map(metric).filter(|mss| *mss > 0).map_or(advmss, |m| m.min(advmss)),
            mtu,
            hops: self.hops(message).unwrap_or_default(),
        })
    }

    /// `None` when the route is none to a host, or has something that a [`Hop`] has not.
    fn hops(&self, message: &RouteMessage) -> Option<Vec<Hop>> {
        if message.header.kind != RouteType::Unicast {
            return None;
        }
        let onlink = message.header.flags.contains(RouteFlags::Onlink);
        let mut single = Hop { device: String::new(), gateway: None, weight: 0, onlink };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::MultiPath(hops) => {
                    let alive = hops.iter().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
                    return alive.map(|hop| self.one_of_many(hop)).collect();
                }
                RouteAttribute::Oif(index) => single.device = self.name(*index)?,
                RouteAttribute::Gateway(gateway) => single.gateway = Some(plain(gateway)?),
                RouteAttribute::Via(_) | RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => return None,
                _ => {}
            }
        }
        (!single.device.is_empty()).then(|| vec![single])
    }

    fn one_of_many(&self, hop: &RouteNextHop) -> Option<Hop> {
        let mut one = Hop {
            device: self.name(hop.interface_index)?,
            gateway: None,
            weight: hop.hops,
            onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
        };
        for attribute in &hop.attributes {
            match attribute {
                RouteAttribute::Gateway(gateway) => one.gateway = Some(plain(gateway)?),
                RouteAttribute::Via(_) | RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => return None,
                _ => {}
            }
        }
        Some(one)
    }

    fn reply_route_message(&self, route: &ReplyRoute) -> Result<RouteMessage, Error> {
        let mut message = place_message(route);
        let beyond_link = route.hops.iter().any(|hop| hop.gateway.is_some());
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.destination {
            IpNet::V4(_) if !beyond_link => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        match route.hops.as_slice() {
            [] => {
                message.header.kind = RouteType::Throw;
                message.header.scope = RouteScope::Universe;
                return Ok(message);
            }
            [hop] => {
                message.attributes.push(RouteAttribute::Oif(self.index(&hop.device)?));
                message.attributes.extend(hop.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
                message.header.flags = if hop.onlink { RouteFlags::Onlink } else { RouteFlags::empty() };
            }
            hops => {
                let many = hops.iter().map(|hop| {
                    let mut next = RouteNextHop::default();
                    next.interface_index = self.index(&hop.device)?;
                    next.hops = hop.weight;
                    next.flags = if hop.onlink { RouteNextHopFlags::Onlink } else { RouteNextHopFlags::empty() };
                    next.attributes.extend(hop.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
                    Ok(next)
                });
                message.attributes.push(RouteAttribute::MultiPath(many.collect::<Result<_, Error>>()?));
            }
        }
        let mut metrics = vec![RouteMetric::Advmss(route.advmss)];
        metrics.extend(route.mtu.map(RouteMetric::Mtu));
        message.attributes.push(RouteAttribute::Metrics(metrics));
        Ok(message)
    }
}

fn priority(family: Family, message: &RouteMessage) -> u32 {
    let named = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    named.unwrap_or(if family == Family::V6 { IPV6_PRIORITY } else { 0 })
}

/// What tells one route of a table from another.
fn place_message(route: &ReplyRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(route.destination.addr()));
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.tos = route.tos;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Priority(route.priority));
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    message
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn is_link_local(net: IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local() || address.is_multicast())
}
