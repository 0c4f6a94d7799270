//! `gatun service`: the services of a running gateway.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;
use super::format::table::{Align, Table};
use crate::control::api::{self, Request};

/// The services of the running gateway
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the services
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Command, context: &mut Context) -> Result<()> {
    let Command::List(args) = command;
    let services: Vec<api::Service> = context.connect()?.call(&Request::ServiceList {})?;
    let output = &mut context.output;
    if args.json {
        for service in &services {
            output.json(service)?;
        }
        return Ok(());
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("PROTOCOL", Align::Left),
        ("LISTEN", Align::Left),
        ("METHOD", Align::Left),
        ("SCHEDULER", Align::Left),
        ("SERVERS", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for service in services {
        let sum = |of: fn(&api::Server) -> u64| service.servers.iter().map(of).sum::<u64>().to_string();
        let (active, inactive) = (sum(|server| server.active), sum(|server| server.inactive));
        let servers = service.servers.len().to_string();
        let api::Service { name, protocol, listen, method, scheduler, .. } = service;
        table.row([name, protocol, listen, method, scheduler, servers, active, inactive]);
    }
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}
