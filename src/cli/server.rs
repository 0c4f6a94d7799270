//! `gatun server`: the servers behind the services of a running gateway.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;
use super::format::number::short;
use super::format::table::{Align, Table};
use crate::control::api::{self, Request};

/// The servers of the running gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the servers
    List(ListArgs),
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
    let Command::List(args) = command;
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
        ("WEIGHT", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("ADMITTED", Align::Right),
        ("NEW/S", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for server in servers {
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
        ]);
    }
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}
