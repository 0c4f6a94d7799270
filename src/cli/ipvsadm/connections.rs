//! What `-Lc` prints: the flow table in IPVS's words.

use std::net::IpAddr;

use super::command::{Key, Ports, Protocol};
use super::names::Printer;
use super::table::Table;
use crate::control::api;

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    /// Seconds until it expires.
    pub expires: u64,
    pub state: String,
    pub client: (IpAddr, u16),
    pub vip: (IpAddr, u16),
    pub server: (IpAddr, u16),
}

impl Connection {
    /// `None` for what IPVS has no connections for (ICMP). `servers` are those that there are: with the methods that
    /// translate nothing the flow itself does not tell the server's address.
    pub fn new(flow: &api::Flow, servers: &[api::Server]) -> Option<Connection> {
        let protocol = match flow.protonum {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let (original, reply) = (&flow.original, &flow.reply);
        let server = match flow.method.as_str() {
            "direct" | "tunnel" => {
                let found = servers.iter().find(|server| server.service == flow.service && server.name == flow.server);
                (found.map_or(original.dst, |server| server.address), original.dport)
            }
            _ => (reply.src, reply.sport),
        };
        Some(Connection {
            protocol,
            expires: flow.timeout,
            state: flow.state.clone().unwrap_or_else(|| protocol.name().to_owned()),
            client: (original.src, original.sport),
            vip: (original.dst, original.dport),
            server,
        })
    }

    /// What IPVS calls a template: a client that persistence keeps with a server. `None` where its service is gone.
    pub fn template(client: &api::KeptClient, table: &Table) -> Option<Connection> {
        let service = table.services.iter().find(|service| service.name == client.service)?;
        let Key::Address { protocol, address, ports, .. } = service.settings.key else { return None };
        Some(Connection {
            protocol,
            expires: client.timeout,
            state: "NONE".to_owned(),
            client: (client.client, 0),
            vip: (address, ports.first),
            server: (client.address, client.port.unwrap_or(ports.first)),
        })
    }

    /// Its line; with engines, in the columns that persistence engines have.
    pub fn line(&self, printer: &Printer<'_>) -> String {
        let end = |(address, port)| printer.endpoint(address, Ports::single(port), self.protocol);
        let expires = format!("{:02}:{:02}", self.expires / 60, self.expires % 60);
        let (client, vip, server) = (end(self.client), end(self.vip), end(self.server));
        format!("{:<3} {expires:<6} {:<11} {client:<18} {vip:<18} {server}", self.protocol.name(), self.state)
    }
}

/// What stands above the connections.
pub fn heading(with_engines: bool) -> String {
    let common = format!("IPVS connection entries\npro expire {:<11} {:<18} {:<18} ", "state", "source", "virtual");
    match with_engines {
        true => format!("{common}{:<18} {:<16} pe_data", "destination", "pe name"),
        false => format!("{common}destination"),
    }
}
