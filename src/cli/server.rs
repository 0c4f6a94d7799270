//! `gatun server`: the servers behind the services of a running gateway.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::client::Part;
use super::edit::{How, MoreKeys, edit, find, not_empty, put};
use super::format::number::{duration, short};
use super::format::table::{Align, Table};
use super::{Context, output};
use crate::control::api::{self, Edit, Request};

/// How often `drain --wait` looks.
const LOOK: Duration = Duration::from_millis(500);

/// The servers of the running gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the servers
    List(ListArgs),
    /// Show servers that go up and down, and quorums that are gained and lost, until interrupted
    Watch(ListArgs),
    /// Add a server to a service
    Add(AddArgs),
    /// Change a server; what is not named stays
    Set(SetArgs),
    /// Give a server no new flow any more; those it has go on to their end or to a deadline
    Drain(DrainArgs),
    /// Take a server away; what becomes of its flows is said by on_server_removed
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this service's
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    service: String,
    /// Its address, with a port if that is another than the one that clients ask for
    address: String,
    /// By default its address
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    which: Which,
    /// Another address
    #[arg(long)]
    address: Option<String>,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    which: Which,
    /// Until when flows may go on, from now on: 5m
    #[arg(long, value_name = "DURATION", conflicts_with = "cancel")]
    deadline: Option<String>,
    /// What becomes of the flows that are left then
    #[arg(long, value_name = "rst|keep", requires = "deadline", value_parser = ["rst", "keep"])]
    then: Option<String>,
    /// Let it have new flows again
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Wait until it has no flow any more, or until the deadline
    #[arg(long)]
    wait: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A server.
#[derive(Debug, Args)]
struct Which {
    /// SERVICE SERVER, SERVICE/SERVER, or SERVER alone where one service has it
    #[arg(required = true, num_args = 1..=2, value_names = ["SERVICE", "SERVER"])]
    server: Vec<String>,
}

/// The common keys of a server.
#[derive(Debug, Args)]
struct Keys {
    /// Its share of new flows; 0 for none
    #[arg(long)]
    weight: Option<u32>,
    /// nat, fullnat, direct or tunnel
    #[arg(long)]
    method: Option<String>,
    /// ipip, gue or gue:PORT
    #[arg(long)]
    tunnel: Option<String>,
    /// Flows at which it takes no more
    #[arg(long, value_name = "FLOWS")]
    max_connections: Option<u32>,
    /// Flows below which it takes new ones again
    #[arg(long, value_name = "FLOWS")]
    min_connections: Option<u32>,
    /// Its share grows over this time when it comes up
    #[arg(long, value_name = "DURATION")]
    slow_start: Option<String>,
    #[command(flatten)]
    more: MoreKeys,
}

impl Keys {
    fn into_map(self) -> Result<Map<String, Value>> {
        let mut keys = Map::new();
        put(&mut keys, "weight", self.weight);
        put(&mut keys, "method", self.method);
        put(&mut keys, "tunnel", self.tunnel);
        put(&mut keys, "max_connections", self.max_connections);
        put(&mut keys, "min_connections", self.min_connections);
        put(&mut keys, "slow_start", self.slow_start);
        self.more.add_to(&mut keys)?;
        Ok(keys)
    }
}

pub(super) fn run(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::List(args) => list(&args, context),
        Command::Watch(args) => watch(&args, context),
        Command::Add(AddArgs { service, address, name, keys, how }) => {
            let mut keys = keys.into_map()?;
            put(&mut keys, "name", name);
            keys.insert("address".to_owned(), address.into());
            edit(Edit::AddServer { service, keys }, &how, context)
        }
        Command::Set(SetArgs { which, address, keys, how }) => {
            let mut keys = keys.into_map()?;
            put(&mut keys, "address", address);
            let keys = not_empty(keys)?;
            let (service, server) = names(&which, context)?;
            edit(Edit::SetServer { service, server, keys }, &how, context)
        }
        Command::Remove(RemoveArgs { which, how }) => {
            let (service, server) = names(&which, context)?;
            edit(Edit::RemoveServer { service, server }, &how, context)
        }
        Command::Drain(args) => drain(args, context),
    }
}

/// Service and name of the server that is meant.
fn names(which: &Which, context: &Context) -> Result<(String, String)> {
    let servers = servers(context, None)?;
    let found = find(&which.server, &servers)?;
    Ok((found.service.clone(), found.name.clone()))
}

fn servers(context: &Context, service: Option<&str>) -> Result<Vec<api::Server>> {
    context.connect()?.call(&Request::ServerList { service: service.map(str::to_owned) })
}

fn drain(args: DrainArgs, context: &mut Context) -> Result<()> {
    let DrainArgs { which, deadline, then, cancel, wait, json } = args;
    let (service, server) = names(&which, context)?;
    let request = Request::ServerDrain { service: service.clone(), server: server.clone(), deadline, then, cancel };
    let draining: api::Draining = context.connect()?.call(&request)?;
    if json && !wait {
        return Ok(context.output.json(&draining)?);
    }
    let name = format!("{service}/{server}");
    if !wait {
        return Ok(context.output.line(&format!("{name}: {}", progress(draining.flows, draining.drain.as_ref())))?);
    }
    let mut shown = String::new();
    let keeps = draining.drain.as_ref().is_some_and(|drain| drain.then.as_deref() == Some("keep"));
    loop {
        let list = servers(context, None)?;
        let Some(found) = list.iter().find(|found| found.service == service && found.name == server) else {
            return Ok(context.output.line(&format!("{name}: is no server any more"))?);
        };
        let flows = found.active + found.inactive;
        let line = format!("{name}: {}", progress(flows, found.drain.as_ref()));
        // Flows that are to be ended at the deadline are waited for.
        let is_past = keeps && found.drain.as_ref().is_none_or(|drain| drain.left.is_none());
        let is_over = flows == 0 || found.drain.is_none() || is_past;
        if json && is_over {
            return Ok(context.output.json(&api::Draining { flows, drain: found.drain.clone() })?);
        }
        if !json && line != shown {
            context.output.line(&line)?;
            context.output.flush()?;
            shown = line;
        }
        if is_over {
            return Ok(());
        }
        sleep(LOOK);
    }
}

/// How far a drain is.
fn progress(flows: u64, drain: Option<&api::Drain>) -> String {
    let Some(drain) = drain else { return format!("not drained, {flows} flows") };
    let left = match flows {
        0 => "drained, no flow left".to_owned(),
        1 => "draining, 1 flow left".to_owned(),
        flows => format!("draining, {flows} flows left"),
    };
    match (drain.left, drain.then.as_deref()) {
        (Some(seconds), Some(then)) if flows > 0 => {
            format!("{left}, {} until {then}", duration(Duration::from_secs(seconds)))
        }
        _ => left,
    }
}

fn list(args: &ListArgs, context: &mut Context) -> Result<()> {
    let servers = servers(context, args.service.as_deref())?;
    let output = &mut context.output;
    if args.json {
        for server in &servers {
            output.json(server)?;
        }
        return Ok(());
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("SERVER", Align::Left),
        ("ADDRESS", Align::Left),
        ("PORT", Align::Right),
        ("METHOD", Align::Left),
        ("WEIGHT", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("ADMITTED", Align::Right),
        ("NEW/S", Align::Right),
        ("STATE", Align::Left),
        ("CHECK", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for server in servers {
        let (state, checked) = (state(&server), checked(&server));
        table.row([
            server.service,
            server.name,
            server.address.to_string(),
            // The port that the client asked for.
            server.port.map_or_else(|| "=".to_owned(), |port| port.to_string()),
            server.tunnel.map_or(server.method, |tunnel| format!("tunnel {tunnel}")),
            server.weight.to_string(),
            server.active.to_string(),
            server.inactive.to_string(),
            server.admitted.to_string(),
            short(server.rates.flows),
            state,
            checked,
        ]);
    }
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}

/// Its state, and of a drain how long it may go on.
pub fn state(server: &api::Server) -> String {
    let deadline = server.drain.as_ref().and_then(|drain| Some((drain.left?, drain.then.as_deref()?)));
    match deadline {
        Some((left, then)) if server.state == "draining" => {
            format!("draining, {} until {then}", duration(Duration::from_secs(left)))
        }
        _ => server.state.clone(),
    }
}

/// What its check last said.
fn checked(server: &api::Server) -> String {
    let Some(check) = server.health.as_ref().and_then(|health| health.check.as_ref()) else { return "-".to_owned() };
    let api::Check { kind, said, latency, .. } = check;
    match (said, latency) {
        (Some(said), Some(latency)) => format!("{kind}: {said}, {:.1} ms", *latency as f64 / 1000.0),
        (Some(said), None) => format!("{kind}: {said}"),
        (None, _) => format!("{kind}: not asked yet"),
    }
}

fn watch(args: &ListArgs, context: &mut Context) -> Result<()> {
    let request = Request::ServerWatch { service: args.service.clone() };
    let mut client = context.connect()?;
    let output = &mut context.output;
    let ended: Option<api::Shown> = client.stream(&request, false, |part: Part<api::ServerEvent>| {
        match part {
            Part::Started => {}
            Part::Item(event) if args.json => output.json(&event)?,
            Part::Item(event) => output.line(&line(&event))?,
            Part::Lost(lost) => output::complain(&format!("{lost} changes were lost")),
        }
        output.flush()?;
        Ok(())
    })?;
    if ended.is_none() {
        bail!("the gateway has stopped");
    }
    Ok(())
}

/// `1795400418.014  DOWN  web  10.20.0.11:8080  connection refused (tcp check)`.
fn line(event: &api::ServerEvent) -> String {
    let api::ServerEvent { time, change, service, server, reason, .. } = event;
    let change = match change {
        api::ServerChange::Up => "UP",
        api::ServerChange::Down => "DOWN",
        api::ServerChange::QuorumGained => "QUORUM",
        api::ServerChange::QuorumLost => "NO QUORUM",
    };
    let server = server.as_deref().unwrap_or("-");
    format!("{}.{:03}  {change:<9}  {service}  {server}  {reason}", time / 1_000_000, time / 1000 % 1000)
}
