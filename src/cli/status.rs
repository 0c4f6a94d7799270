//! `gatun status`: one screen.

pub mod nat;

use std::time::Duration;

use anyhow::{Result, bail};

use super::Context;
use super::format::number::{bits, duration, short};
use super::format::table::{Align, Table};
use super::output::Colour;
use super::server::state;
use super::service::flags;
use crate::control::api::{self, Request};

/// Reasons for dropping that are worth a line on the screen.
const TOP_DROPS: usize = 5;

/// With more servers than this, services that are well have one line each.
const SERVERS_SHOWN: usize = 60;
/// And of more services than this only the first are shown.
const SERVICES_SHOWN: usize = 30;

/// Show services, servers, flows and rates on one screen; what is not well comes first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this service or masquerade
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Every server of every service, however many there are
    #[arg(long)]
    all: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let mut status: api::Status = context.connect()?.call(&Request::Status {})?;
    if let Some(name) = &args.service {
        status.services.retain(|service| service.name == *name);
        let api::Nat { masquerades, pools, .. } = &mut status.nat;
        masquerades.retain(|masquerade| masquerade.name == *name);
        if status.services.is_empty() && masquerades.is_empty() {
            bail!("no service is named {name:?}");
        }
        let of_service: Vec<_> = status.services.iter().flat_map(|service| service.pool.clone()).collect();
        pools.retain(|pool| of_service.contains(&pool.address) || pool.users.contains(name));
    }
    let output = &mut context.output;
    if args.json {
        return Ok(output.json(&status)?);
    }
    for line in screen(&status, args.all) {
        match line {
            Line::Heading(text) => output.heading(&text)?,
            Line::Text(text) => output.line(&text)?,
            Line::Coloured(colour, text) => output.coloured(colour, &text)?,
        }
    }
    Ok(())
}

/// A line of the screen, and how it is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Heading(String),
    Text(String),
    Coloured(Colour, String),
}

/// How bad a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Clients of a service get no answer, or only the sorry server's.
    Out,
    /// Some servers do not work.
    Some,
    /// Some servers are not to work.
    Meant,
    None,
}

fn screen(status: &api::Status, all: bool) -> Vec<Line> {
    let (heading, lines) = gateway(status);
    let mut screen = vec![Line::Heading(heading)];
    screen.extend(lines.into_iter().map(Line::Text));
    // The worst first; otherwise in the order of the configuration.
    let mut services: Vec<(Trouble, &api::Service)> =
        status.services.iter().map(|service| (trouble(service), service)).collect();
    services.sort_by_key(|(trouble, _)| *trouble);
    screen.push(summary(&services));
    screen.extend(nat::summary(&status.nat));
    let servers: usize = status.services.iter().map(|service| service.servers.len()).sum();
    let is_short = !all && servers > SERVERS_SHOWN;
    let mut were_short = false;
    for (trouble, service) in services.iter().take(if is_short { SERVICES_SHOWN } else { usize::MAX }) {
        let shortened = is_short && *trouble == Trouble::None;
        // Services of one line stand together.
        if !(shortened && were_short) {
            screen.push(Line::Text(String::new()));
        }
        were_short = shortened;
        screen.extend(one_service(service, *trouble, shortened));
    }
    if is_short && services.len() > SERVICES_SHOWN {
        let more = services.len() - SERVICES_SHOWN;
        screen.push(Line::Text(String::new()));
        screen.push(Line::Text(format!("and {more} more services: --all shows them")));
    }
    screen.extend(nat::sections(&status.nat, all));
    if !status.drops.is_empty() || device_drops(status) > 0 {
        let (heading, lines) = drops(status);
        screen.extend([Line::Text(String::new()), Line::Heading(heading)]);
        screen.extend(lines);
    }
    screen
}

/// How many services are well.
fn summary(services: &[(Trouble, &api::Service)]) -> Line {
    let count = |wanted: Trouble| services.iter().filter(|(trouble, _)| *trouble == wanted).count();
    let (out, some) = (count(Trouble::Out), count(Trouble::Some));
    let mut text = format!("services {}", services.len());
    if out > 0 {
        text.push_str(&format!(", {out} without service of their own servers"));
    }
    if some > 0 {
        text.push_str(&format!(", {some} with servers that get no flows"));
    }
    match (out, some) {
        (0, 0) => Line::Text(text),
        (0, _) => Line::Coloured(Colour::Yellow, text),
        _ => Line::Coloured(Colour::Red, text),
    }
}

fn trouble(service: &api::Service) -> Trouble {
    let count = |words: &[&str]| service.servers.iter().filter(|server| words.contains(&&*server.state)).count();
    match service.servers.len() {
        _ if count(&["up"]) == 0 || !service.has_quorum => Trouble::Out,
        _ if count(&["down", "unreachable", "full"]) > 0 => Trouble::Some,
        all if count(&["up"]) < all => Trouble::Meant,
        _ => Trouble::None,
    }
}

fn gateway(status: &api::Status) -> (String, Vec<String>) {
    let device = status.device.as_ref().map(|device| format!(" on {}", device.name)).unwrap_or_default();
    let up = duration(Duration::from_secs(status.uptime));
    let heading = format!("gatun {}{device}, process {}, up {up}", status.version, status.pid);
    let full = 100.0 * status.flows as f64 / status.flows_limit.max(1) as f64;
    let rates = &status.rates;
    let config = status.config.as_deref().unwrap_or("none");
    let unsaved = if status.unsaved { " (unsaved changes)" } else { "" };
    let mut lines = vec![
        format!(
            "config   {config}{unsaved}, generation {}, reloads {} ok, {} failed",
            status.generation, status.reloads_ok, status.reloads_failed
        ),
        format!("flows    {} of {} ({full:.1} %), {} new/s", status.flows, status.flows_limit, short(rates.flows)),
        format!(
            "traffic  to servers {} packets/s, {}; to clients {} packets/s, {}",
            short(rates.packets_to_server),
            bits(rates.bytes_to_server),
            short(rates.packets_to_client),
            bits(rates.bytes_to_client)
        ),
    ];
    lines.splice(1..1, status.segment.as_ref().map(segment));
    (heading, lines)
}

/// In mode "tap": who the gateway is there.
fn segment(segment: &api::Segment) -> String {
    let api::Segment { mac, bridge, addresses, routers, neighbours } = segment;
    let bridge = bridge.as_ref().map(|bridge| format!(" on {bridge}")).unwrap_or_default();
    let routers: Vec<String> = routers.iter().map(ToString::to_string).collect();
    let routers = if routers.is_empty() { "no router".to_owned() } else { format!("router {}", routers.join(", ")) };
    format!("segment  mode tap{bridge}, MAC {mac}, {}, {routers}, neighbours {neighbours}", addresses.join(", "))
}

fn one_service(service: &api::Service, trouble: Trouble, shortened: bool) -> Vec<Line> {
    let api::Service { name, listen, protocol, method, scheduler, servers, .. } = service;
    let flags = flags(service);
    let space = if flags.is_empty() { "" } else { "  " };
    let heading = format!("{name}  {protocol} {listen}  {method}  {scheduler}{space}{flags}");
    if shortened {
        let active: u64 = servers.iter().map(|server| server.active).sum();
        let flows: f64 = servers.iter().map(|server| server.rates.flows).sum();
        let counts = format!("{} servers up, {active} active, {} new/s", servers.len(), short(flows));
        return vec![Line::Text(format!("{heading}  {counts}"))];
    }
    let mut lines = vec![match trouble {
        Trouble::Out => Line::Coloured(Colour::Red, heading),
        _ => Line::Heading(heading),
    }];
    if servers.is_empty() {
        lines.push(Line::Text("  no servers".to_owned()));
    }
    let columns = [
        ("  SERVER", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("ADMITTED", Align::Right),
        ("NEW/S", Align::Right),
        ("TO SERVER", Align::Right),
        ("TO CLIENT", Align::Right),
    ];
    let mut table = Table::new(&columns);
    // The sorry server is of interest while it serves.
    let sorry = service.sorry.iter().filter(|server| trouble == Trouble::Out || server.active + server.inactive > 0);
    let shown: Vec<&api::Server> = servers.iter().chain(sorry).collect();
    for server in &shown {
        table.row([
            label(server, method),
            state(server),
            server.weight.to_string(),
            server.active.to_string(),
            server.inactive.to_string(),
            server.admitted.to_string(),
            short(server.rates.flows),
            bits(server.rates.bytes_to_server),
            bits(server.rates.bytes_to_client),
        ]);
    }
    if !shown.is_empty() {
        let mut rows = table.lines().into_iter();
        lines.extend(rows.next().map(Line::Text));
        lines.extend(rows.zip(shown).map(|(text, server)| match colour(&server.state) {
            Some(colour) => Line::Coloured(colour, text),
            None => Line::Text(text),
        }));
    }
    lines
}

/// What is up needs none: what stands out should be what matters.
fn colour(state: &str) -> Option<Colour> {
    match state {
        "up" => None,
        "down" | "unreachable" => Some(Colour::Red),
        _ => Some(Colour::Yellow),
    }
}

/// Its name, and what of it is not as with the others.
fn label(server: &api::Server, method_of_service: &str) -> String {
    if server.method == *method_of_service {
        format!("  {}", server.name)
    } else {
        format!("  {} ({})", server.name, server.method)
    }
}

/// What ran out comes first: that can be mended.
fn drops(status: &api::Status) -> (String, Vec<Line>) {
    let mut table = Table::new(&[("  PACKETS", Align::Right), ("REASON", Align::Left), ("MEANING", Align::Left)]);
    let mut worst: Vec<&api::Drops> = status.drops.iter().collect();
    worst.sort_by_key(|drops| (!drops.shortage, std::cmp::Reverse(drops.packets)));
    worst.truncate(TOP_DROPS);
    for drops in &worst {
        table.row([drops.packets.to_string(), drops.reason.clone(), drops.meaning.clone()]);
    }
    let packets = device_drops(status);
    if packets > 0 {
        let meaning = "The kernel found the device's queue full.".to_owned();
        table.row([packets.to_string(), "(device)".to_owned(), meaning]);
    }
    let of_row = std::iter::once(false).chain(worst.iter().map(|drops| drops.shortage)).chain([false]);
    let rows = table.lines().into_iter().zip(of_row);
    let line = |(text, is_shortage)| if is_shortage { Line::Coloured(Colour::Yellow, text) } else { Line::Text(text) };
    ("dropped".to_owned(), rows.map(line).collect())
}

fn device_drops(status: &api::Status) -> u64 {
    status.device.as_ref().and_then(|device| device.dropped).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn server(name: &str, state: &str) -> Value {
        json!({
            "service": "web", "name": name, "address": "10.20.0.11", "port": 8080, "weight": 1, "method": "nat",
            "tunnel": null, "path_mtu": null, "reachable": true, "state": state, "active": 2, "inactive": 10,
            "admitted": 4711, "to_server": {"packets": 0, "bytes": 0}, "to_client": {"packets": 0, "bytes": 0},
            "rates": {"flows": 3.2, "packets_to_server": 0.0, "bytes_to_server": 12_500.0, "packets_to_client": 0.0,
                      "bytes_to_client": 0.0},
        })
    }

    fn service(name: &str, servers: &[Value]) -> Value {
        json!({"name": name, "listen": "203.0.113.10:80", "protocol": "tcp", "method": "nat", "scheduler": "wlc",
               "servers": servers})
    }

    fn status(services: &[Value]) -> api::Status {
        let status = json!({
            "version": "1.2.3", "pid": 42, "uptime": 187,
            "device": {"name": "gatun0", "received": 5, "sent": 5, "send_errors": 0, "dropped": 0},
            "config": "/etc/gatun/gatun.toml", "generation": 2, "reloads_ok": 1, "reloads_failed": 0, "unsaved": true,
            "shards": 2, "flows": 12, "flows_limit": 1000,
            "rates": {"flows": 3.2, "packets_to_server": 0.0, "bytes_to_server": 12_500.0, "packets_to_client": 0.0,
                      "bytes_to_client": 0.0},
            "services": services,
            "drops": [{"reason": "no_flow", "packets": 9, "meaning": "A TCP packet."}],
        });
        serde_json::from_value(status).unwrap()
    }

    fn text(line: &Line) -> &str {
        match line {
            Line::Heading(text) | Line::Text(text) | Line::Coloured(_, text) => text,
        }
    }

    #[test]
    fn mode_tap_has_a_line_of_its_own() {
        let shown = api::Segment {
            mac: "02:00:00:00:00:01".to_owned(),
            bridge: Some("br0".to_owned()),
            addresses: vec!["10.20.0.2/24".to_owned(), "fd20::2/64".to_owned()],
            routers: vec!["10.20.0.254".parse().unwrap()],
            neighbours: 4,
        };
        let (_, lines) = gateway(&api::Status { segment: Some(shown.clone()), ..status(&[]) });
        let expected = "segment  mode tap on br0, MAC 02:00:00:00:00:01, 10.20.0.2/24, fd20::2/64, router 10.20.0.254, neighbours 4";
        assert_eq!(lines[1], expected);
        let alone = segment(&api::Segment { bridge: None, routers: vec![], ..shown });
        assert!(alone.contains("mode tap, MAC") && alone.contains("no router"), "{alone}");
    }

    #[test]
    fn the_screen() {
        let mut far = server("far", "unreachable");
        far["method"] = "direct".into();
        let mut draining = server("two", "draining");
        draining["drain"] = json!({"since": 5, "left": 295, "then": "rst"});
        let mut dark = service("dark", &[server("one", "down")]);
        dark["sorry"] = server("sorry", "up");
        dark["group"] = "shop".into();
        let services = [
            service("well", &[server("one", "up")]),
            service("web", &[server("10.20.0.11:8080", "up"), far, draining]),
            dark,
        ];
        let screen = screen(&status(&services), false);
        let lines: Vec<&str> = screen.iter().map(text).collect();
        let expected = "\
gatun 1.2.3 on gatun0, process 42, up 3m07s
config   /etc/gatun/gatun.toml (unsaved changes), generation 2, reloads 1 ok, 0 failed
flows    12 of 1000 (1.2 %), 3.2 new/s
traffic  to servers 0 packets/s, 100kbit/s; to clients 0 packets/s, 0bit/s
services 3, 1 without service of their own servers, 1 with servers that get no flows

dark  tcp 203.0.113.10:80  nat  wlc  group shop, sorry 10.20.0.11:8080
  SERVER  STATE  WEIGHT  ACTIVE  INACTIVE  ADMITTED  NEW/S  TO SERVER  TO CLIENT
  one     down        1       2        10      4711    3.2  100kbit/s     0bit/s
  sorry   up          1       2        10      4711    3.2  100kbit/s     0bit/s

web  tcp 203.0.113.10:80  nat  wlc
  SERVER           STATE                      WEIGHT  ACTIVE  INACTIVE  ADMITTED  NEW/S  TO SERVER  TO CLIENT
  10.20.0.11:8080  up                              1       2        10      4711    3.2  100kbit/s     0bit/s
  far (direct)     unreachable                     1       2        10      4711    3.2  100kbit/s     0bit/s
  two              draining, 4m55s until rst       1       2        10      4711    3.2  100kbit/s     0bit/s

well  tcp 203.0.113.10:80  nat  wlc
  SERVER  STATE  WEIGHT  ACTIVE  INACTIVE  ADMITTED  NEW/S  TO SERVER  TO CLIENT
  one     up          1       2        10      4711    3.2  100kbit/s     0bit/s

dropped
  PACKETS  REASON   MEANING
        9  no_flow  A TCP packet.";
        assert_eq!(lines.join("\n"), expected);
        let colours: Vec<(Colour, &str)> = screen
            .iter()
            .filter_map(|line| match line {
                Line::Coloured(colour, text) => Some((*colour, text.split_whitespace().next()?)),
                _ => None,
            })
            .collect();
        let (red, yellow) = (Colour::Red, Colour::Yellow);
        assert_eq!(colours, [(red, "services"), (red, "dark"), (red, "one"), (red, "far"), (yellow, "two")]);
    }

    #[test]
    fn what_ran_out_comes_first_among_the_drops() {
        let drop = |reason: &str, packets, shortage| api::Drops {
            reason: reason.to_owned(),
            packets,
            meaning: "So it is.".to_owned(),
            shortage,
        };
        let rows = [("a", 90, false), ("b", 80, false), ("c", 70, false), ("d", 60, false), ("e", 50, false)];
        let mut dropped: Vec<api::Drops> = rows.map(|(reason, packets, short)| drop(reason, packets, short)).into();
        dropped.push(drop("full", 3, true));
        let (_, lines) = drops(&api::Status { drops: dropped, ..status(&[]) });
        assert_eq!(lines.len(), 1 + TOP_DROPS);
        assert_eq!(lines[1], Line::Coloured(Colour::Yellow, "        3  full    So it is.".to_owned()));
        assert_eq!(lines[2], Line::Text("       90  a       So it is.".to_owned()));
    }

    #[test]
    fn a_large_cluster_is_one_screen_too() {
        let mut services: Vec<Value> =
            (0..100).map(|n| service(&format!("s{n}"), &[server("one", "up"), server("two", "up")])).collect();
        services[70] = service("sick", &[server("one", "up"), server("two", "down")]);
        let lines: Vec<String> = screen(&status(&services), false).iter().map(|line| text(line).to_owned()).collect();
        assert!(lines.len() < 50 && lines[6].starts_with("sick"), "{lines:#?}");
        assert!(
            lines.iter().any(|line| line == "s0  tcp 203.0.113.10:80  nat  wlc  2 servers up, 4 active, 6.4 new/s")
        );
        assert!(lines.iter().any(|line| line == "and 70 more services: --all shows them"));
        assert!(screen(&status(&services), true).len() > 400);
    }
}
