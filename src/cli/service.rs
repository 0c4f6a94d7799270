//! `gatun service`: the services of a running gateway.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::Context;
use super::edit::{How, MoreKeys, edit, not_empty, put};
use super::format::table::{Align, Table};
use super::status::nat::{few, to};
use crate::control::api::{self, Edit, Request};
use crate::control::config::format_duration;

/// The services of the running gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the services
    List(ListArgs),
    /// Add a service
    Add(AddArgs),
    /// Change a service; what is not named stays
    Set(SetArgs),
    /// Take a service away; flows that it has go on to their end
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    name: String,
    /// Address and port: 203.0.113.10:80, [2001:db8::1]:8000-8099, 203.0.113.10:*
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: String,
    /// A server's address and port; may be given more than once
    #[arg(long = "server", value_name = "ADDRESS")]
    servers: Vec<String>,
    #[command(flatten)]
    keys: Box<Keys>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    name: String,
    /// Another address and port
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    #[command(flatten)]
    keys: Box<Keys>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    name: String,
    #[command(flatten)]
    how: How,
}

/// The common keys of a service.
#[derive(Debug, Args)]
struct Keys {
    /// tcp, udp or tcp+udp
    #[arg(long)]
    protocol: Option<String>,
    /// nat, fullnat, direct or tunnel
    #[arg(long)]
    method: Option<String>,
    /// ipip, gue or gue:PORT
    #[arg(long)]
    tunnel: Option<String>,
    /// rr, wrr, lc, wlc, sh, mh, …
    #[arg(long)]
    scheduler: Option<String>,
    /// port, fallback; with sh and mh
    #[arg(long, value_name = "FLAG", value_delimiter = ',')]
    scheduler_flags: Vec<String>,
    /// Keep a client with its server until it has opened nothing for so long
    #[arg(long, value_name = "TIMEOUT")]
    persistence: Option<String>,
    /// Bits of a client's IPv4 address that persistence goes by
    #[arg(long, value_name = "BITS", requires = "persistence")]
    netmask: Option<u8>,
    /// Bits of a client's IPv6 address that persistence goes by
    #[arg(long, value_name = "BITS", requires = "persistence")]
    prefix: Option<u8>,
    /// Share persistence with the services of this group
    #[arg(long)]
    group: Option<String>,
    /// Schedule every packet by itself; with protocol udp
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    one_packet: Option<bool>,
    /// Serves while no other server can
    #[arg(long, value_name = "ADDRESS")]
    sorry_server: Option<String>,
    /// ftp or tftp
    #[arg(long)]
    helper: Option<String>,
    #[command(flatten)]
    nat: NatKeys,
    #[command(flatten)]
    more: MoreKeys,
}

/// What is said of sources, and against floods.
#[derive(Debug, Args)]
struct NatKeys {
    /// Addresses that servers see in place of clients, separated by commas; with method fullnat
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pool: Vec<String>,
    /// Their ports: 1024-65535
    #[arg(long, value_name = "PORTS")]
    pool_ports: Option<String>,
    /// Tell servers who the client is, in front of each connection: v1 or v2
    #[arg(long, value_name = "VERSION")]
    proxy_protocol: Option<String>,
    /// When the gateway itself answers clients' SYNs first: auto, always or never
    #[arg(long, value_name = "WHEN")]
    syn_proxy: Option<String>,
    /// New flows that it takes within a second, of all clients together
    #[arg(long, value_name = "FLOWS")]
    new_flows_per_second: Option<u32>,
}

impl NatKeys {
    fn add_to(self, keys: &mut Map<String, Value>) {
        put(keys, "pool", Some(self.pool).filter(|pool| !pool.is_empty()));
        put(keys, "pool_ports", self.pool_ports);
        put(keys, "proxy_protocol", self.proxy_protocol);
        put(keys, "syn_proxy", self.syn_proxy);
        put(keys, "new_flows_per_second", self.new_flows_per_second);
    }
}

impl Keys {
    fn into_map(self) -> Result<Map<String, Value>> {
        let mut keys = Map::new();
        put(&mut keys, "protocol", self.protocol);
        put(&mut keys, "method", self.method);
        put(&mut keys, "tunnel", self.tunnel);
        put(&mut keys, "scheduler", self.scheduler);
        put(&mut keys, "scheduler_flags", Some(self.scheduler_flags).filter(|flags| !flags.is_empty()));
        put(&mut keys, "group", self.group);
        put(&mut keys, "one_packet", self.one_packet);
        put(&mut keys, "sorry_server", self.sorry_server);
        put(&mut keys, "helper", self.helper);
        if let Some(timeout) = self.persistence {
            keys.insert(
                "persistence".to_owned(),
                json!({"timeout": timeout, "netmask": self.netmask, "prefix": self.prefix}),
            );
        }
        self.nat.add_to(&mut keys);
        self.more.add_to(&mut keys)?;
        Ok(keys)
    }
}

pub(super) fn run(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::List(args) => list(&args, context),
        Command::Add(AddArgs { name, listen, servers, keys, how }) => {
            let mut keys = keys.into_map()?;
            keys.insert("listen".to_owned(), listen.into());
            let servers = servers.into_iter().map(|address| json!({"address": address}));
            keys.insert("server".to_owned(), servers.collect());
            edit(Edit::AddService { service: name, keys }, &how, context)
        }
        Command::Set(SetArgs { name, listen, keys, how }) => {
            let mut keys = keys.into_map()?;
            put(&mut keys, "listen", listen);
            edit(Edit::SetService { service: name, keys: not_empty(keys)? }, &how, context)
        }
        Command::Remove(RemoveArgs { name, how }) => edit(Edit::RemoveService { service: name }, &how, context),
    }
}

fn list(args: &ListArgs, context: &mut Context) -> Result<()> {
    let mut client = context.connect()?;
    let services: Vec<api::Service> = client.call(&Request::ServiceList {})?;
    let output = &mut context.output;
    if args.json {
        for service in &services {
            output.json(service)?;
        }
        return Ok(());
    }
    for line in table(&services).lines() {
        output.line(&line)?;
    }
    let nat: api::Nat = client.call(&Request::NatPools {})?;
    if nat.masquerades.is_empty() {
        return Ok(());
    }
    output.line("")?;
    for line in masquerades(&nat).lines() {
        output.line(&line)?;
    }
    Ok(())
}

fn masquerades(nat: &api::Nat) -> Table {
    let columns = [
        ("MASQUERADE", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("MAPPINGS", Align::Right),
        ("FLAGS", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for masquerade in &nat.masquerades {
        let mut flags = Vec::new();
        let keeps_state = masquerade.prefix.is_none();
        flags.extend((!keeps_state).then(|| "prefix".to_owned()));
        flags.extend(keeps_state.then(|| format!("filtering {}", masquerade.filtering)));
        flags.extend(masquerade.helpers.iter().map(|helper| format!("helper {helper}")));
        table.row([
            masquerade.name.clone(),
            few(&masquerade.from),
            to(masquerade),
            if keeps_state { masquerade.mappings.to_string() } else { "-".to_owned() },
            flags.join(", "),
        ]);
    }
    table
}

fn table(services: &[api::Service]) -> Table {
    let columns = [
        ("SERVICE", Align::Left),
        ("PROTOCOL", Align::Left),
        ("LISTEN", Align::Left),
        ("METHOD", Align::Left),
        ("SCHEDULER", Align::Left),
        ("SERVERS", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("FLAGS", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for service in services {
        let sum = |of: fn(&api::Server) -> u64| service.servers.iter().map(of).sum::<u64>().to_string();
        let up = service.servers.iter().filter(|server| server.state == "up").count();
        let all = service.servers.len();
        table.row([
            service.name.clone(),
            service.protocol.clone(),
            service.listen.clone(),
            service.method.clone(),
            service.scheduler.clone(),
            if up == all { all.to_string() } else { format!("{up} of {all}") },
            sum(|server| server.active),
            sum(|server| server.inactive),
            flags(service),
        ]);
    }
    table
}

/// What is special about a service.
pub fn flags(service: &api::Service) -> String {
    let mut flags = service.scheduler_flags.clone();
    flags.extend(service.persistence.as_ref().map(|persistence| {
        let whole = persistence.netmask == 32 && persistence.prefix == 128;
        let networks = if whole { String::new() } else { format!(" /{} /{}", persistence.netmask, persistence.prefix) };
        format!("persistent {}{networks}", format_duration(Duration::from_secs(persistence.timeout)))
    }));
    flags.extend(service.one_packet.then(|| "one-packet".to_owned()));
    flags.extend(service.group.as_ref().map(|group| format!("group {group}")));
    flags.extend(service.sorry.as_ref().map(|server| format!("sorry {}", super::edit::address(server))));
    let pool: Vec<String> = service.pool.iter().map(ToString::to_string).collect();
    flags.extend((!pool.is_empty()).then(|| format!("pool {}", few(&pool))));
    flags.extend(service.proxy_protocol.as_ref().map(|version| format!("PROXY protocol {version}")));
    flags.extend((service.syn_proxy != "auto").then(|| format!("SYN proxy {}", service.syn_proxy)));
    flags.extend(service.new_flows_per_second.map(|flows| format!("{flows} new/s at most")));
    flags.extend((!service.has_quorum).then(|| "no quorum".to_owned()));
    flags.join(", ")
}
