//! `gatun explain`: what would happen to a packet, and why.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::Context;
use crate::control::api::{self, Endpoints, ExplainedMapping, Request};
use crate::control::config::Config;
use crate::control::explain::{Question, answer};
use crate::engine::{Engine, EngineConfig};
use crate::service::Snapshot;
use crate::time::Instant;

/// Say what would happen to a packet, and why; nothing is sent and nothing changes
///
/// Asks the running gateway, which knows its flows and the load of its servers; with -c, what a gateway just started
/// with that file would do, without any privilege.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// tcp, udp, icmp or icmpv6
    #[arg(value_name = "PROTO")]
    proto: String,
    /// Where it comes from: ADDRESS:PORT, [ADDRESS]:PORT; for ICMP the port is the identifier and may be left out
    #[arg(value_name = "SRC:PORT", value_parser = endpoint)]
    src: (IpAddr, Option<u16>),
    /// Where it goes to
    #[arg(value_name = "DST:PORT", value_parser = endpoint)]
    dst: (IpAddr, Option<u16>),
    /// Letters of FSRPAUEC, as SA for SYN and ACK
    #[arg(long, value_name = "FLAGS", default_value = "S")]
    tcp_flags: String,
    /// Ask this configuration instead of the running gateway
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let (src, dst) = (with_port(args, args.src), with_port(args, args.dst));
    // Asked here as well, so that what is wrong with the packet is told without a gateway.
    let question =
        Question::new(&args.proto, src, dst, Some(&args.tcp_flags)).unwrap_or_else(|fault| usage(&fault.message));
    let explanation = match &args.config {
        Some(config) => ask_config(config, question)?,
        None => context.connect()?.call(&Request::Explain {
            proto: args.proto.clone(),
            src: src.0,
            dst: dst.0,
            sport: src.1,
            dport: dst.1,
            tcp_flags: Some(args.tcp_flags.clone()),
        })?,
    };
    if args.json {
        return Ok(context.output.json(&explanation)?);
    }
    for (key, value) in rows(&explanation, &args.tcp_flags) {
        context.output.line(&format!("{key:<10} {value}"))?;
    }
    Ok(())
}

fn ask_config(path: &Path, question: Question) -> Result<api::Explanation> {
    let compiled = Config::load(path)?.compiled()?;
    let snapshot = Arc::new(Snapshot::build(compiled.snapshot, None)?);
    let config = EngineConfig { shard: 0, shards: 1, max_flows: 1, seed: [0, 0] };
    Ok(answer(&Engine::new(config, snapshot), Instant::ZERO, question))
}

fn rows(explanation: &api::Explanation, tcp_flags: &str) -> Vec<(&'static str, String)> {
    let api::Explanation { packet, verdict, after, .. } = explanation;
    let mut verdict = verdict.clone();
    if let Some(reason) = &explanation.reason {
        verdict.push_str(&format!(" {reason}"));
    }
    if let Some(answer) = &explanation.answer {
        verdict.push_str(&format!(", answered with {answer}"));
    }
    let mut rows = vec![("packet", show(packet) + &flags(packet, tcp_flags)), ("verdict", verdict)];
    let mut row = |key, value: Option<String>| rows.extend(value.map(|value| (key, value)));
    row("meaning", explanation.meaning.clone());
    let is_masqueraded = explanation.method.as_deref() == Some("masquerade");
    row(if is_masqueraded { "masquerade" } else { "service" }, explanation.service.clone());
    row("mapping", explanation.mapping.as_ref().map(mapping));
    row("filtering", filtering(explanation));
    row("prefix", explanation.prefix.clone());
    row(
        "scheduler",
        explanation.scheduler.as_ref().map(|scheduler| match &explanation.scheduler_state {
            Some(state) => format!("{scheduler}: {state}"),
            None => scheduler.clone(),
        }),
    );
    row(
        "server",
        explanation.server.as_ref().filter(|_| !is_masqueraded).map(|server| {
            match (explanation.servers_available, explanation.servers) {
                (Some(available), Some(servers)) => format!("{server} ({available} of {servers} servers available)"),
                _ => server.clone(),
            }
        }),
    );
    row("chosen by", explanation.chosen_by.clone());
    row("method", explanation.method.clone());
    row("pool", explanation.pool.map(|address| address.to_string()));
    row("flow", flow(explanation));
    row("after", after.as_ref().map(|after| show_after(after, explanation.mapping.as_ref())));
    row("via", explanation.via.clone());
    let hairpin = explanation.mapping.as_ref().is_some_and(|mapping| mapping.hairpin);
    let again = "a hairpin: it comes in again, to the mapping of its destination";
    row("then", (hairpin && explanation.direction.as_deref() == Some("to_server")).then(|| again.to_owned()));
    rows
}

/// `10.20.0.11:5000 is 203.0.113.100:5000 outside; there is one`.
fn mapping(mapping: &ExplainedMapping) -> String {
    let ExplainedMapping { inside, outside, exists, forward, .. } = mapping;
    let end = |address, port| SocketAddr::new(address, port).to_string();
    let at_random = || format!("{}, at a random port,", outside.address);
    let outside = outside.port.map_or_else(at_random, |port| end(outside.address, port));
    let kind = match forward {
        Some(name) => format!("forwarded by {name:?}"),
        None if *exists => "there is one".to_owned(),
        None => "it would be made".to_owned(),
    };
    format!("{} is {outside} outside; {kind}", end(inside.address, inside.port))
}

/// Why a packet from outside is let in; `None` of any other.
fn filtering(explanation: &api::Explanation) -> Option<String> {
    let mapping = explanation.mapping.as_ref().filter(|_| explanation.direction.as_deref() == Some("to_client"))?;
    Some(match mapping.filtering.as_str() {
        _ if mapping.forward.is_some() => "none: the port is forwarded for everybody".to_owned(),
        "endpoint" => "endpoint: who sends to a mapping is let in".to_owned(),
        "address" => "address: let in, since the inside endpoint has sent to that address".to_owned(),
        "address-port" => {
            "address-port: let in, since the inside endpoint has sent to that address and port".to_owned()
        }
        other => other.to_owned(),
    })
}

/// As [`show`]; which port stands for an inside one may not be certain.
fn show_after(after: &Endpoints, mapping: Option<&ExplainedMapping>) -> String {
    match mapping {
        Some(mapping) if mapping.outside.port.is_none() => {
            let Endpoints { proto, src, dst, dport, .. } = after;
            match proto.as_str() {
                "icmp" | "icmpv6" => format!("{proto} echo {src} > {dst}, a random id"),
                _ => format!("{proto} {src} (a random port) > {}", SocketAddr::new(*dst, *dport)),
            }
        }
        _ => show(after),
    }
}

fn flow(explanation: &api::Explanation) -> Option<String> {
    let is_masqueraded = explanation.method.as_deref() == Some("masquerade");
    let direction = match explanation.direction.as_deref()? {
        "to_client" if is_masqueraded => "towards the inside host",
        "to_client" => "towards the client",
        _ if is_masqueraded => "to the outside",
        _ => "towards the server",
    };
    Some(match &explanation.flow {
        Some(flow) => {
            let state = flow.state.as_deref().unwrap_or(&flow.proto);
            format!("known, {state}, expires in {} s; {direction}", flow.timeout)
        }
        None if explanation.verdict == "reply" => format!("none until the client answers; {direction}"),
        None if explanation.keeps_flow == Some(false) => format!("none is kept; {direction}"),
        None => format!("new; {direction}"),
    })
}

fn show(endpoints: &Endpoints) -> String {
    let Endpoints { proto, src, dst, sport, dport } = endpoints;
    match proto.as_str() {
        "icmp" | "icmpv6" => format!("{proto} echo {src} > {dst} id {sport}"),
        _ => format!("{proto} {} > {}", SocketAddr::new(*src, *sport), SocketAddr::new(*dst, *dport)),
    }
}

fn flags(packet: &Endpoints, tcp_flags: &str) -> String {
    if packet.proto == "tcp" { format!(", flags {}", tcp_flags.to_ascii_uppercase()) } else { String::new() }
}

/// `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`.
fn endpoint(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip(), Some(address.port())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse() {
        Ok(ip) => Ok((ip, None)),
        Err(_) => Err("an address and a port, as 198.51.100.2:40000 or [2001:db8::2]:40000".to_owned()),
    }
}

fn with_port(args: &Args, (address, port): (IpAddr, Option<u16>)) -> (IpAddr, u16) {
    match port {
        Some(port) => (address, port),
        None if matches!(args.proto.to_ascii_lowercase().as_str(), "tcp" | "udp") => {
            usage(&format!("{address} needs a port, as {}", SocketAddr::new(address, 80)))
        }
        None => (address, 0),
    }
}

fn usage(message: &str) -> ! {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{message}\n")).exit()
}
