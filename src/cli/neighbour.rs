//! `gatun neighbour`: the hosts of the gateway's segment, in mode "tap".

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;
use super::format::number::duration;
use super::format::table::{Align, Table};
use crate::control::api::{self, Request};

/// The hosts that the running gateway knows on its segment (mode "tap")
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the neighbours: address, MAC, state, age, packets that wait
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
    let neighbours: Vec<api::Neighbour> = context.connect()?.call(&Request::Neighbours {})?;
    let output = &mut context.output;
    if args.json {
        for neighbour in &neighbours {
            output.json(neighbour)?;
        }
        return Ok(());
    }
    for line in table(neighbours).lines() {
        output.line(&line)?;
    }
    Ok(())
}

fn table(neighbours: Vec<api::Neighbour>) -> Table {
    let columns = [
        ("ADDRESS", Align::Left),
        ("MAC", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("QUEUED", Align::Right),
        ("KEPT", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for neighbour in neighbours {
        let api::Neighbour { address, mac, state, age, queued, kept } = neighbour;
        let mac = mac.unwrap_or_else(|| "-".to_owned());
        let kept = if kept { "yes" } else { "no" }.to_owned();
        let age = duration(Duration::from_secs(age));
        table.row([address.to_string(), mac, state, age, queued.to_string(), kept]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list() {
        let known = api::Neighbour {
            address: "10.20.0.254".parse().unwrap(),
            mac: Some("02:00:00:00:00:fe".to_owned()),
            state: "reachable".to_owned(),
            age: 12,
            queued: 0,
            kept: true,
        };
        let unknown = api::Neighbour {
            address: "fd20::11".parse().unwrap(),
            mac: None,
            state: "incomplete".to_owned(),
            age: 0,
            queued: 3,
            kept: false,
        };
        let expected = "\
ADDRESS      MAC                STATE       AGE  QUEUED  KEPT
10.20.0.254  02:00:00:00:00:fe  reachable   12s       0  yes
fd20::11     -                  incomplete   0s       3  no";
        assert_eq!(table(vec![known, unknown]).lines().join("\n"), expected);
    }
}
