//! Which addresses are the host's own.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::Error;

use super::super::change::{Family, TABLE_LOCAL};
use super::{Found, Net, address_family, destination, oif, table_of};

/// The routes of the table `local`.
#[derive(Debug, Default)]
pub struct OwnTable(Vec<OwnRoute>);

#[derive(Debug)]
struct OwnRoute {
    destination: IpNet,
    kind: RouteType,
    device: Option<String>,
}

impl OwnTable {
    /// `None` where the address is one of other hosts.
    pub fn lookup(&self, address: IpAddr) -> Option<Found> {
        let all = self.0.iter().filter(|route| route.destination.contains(&address));
        let route = all.max_by_key(|route| route.destination.prefix_len())?;
        let kinds = [RouteType::Local, RouteType::Broadcast, RouteType::Multicast, RouteType::Anycast];
        kinds.contains(&route.kind).then(|| Found {
            kind: route.kind,
            device: route.device.clone(),
            source: Some(address),
            gateway: false,
        })
    }
}

impl Net {
    /// What the host's own table says of addresses: which are its own, and which are nobody's alone. Rules have no say in it,
    /// those of gateways among them.
    pub async fn own_table(&self) -> Result<OwnTable, Error> {
        let mut table = OwnTable::default();
        for family in Family::BOTH {
            let mut filter = RouteMessage::default();
            filter.header.address_family = address_family(family);
            filter.attributes.push(RouteAttribute::Table(TABLE_LOCAL));
            let routes = self.dump_routes(filter).await?;
            let own = routes.iter().filter(|route| table_of(route) == TABLE_LOCAL);
            table.0.extend(own.map(|route| OwnRoute {
                destination: destination(family, route),
                kind: route.header.kind,
                device: oif(route).and_then(|index| self.name(index)),
            }));
        }
        Ok(table)
    }
}
