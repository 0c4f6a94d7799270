//! Against what ipvsadm 1.31 itself prints. The files in `tests/` were recorded from it, with a kernel that was played:
//! `usage.txt` has command lines, each with `ok` or the exit code and message; `session.txt` a table's life, each command
//! with its output, its messages (`! `) and its exit code (`= `); `connections.txt` the same for connections.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use proptest::strategy::Union;
use serde_json::json;

use super::apply::Plan;
use super::command::*;
use super::connections::{self, Connection};
use super::names::{Names, Printer};
use super::parse::{Complaint, parse};
use super::table::{Counts, Table, netmask};
use super::{list, save};
use crate::control::api;

/// What a host without a resolver knows.
struct Few;

const PORTS: [(&str, u16, Protocol); 6] = [
    ("http", 80, Protocol::Tcp),
    ("https", 443, Protocol::Tcp),
    ("http-alt", 8080, Protocol::Tcp),
    ("ftp", 21, Protocol::Tcp),
    ("domain", 53, Protocol::Udp),
    ("syslog", 514, Protocol::Udp),
];

impl Names for Few {
    fn host(&self, _: &str) -> Option<Ipv4Addr> {
        None
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        PORTS.iter().find(|row| row.0 == name && row.2 == protocol).map(|row| row.1)
    }

    fn host_name(&self, _: IpAddr) -> Option<String> {
        None
    }

    fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        PORTS.iter().find(|row| row.1 == port && row.2 == protocol).map(|row| row.0.to_owned())
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn parsed(line: &str) -> Result<Command, Complaint> {
    parse("ipvsadm", &words(line), &Few)
}

/// `$ COMMAND`, and what stands below it.
fn recorded(text: &str) -> Vec<(&str, String)> {
    let mut rows: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), rows.last_mut()) {
            (Some(command), _) => rows.push((command, String::new())),
            (None, Some(row)) => row.1 += &format!("{line}\n"),
            (None, None) => panic!("{line:?} belongs to no command"),
        }
    }
    rows
}

#[test]
fn every_command_line_is_taken_or_refused_as_by_the_original() {
    for (line, expected) in recorded(include_str!("tests/usage.txt")) {
        let found = match parsed(line) {
            Ok(_) => "ok\n".to_owned(),
            Err(complaint) => format!("{}: {}\n", complaint.code, complaint.message.trim_end()),
        };
        assert_eq!(found, expected, "ipvsadm {line}");
    }
}

/// Numbers as the recording had them.
fn play(table: &mut Table) {
    const NUMBERS: [u64; 9] =
        [0, 7, 99_999_999, 100_000_000, 1_234_567_890, 99_999_999_999, 123_456_789_012, 100_000_000_000_000, 42];
    for (number, service) in table.services.iter_mut().enumerate() {
        for (place, server) in service.servers.iter_mut().enumerate() {
            let at = |which: usize| NUMBERS[(number * 3 + (place + 1) * 2 + which) % NUMBERS.len()];
            let (number, place) = (number as u64, place as u64);
            server.counts = Counts {
                active: number * 100 + place,
                inactive: place * 7,
                persistent: place,
                totals: [at(0), at(1), at(2), at(3), at(4)],
                rates: [at(5) % 1000, at(6) % 1_000_000, at(7) % 1_000_000, at(5), at(6)],
            };
        }
    }
}

/// What one command does and prints; but for connections, without a gateway.
fn run(table: &mut Table, line: &str) -> String {
    let command = match parsed(line) {
        Ok(command) => command,
        Err(complaint) => return format!("! {}\n= {}\n", complaint.message, complaint.code),
    };
    match &command {
        Command::List(List { what: Listed::Timeouts, .. }) => format!("{}= 0\n", list::timeouts(table.timeouts)),
        Command::List(List { what: Listed::One(key), .. }) if table.find(key).is_none() => {
            "! No such service\n= 1\n".to_owned()
        }
        Command::List(list) => {
            let printer = Printer::new(&Few, list.numeric);
            play(table);
            format!("{}= 0\n", list::services(table, list, &printer))
        }
        Command::Save { numeric } => {
            let rules = save::rules(table, &Printer::new(&Few, *numeric));
            rules.iter().map(|rule| without_thresholds(rule) + "\n").collect::<String>() + "= 0\n"
        }
        Command::Zero(key) => match key {
            Some(key) if table.find(key).is_none() => "! No such service\n= 255\n".to_owned(),
            _ => "= 0\n".to_owned(),
        },
        command => {
            let mut plan = Plan::new(table.clone());
            match plan.add(command) {
                Ok(()) => {
                    *table = plan.table;
                    "= 0\n".to_owned()
                }
                Err(message) => format!("! {message}\n= 255\n"),
            }
        }
    }
}

/// A rule as the original saves it: it loses them.
fn without_thresholds(rule: &str) -> String {
    rule.split(" -x ").next().unwrap_or_default().to_owned()
}

#[test]
fn a_table_lives_as_with_the_original() {
    let mut table = Table::default();
    for (line, expected) in recorded(include_str!("tests/session.txt")) {
        assert_eq!(run(&mut table, line), expected, "ipvsadm {line}");
    }
}

#[test]
fn connections_look_as_with_the_original() {
    let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
    let connection = |protocol, expires, state: &str, client, vip, server| Connection {
        protocol,
        expires,
        state: state.to_owned(),
        client,
        vip,
        server,
    };
    let (client, vip) = (v4("198.51.100.2"), v4("203.0.113.10"));
    let syslog = (v4("192.168.127.89"), 514);
    let shown = [
        connection(Protocol::Udp, 264, "UDP", (syslog.0, 44117), syslog, (v4("192.168.129.116"), 514)),
        connection(Protocol::Tcp, 899, "ESTABLISHED", (client, 40000), (vip, 80), (v4("10.20.0.11"), 8080)),
        connection(Protocol::Tcp, 59, "SYN_RECV", (client, 40001), (vip, 80), (v4("10.20.0.12"), 80)),
        connection(
            Protocol::Tcp,
            0,
            "FIN_WAIT",
            (v4("198.51.100.200"), 40002),
            (v4("203.0.113.100"), 443),
            (v4("10.20.0.12"), 443),
        ),
        connection(
            Protocol::Tcp,
            7440,
            "TIME_WAIT",
            (v4("2001:db8:1::2"), 40003),
            (v4("2001:db8:f::10"), 80),
            (v4("fd20::11"), 8080),
        ),
    ];
    for (line, expected) in recorded(include_str!("tests/connections.txt")) {
        let Ok(Command::List(list)) = parsed(line) else { panic!("ipvsadm {line}") };
        assert_eq!(list.what, Listed::Connections);
        let printer = Printer::new(&Few, list.numeric);
        let lines: String = shown.iter().map(|connection| connection.line(&printer) + "\n").collect();
        // The original prints a connection without a persistence engine in the ordinary columns, whatever the heading.
        let found = format!("{}\n{lines}= 0\n", connections::heading(list.with_engines));
        assert_eq!(found, expected, "ipvsadm {line}");
    }
}

#[test]
fn a_flow_is_a_connection() {
    let side = |src: &str, sport, dst: &str, dport| api::Side {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        sport,
        dport,
        packets: 1,
        bytes: 40,
    };
    let mut flow = api::Flow {
        proto: "tcp".to_owned(),
        protonum: 6,
        timeout: 125,
        state: Some("ESTABLISHED".to_owned()),
        original: side("198.51.100.2", 40000, "203.0.113.10", 80),
        reply: side("10.20.0.11", 8080, "198.51.100.2", 40000),
        replied: true,
        assured: true,
        service: "web".to_owned(),
        server: "a".to_owned(),
        method: "nat".to_owned(),
        shard: 0,
        age: 1,
        marks: Default::default(),
    };
    let line = |flow: &api::Flow, servers: &[api::Server]| {
        Connection::new(flow, servers).map(|connection| connection.line(&Printer::numeric()))
    };
    let expected = "TCP 02:05  ESTABLISHED 198.51.100.2:40000 203.0.113.10:80    10.20.0.11:8080";
    assert_eq!(line(&flow, &[]).as_deref(), Some(expected));
    flow.method = "tunnel".to_owned();
    flow.reply = side("203.0.113.10", 80, "198.51.100.2", 40000);
    let expected = "TCP 02:05  ESTABLISHED 198.51.100.2:40000 203.0.113.10:80    10.30.0.14:80";
    assert_eq!(line(&flow, &[server("a", "10.30.0.14", None)]).as_deref(), Some(expected));
    flow.protonum = 1;
    assert_eq!(line(&flow, &[]), None);
}

#[test]
fn fullnat_is_masquerading_and_stays_what_it_is() {
    let mut by_fullnat = server("a", "10.20.0.11", Some(8080));
    by_fullnat.method = "fullnat".to_owned();
    let service = |method: &str, servers: &[&api::Server]| {
        let told = json!({ "name": "web", "listen": "203.0.113.10:80", "protocol": "tcp", "method": method,
                           "scheduler": "wlc", "servers": servers });
        serde_json::from_value::<api::Service>(told).unwrap()
    };
    let edits = |service: api::Service, line: &str| {
        let mut table = Table::default();
        table.services = super::table::services(&service);
        let listed = super::list::services(&table, &List::default(), &Printer::numeric());
        assert!(listed.contains("  -> 10.20.0.11:8080              Masq    1 "), "{listed}");
        let mut plan = Plan::new(table);
        plan.add(&parsed(line).unwrap()).unwrap();
        serde_json::to_value(&plan.edits).unwrap()
    };
    // In a service by nat, only this server is.
    for method in ["fullnat", "nat"] {
        let edited = edits(service(method, &[&by_fullnat]), "-e -t 203.0.113.10:80 -r 10.20.0.11:8080 -m -w 7");
        assert_eq!(edited[0]["keys"], json!({ "weight": 7 }), "{method}");
    }
    let added = edits(service("fullnat", &[&by_fullnat]), "-a -t 203.0.113.10:80 -r 10.20.0.12:8080 -m");
    assert_eq!(added[0]["keys"]["method"], "fullnat");
    let added = edits(service("fullnat", &[&by_fullnat]), "-a -t 203.0.113.10:80 -r 10.20.0.12 -g");
    assert_eq!(added[0]["keys"]["method"], "direct");
    let added = edits(service("nat", &[&by_fullnat]), "-a -t 203.0.113.10:80 -r 10.20.0.12:8080 -m");
    assert_eq!(added[0]["keys"]["method"], "nat");
}

#[test]
fn a_kept_client_is_a_template() {
    let mut plan = Plan::new(Table::default());
    for line in ["-A -u 203.0.113.10:53 -p", "-A -t [2001:db8:f::10]:0 -p"] {
        plan.add(&parsed(line).unwrap()).unwrap();
    }
    let mut kept = api::KeptClient {
        service: "ipvs:udp:203.0.113.10:53".to_owned(),
        client: "198.51.100.0".parse().unwrap(),
        address: "10.20.0.11".parse().unwrap(),
        port: Some(5353),
        flows: 1,
        timeout: 61,
    };
    let line = |kept: &api::KeptClient| {
        Connection::template(kept, &plan.table).map(|template| template.line(&Printer::numeric()))
    };
    let expected = "UDP 01:01  NONE        198.51.100.0:0     203.0.113.10:53    10.20.0.11:5353";
    assert_eq!(line(&kept).as_deref(), Some(expected));
    kept.service = "ipvs:tcp:[2001:db8:f::10]:*".to_owned();
    kept.port = None;
    let expected = "TCP 01:01  NONE        198.51.100.0:0     [2001:db8:f::10]:0 10.20.0.11:0";
    assert_eq!(line(&kept).as_deref(), Some(expected));
    kept.service = "gone".to_owned();
    assert_eq!(line(&kept), None);
}

fn server(name: &str, address: &str, port: Option<u16>) -> api::Server {
    let (none, volume) = (json!(0.0), json!({ "packets": 0, "bytes": 0 }));
    let rates = json!({ "flows": none, "packets_to_server": none, "bytes_to_server": none, "packets_to_client": none,
                        "bytes_to_client": none });
    // As an older gateway tells it: what it does not know of is at its default.
    let told = json!({ "service": "web", "name": name, "address": address, "port": port, "weight": 1, "method": "nat",
                       "reachable": true, "active": 0, "inactive": 0, "admitted": 0, "to_server": volume,
                       "to_client": volume, "rates": rates });
    serde_json::from_value(told).unwrap()
}

fn addresses(is_v6: bool) -> BoxedStrategy<IpAddr> {
    match is_v6 {
        true => any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())).boxed(),
        false => any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())).boxed(),
    }
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        4 => (1_u16..).prop_map(Ports::single),
        1 => (1_u16..60_000, 1_u16..5000).prop_map(|(first, more)| Ports { first, last: first + more }),
    ]
}

fn keys() -> impl Strategy<Value = Key> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let address = any::<bool>().prop_flat_map(addresses);
    (protocol, address, ports()).prop_map(|(protocol, address, ports)| Key::of(protocol, address, ports))
}

/// What gatun and the original both have, so that nothing is lost.
fn services() -> impl Strategy<Value = Virtual> {
    let scheduler = prop_oneof![Just("rr"), Just("wrr"), Just("lc"), Just("wlc"), Just("sh"), Just("mh")];
    let settings = (scheduler, any::<[bool; 2]>(), any::<bool>());
    let persistence = proptest::option::of((1_u32..=2_678_400, 1_u8..=32, 1_u8..=128));
    (keys(), any::<bool>(), settings, persistence).prop_map(
        |(key, all, (scheduler, flags, one_packet), persistence)| {
            let key = match key {
                // Port 0 needs persistence.
                Key::Address { protocol, address, .. } if all && persistence.is_some() => {
                    Key::of(protocol, address, Ports::ALL)
                }
                key => key,
            };
            let has_flags = matches!(scheduler, "sh" | "mh");
            Virtual {
                key,
                scheduler: scheduler.to_owned(),
                flags: Flags([has_flags && flags[0], has_flags && flags[1], false]),
                persistence: persistence.map(|(timeout, v4, v6)| Persistence {
                    timeout,
                    mask: if key.is_v6() { Mask::V6(v6) } else { Mask::V4(netmask(v4)) },
                }),
                persistence_engine: None,
                one_packet: one_packet && key.protocol() == Protocol::Udp,
            }
        },
    )
}

fn servers(key: Key) -> impl Strategy<Value = Real> {
    let tunnel =
        prop_oneof![Just(Tunnel::Ipip), (1_u16..).prop_map(|port| Tunnel::Gue { port, checksum: Checksum::No }),];
    let forward = prop_oneof![Just(Forward::Masquerade), Just(Forward::Route), tunnel.prop_map(Forward::Tunnel)];
    let limits = (0_u32..=2_147_483_647).prop_flat_map(|upper| (Just(upper), 0..=upper));
    (forward, any::<bool>()).prop_flat_map(move |(forward, other)| {
        let is_v6 = key.is_v6() != (other && matches!(forward, Forward::Tunnel(_)));
        (addresses(is_v6), 1_u16.., 0_u32..=65535, limits.clone()).prop_map(
            move |(address, port, weight, (upper, lower))| {
                let translates = forward == Forward::Masquerade && key.port() != 0;
                let port = if translates { port } else { key.port() };
                let forward = match forward {
                    Forward::Tunnel(Tunnel::Gue { port, .. }) if address.is_ipv6() => {
                        Forward::Tunnel(Tunnel::Gue { port, checksum: Checksum::Yes })
                    }
                    forward => forward,
                };
                Real { at: Endpoint { address, port }, forward, weight, upper, lower }
            },
        )
    })
}

fn lists() -> impl Strategy<Value = List> {
    let columns = prop_oneof![
        Just(Columns::Stats),
        Just(Columns::Rate),
        Just(Columns::Thresholds),
        Just(Columns::PersistentConnections),
        Just(Columns::Tunnel),
        Just(Columns::Usual),
    ];
    let what = prop_oneof![
        Just(Listed::Services),
        keys().prop_map(Listed::One),
        Just(Listed::Connections),
        Just(Listed::Timeouts),
        Just(Listed::Daemons),
    ];
    (what, columns, any::<[bool; 4]>()).prop_map(|(what, columns, [numeric, exact, unsorted, with_engines])| {
        let alone = !matches!(what, Listed::Services | Listed::One(_));
        let columns = if alone { Columns::Usual } else { columns };
        let with_engines = with_engines && !matches!(what, Listed::Timeouts | Listed::Daemons)
            || columns == Columns::PersistentConnections;
        let first = matches!(columns, Columns::Stats | Columns::Rate | Columns::Thresholds);
        let columns = if with_engines && !first { Columns::PersistentConnections } else { columns };
        List { what, numeric, columns, exact, unsorted, with_engines }
    })
}

fn commands() -> impl Strategy<Value = Command> {
    let server = || keys().prop_flat_map(|key| (Just(key), servers(key)));
    let role = || prop_oneof![Just(Role::Master), Just(Role::Backup)];
    let seconds = || 0_u32..=2_678_400;
    Union::new([
        prop_oneof![Just(Command::Help), Just(Command::Version), Just(Command::Clear), Just(Command::Restore)].boxed(),
        services().prop_map(Command::Add).boxed(),
        services().prop_map(Command::Edit).boxed(),
        keys().prop_map(Command::Delete).boxed(),
        server().prop_map(|(key, server)| Command::AddServer(key, server)).boxed(),
        server().prop_map(|(key, server)| Command::EditServer(key, server)).boxed(),
        server().prop_map(|(key, server)| Command::DeleteServer(key, server.at)).boxed(),
        lists().prop_map(Command::List).boxed(),
        any::<bool>().prop_map(|numeric| Command::Save { numeric }).boxed(),
        proptest::option::of(keys()).prop_map(Command::Zero).boxed(),
        (seconds(), seconds(), seconds())
            .prop_map(|(tcp, tcp_fin, udp)| Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp }))
            .boxed(),
        (1_u32.., any::<bool>()).prop_map(|(mark, is_v6)| Command::Delete(Key::Mark { mark, is_v6 })).boxed(),
        role().prop_map(Command::StartDaemon).boxed(),
        role().prop_map(Command::StopDaemon).boxed(),
    ])
}

/// A table with these rules, made by commands; duplicates are refused as usual.
fn made(rules: &[(Virtual, Vec<Real>)]) -> Plan {
    let mut plan = Plan::new(Table::default());
    for (service, servers) in rules {
        let _ = plan.add(&Command::Add(service.clone()));
        for server in servers {
            let _ = plan.add(&Command::AddServer(service.key, *server));
        }
    }
    plan
}

fn restored(rules: &[String]) -> Plan {
    let mut plan = Plan::new(Table::default());
    for rule in rules {
        let command = parse("ipvsadm", &save::words(rule), &Few).unwrap_or_else(|error| panic!("{rule}: {error:?}"));
        plan.add(&command).unwrap_or_else(|error| panic!("{rule}: {error}"));
    }
    plan
}

proptest! {
    #[test]
    fn what_is_printed_is_read_as_it_was(command in commands()) {
        prop_assert_eq!(parsed(&command.to_string()), Ok(command));
    }

    #[test]
    fn no_words_make_the_parser_panic(line in "[-a-zA-Z0-9=:\\[\\].,/ é]{0,60}") {
        let _ = parsed(&line);
    }

    #[test]
    fn options_in_any_order_are_read_without_a_panic(
        words in proptest::collection::vec(
            prop_oneof![
                "-[AEDCLlZaedhvRStufspMrmigwxyncX6ob]{1,3}",
                "--[a-z-]{2,12}(=[0-9]{1,3})?",
                "(10\\.0\\.0\\.1(:80)?|\\[fd00::1\\]:80|[0-9]{1,6}|sh|sh-port)",
            ],
            0..8,
        ),
    ) {
        let _ = parse("ipvsadm", &words, &Few);
    }

    #[test]
    fn a_table_that_is_saved_and_restored_is_the_same(
        rules in proptest::collection::vec(
            services().prop_flat_map(|service| {
                let servers = proptest::collection::vec(servers(service.key), 0..4);
                (Just(service), servers)
            }),
            0..5,
        ),
        timeouts in proptest::option::of((1_u32..=2_678_400, 1_u32..=2_678_400, 1_u32..=2_678_400)),
        numeric: bool,
    ) {
        let mut before = made(&rules);
        if let Some((tcp, tcp_fin, udp)) = timeouts {
            before.add(&Command::SetTimeouts(Timeouts { tcp, tcp_fin, udp })).unwrap();
        }
        let printer = Printer::new(&Few, numeric);
        let saved = save::rules(&before.table, &printer);
        let after = restored(&saved);
        prop_assert_eq!(save::rules(&after.table, &printer), saved);
        prop_assert_eq!(after.table.timeouts, before.table.timeouts);
        let sorted = |table: &Table| {
            let mut services = table.services.clone();
            services.sort_by_key(|service| service.settings.key);
            for service in &mut services {
                service.servers.sort_by_key(|server| server.settings.at);
            }
            services
        };
        prop_assert_eq!(sorted(&after.table), sorted(&before.table));
    }
}
