//! `gatun persistence`: the clients that are kept with their servers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::Context;
use super::client::Part;
use super::format::number::duration;
use super::format::table::{Align, Table};
use crate::control::api::{self, Request};

/// The clients that persistence keeps with their servers
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the clients: where each is kept, its flows there, and how long it is kept without one
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only of this service, or of its group
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// The group of each service that is in one.
type Groups = HashMap<String, String>;

pub(super) fn run(command: &Command, context: &mut Context) -> Result<()> {
    let Command::List(args) = command;
    let mut client = context.connect()?;
    let services: Vec<api::Service> = client.call(&Request::ServiceList {})?;
    if let Some(name) = &args.service
        && !services.iter().any(|service| service.name == *name)
    {
        bail!("no service is named {name:?}");
    }
    let groups: Groups = services.into_iter().filter_map(|service| Some((service.name, service.group?))).collect();
    let mut kept = Vec::new();
    let output = &mut context.output;
    let _: Option<api::Shown> = client.stream(&Request::PersistenceList {}, true, |part| {
        match part {
            Part::Item(client) if !is_of(&client, args.service.as_deref(), &groups) => {}
            Part::Item(client) if args.json => output.json(&client)?,
            Part::Item(client) => kept.push(client),
            Part::Started | Part::Lost(_) => {}
        }
        Ok(())
    })?;
    if !args.json {
        for line in table(kept, &groups).lines() {
            output.line(&line)?;
        }
    }
    Ok(())
}

/// A group's clients are told of the first of its services.
fn is_of(client: &api::KeptClient, service: Option<&str>, groups: &Groups) -> bool {
    let Some(service) = service else { return true };
    let group = groups.get(service);
    client.service == service || group.is_some() && group == groups.get(&client.service)
}

fn table(clients: Vec<api::KeptClient>, groups: &Groups) -> Table {
    let columns = [
        ("SERVICE/GROUP", Align::Left),
        ("CLIENT", Align::Left),
        ("SERVER", Align::Left),
        ("FLOWS", Align::Right),
        ("REMAINING", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for kept in clients {
        let api::KeptClient { service, client, address, port, flows, timeout } = kept;
        let server = port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string());
        let remaining = duration(Duration::from_secs(timeout));
        let service = groups.get(&service).cloned().unwrap_or(service);
        table.row([service, client.to_string(), server, flows.to_string(), remaining]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(service: &str, client: &str, server: &str, port: Option<u16>) -> api::KeptClient {
        api::KeptClient {
            service: service.to_owned(),
            client: client.parse().unwrap(),
            address: server.parse().unwrap(),
            port,
            flows: 2,
            timeout: 354,
        }
    }

    fn groups() -> Groups {
        ["http", "https"].map(|service| (service.to_owned(), "shop".to_owned())).into()
    }

    #[test]
    fn the_list() {
        let clients =
            vec![kept("web", "198.51.100.2", "10.20.0.11", Some(8080)), kept("http", "2001:db8:1::", "fd20::12", None)];
        let expected = "\
SERVICE/GROUP  CLIENT        SERVER           FLOWS  REMAINING
web            198.51.100.2  10.20.0.11:8080      2      5m54s
shop           2001:db8:1::  fd20::12             2      5m54s";
        assert_eq!(table(clients, &groups()).lines().join("\n"), expected);
    }

    #[test]
    fn a_service_is_meant_with_its_group() {
        let client = kept("http", "198.51.100.2", "10.20.0.11", None);
        for (service, is) in [(None, true), (Some("http"), true), (Some("https"), true), (Some("web"), false)] {
            assert_eq!(is_of(&client, service, &groups()), is, "{service:?}");
        }
    }
}
