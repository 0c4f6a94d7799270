use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::control::context::About;
use crate::io::Gateway;
use crate::service::{
    MasqueradeSpec, Network, PoolSpec, PortRange, Protocols, SchedulerKind, ServerSpec, ServiceSpec, Snapshot,
    SnapshotSpec,
};
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf};

fn control() -> Arc<Control> {
    let server = |last: u8, weight| ServerSpec {
        name: format!("rs\"{last}\\"),
        address: Addr::from_v4([10, 20, 0, last]),
        port: Some(8080),
        weight,
        ..ServerSpec::default()
    };
    let spec = SnapshotSpec {
        services: vec![ServiceSpec {
            name: "web".to_owned(),
            vip: Addr::from_v4([203, 0, 113, 10]),
            ports: PortRange::single(80),
            protocols: Protocols::Tcp,
            scheduler: SchedulerKind::Rr,
            servers: vec![server(1, 1), server(2, 3)],
            ..ServiceSpec::default()
        }],
        masquerades: vec![MasqueradeSpec {
            name: "lan".to_owned(),
            from: vec![Network { address: Addr::from_v4([10, 21, 0, 0]), len: 24 }],
            pool: PoolSpec { addresses: vec![Addr::from_v4([203, 0, 113, 100])], ..PoolSpec::default() },
            ..MasqueradeSpec::default()
        }],
        ..SnapshotSpec::default()
    };
    let snapshot = Arc::new(Snapshot::build(spec, None).unwrap());
    let gateway = Arc::new(Gateway::new(snapshot, 2, 1000, [0, 0]));
    // Three SYNs for the service, two for a port that nobody listens on, one packet that is none.
    for (client, port) in [(1, 80), (2, 80), (3, 80), (4, 81), (5, 81)] {
        let builder = etherparse::PacketBuilder::ipv4([198, 51, 100, client], [203, 0, 113, 10], 64);
        let mut packet = Vec::new();
        builder.tcp(4000, port, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
        gateway.handle_packet(&mut PacketBuf::from_packet(&packet), &mut Vec::new());
    }
    // An inside host that asks two others from one port.
    for remote in [7, 8] {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 21, 0, 5], [198, 51, 100, remote], 64);
        builder.udp(5000, 53).write(&mut packet, b"?").unwrap();
        gateway.handle_packet(&mut PacketBuf::from_packet(&packet), &mut Vec::new());
    }
    gateway.handle_packet(&mut PacketBuf::from_packet(&[0; 40]), &mut Vec::new());
    Arc::new(Control::new(gateway, About::default(), None))
}

/// The samples by name and labels, after checking that every line is what the format allows.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut help, mut kinds, mut samples) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so");
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, sentence) = rest.split_once(' ').expect("a help has a text");
            assert!(sentence.ends_with('.'), "{line}");
            assert!(help.insert(name.to_owned()), "HELP of {name} twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let valid = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(family.starts_with("gatun_") && family.chars().all(valid), "{line}");
            let family = family.strip_suffix("_total").unwrap_or(family);
            let kind = kinds.get(family).unwrap_or_else(|| panic!("no TYPE before {line}"));
            assert_eq!(kind == "counter", name.split('{').next().unwrap().ends_with("_total"), "{line}");
            assert!(help.contains(family), "no HELP before {line}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
        }
    }
    samples
}

#[test]
fn the_format_is_right_and_the_values_are_those_of_the_engines() {
    let samples = samples(&families::text(&control()));
    let rows = [
        ("gatun_flows", 5),
        ("gatun_flows_limit", 1000),
        ("gatun_config_generation", 1),
        ("gatun_config_reloads_total{result=\"failed\"}", 0),
        ("gatun_flows_created_total", 5),
        ("gatun_forwarded_total", 5),
        ("gatun_refused_total", 2),
        ("gatun_drops_total{reason=\"no_service\"}", 2),
        ("gatun_drops_total{reason=\"not_ip\"}", 1),
        ("gatun_drops_total{reason=\"no_flow\"}", 0),
        ("gatun_service_flows{service=\"web\",state=\"inactive\"}", 3),
        ("gatun_service_flows_admitted_total{service=\"web\"}", 3),
        ("gatun_service_packets_total{service=\"web\",direction=\"to_server\"}", 3),
        ("gatun_service_bytes_total{service=\"web\",direction=\"to_server\"}", 120),
        ("gatun_service_bytes_total{service=\"web\",direction=\"to_client\"}", 0),
        (r#"gatun_server_flows{service="web",server="rs\"1\\",state="inactive"}"#, 2),
        (r#"gatun_server_flows_admitted_total{service="web",server="rs\"2\\"}"#, 1),
        (r#"gatun_server_weight{service="web",server="rs\"2\\"}"#, 3),
        ("gatun_inside_hosts", 1),
        (r#"gatun_masquerade_flows{masquerade="lan"}"#, 2),
        (r#"gatun_masquerade_mappings{masquerade="lan"}"#, 1),
        (r#"gatun_pool_ports{address="203.0.113.100",method="masquerade",state="in_use"}"#, 1),
        (r#"gatun_pool_ports{address="203.0.113.100",method="masquerade",state="quarantined"}"#, 0),
        (r#"gatun_pool_ports_limit{address="203.0.113.100",method="masquerade"}"#, 32_256),
        (r#"gatun_pool_fullest{address="203.0.113.100",method="masquerade"}"#, 0),
    ];
    for (name, value) in rows {
        assert_eq!(samples.get(name), Some(&f64::from(value)), "{name}");
    }
    for reason in DropReason::ALL {
        assert!(samples.contains_key(&format!("gatun_drops_total{{reason=\"{}\"}}", reason.word())), "{reason:?}");
    }
    let of_shards: f64 =
        samples.iter().filter(|(name, _)| name.starts_with("gatun_shard_flows{")).map(|(_, flows)| flows).sum();
    assert_eq!(of_shards, 5.0);
}

#[test]
fn every_counter_of_the_engines_is_explained() {
    let text = families::text(&control());
    assert!(!text.contains("A counter of the engines."), "a counter has no sentence in `families::help`");
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: gatun\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, control(), Bounds::default()));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
    assert!(metrics.contains("\ngatun_flows 5\n"), "{metrics}");
    let page = get(address, "/").await;
    assert!(page.contains("<td>lan</td><td>10.21.0.0/24</td><td>203.0.113.100</td>"), "{page}");
    assert!(page.contains("203.0.113.10:80") && page.contains("rs&quot;1"), "{page}");
    assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));
    server.abort();
}

#[tokio::test]
async fn clients_that_send_nothing_do_not_lock_others_out_for_good() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifetime = Duration::from_millis(300);
    let server = tokio::spawn(serve(listener, control(), Bounds { connections: 2, lifetime }));
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let asked = Instant::now();
    assert!(get(address, "/metrics").await.contains("gatun_flows"));
    assert!(asked.elapsed() > lifetime / 2, "both places were taken");
    server.abort();
}
