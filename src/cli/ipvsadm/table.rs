//! The virtual server table, as a running gateway has it.

use std::net::{IpAddr, Ipv4Addr};

use super::command::{
    Checksum, Endpoint, Flags, Forward, Key, Mask, Persistence, Ports, Protocol, Real, Timeouts, Tunnel, Virtual,
};
use crate::control::api;
use crate::wire::outer::GUE_PORT;

/// Services in the order of the configuration, and timeouts.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub services: Vec<Service>,
    pub timeouts: Timeouts,
}

impl Default for Table {
    /// What IPVS has before anything was done to it.
    fn default() -> Table {
        Table { services: Vec::new(), timeouts: Timeouts::IPVS }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Of the gateway's service; one with two protocols has two lines in the table.
    pub name: String,
    pub settings: Virtual,
    pub servers: Vec<Server>,
    /// What IPVS calls masquerading is `fullnat` there, unless a server says otherwise.
    pub is_fullnat: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub name: String,
    pub settings: Real,
    pub counts: Counts,
    /// Shown as masquerading: IPVS has no word for it.
    pub is_fullnat: bool,
}

/// What was counted, and what goes on per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub active: u64,
    pub inactive: u64,
    /// Clients that persistence keeps here.
    pub persistent: u64,
    /// Connections, packets in and out, bytes in and out.
    pub totals: [u64; 5],
    /// The same per second.
    pub rates: [u64; 5],
}

impl Table {
    pub fn new(status: &api::Status) -> Table {
        let timeout = |name: &str, default: u32| {
            status.timeouts.get(name).map_or(default, |seconds| u32::try_from(*seconds).unwrap_or(u32::MAX))
        };
        let ipvs = Timeouts::IPVS;
        Table {
            services: status.services.iter().flat_map(services).collect(),
            timeouts: Timeouts {
                tcp: timeout("tcp_established", ipvs.tcp),
                tcp_fin: timeout("tcp_fin_wait", ipvs.tcp_fin),
                udp: timeout("udp", ipvs.udp),
            },
        }
    }

    pub fn find(&self, key: &Key) -> Option<&Service> {
        self.services.iter().find(|service| service.settings.key == *key)
    }

    /// Whether both have the same services and servers with the same settings, whatever was counted.
    pub fn is_set_up_as(&self, other: &Table) -> bool {
        let server = |(one, other): (&Server, &Server)| one.name == other.name && one.settings == other.settings;
        let service = |(one, other): (&Service, &Service)| {
            one.name == other.name
                && one.settings == other.settings
                && one.servers.len() == other.servers.len()
                && one.servers.iter().zip(&other.servers).all(server)
        };
        self.services.len() == other.services.len() && self.services.iter().zip(&other.services).all(service)
    }
}

impl Service {
    pub fn find(&self, at: Endpoint) -> Option<&Server> {
        self.servers.iter().find(|server| server.settings.at == at)
    }

    /// Of all servers together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for server in &self.servers {
            for (sum, more) in sum.totals.iter_mut().zip(server.counts.totals) {
                *sum = sum.saturating_add(more);
            }
            for (sum, more) in sum.rates.iter_mut().zip(server.counts.rates) {
                *sum = sum.saturating_add(more);
            }
        }
        sum
    }
}

/// The lines of one of the gateway's services: one for each of its protocols.
pub fn services(service: &api::Service) -> Vec<Service> {
    let Some((address, ports)) = listen(&service.listen) else { return Vec::new() };
    let protocols: &[Protocol] = match service.protocol.as_str() {
        "tcp" => &[Protocol::Tcp],
        "udp" => &[Protocol::Udp],
        "sctp" => &[Protocol::Sctp],
        _ => &[Protocol::Tcp, Protocol::Udp],
    };
    let line = |&protocol: &Protocol| {
        let key = Key::of(protocol, address, ports);
        Service {
            name: service.name.clone(),
            settings: Virtual {
                key,
                scheduler: service.scheduler.clone(),
                flags: flags(&service.scheduler_flags),
                persistence: service.persistence.map(|persistence| self::persistence(persistence, key.is_v6())),
                persistence_engine: None,
                one_packet: service.one_packet && protocol == Protocol::Udp,
            },
            servers: service.servers.iter().map(|server| self::server(server, ports)).collect(),
            is_fullnat: service.method == "fullnat",
        }
    };
    protocols.iter().map(line).collect()
}

/// `203.0.113.10:80`, `[2001:db8::1]:8000-8099`, `203.0.113.10:*`.
fn listen(text: &str) -> Option<(IpAddr, Ports)> {
    let (address, ports) = text.rsplit_once(':')?;
    let address = address.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    let ports = match ports.split_once('-') {
        _ if ports == "*" => Ports::ALL,
        Some((first, last)) => Ports { first: first.parse().ok()?, last: last.parse().ok()? },
        None => Ports::single(ports.parse().ok()?),
    };
    Some((address, ports))
}

fn flags(words: &[String]) -> Flags {
    let has = |word: &str| words.iter().any(|other| other == word);
    Flags([has("fallback"), has("port"), false])
}

fn persistence(persistence: api::Persistence, is_v6: bool) -> Persistence {
    let mask = match is_v6 {
        true => Mask::V6(persistence.prefix),
        false => Mask::V4(netmask(persistence.netmask)),
    };
    Persistence { timeout: u32::try_from(persistence.timeout).unwrap_or(u32::MAX), mask }
}

/// The mask of so many bits.
pub fn netmask(prefix: u8) -> Ipv4Addr {
    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from(!host)
}

/// The bits of a mask, if they stand together and there are any.
pub fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let prefix = u8::try_from(mask.to_bits().leading_ones()).ok()?;
    (prefix > 0 && netmask(prefix) == mask).then_some(prefix)
}

fn server(server: &api::Server, ports: Ports) -> Server {
    let forward = match server.method.as_str() {
        "direct" => Forward::Route,
        "tunnel" => Forward::Tunnel(tunnel(server)),
        _ => Forward::Masquerade,
    };
    let whole = |rate: f64| rate.round() as u64;
    let (in_, out, rates) = (server.to_server, server.to_client, server.rates);
    Server {
        name: server.name.clone(),
        settings: Real {
            at: Endpoint { address: server.address, port: server.port.unwrap_or(ports.first) },
            forward,
            weight: server.weight,
            upper: server.max_connections.unwrap_or(0),
            lower: server.min_connections.unwrap_or(0),
        },
        counts: Counts {
            active: server.active,
            inactive: server.inactive,
            persistent: server.persistent,
            totals: [server.admitted, in_.packets, out.packets, in_.bytes, out.bytes],
            rates: [
                rates.flows,
                rates.packets_to_server,
                rates.packets_to_client,
                rates.bytes_to_server,
                rates.bytes_to_client,
            ]
            .map(whole),
        },
        is_fullnat: server.method == "fullnat",
    }
}

/// Over IPv4 GUE has no checksum here, over IPv6 it has one.
fn tunnel(server: &api::Server) -> Tunnel {
    let gue = server.tunnel.as_deref().and_then(|tunnel| tunnel.strip_prefix("gue"));
    let Some(port) = gue else { return Tunnel::Ipip };
    let port = port.strip_prefix(':').and_then(|port| port.parse().ok()).unwrap_or(GUE_PORT);
    Tunnel::Gue { port, checksum: gue_checksum(server.address) }
}

/// What the outer header of GUE to this server has.
pub fn gue_checksum(server: IpAddr) -> Checksum {
    if server.is_ipv6() { Checksum::Yes } else { Checksum::No }
}
