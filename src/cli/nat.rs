//! `gatun nat`: what inside endpoints are mapped to, and how much of the pools is in use.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};

use super::client::Part;
use super::format::number::duration;
use super::format::table::{Align, Table};
use super::{Context, output};
use crate::control::api::{self, Request};

/// The mappings of masquerades, and the pools of addresses and ports
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what inside endpoints are mapped to
    List(ListArgs),
    /// Show the addresses of pools and how much of their ports is in use
    Pools(PoolsArgs),
}

/// Every one given must match.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(short, long, value_name = "PROTOCOL")]
    proto: Option<String>,
    /// The inside endpoint: an address, a prefix, or an address and port
    #[arg(long, value_name = "ADDRESS")]
    inside: Option<String>,
    /// The outside endpoint: an address, a prefix, or an address and port
    #[arg(long, value_name = "ADDRESS")]
    outside: Option<String>,
    /// By name
    #[arg(long, value_name = "NAME")]
    masquerade: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct PoolsArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::List(args) => list(args, context),
        Command::Pools(args) => pools(&args, context),
    }
}

/// Rows that are written under one heading: a million mappings are shown as they come, so the widths are those of the first
/// ones, and of what is longer later the columns move.
const ROWS: usize = 4096;

fn list(args: ListArgs, context: &mut Context) -> Result<()> {
    let ListArgs { proto, inside, outside, masquerade, json } = args;
    let request = Request::NatMappings { filter: api::MappingFilter { proto, inside, outside, masquerade } };
    let mut client = context.connect()?;
    let output = &mut context.output;
    let mut rows = Rows::default();
    let shown: Option<api::Shown> = client.stream(&request, true, |part: Part<api::Mapping>| {
        let Part::Item(mapping) = part else { return Ok(()) };
        if json {
            return Ok(output.json(&mapping)?);
        }
        rows.held.push(mapping);
        if rows.held.len() == ROWS { rows.write(output) } else { Ok(()) }
    })?;
    if !json {
        rows.write(output)?;
    }
    output.flush()?;
    let shown = shown.ok_or_else(|| anyhow!("the gateway ended before the list did"))?.shown;
    if !json {
        output::complain(&format!("{shown} mappings have been shown."));
    }
    Ok(())
}

/// Mappings that have not been written yet.
#[derive(Default)]
struct Rows {
    held: Vec<api::Mapping>,
    has_heading: bool,
}

impl Rows {
    fn write(&mut self, output: &mut output::Output) -> Result<()> {
        let lines = table(std::mem::take(&mut self.held)).lines();
        let skipped = usize::from(std::mem::replace(&mut self.has_heading, true));
        lines.iter().skip(skipped).try_for_each(|line| output.line(line))?;
        Ok(())
    }
}

fn table(mappings: Vec<api::Mapping>) -> Table {
    let columns = [
        ("PROTOCOL", Align::Left),
        ("INSIDE", Align::Left),
        ("OUTSIDE", Align::Left),
        ("MASQUERADE", Align::Left),
        ("FLOWS", Align::Right),
        ("REMAINING", Align::Right),
        ("KIND", Align::Left),
    ];
    let mut table = Table::new(&columns);
    let show = |end: api::Endpoint, ports: Option<u32>| {
        let first = SocketAddr::new(end.address, end.port);
        match ports.filter(|ports| *ports > 1) {
            Some(ports) => format!("{first}-{}", u32::from(end.port).saturating_add(ports - 1)),
            None => first.to_string(),
        }
    };
    for mapping in mappings {
        let api::Mapping { proto, inside, outside, ports, masquerade, flows, timeout, forward, .. } = mapping;
        table.row([
            proto,
            show(inside, ports),
            show(outside, ports),
            masquerade,
            flows.to_string(),
            timeout.map_or_else(|| "-".to_owned(), |seconds| duration(Duration::from_secs(seconds))),
            if forward { "forward" } else { "" }.to_owned(),
        ]);
    }
    table
}

fn pools(args: &PoolsArgs, context: &mut Context) -> Result<()> {
    let nat: api::Nat = context.connect()?.call(&Request::NatPools {})?;
    let output = &mut context.output;
    if args.json {
        return Ok(output.json(&nat)?);
    }
    for line in pool_table(&nat.pools).lines() {
        output.line(&line)?;
    }
    Ok(())
}

/// In the order of the configuration.
pub fn pool_table(pools: &[api::Pool]) -> Table {
    let columns = [
        ("ADDRESS", Align::Left),
        ("PORTS", Align::Left),
        ("FOR", Align::Left),
        ("IN USE", Align::Right),
        ("QUARANTINE", Align::Right),
        ("SIZE", Align::Right),
        ("FULLEST", Align::Right),
        ("USED BY", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for pool in pools {
        table.row([
            pool.address.to_string(),
            pool.ports.clone(),
            pool.usage.clone(),
            pool.in_use.to_string(),
            pool.quarantined.to_string(),
            pool.size.to_string(),
            per_cent(pool.fullest),
            users(pool),
        ]);
    }
    table
}

/// Thousandths as per cent.
pub fn per_cent(thousandths: u16) -> String {
    format!("{:.1} %", f64::from(thousandths) / 10.0)
}

/// Who uses it: a few names, and how many more there are.
fn users(pool: &api::Pool) -> String {
    const NAMES: usize = 3;
    let mut users = pool.users.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    if pool.user_count > NAMES {
        users.push_str(&format!(" and {} more", pool.user_count - NAMES));
    }
    if pool.retired {
        users.push_str(if users.is_empty() { "retired" } else { " (retired)" });
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, port: u16) -> api::Endpoint {
        api::Endpoint { address: address.parse().unwrap(), port }
    }

    #[test]
    fn mappings() {
        let mapping = |proto: &str, inside, outside, flows, timeout| api::Mapping {
            proto: proto.to_owned(),
            protonum: 17,
            inside,
            outside,
            ports: None,
            masquerade: "lan".to_owned(),
            flows,
            timeout,
            forward: false,
            shard: 0,
        };
        let mut forward = mapping("tcp", end("10.20.0.11", 22), end("203.0.113.100", 2222), 0, None);
        forward.forward = true;
        let range = mapping("udp", end("10.20.0.12", 5000), end("203.0.113.7", 6000), 0, None);
        let range = api::Mapping { ports: Some(100), forward: true, masquerade: "forward".to_owned(), ..range };
        let out = mapping("udp", end("fd20::11", 5000), end("2001:db8:f::100", 5000), 2, Some(299));
        let expected = "\
PROTOCOL  INSIDE                OUTSIDE                 MASQUERADE  FLOWS  REMAINING  KIND
tcp       10.20.0.11:22         203.0.113.100:2222      lan             0          -  forward
udp       10.20.0.12:5000-5099  203.0.113.7:6000-6099   forward         0          -  forward
udp       [fd20::11]:5000       [2001:db8:f::100]:5000  lan             2      4m59s";
        assert_eq!(table(vec![forward, range, out]).lines().join("\n"), expected);
    }

    #[test]
    fn pools() {
        let pool = |address: &str, usage: &str, users: &[&str], (in_use, quarantined, size, fullest)| api::Pool {
            address: address.parse().unwrap(),
            ports: "1024-65535".to_owned(),
            usage: usage.to_owned(),
            users: users.iter().map(|name| (*name).to_owned()).collect(),
            user_count: users.len(),
            retired: false,
            in_use,
            quarantined,
            size,
            fullest,
        };
        let many = pool("10.20.0.1", "fullnat", &["web", "dns", "mail", "ftp", "ntp"], (600, 45, 64_512, 12));
        let gone = api::Pool { retired: true, ..pool("203.0.113.9", "masquerade", &["lan"], (1, 0, 2, 500)) };
        let idle = pool("203.0.113.100", "forward", &["ssh"], (0, 0, 0, 0));
        let expected = "\
ADDRESS        PORTS       FOR         IN USE  QUARANTINE   SIZE  FULLEST  USED BY
10.20.0.1      1024-65535  fullnat        600          45  64512    1.2 %  web, dns, mail and 2 more
203.0.113.9    1024-65535  masquerade       1           0      2   50.0 %  lan (retired)
203.0.113.100  1024-65535  forward          0           0      0    0.0 %  ssh";
        assert_eq!(pool_table(&[many, gone, idle]).lines().join("\n"), expected);
    }
}
