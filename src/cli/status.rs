//! `gatun status`: one screen.

use std::time::Duration;

use anyhow::Result;

use super::Context;
use super::format::number::{bits, duration, short};
use super::format::table::{Align, Table};
use crate::control::api::{self, Request};

/// Reasons for dropping that are worth a line on the screen.
const TOP_DROPS: usize = 5;

/// Show services, servers, flows and rates on one screen
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let status: api::Status = context.connect()?.call(&Request::Status {})?;
    let output = &mut context.output;
    if args.json {
        return Ok(output.json(&status)?);
    }
    for (heading, lines) in screen(&status) {
        output.heading(&heading)?;
        for line in lines {
            output.line(&line)?;
        }
    }
    Ok(())
}

/// Headings, and what stands under each.
fn screen(status: &api::Status) -> Vec<(String, Vec<String>)> {
    let mut screen = vec![gateway(status)];
    for service in &status.services {
        screen.push((String::new(), Vec::new()));
        screen.push(one_service(service));
    }
    if !status.drops.is_empty() || device_drops(status) > 0 {
        screen.push((String::new(), Vec::new()));
        screen.push(drops(status));
    }
    screen
}

fn gateway(status: &api::Status) -> (String, Vec<String>) {
    let device = status.device.as_ref().map(|device| format!(" on {}", device.name)).unwrap_or_default();
    let up = duration(Duration::from_secs(status.uptime));
    let heading = format!("gatun {}{device}, process {}, up {up}", status.version, status.pid);
    let full = 100.0 * status.flows as f64 / status.flows_limit.max(1) as f64;
    let rates = &status.rates;
    let config = status.config.as_deref().unwrap_or("none");
    let mut lines = vec![
        format!(
            "config   {config}, generation {}, reloads {} ok, {} failed",
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

fn one_service(service: &api::Service) -> (String, Vec<String>) {
    let api::Service { name, listen, protocol, method, scheduler, quorum, servers } = service;
    let quorum = match quorum {
        Some(api::Quorum { holds: false, live, weight, .. }) => format!("  NO QUORUM: {live} of {weight}"),
        _ => String::new(),
    };
    let heading = format!("{name}  {protocol} {listen}  {method}  {scheduler}{quorum}");
    let columns = [
        ("  SERVER", Align::Left),
        ("WEIGHT", Align::Right),
        ("ACTIVE", Align::Right),
        ("INACTIVE", Align::Right),
        ("ADMITTED", Align::Right),
        ("NEW/S", Align::Right),
        ("TO SERVER", Align::Right),
        ("TO CLIENT", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for server in servers {
        table.row([
            label(server, method),
            server.weight.to_string(),
            server.active.to_string(),
            server.inactive.to_string(),
            server.admitted.to_string(),
            short(server.rates.flows),
            bits(server.rates.bytes_to_server),
            bits(server.rates.bytes_to_client),
        ]);
    }
    (heading, if servers.is_empty() { vec!["  no servers".to_owned()] } else { table.lines() })
}

/// Its name, and what of it is not as with the others.
fn label(server: &api::Server, method_of_service: &str) -> String {
    let mut label = format!("  {}", server.name);
    if server.method != *method_of_service {
        label.push_str(&format!(" ({})", server.method));
    }
    if server.state != "up" {
        label.push_str(&format!(" {}", server.state));
    }
    label
}

fn drops(status: &api::Status) -> (String, Vec<String>) {
    let mut table = Table::new(&[("  PACKETS", Align::Right), ("REASON", Align::Left), ("MEANING", Align::Left)]);
    for drops in status.drops.iter().take(TOP_DROPS) {
        table.row([drops.packets.to_string(), drops.reason.clone(), drops.meaning.clone()]);
    }
    let packets = device_drops(status);
    if packets > 0 {
        let meaning = "The kernel found the device's queue full.".to_owned();
        table.row([packets.to_string(), "(device)".to_owned(), meaning]);
    }
    ("dropped".to_owned(), table.lines())
}

fn device_drops(status: &api::Status) -> u64 {
    status.device.as_ref().and_then(|device| device.dropped).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> api::Status {
        let rates = api::Rates { flows: 3.2, bytes_to_server: 12_500.0, ..api::Rates::default() };
        let server = api::Server {
            service: "web".to_owned(),
            name: "10.20.0.11:8080".to_owned(),
            address: "10.20.0.11".parse().unwrap(),
            port: Some(8080),
            weight: 1,
            method: "nat".to_owned(),
            tunnel: None,
            path_mtu: None,
            reachable: true,
            state: "up".to_owned(),
            health: None,
            active: 2,
            inactive: 10,
            admitted: 4711,
            to_server: api::Volume::default(),
            to_client: api::Volume::default(),
            rates,
        };
        let device = api::Device { name: "gatun0".to_owned(), received: 5, sent: 5, send_errors: 0, dropped: Some(0) };
        api::Status {
            version: "1.2.3".to_owned(),
            pid: 42,
            uptime: 187,
            device: Some(device),
            segment: None,
            config: Some("/etc/gatun/gatun.toml".to_owned()),
            generation: 2,
            reloads_ok: 1,
            reloads_failed: 0,
            shards: 2,
            flows: 12,
            flows_limit: 1000,
            rates,
            services: vec![api::Service {
                name: "web".to_owned(),
                listen: "203.0.113.10:80".to_owned(),
                protocol: "tcp".to_owned(),
                method: "nat".to_owned(),
                scheduler: "wlc".to_owned(),
                quorum: None,
                servers: vec![
                    server.clone(),
                    api::Server {
                        name: "far".to_owned(),
                        method: "direct".to_owned(),
                        reachable: false,
                        state: "unreachable".to_owned(),
                        active: 0,
                        ..server
                    },
                ],
            }],
            drops: vec![api::Drops { reason: "no_flow".to_owned(), packets: 9, meaning: "A TCP packet.".to_owned() }],
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
        let (_, lines) = gateway(&api::Status { segment: Some(shown.clone()), ..status() });
        let expected = "segment  mode tap on br0, MAC 02:00:00:00:00:01, 10.20.0.2/24, fd20::2/64, router 10.20.0.254, neighbours 4";
        assert_eq!(lines[1], expected);
        let alone = segment(&api::Segment { bridge: None, routers: vec![], ..shown });
        assert!(alone.contains("mode tap, MAC") && alone.contains("no router"), "{alone}");
    }

    #[test]
    fn the_screen() {
        let lines: Vec<String> =
            screen(&status()).into_iter().flat_map(|(heading, lines)| [vec![heading], lines].concat()).collect();
        let expected = "\
gatun 1.2.3 on gatun0, process 42, up 3m07s
config   /etc/gatun/gatun.toml, generation 2, reloads 1 ok, 0 failed
flows    12 of 1000 (1.2 %), 3.2 new/s
traffic  to servers 0 packets/s, 100kbit/s; to clients 0 packets/s, 0bit/s

web  tcp 203.0.113.10:80  nat  wlc
  SERVER                    WEIGHT  ACTIVE  INACTIVE  ADMITTED  NEW/S  TO SERVER  TO CLIENT
  10.20.0.11:8080                1       2        10      4711    3.2  100kbit/s     0bit/s
  far (direct) unreachable       1       0        10      4711    3.2  100kbit/s     0bit/s

dropped
  PACKETS  REASON   MEANING
        9  no_flow  A TCP packet.";
        assert_eq!(lines.join("\n"), expected);
    }
}
