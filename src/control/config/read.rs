//! From the parsed document to [`Config`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::check;
use super::cluster;
use super::keys;
use super::names::{Place, parse_place};
use super::nat;
use super::problem::{Located, Problems, Source};
use super::section::Section;
use super::tap;
use super::{
    Config, ConfigErrors, GatewayConfig, HealthConfig, NatConfig, Queues, ServerAddress, ServerConfig, ServiceConfig,
    compile, parse_listen,
};
use crate::service::{Limits, Method, Protocols, SchedulerKind};
use crate::timeouts::Timeouts;
use crate::wire::outer::GUE_PORT;
use crate::wire::{Addr, Encapsulation};

/// Linux `IFNAMSIZ` less the terminating zero.
const MAX_DEVICE_NAME: usize = 15;
/// `sun_path` of `sockaddr_un` less the terminating zero.
const MAX_SOCKET_PATH: usize = 107;
const MAX_NAME: usize = 64;

const MINIMUM_TIMEOUT: Duration = Duration::from_secs(1);
const MAXIMUM_TIMEOUT: Duration = Duration::from_secs(31 * 86_400);

pub(super) fn config(document: &Spanned<DeTable<'_>>, source: Source) -> Result<Config, ConfigErrors> {
    let problems = Problems::default();
    let file = Section::new(document.get_ref(), 0..0, String::new(), &keys::FILE, &problems);
    let mut config = Config {
        source,
        gateway: GatewayConfig::default(),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        seed: 0,
        services: Vec::new(),
        nat: NatConfig::default(),
        masquerades: Vec::new(),
        forwards: Vec::new(),
    };
    if let Some(section) = file.table("gateway", "[gateway]", &keys::GATEWAY) {
        read_gateway(&section, &mut config);
    }
    if let Some(section) = file.table("conntrack", "[conntrack]", &keys::CONNTRACK) {
        read_conntrack(&section, &mut config);
    }
    if let Some(section) = file.table("limits", "[limits]", &keys::LIMITS) {
        config.limits = read_limits(&section);
    }
    if let Some(section) = file.table("nat", "[nat]", &keys::NAT) {
        config.nat = nat::read(&section);
    }
    let masquerades = file.tables("masquerade", "[[masquerade]]", &keys::MASQUERADE, |table, number| {
        format!("[[masquerade]] {}", label(table, "name", number))
    });
    config.masquerades = masquerades.iter().filter_map(nat::read_masquerade).collect();
    let forwards = file.tables("forward", "[[forward]]", &keys::FORWARD, |table, number| {
        format!("[[forward]] {}", label(table, "name", number))
    });
    config.forwards = forwards.iter().filter_map(nat::read_forward).collect();
    let sections = file.tables("service", "[[service]]", &keys::SERVICE, |table, number| {
        format!("[[service]] {}", label(table, "name", number))
    });
    config.services = sections.iter().filter_map(read_service).collect();
    compile::report_faults(&config, &problems);
    tap::report_faults(&config, &problems);
    check::report_faults(&config, &problems);
    let source = config.source.clone();
    problems.into_result(config, &source)
}

fn read_gateway(section: &Section<'_>, config: &mut Config) {
    let gateway = &mut config.gateway;
    let is_tap = section.word("mode", &[("tun", false), ("tap", true)], &[]).unwrap_or(false);
    gateway.tap = tap::read(section, is_tap);
    set(&mut gateway.device, section.parsed("device", device_name));
    if let Some(uplinks) = section.strings("uplink", r#"["eth0"]"#) {
        gateway.uplinks = uplinks.into_iter().filter_map(|uplink| read_uplink(section, uplink)).collect();
    }
    if let Some(count) = section.auto_or_integer("queues", 1..=16) {
        gateway.queues = Queues::Count(count);
    }
    set(&mut gateway.control, section.parsed("control", socket_path));
    set(&mut gateway.metrics, section.parsed("metrics", metrics_address));
    gateway.routes = section.boolean("routes").unwrap_or(gateway.routes);
    gateway.offload = section.boolean("offload").unwrap_or(gateway.offload);
    gateway.priority = section.integer("priority", 0..=20).unwrap_or(gateway.priority);
    if let Some(resolvers) = section.strings("resolver", r#"["10.0.0.53"]"#) {
        gateway.resolvers = resolvers.into_iter().filter_map(|resolver| read_resolver(section, resolver)).collect();
    }
    gateway.mtu = section.auto_or_integer("mtu", 1280..=65535);
    config.seed = section.integer("seed", 0..=u64::MAX).unwrap_or(config.seed);
}

fn read_uplink(section: &Section<'_>, uplink: Located<&str>) -> Option<String> {
    match device_name(uplink.value) {
        Ok(name) => Some(name),
        Err(wrong) => {
            section.refuse(uplink.span, format!("uplink {:?} {wrong}", uplink.value));
            None
        }
    }
}

/// An address, with a port if that is another than 53.
fn read_resolver(section: &Section<'_>, resolver: Located<&str>) -> Option<SocketAddr> {
    let text = resolver.value;
    let found = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
    if found.is_none() {
        let message = format!("resolver {text:?} is no address; write \"10.0.0.53\", with a port \"10.0.0.53:5353\"");
        section.refuse(resolver.span, message);
    }
    found
}

fn read_conntrack(section: &Section<'_>, config: &mut Config) {
    // At most what fits: 2^24 flows take 4 GiB.
    if let Some(max_flows) = section.integer("max_flows", 1024..=1 << 24) {
        config.gateway.max_flows = max_flows;
    }
    let profiles = [("rfc", Timeouts::RFC), ("ipvs", Timeouts::IPVS)];
    config.timeouts = section.word("profile", &profiles, &[]).unwrap_or_default();
    if let Some(section) = section.table("timeouts", "[conntrack.timeouts]", &keys::TIMEOUTS) {
        for (key, timeout) in config.timeouts.entries() {
            *timeout = section.duration(key, MINIMUM_TIMEOUT..=MAXIMUM_TIMEOUT).unwrap_or(*timeout);
        }
    }
}

fn read_limits(section: &Section<'_>) -> Limits {
    let default = Limits::default();
    Limits {
        replies_per_second: section.integer("replies_per_second", 0..=1_000_000).unwrap_or(default.replies_per_second),
        fragmented_packets: section.integer("fragmented_packets", 16..=1 << 20).unwrap_or(default.fragmented_packets),
        // At least one packet of the greatest size.
        held_fragment_bytes: section
            .integer("held_fragment_bytes", 1 << 16..=1 << 30)
            .unwrap_or(default.held_fragment_bytes),
        persistent_clients: section.integer("persistent_clients", 16..=1 << 22).unwrap_or(default.persistent_clients),
        expectations: section.integer("expectations", 16..=1 << 20).unwrap_or(default.expectations),
        half_open: section.integer("half_open", 0..=1 << 24).unwrap_or(default.half_open),
        new_flows_per_client: section
            .integer("new_flows_per_client", 0..=10_000_000)
            .unwrap_or(default.new_flows_per_client),
        new_flows_per_second: section
            .integer("new_flows_per_second", 0..=10_000_000)
            .unwrap_or(default.new_flows_per_second),
        unsolicited_syns: section.integer("unsolicited_syns", 0..=1 << 20).unwrap_or(default.unsolicited_syns),
    }
}

/// `None` when a key without which there is no service is missing or wrong.
fn read_service(section: &Section<'_>) -> Option<ServiceConfig> {
    section.require("name", r#"name = "web""#);
    section.require("listen", r#"listen = "203.0.113.10:80""#);
    section.require("server", r#"[[service.server]] with address = "10.20.0.11:8080", or server = [] for none"#);
    let name = section.parsed("name", name);
    let listen = section.parsed("listen", parse_listen);
    let protocols = [Protocols::Tcp, Protocols::Udp, Protocols::TcpAndUdp].map(|p| (p.word(), p));
    let protocols = section.word("protocol", &protocols, &["sctp"]).unwrap_or(Protocols::Tcp);
    let method = method(section).unwrap_or(Method::Nat);
    let tunnel = section.parsed("tunnel", encapsulation).map(|found| found.value).unwrap_or_default();
    let schedulers: Vec<_> = SchedulerKind::ALL.iter().map(|&kind| (kind.word(), kind)).collect();
    let scheduler = section.word("scheduler", &schedulers, &[]).unwrap_or_default();
    let service = section.name().to_owned();
    let servers = section.tables("server", "[[service.server]]", &keys::SERVER, |table, number| {
        format!("{service}, server {}", label(table, "address", number))
    });
    let health = check::read(section);
    let servers = servers.iter().filter_map(|server| read_server(server, &health)).collect();
    let cluster = cluster::read(section, protocols, scheduler);
    if cluster.passive.is_some() && listen.as_ref().is_some_and(|listen| !listen.value.ports.is_single()) {
        let message =
            "passive checks need a service of a single port: that one of many is closed says nothing of the server";
        section.refuse(section.span_of("passive"), message.to_owned());
    }
    let nat = nat::read_of_service(section);
    let (name, listen) = (name?, listen?);
    Some(ServiceConfig { name, listen, protocols, method, tunnel, scheduler, cluster, nat, health, servers })
}

fn read_server(section: &Section<'_>, of: &HealthConfig) -> Option<ServerConfig> {
    section.require("address", r#"address = "10.20.0.11:8080""#);
    let place = section.parsed("address", parse_place);
    let given = section.parsed("name", name);
    let weight = section.integer("weight", 0..=65535).unwrap_or(1);
    let method = method(section);
    let tunnel = section.parsed("tunnel", encapsulation).map(|found| found.value);
    let place = place?;
    let shown = match &place.value {
        Place::At(address) => address.to_string(),
        Place::From(origin) => origin.to_string(),
    };
    let name = given.unwrap_or_else(|| Located { value: shown, span: place.span.clone() });
    let (value, origin) = match place.value {
        Place::At(address) => (address, None),
        Place::From(origin) => (ServerAddress { address: Addr::UNSPECIFIED, port: None }, Some(origin)),
    };
    let address = Located { value, span: place.span };
    let mut server = ServerConfig {
        name,
        address,
        origin,
        weight,
        method,
        tunnel,
        max_connections: None,
        min_connections: None,
        slow_start: None,
        check: check::read_override(section, of),
    };
    cluster::read_limits(section, &mut server);
    Some(server)
}

fn method(section: &Section<'_>) -> Option<Method> {
    let methods: Vec<_> = Method::OF_SERVICES.iter().map(|&method| (method.word(), method)).collect();
    section.word("method", &methods, &[])
}

/// `ipip`, `gue`, or GUE to another port than the usual one: `gue:7000`.
pub(super) fn encapsulation(text: &str) -> Result<Encapsulation, String> {
    match (text, text.strip_prefix("gue:").map(str::parse)) {
        ("ipip", _) => Ok(Encapsulation::Ipip),
        ("gue", _) => Ok(Encapsulation::Gue { port: GUE_PORT }),
        (_, Some(Ok(port))) if port > 0 => Ok(Encapsulation::Gue { port }),
        (_, Some(_)) => Err("has no port from 1 to 65535 behind \"gue:\"".to_owned()),
        _ => Err(keys::unknown_word(text, ["ipip", "gue"].into_iter(), &["gre", "wireguard"])),
    }
}

/// What messages call a table of a list: the string at `key`, or its number.
fn label(table: &DeTable<'_>, key: &str, number: usize) -> String {
    match table.get(key).and_then(|value| value.get_ref().as_str()) {
        Some(text) => format!("{text:?}"),
        None => format!("number {number}"),
    }
}

pub(super) fn set<T>(target: &mut T, found: Option<Located<T>>) {
    if let Some(found) = found {
        *target = found.value;
    }
}

/// Linux `dev_valid_name` (net/core/dev.c); a `%` would ask the kernel to choose a number.
pub(super) fn device_name(text: &str) -> Result<String, String> {
    let wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if text.is_empty() || text.len() > MAX_DEVICE_NAME {
        return Err(format!("is no name of an interface; it must be 1 to {MAX_DEVICE_NAME} bytes long"));
    }
    if text == "." || text == ".." || text.contains(wrong) {
        return Err("is no name of an interface; it must be without spaces, \"/\", \":\" and \"%\"".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.ends_with('/') {
        return Err("is no absolute path of a socket; write for example \"/run/gatun/control.sock\"".to_owned());
    }
    if text.len() > MAX_SOCKET_PATH || text.contains('\0') {
        return Err(format!("is no path of a socket; at most {MAX_SOCKET_PATH} bytes are possible, and none zero"));
    }
    Ok(PathBuf::from(text))
}

fn metrics_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(Some(address)),
        _ => Err("is no address and port; write for example \"127.0.0.1:9108\", or \"off\"".to_owned()),
    }
}

/// Names stand in outputs, filters and metric labels.
pub(super) fn name(text: &str) -> Result<String, String> {
    let count = text.chars().count();
    if !(1..=MAX_NAME).contains(&count) {
        return Err(format!("is no name; it must be 1 to {MAX_NAME} characters long"));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("is no name; it must be without spaces and control characters".to_owned());
    }
    Ok(text.to_owned())
}
