//! `gatun server`: the servers behind the services of a running gateway.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::client::Part;
use super::format::number::short;
use super::format::table::{Align, Table};
use super::{Context, output};
use crate::control::api::{self, Request};

/// The servers of the running gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the servers
    List(ListArgs),
    /// Show servers that go up and down, and quorums that are gained and lost, until interrupted
    Watch(ListArgs),
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

pub(super) fn run(command: &Command, context: &mut Context) -> Result<()> {
    match command {
        Command::List(args) => list(args, context),
        Command::Watch(args) => watch(args, context),
    }
}

fn list(args: &ListArgs, context: &mut Context) -> Result<()> {
    let request = Request::ServerList { service: args.service.clone() };
    let servers: Vec<api::Server> = context.connect()?.call(&request)?;
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
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("ADMITTED", Align::Right),
        ("NEW/S", Align::Right),
        ("CHECK", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for server in servers {
        let checked = checked(&server);
        table.row([
            server.service,
            server.name,
            server.address.to_string(),
            // The port that the client asked for.
            server.port.map_or_else(|| "=".to_owned(), |port| port.to_string()),
            server.tunnel.map_or(server.method, |tunnel| format!("tunnel {tunnel}")),
            server.state,
            server.weight.to_string(),
            server.active.to_string(),
            server.inactive.to_string(),
            server.admitted.to_string(),
            short(server.rates.flows),
            checked,
        ]);
    }
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}

/// What its check last said.
fn checked(server: &api::Server) -> String {
    let Some(check) = server.health.as_ref().and_then(|health| health.check.as_ref()) else { return "-".to_owned() };
    let api::Check { kind, said, latency, .. } = check;
    match (said, latency) {
        (Some(said), Some(latency)) => format!("{kind}: {said}, {:.1} ms", *latency as f64 / 1000.0),
        _ => format!("{kind}: not asked yet"),
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
