//! `gatun conntrack`: the flow table.

use std::time::SystemTime;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use super::client::Part;
use super::format::conntrack::{self, Style};
use super::format::expect;
use super::format::table::{Align, Table};
use super::{Context, output};
use crate::control::api::{self, Filter, Flow, FlowEvent, Request};

/// Look into the flow table, and end flows
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the flows, in the line format of conntrack-tools
    List(ListArgs),
    /// Show flows as they come, change and go, until interrupted
    Watch(ListArgs),
    /// Print the number of flows
    Count(JsonArgs),
    /// End the flows that match
    Delete(DeleteArgs),
    /// End every flow
    Flush(JsonArgs),
    /// Show the flows that helpers have announced and that have not begun, as `conntrack -L expect` does
    Expect(ExpectArgs),
    /// Show every counter and every reason for dropping packets
    Stats(StatsArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// What to show; several, separated by commas
    #[arg(short, long, value_enum, value_delimiter = ',', value_name = "FORMAT")]
    output: Vec<Format>,
    /// One JSON object a line; the same as -o json
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ExpectArgs {
    /// What to show; several, separated by commas
    #[arg(short, long, value_enum, value_delimiter = ',', value_name = "FORMAT")]
    output: Vec<Format>,
    /// One JSON object a line; the same as -o json
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With the network layer in front
    Extended,
    /// Also packets, bytes, service, server, method, shard and age
    Wide,
    /// With the time in front, in seconds since 1970
    Timestamp,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Args)]
pub struct JsonArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Each shard by itself as well
    #[arg(long)]
    shards: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Every one given must match. Source and destination are those of the client's packets.
#[derive(Clone, Debug, Args)]
#[group(id = "filter", multiple = true)]
struct FilterArgs {
    /// tcp, udp, icmp, icmpv6 or a number
    #[arg(short, long, value_name = "PROTOCOL")]
    proto: Option<String>,
    /// The client, of a masquerade the inside host: an address or a prefix
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    src: Option<String>,
    /// The VIP, of a masquerade the far host: an address or a prefix
    #[arg(short, long, value_name = "ADDRESS[/LEN]")]
    dst: Option<String>,
    /// The client's port
    #[arg(long, visible_alias = "orig-port-src", value_name = "PORT")]
    sport: Option<u16>,
    /// The port at the VIP
    #[arg(long, visible_alias = "orig-port-dst", value_name = "PORT")]
    dport: Option<u16>,
    /// A TCP state, as ESTABLISHED
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// A service or masquerade, by name
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// By name, address, or address and port
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// nat, fullnat, direct, tunnel or masquerade
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
}

pub(super) fn run(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::List(args) => list(args, context),
        Command::Watch(args) => watch(args, context),
        Command::Count(args) => count(&args, context),
        Command::Delete(args) => delete(args, context),
        Command::Flush(args) => flush(&args, context),
        Command::Expect(args) => expect(&args, context),
        Command::Stats(args) => stats(&args, context),
    }
}

fn list(args: ListArgs, context: &mut Context) -> Result<()> {
    let shape = shape(&args.output, args.json);
    let request = Request::ConntrackList { filter: args.filter.into() };
    let mut client = context.connect()?;
    let output = &mut context.output;
    let shown: Option<api::Shown> = client.stream(&request, true, |part: Part<Flow>| {
        let Part::Item(flow) = part else { return Ok(()) };
        match shape {
            Shape::Json => output.json(&flow)?,
            Shape::Line { style, stamped } => {
                let line = conntrack::list_line(&flow, style);
                output.line(&(if stamped { conntrack::timestamp(now()) } else { String::new() } + &line))?;
            }
        }
        Ok(())
    })?;
    context.output.flush()?;
    let shown = shown.ok_or_else(|| anyhow::anyhow!("the gateway ended before the list did"))?.shown;
    if shape != Shape::Json {
        output::complain(&conntrack::summary(shown, "entries have been shown"));
    }
    Ok(())
}

fn expect(args: &ExpectArgs, context: &mut Context) -> Result<()> {
    let shape = shape(&args.output, args.json);
    let mut client = context.connect()?;
    let output = &mut context.output;
    let shown: Option<api::Shown> =
        client.stream(&Request::ConntrackExpect {}, true, |part: Part<api::Expectation>| {
            let Part::Item(expectation) = part else { return Ok(()) };
            match shape {
                Shape::Json => output.json(&expectation)?,
                Shape::Line { style, stamped } => {
                    let line = expect::line(&expectation, style);
                    output.line(&(if stamped { conntrack::timestamp(now()) } else { String::new() } + &line))?;
                }
            }
            Ok(())
        })?;
    context.output.flush()?;
    let shown = shown.ok_or_else(|| anyhow::anyhow!("the gateway ended before the list did"))?.shown;
    if shape != Shape::Json {
        output::complain(&expect::summary(shown));
    }
    Ok(())
}

fn watch(args: ListArgs, context: &mut Context) -> Result<()> {
    let shape = shape(&args.output, args.json);
    let request = Request::ConntrackWatch { filter: args.filter.into() };
    let mut client = context.connect()?;
    let output = &mut context.output;
    let ended: Option<api::Shown> = client.stream(&request, false, |part: Part<FlowEvent>| {
        match (part, shape) {
            (Part::Started, _) => {}
            (Part::Lost(lost), _) => output::complain(&format!("gatun: {lost} events were lost here")),
            (Part::Item(event), Shape::Json) => output.json(&event)?,
            (Part::Item(event), Shape::Line { style, stamped }) => {
                let line = conntrack::event_line(&event, style);
                output.line(&(if stamped { conntrack::timestamp(event.time) } else { String::new() } + &line))?;
            }
        }
        Ok(output.flush()?)
    })?;
    anyhow::ensure!(ended.is_some(), "the gateway ended");
    Ok(())
}

fn count(args: &JsonArgs, context: &mut Context) -> Result<()> {
    let count: api::Count = context.connect()?.call(&Request::ConntrackCount {})?;
    if args.json {
        context.output.json(&count)?
    } else {
        context.output.line(&count.count.to_string())?
    }
    Ok(())
}

fn delete(args: DeleteArgs, context: &mut Context) -> Result<()> {
    let filter: Filter = args.filter.into();
    if filter == Filter::default() {
        let message = "say which flows, as in --server 10.20.0.11; `gatun conntrack flush` ends every flow";
        clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, format!("{message}\n")).exit();
    }
    let deleted: api::Deleted = context.connect()?.call(&Request::ConntrackDelete { filter })?;
    show_deleted(deleted, args.json, context)
}

fn flush(args: &JsonArgs, context: &mut Context) -> Result<()> {
    let deleted: api::Deleted = context.connect()?.call(&Request::ConntrackFlush {})?;
    show_deleted(deleted, args.json, context)
}

fn show_deleted(deleted: api::Deleted, json: bool, context: &mut Context) -> Result<()> {
    if json {
        context.output.json(&deleted)?;
    } else {
        context.output.line(&conntrack::summary(deleted.deleted, "entries have been deleted"))?;
    }
    Ok(())
}

fn stats(args: &StatsArgs, context: &mut Context) -> Result<()> {
    let stats: api::Stats = context.connect()?.call(&Request::Stats {})?;
    let output = &mut context.output;
    if args.json {
        return Ok(output.json(&stats)?);
    }
    let shards: &[api::ShardStats] = if args.shards { &stats.shards } else { &[] };
    for line in stats_table(&stats.total, shards).lines() {
        output.line(&line)?;
    }
    if let Some(device) = &stats.device {
        let dropped = device.dropped.map_or_else(|| "unknown".to_owned(), |packets| packets.to_string());
        let api::Device { name, received, sent, send_errors, .. } = device;
        output.line(&format!(
            "\n{name}: {received} packets received, {sent} sent, {send_errors} refused by the kernel, \
             {dropped} lost before gatun in the full queue"
        ))?;
    }
    Ok(())
}

/// One row a counter, one column for the total and one for each of `shards`.
fn stats_table(total: &api::ShardStats, shards: &[api::ShardStats]) -> Table {
    let names: Vec<String> = (0..shards.len()).map(|shard| format!("SHARD {shard}")).collect();
    let mut columns = vec![("COUNTER", Align::Left), ("TOTAL", Align::Right)];
    columns.extend(names.iter().map(|name| (name.as_str(), Align::Right)));
    let mut table = Table::new(&columns);
    let all: Vec<&api::ShardStats> = std::iter::once(total).chain(shards).collect();
    let mut row = |name: &str, value: &dyn Fn(&api::ShardStats) -> u64| {
        table.row(std::iter::once(name.to_owned()).chain(all.iter().map(|shard| value(shard).to_string())));
    };
    row("flows", &|shard| shard.flows as u64);
    row("flows_limit", &|shard| shard.flows_limit as u64);
    for (i, counter) in total.counters.iter().enumerate() {
        row(&counter.name, &|shard| shard.counters.get(i).map_or(0, |counter| counter.value));
    }
    for (i, drops) in total.drops.iter().enumerate() {
        row(&format!("drop {}", drops.reason), &|shard| shard.drops.get(i).map_or(0, |drops| drops.packets));
    }
    table
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Json,
    Line { style: Style, stamped: bool },
}

/// JSON holds everything, so the other formats add nothing to it.
fn shape(output: &[Format], json: bool) -> Shape {
    let has = |format| output.contains(&format);
    if json || has(Format::Json) {
        return Shape::Json;
    }
    let style = Style { extended: has(Format::Extended), wide: has(Format::Wide) };
    Shape::Line { style, stamped: has(Format::Timestamp) }
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Filter {
        let FilterArgs { proto, src, dst, sport, dport, state, service, server, method } = args;
        Filter { proto, src, dst, sport, dport, state, service, server, method }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
