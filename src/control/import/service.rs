//! Virtual servers and their real servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::check::{self, Check};
use super::parse::Statement;
use super::toml::{Keys, string, strings, table};
use super::{Losses, MAX_SERVICES};
use crate::control::config::format_duration;
use crate::service::{Method, SchedulerKind};

/// A service as it will be written.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub line: usize,
    pub keys: Keys,
    pub servers: Vec<Server>,
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub line: usize,
    pub keys: Keys,
}

/// Where a virtual server listens.
#[derive(Clone, Debug)]
struct Listen {
    line: usize,
    address: IpAddr,
    /// As in gatun's files: a port, a range, `*`.
    ports: String,
    group: Option<String>,
}

/// What a virtual server says for all of its real servers.
struct Common<'a> {
    block: &'a Statement,
    method: Method,
    tunnel: Option<String>,
}

/// Keys that say how keepalived tells of changes or runs itself; each is told as lost once.
const SILENT: &[(&str, &str)] = &[
    ("ha_suspend", "gatun does not look at who has the VIP"),
    ("smtp_alert", "no mail is sent; watch `gatun server watch` or the metrics"),
    ("notify_up", "no program is run for a server; watch `gatun server watch`"),
    ("notify_down", "no program is run for a server; watch `gatun server watch`"),
    ("omega", "nothing is run at the end"),
    ("snmp_name", "there is no SNMP; there are Prometheus metrics"),
    ("persistence_engine", "persistence is by the client's address only"),
    ("sorry_server_inhibit", "a sorry server serves whenever nobody else does"),
    ("sorry_server_lvs_method", "a sorry server has the method of its service"),
    ("warmup", "the first check comes at a random time within the interval"),
];

pub(super) fn read(block: &Statement, groups: &[&Statement], services: &mut Vec<Service>, lost: &mut Losses) {
    let listens = listens(block, groups, lost);
    if listens.is_empty() {
        return;
    }
    let protocol = block.find("protocol").and_then(Statement::argument).unwrap_or("TCP").to_ascii_lowercase();
    if !["tcp", "udp"].contains(&protocol.as_str()) {
        lost.add(block.line, format!("virtual_server: protocol {protocol} is not supported"));
        return;
    }
    unknown(block, lost);
    let common = Common { block, method: method(block, lost), tunnel: tunnel(block, lost) };
    for listen in listens {
        if services.len() >= MAX_SERVICES {
            lost.add(block.line, format!("virtual_server: more than {MAX_SERVICES} services"));
            return;
        }
        services.push(service(&common, &protocol, &listen, lost));
    }
}

fn service(common: &Common<'_>, protocol: &str, listen: &Listen, lost: &mut Losses) -> Service {
    let block = common.block;
    let place = place(listen.address, Some(&listen.ports));
    let name = if protocol == "tcp" { place.clone() } else { format!("{place}/{protocol}") };
    let mut keys: Keys = vec![("name", string(&name)), ("listen", string(&place))];
    if protocol != "tcp" {
        keys.push(("protocol", string(protocol)));
    }
    keys.push(("method", string(common.method.word())));
    keys.extend(common.tunnel.as_ref().map(|tunnel| ("tunnel", string(tunnel))));
    scheduler(block, &mut keys, lost);
    let persistence = persistence(block, listen, lost);
    if let (Some(group), true) = (&listen.group, persistence.is_some()) {
        keys.push(("group", string(group)));
    }
    keys.extend(persistence);
    if block.find("ops").is_some() {
        match protocol {
            "udp" => keys.push(("one_packet", "true".to_owned())),
            _ => lost.add(block.line, "ops: one-packet scheduling is for UDP"),
        }
    }
    if let Some(sorry) = block.find("sorry_server") {
        match sorry.arguments() {
            [address, rest @ ..] => match (address.parse(), port(rest.first(), sorry, lost)) {
                (Ok(address), port) => keys.push(("sorry_server", string(&own_place(common, listen, address, port)))),
                (Err(_), _) => lost.add(sorry.line, format!("sorry_server: {address:?} is no IP address")),
            },
            [] => lost.add(sorry.line, "sorry_server: no address"),
        }
    }
    quorum(block, &mut keys, lost);
    let real: Vec<&Statement> = block.block.iter().filter(|found| found.is("real_server")).collect();
    inhibit(block, &real, &mut keys, lost);
    let checks: Vec<Option<Check>> = real.iter().map(|server| check::read(block, server, lost)).collect();
    let mut servers: Vec<(Server, Option<String>)> = Vec::new();
    for (statement, check) in real.iter().zip(checks) {
        servers.extend(server(common, listen, statement, check, lost));
    }
    // What all have in common is said once.
    let first = servers.first().and_then(|(_, check)| check.clone());
    let shared = first.filter(|first| servers.iter().all(|(_, check)| check.as_ref() == Some(first)));
    keys.extend(shared.iter().map(|check| ("check", check.clone())));
    let with_check = |(mut server, check): (Server, Option<String>)| {
        if shared.is_none() {
            server.keys.extend(check.map(|check| ("check", check)));
        }
        server
    };
    Service { line: listen.line, keys, servers: servers.into_iter().map(with_check).collect() }
}

/// A real server, and its check in words.
fn server(
    common: &Common<'_>,
    listen: &Listen,
    statement: &Statement,
    check: Option<Check>,
    lost: &mut Losses,
) -> Option<(Server, Option<String>)> {
    let Some(address) = statement.argument() else {
        lost.add(statement.line, "real_server: no address");
        return None;
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        lost.add(statement.line, format!("real_server: {address:?} is no IP address"));
        return None;
    };
    let own_port = port(statement.arguments().get(1), statement, lost);
    if let Some(port) = own_port.filter(|_| common.method == Method::Nat && listen.ports.parse::<u16>().is_err()) {
        lost.add(statement.line, format!("real_server: port {port} behind many ports; each keeps its own here"));
    }
    let mut keys: Keys = vec![("address", string(&own_place(common, listen, address, own_port)))];
    if let Some(found) = statement.find("weight") {
        keys.extend(number(found, 0..=65535, lost).map(|weight| ("weight", weight.to_string())));
    }
    if statement.find("lvs_method").is_some() || statement.find("lb_kind").is_some() {
        keys.push(("method", string(method(statement, lost).word())));
        keys.extend(tunnel(statement, lost).map(|tunnel| ("tunnel", string(&tunnel))));
    }
    let upper = statement.find("uthreshold").and_then(|found| number(found, 0..=u32::MAX.into(), lost));
    let lower = statement.find("lthreshold").and_then(|found| number(found, 0..=u32::MAX.into(), lost));
    match (upper.filter(|&upper| upper > 0), lower.filter(|&lower| lower > 0)) {
        (Some(upper), lower) => {
            keys.push(("max_connections", upper.to_string()));
            keys.extend(lower.filter(|&lower| lower <= upper).map(|lower| ("min_connections", lower.to_string())));
        }
        (None, Some(_)) => lost.add(statement.line, "lthreshold: it means nothing without uthreshold"),
        (None, None) => (),
    }
    // Where the check asks the port that keepalived would, unless that goes without saying.
    let asked =
        own_port.filter(|port| place_port(common, listen, Some(*port)).is_none() && listen.ports != port.to_string());
    let check = check.map(|mut check| {
        if check.port.is_none() && check.has_port {
            check.port = asked;
        }
        check
    });
    if let Some(check) = check.as_ref().filter(|check| check.has_port && check.port.is_none())
        && own_port.is_none()
        && listen.ports.parse::<u16>().is_err()
    {
        lost.add(check.line, "the check has no connect_port, and there is no other port to ask");
        return Some((Server { line: statement.line, keys }, None));
    }
    Some((Server { line: statement.line, keys }, check.map(|check| check.written())))
}

/// Where a server is, as gatun has it: with direct routing and tunnels, and behind a service of many ports, packets keep their port.
fn own_place(common: &Common<'_>, listen: &Listen, address: IpAddr, port: Option<u16>) -> String {
    place(address, place_port(common, listen, port).map(|port| port.to_string()).as_deref())
}

fn place_port(common: &Common<'_>, listen: &Listen, port: Option<u16>) -> Option<u16> {
    port.filter(|_| common.method == Method::Nat && listen.ports.parse::<u16>().is_ok())
}

fn place(address: IpAddr, ports: Option<&str>) -> String {
    match (address, ports) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(ports)) => format!("{address}:{ports}"),
        (IpAddr::V6(address), Some(ports)) => format!("[{address}]:{ports}"),
    }
}

/// Where `virtual_server IP PORT`, `virtual_server group NAME` and `virtual_server fwmark N` listen.
fn listens(block: &Statement, groups: &[&Statement], lost: &mut Losses) -> Vec<Listen> {
    match block.arguments() {
        [word, mark, ..] if word == "fwmark" => {
            lost.add(block.line, format!("virtual_server fwmark {mark}: {NO_MARKS}"));
            Vec::new()
        }
        [word, name, ..] if word == "group" => {
            let Some(group) = groups.iter().find(|group| group.argument() == Some(name)) else {
                lost.add(block.line, format!("virtual_server group {name}: there is no virtual_server_group {name}"));
                return Vec::new();
            };
            let mut found = Vec::new();
            for statement in &group.block {
                found.extend(members(statement, name, lost));
            }
            found
        }
        [address, rest @ ..] => match address.parse() {
            Ok(address) => {
                let ports = port(rest.first(), block, lost).map_or("*".to_owned(), |port| port.to_string());
                vec![Listen { line: block.line, address, ports, group: None }]
            }
            Err(_) => {
                lost.add(block.line, format!("virtual_server: {address:?} is no IP address"));
                Vec::new()
            }
        },
        [] => {
            lost.add(block.line, "virtual_server: no address");
            Vec::new()
        }
    }
}

const NO_MARKS: &str = "gatun looks at no packet marks; list the addresses and ports in a virtual_server_group, or write services of one group";

/// One line of a group: an address or a range of them, with a port or a range of them.
fn members(statement: &Statement, group: &str, lost: &mut Losses) -> Vec<Listen> {
    let line = statement.line;
    if statement.is("fwmark") {
        lost.add(line, format!("fwmark {}: {NO_MARKS}", statement.argument().unwrap_or("")));
        return Vec::new();
    }
    let ports = match statement.argument() {
        None | Some("0") => Some("*".to_owned()),
        Some(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
            match (port(first), port(last)) {
                (Some(first), Some(last)) if first == last => Some(first.to_string()),
                (Some(first), Some(last)) if first < last => Some(format!("{first}-{last}")),
                _ => None,
            }
        }
    };
    let (Some(addresses), Some(ports)) = (addresses(statement.word()), ports) else {
        lost.add(line, format!("virtual_server_group: {:?} is no address and port", statement.words.join(" ")));
        return Vec::new();
    };
    let listen = |address| Listen { line, address, ports: ports.clone(), group: Some(group.to_owned()) };
    addresses.into_iter().map(listen).collect()
}

/// `192.0.2.1`, or a range in the last number: `192.0.2.1-10`; of IPv6 in hexadecimal.
fn addresses(text: &str) -> Option<Vec<IpAddr>> {
    let Some((first, last)) = text.split_once('-') else { return text.parse().ok().map(|address| vec![address]) };
    match first.parse().ok()? {
        IpAddr::V4(address) => {
            let [a, b, c, first] = address.octets();
            let last: u8 = last.parse().ok()?;
            Some((first..=last).map(|d| IpAddr::V4(Ipv4Addr::new(a, b, c, d))).collect())
        }
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            let (first, last) = (segments[7], u16::from_str_radix(last, 16).ok()?);
            let addresses = (first..=last).take(MAX_SERVICES + 1).map(|segment| {
                segments[7] = segment;
                IpAddr::V6(Ipv6Addr::from(segments))
            });
            Some(addresses.collect())
        }
    }
}

/// `None`: 0, or none at all.
fn port(text: Option<&String>, of: &Statement, lost: &mut Losses) -> Option<u16> {
    let text = text?;
    match text.parse() {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => {
            lost.add(of.line, format!("{}: {text:?} is no port", of.word()));
            None
        }
    }
}

fn method(block: &Statement, lost: &mut Losses) -> Method {
    let Some(found) = block.find("lvs_method").or_else(|| block.find("lb_kind")) else {
        // keepalived's own default.
        return Method::Nat;
    };
    match found.argument().map(str::to_ascii_uppercase).as_deref() {
        Some("NAT") => Method::Nat,
        Some("DR") => Method::Direct,
        Some("TUN") => Method::Tunnel,
        other => {
            lost.add(found.line, format!("{}: {:?} is none of NAT, DR, TUN", found.word(), other.unwrap_or("")));
            Method::Nat
        }
    }
}

/// `lvs_method TUN type gue port 6080`.
fn tunnel(block: &Statement, lost: &mut Losses) -> Option<String> {
    let found = block.find("lvs_method").or_else(|| block.find("lb_kind"))?;
    let after = |word: &str| {
        let at = found.words.iter().position(|found| found == word)?;
        found.words.get(at + 1).map(String::as_str)
    };
    match after("type")? {
        "ipip" => Some("ipip".to_owned()),
        "gue" => Some(after("port").map_or("gue".to_owned(), |port| format!("gue:{port}"))),
        other => {
            lost.add(found.line, format!("{}: tunnels of type {other} are not supported", found.word()));
            None
        }
    }
}

fn scheduler(block: &Statement, keys: &mut Keys, lost: &mut Losses) {
    let found = block.find("lvs_sched").or_else(|| block.find("lb_algo"));
    // keepalived's default is IPVS's.
    let word = found.and_then(Statement::argument).unwrap_or("wlc");
    let Some(kind) = SchedulerKind::ALL.iter().find(|kind| kind.word() == word) else {
        lost.add(found.map_or(block.line, |found| found.line), format!("lvs_sched: there is no scheduler {word}"));
        return;
    };
    keys.push(("scheduler", string(kind.word())));
    let flag = |word: &str| ["sh", "mh"].iter().any(|of| block.find(&format!("{of}-{word}")).is_some());
    let flags: Vec<&str> = ["port", "fallback"].into_iter().filter(|word| flag(word)).collect();
    match kind {
        SchedulerKind::Sh | SchedulerKind::Mh if !flags.is_empty() => {
            keys.push(("scheduler_flags", strings(flags)));
        }
        _ if !flags.is_empty() => {
            lost.add(block.line, "sh-port, sh-fallback, mh-port, mh-fallback: for sh and mh only")
        }
        _ => (),
    }
}

fn persistence(block: &Statement, listen: &Listen, lost: &mut Losses) -> Option<(&'static str, String)> {
    let found = block.find("persistence_timeout");
    let granularity = block.find("persistence_granularity");
    if found.is_none() && granularity.is_none() {
        return None;
    }
    let seconds = match found.filter(|found| found.argument().is_some()) {
        Some(found) => number(found, 0..=31 * 86_400, lost)?,
        None => 360,
    };
    if seconds == 0 {
        return None;
    }
    let mut keys: Keys = vec![("timeout", string(&format_duration(Duration::from_secs(seconds))))];
    if let Some(found) = granularity {
        match (prefix(found.argument().unwrap_or("")), listen.address) {
            (Some(bits @ 1..=32), IpAddr::V4(_)) => keys.push(("netmask", bits.to_string())),
            (Some(bits @ 1..=128), IpAddr::V6(_)) => keys.push(("prefix", bits.to_string())),
            _ => lost.add(found.line, "persistence_granularity: no netmask that fits the address"),
        }
    }
    Some(("persistence", table(&keys)))
}

/// `255.255.255.0`, or `64`.
fn prefix(text: &str) -> Option<u32> {
    if let Ok(bits) = text.parse() {
        return Some(bits);
    }
    let mask = u32::from(text.parse::<Ipv4Addr>().ok()?);
    (mask.leading_ones() + mask.trailing_zeros() == 32).then(|| mask.leading_ones())
}

fn quorum(block: &Statement, keys: &mut Keys, lost: &mut Losses) {
    let value = |word: &str, lost: &mut Losses| block.find(word).and_then(|found| number(found, 0..=1_000_000, lost));
    let quorum = value("quorum", lost).map(|quorum| quorum.max(1));
    keys.extend(quorum.filter(|&quorum| quorum > 1).map(|quorum| ("quorum", quorum.to_string())));
    if let Some(hysteresis) = value("hysteresis", lost).filter(|&hysteresis| hysteresis > 0) {
        match hysteresis < quorum.unwrap_or(1) {
            true => keys.push(("hysteresis", hysteresis.to_string())),
            false => lost.add(block.line, "hysteresis: it must be less than the quorum"),
        }
    }
    for (from, to) in [("quorum_up", "quorum_up"), ("quorum_down", "quorum_down")] {
        if let Some(found) = block.find(from) {
            match command(found.arguments()) {
                Some(command) => keys.push((to, command)),
                None => lost.add(found.line, format!("{from}: no program")),
            }
        }
    }
}

/// A program that stands alone with its arguments in a list; anything else for the shell. A quoted word has the whole line.
pub(super) fn command(words: &[String]) -> Option<String> {
    let line = words.first()?;
    let is_plain =
        |text: &str| !text.contains(['\'', '"', '\\', '$', '`', '|', '&', ';', '<', '>', '*', '?', '(', ')', '~']);
    if line.starts_with('/') && is_plain(line) {
        return Some(strings(line.split_whitespace()));
    }
    Some(string(line))
}

/// `inhibit_on_failure` leaves a failed server's connections alone.
fn inhibit(block: &Statement, servers: &[&Statement], keys: &mut Keys, lost: &mut Losses) {
    let inhibited = servers.iter().filter(|server| server.find("inhibit_on_failure").is_some()).count();
    if block.find("inhibit_on_failure").is_some() || (inhibited > 0 && inhibited == servers.len()) {
        keys.push(("on_server_down", string("keep")));
    } else if inhibited > 0 {
        lost.add(block.line, "inhibit_on_failure of some servers: on_server_down is for all servers of a service");
    }
}

/// A number in a range, the first argument of a statement.
pub(super) fn number(found: &Statement, range: std::ops::RangeInclusive<u64>, lost: &mut Losses) -> Option<u64> {
    let text = found.argument().unwrap_or("");
    let number = text.parse().ok().filter(|number| range.contains(number));
    if number.is_none() {
        let (least, most) = range.into_inner();
        lost.add(found.line, format!("{}: {text:?} is no number from {least} to {most}", found.word()));
    }
    number
}

/// Tells of what has no counterpart.
fn unknown(block: &Statement, lost: &mut Losses) {
    const OF_BOTH: &[&str] = &[
        "lvs_method",
        "lb_kind",
        "delay_loop",
        "connect_timeout",
        "retry",
        "delay_before_retry",
        "virtualhost",
        "alpha",
        "inhibit_on_failure",
    ];
    const OF_SERVICE: &[&str] = &[
        "lvs_sched",
        "lb_algo",
        "sh-port",
        "sh-fallback",
        "mh-port",
        "mh-fallback",
        "ops",
        "persistence_timeout",
        "persistence_granularity",
        "protocol",
        "quorum",
        "hysteresis",
        "quorum_up",
        "quorum_down",
        "sorry_server",
        "real_server",
        "ip_family",
    ];
    const OF_SERVER: &[&str] = &["weight", "uthreshold", "lthreshold"];
    let mut look = |statement: &Statement, known: &[&str]| {
        let word = statement.word();
        if known.contains(&word) || OF_BOTH.contains(&word) || check::TYPES.contains(&word) {
            return;
        }
        match SILENT.iter().find(|(silent, _)| *silent == word) {
            Some((_, why)) => lost.add(statement.line, format!("{word}: {why}")),
            None => lost.add(statement.line, format!("{word}: unknown here")),
        }
    };
    for statement in &block.block {
        look(statement, OF_SERVICE);
        if statement.is("real_server") {
            statement.block.iter().for_each(|inner| look(inner, OF_SERVER));
        }
    }
}
