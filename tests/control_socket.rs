//! The control socket under clients that mean well and clients that do not, on a gateway without a device.
#![cfg(feature = "gateway")]

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use gatun::control::context::{About, Control};
use gatun::control::socket::{BindError, Limits, Socket};
use gatun::io::Gateway;
use gatun::service::{PortRange, Protocols, SchedulerKind, ServerSpec, ServiceSpec, Snapshot, SnapshotSpec, SynProxy};
use gatun::verdict::Verdict;
use gatun::wire::{Addr, PacketBuf};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

/// A gateway, its socket, and the task that serves it.
struct Fixture {
    control: Arc<Control>,
    gateway: Arc<Gateway>,
    path: PathBuf,
    server: JoinHandle<()>,
    _directory: TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().unwrap())
}

fn server(address: &str, port: u16) -> ServerSpec {
    let name = format!("{address}:{port}");
    ServerSpec { name, address: addr(address), port: Some(port), ..ServerSpec::default() }
}

fn spec() -> SnapshotSpec {
    let service = |name: &str, vip: &str, protocols, servers| ServiceSpec {
        name: name.to_owned(),
        vip: addr(vip),
        ports: PortRange::single(80),
        protocols,
        scheduler: SchedulerKind::Rr,
        // Thousands of half-open flows are what some of these tests want.
        syn_proxy: SynProxy::Never,
        servers,
        ..ServiceSpec::default()
    };
    SnapshotSpec {
        services: vec![
            service(
                "web",
                "203.0.113.10",
                Protocols::Tcp,
                vec![server("10.20.0.11", 8080), server("10.20.0.12", 8080)],
            ),
            service("dns", "203.0.113.11", Protocols::Udp, vec![server("10.20.0.11", 53)]),
        ],
        ..SnapshotSpec::default()
    }
}

fn fixture(limits: Limits) -> Fixture {
    let snapshot = Arc::new(Snapshot::build(spec(), None).unwrap());
    let gateway = Arc::new(Gateway::new(snapshot, 2, 100_000, [1, 2]));
    let control = Arc::new(Control::new(gateway.clone(), About::default(), None));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/control.sock");
    let socket = Socket::bind(&path).unwrap();
    let server = tokio::spawn(socket.serve(control.clone(), limits));
    Fixture { control, gateway, path, server, _directory: directory }
}

impl Fixture {
    /// Admits that many half-open flows of "web".
    fn add_flows(&self, first: u16, count: u16) {
        for number in first..first + count {
            let [high, low] = number.to_be_bytes();
            let builder = PacketBuilder::ipv4([198, 51, high, low], [203, 0, 113, 10], 64);
            let mut packet = Vec::new();
            builder.tcp(40_000, 80, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
            let verdict = self.gateway.handle_packet(&mut PacketBuf::from_packet(&packet), &mut Vec::new());
            assert_eq!(verdict, Verdict::Forward);
        }
    }

    async fn client(&self) -> Client {
        Client(BufReader::new(UnixStream::connect(&self.path).await.unwrap()))
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    async fn send(&mut self, line: &[u8]) {
        self.0.get_mut().write_all(line).await.unwrap();
        self.0.get_mut().write_all(b"\n").await.unwrap();
    }

    /// The next line, or `None` when the daemon has hung up.
    async fn line(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        // A daemon that closes with our bytes unread resets the connection.
        let read = timeout(SOON, self.0.read_until(b'\n', &mut line)).await.expect("the daemon answers in time");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_slice(&line).expect("an answer is JSON")),
        }
    }

    async fn ask(&mut self, request: Value) -> Value {
        self.send(request.to_string().as_bytes()).await;
        self.line().await.expect("an answer")
    }

    /// All items of a stream, and its last line.
    async fn ask_stream(&mut self, request: Value) -> (Vec<Value>, Value) {
        self.send(request.to_string().as_bytes()).await;
        let mut items = Vec::new();
        loop {
            let mut line = self.line().await.expect("a stream ends with ok or error");
            match line.get_mut("item") {
                Some(item) => items.push(item.take()),
                None => return (items, line),
            }
        }
    }
}

fn op(op: &str) -> Value {
    json!({ "v": 1, "op": op })
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("no error")
}

#[tokio::test]
async fn every_simple_operation_answers() {
    let fixture = fixture(Limits::default());
    fixture.add_flows(0, 3);
    let mut client = fixture.client().await;

    let pong = client.ask(op("ping")).await;
    assert_eq!(pong["ok"]["protocol"], 1);
    let status = client.ask(op("status")).await;
    assert_eq!(status["ok"]["flows"], 3);
    assert_eq!(status["ok"]["flows_limit"], 100_000);
    assert_eq!(status["ok"]["services"][0]["listen"], "203.0.113.10:80");
    assert_eq!(status["ok"]["services"][0]["servers"][0]["inactive"], 2);
    let stats = client.ask(op("stats")).await;
    let created = stats["ok"]["total"]["counters"].as_array().unwrap().iter().find(|c| c["name"] == "flows_created");
    assert_eq!(created.unwrap()["value"], 3);
    assert_eq!(stats["ok"]["shards"].as_array().unwrap().len(), 2);
    assert_eq!(client.ask(op("service.list")).await["ok"].as_array().unwrap().len(), 2);
    assert_eq!(client.ask(op("server.list")).await["ok"].as_array().unwrap().len(), 3);
    let dns = client.ask(json!({ "v": 1, "op": "server.list", "service": "dns" })).await;
    assert_eq!(dns["ok"][0]["port"], 53);
    assert_eq!(client.ask(op("conntrack.count")).await["ok"], json!({ "count": 3, "limit": 100_000 }));
    let explain = json!({ "v": 1, "op": "explain", "proto": "tcp", "src": "192.0.2.1", "sport": 1, "dst": "203.0.113.10", "dport": 80 });
    let explained = client.ask(explain).await;
    assert_eq!(explained["ok"]["verdict"], "forward");
    // Three flows went round robin over two servers.
    assert_eq!(explained["ok"]["server"], "10.20.0.12:8080");
}

#[tokio::test]
async fn lists_filter_and_deletions_delete_what_the_list_shows() {
    let fixture = fixture(Limits { slice: 7, ..Limits::default() });
    fixture.add_flows(0, 100);
    let mut client = fixture.client().await;

    let (all, end) = client.ask_stream(op("conntrack.list")).await;
    assert_eq!((all.len(), &end["ok"]["shown"]), (100, &json!(100)));
    let mut clients: Vec<&str> = all.iter().map(|flow| flow["original"]["src"].as_str().unwrap()).collect();
    clients.sort_unstable();
    clients.dedup();
    assert_eq!(clients.len(), 100, "no flow twice");

    let count = async |client: &mut Client, filter: Value| {
        client.ask_stream(json!({ "v": 1, "op": "conntrack.list", "filter": filter })).await.0.len()
    };
    assert_eq!(count(&mut client, json!({ "server": "10.20.0.11" })).await, 50);
    assert_eq!(count(&mut client, json!({ "server": "10.20.0.12:8080" })).await, 50);
    assert_eq!(count(&mut client, json!({ "src": "198.51.0.0/28" })).await, 16);
    assert_eq!(count(&mut client, json!({ "src": "198.51.0.7" })).await, 1);
    assert_eq!(count(&mut client, json!({ "dst": "203.0.113.10", "dport": 80, "sport": 40_000 })).await, 100);
    assert_eq!(count(&mut client, json!({ "dport": 81 })).await, 0);
    assert_eq!(count(&mut client, json!({ "state": "syn_sent", "proto": "tcp" })).await, 100);
    assert_eq!(count(&mut client, json!({ "state": "ESTABLISHED" })).await, 0);
    assert_eq!(count(&mut client, json!({ "service": "dns" })).await, 0);
    assert_eq!(count(&mut client, json!({ "method": "nat", "service": "web" })).await, 100);
    assert_eq!(count(&mut client, json!({ "proto": "17" })).await, 0);

    let deleted = client.ask(json!({ "v": 1, "op": "conntrack.delete", "filter": { "src": "198.51.0.0/28" } })).await;
    assert_eq!(deleted["ok"]["deleted"], 16);
    let refused = client.ask(json!({ "v": 1, "op": "conntrack.delete", "filter": {} })).await;
    assert_eq!(code(&refused), "bad_request");
    assert_eq!(client.ask(op("conntrack.flush")).await["ok"]["deleted"], 84);
    assert_eq!(client.ask(op("conntrack.count")).await["ok"]["count"], 0);
}

#[tokio::test]
async fn rubbish_gets_an_error_and_the_conversation_goes_on() {
    let fixture = fixture(Limits::default());
    let mut client = fixture.client().await;
    let rows: &[(&[u8], &str)] = &[
        (b"hello", "bad_request"),
        (b"\xff\xfe\x00", "bad_request"),
        (b"[]", "bad_request"),
        (b"{}", "bad_request"),
        (b"{\"v\":1}", "bad_request"),
        (b"{\"v\":1,\"op\":7}", "bad_request"),
        (b"{\"v\":1,\"op\":\"status\",\"extra\":1}", "bad_request"),
        (b"{\"v\":1,\"op\":\"conntrack.list\",\"filter\":{\"sport\":70000}}", "bad_request"),
        (b"{\"v\":1,\"op\":\"conntrack.list\",\"filter\":{\"src\":\"x\"}}", "bad_request"),
        (b"{\"v\":1,\"op\":\"conntrack.list\",\"filter\":{\"service\":\"x\"}}", "not_found"),
        (b"{\"v\":1,\"op\":\"conntrack.list\",\"filter\":{\"server\":\"x\"}}", "not_found"),
        (b"{\"v\":2,\"op\":\"status\"}", "unsupported_version"),
        (b"{\"v\":1,\"op\":\"dance\"}", "unknown_op"),
        (b"{\"v\":1,\"op\":\"server.add\"}", "not_supported"),
        (b"{\"v\":1,\"op\":\"reload\"}", "not_supported"),
    ];
    for (line, expected) in rows {
        client.send(line).await;
        let answer = client.line().await.expect("an answer");
        assert_eq!(code(&answer), *expected, "{}: {answer}", String::from_utf8_lossy(line));
        assert_eq!(answer["v"], 1);
    }
    // Nested deeper than any parser should follow.
    client.send("[".repeat(60_000).as_bytes()).await;
    assert_eq!(code(&client.line().await.unwrap()), "bad_request");
    client.send(b"").await;
    assert_eq!(client.ask(op("ping")).await["ok"]["protocol"], 1);
}

#[tokio::test]
async fn a_line_without_end_is_refused_and_hurts_nobody() {
    let fixture = fixture(Limits { line: 1000, ..Limits::default() });
    let (mut endless, mut other) = (fixture.client().await, fixture.client().await);
    // Not even an end of line.
    endless.0.get_mut().write_all(&[b'x'; 5000]).await.unwrap();
    assert_eq!(code(&endless.line().await.unwrap()), "too_long");
    assert_eq!(endless.line().await, None, "the daemon hung up");
    assert_eq!(other.ask(op("ping")).await["ok"]["protocol"], 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_the_others_do_not_wait() {
    let fixture = fixture(Limits { write_timeout: Duration::from_millis(300), ..Limits::default() });
    fixture.add_flows(0, 20_000);
    let mut stalled = fixture.client().await;
    stalled.send(op("conntrack.list").to_string().as_bytes()).await;

    let mut other = fixture.client().await;
    let asked = Instant::now();
    assert_eq!(other.ask(op("conntrack.count")).await["ok"]["count"], 20_000);
    assert!(asked.elapsed() < Duration::from_millis(250), "{:?}", asked.elapsed());

    tokio::time::sleep(Duration::from_millis(800)).await;
    let mut rest = Vec::new();
    let _ = timeout(SOON, stalled.0.read_to_end(&mut rest)).await.expect("the daemon has hung up");
    let lines = rest.iter().filter(|&&byte| byte == b'\n').count();
    assert!(lines < 20_000, "{lines}: the list was cut off");
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_a_list_is_forgotten() {
    let fixture = fixture(Limits { clients: 2, ..Limits::default() });
    fixture.add_flows(0, 5_000);
    for _ in 0..10 {
        let mut client = fixture.client().await;
        client.send(op("conntrack.list").to_string().as_bytes()).await;
        client.line().await.expect("a first flow");
    }
    let mut client = fixture.client().await;
    assert_eq!(client.ask(op("ping")).await["ok"]["protocol"], 1);
}

#[tokio::test]
async fn when_all_places_are_taken_the_longest_silent_makes_room() {
    let fixture = fixture(Limits { clients: 3, ..Limits::default() });
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = fixture.client().await;
        assert_eq!(client.ask(op("ping")).await["ok"]["protocol"], 1);
        clients.push(client);
    }
    // The first has spoken last, so the second goes.
    assert_eq!(clients[0].ask(op("ping")).await["ok"]["protocol"], 1);
    let mut newcomer = fixture.client().await;
    assert_eq!(newcomer.ask(op("ping")).await["ok"]["protocol"], 1);
    assert_eq!(clients[1].line().await, None);
    assert_eq!(clients[0].ask(op("ping")).await["ok"]["protocol"], 1);
    assert_eq!(clients[2].ask(op("ping")).await["ok"]["protocol"], 1);
}

#[tokio::test]
async fn when_everybody_is_busy_a_newcomer_is_told() {
    let fixture = fixture(Limits { clients: 2, ..Limits::default() });
    let mut watchers = Vec::new();
    for _ in 0..2 {
        let mut watcher = fixture.client().await;
        assert_eq!(watcher.ask(op("conntrack.watch")).await["started"], true);
        watchers.push(watcher);
    }
    let mut newcomer = fixture.client().await;
    assert_eq!(code(&newcomer.line().await.unwrap()), "busy");
    assert_eq!(newcomer.line().await, None);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_disconnected() {
    let fixture = fixture(Limits { idle_timeout: Duration::from_millis(200), ..Limits::default() });
    let mut client = fixture.client().await;
    client.0.get_mut().write_all(b"{\"v\":1").await.unwrap();
    assert_eq!(client.line().await, None);
}

#[tokio::test]
async fn watchers_are_told_what_they_asked_for_and_nothing_is_recorded_without_them() {
    let fixture = fixture(Limits::default());
    fixture.add_flows(0, 1);
    fixture.control.pump_events();
    let mut watcher = fixture.client().await;
    let filter = json!({ "src": "198.51.0.2" });
    assert_eq!(watcher.ask(json!({ "v": 1, "op": "conntrack.watch", "filter": filter })).await["started"], true);
    fixture.add_flows(1, 2);
    fixture.control.pump_events();
    let new = watcher.line().await.unwrap();
    assert_eq!(new["item"]["change"], "new");
    assert_eq!(new["item"]["flow"]["original"]["src"], "198.51.0.2");
    assert_eq!(new["item"]["flow"]["service"], "web");

    let mut other = fixture.client().await;
    assert_eq!(other.ask(op("conntrack.flush")).await["ok"]["deleted"], 3);
    fixture.control.pump_events();
    assert_eq!(watcher.line().await.unwrap()["item"]["change"], "destroy");

    // Anything that the watcher asks ends the watch.
    watcher.send(op("ping").to_string().as_bytes()).await;
    assert_eq!(watcher.line().await.unwrap()["ok"]["shown"], 2);
    assert_eq!(watcher.line().await.unwrap()["ok"]["protocol"], 1);
    fixture.add_flows(10, 5);
    for shard in fixture.gateway.shards() {
        assert_eq!(shard.lock().poll_event(), None, "nobody watches");
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_how_much_it_lost() {
    let fixture = fixture(Limits::default());
    let mut watcher = fixture.client().await;
    assert_eq!(watcher.ask(op("conntrack.watch")).await["started"], true);
    // More than the socket and the ring together can hold, while the watcher does not read.
    for round in 0..12 {
        fixture.add_flows(round * 2_000, 2_000);
        fixture.control.pump_events();
        tokio::task::yield_now().await;
    }
    let (mut told, mut lost) = (0, 0);
    while told + lost < 24_000 {
        let line = watcher.line().await.expect("the watch goes on");
        if line.get("item").is_some() {
            told += 1;
        } else {
            lost += line["lost"].as_u64().expect("an item or a loss");
        }
    }
    assert_eq!(told + lost, 24_000);
    assert!(lost > 0 && told > 8_000, "told {told}, lost {lost}");
}

#[tokio::test]
async fn the_socket_is_private_replaces_a_dead_one_and_spares_a_live_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/control.sock");
    let socket = Socket::bind(&path).unwrap();
    let found = std::fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    let beside: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(beside.len(), 1, "nothing else is left in the directory: {beside:?}");
    assert!(matches!(Socket::bind(&path), Err(BindError::InUse(_))));
    drop(socket);
    assert!(!path.exists());

    // A daemon that was killed leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = Socket::bind(&path).unwrap();
    assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    drop(socket);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
