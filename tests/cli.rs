//! The commands as an operator calls them, against a gateway without a device that runs in this process.
#![cfg(feature = "gateway")]

#[path = "cli/nat.rs"]
mod nat;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;

use etherparse::PacketBuilder;
use gatun::control::config::Config;
use gatun::control::context::{About, Control};
use gatun::control::socket::{Limits, Socket};
use gatun::io::Gateway;
use gatun::service::Snapshot;
use gatun::wire::PacketBuf;
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = r#"
[[service]]
name = "web"
listen = "203.0.113.10:80"
scheduler = "rr"
server = [{ address = "10.20.0.11:8080" }, { address = "10.20.0.12:8080", weight = 2 }]

[[service]]
name = "web6"
listen = "[2001:db8:f::10]:80"
scheduler = "rr"
server = [{ address = "[fd20::11]:8080" }]
"#;

/// A gateway that answers on a socket of its own until it is dropped.
struct Fixture {
    directory: TempDir,
    gateway: Arc<Gateway>,
    _stop: mpsc::Sender<()>,
}

fn fixture() -> Fixture {
    fixture_of(CONFIG)
}

fn fixture_of(text: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("gatun.toml"), text).unwrap();
    let config = Config::parse(Path::new("gatun.toml"), text).unwrap();
    let snapshot = Arc::new(Snapshot::build(config.compiled().unwrap().snapshot, None).unwrap());
    let gateway = Arc::new(Gateway::new(snapshot, 2, 100_000, [1, 2]));
    let control = Arc::new(Control::new(gateway.clone(), About::default(), None));
    let path = directory.path().join("control.sock");
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = Socket::bind(&path).unwrap();
            tokio::spawn(socket.serve(control.clone(), Limits::default()));
            ready.send(()).unwrap();
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                control.pump_events();
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
    });
    is_ready.recv().unwrap();
    Fixture { directory, gateway, _stop: stop }
}

impl Fixture {
    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = gatun(args);
        command.env("GATUN_CONTROL", self.control()).current_dir(self.directory.path());
        command
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        outcome(self.command(args).output().unwrap())
    }

    /// Standard output of a command that succeeds.
    fn ok(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        settled(&stdout)
    }

    fn handle(&self, packet: &[u8]) {
        self.gateway.handle_packet(&mut PacketBuf::from_packet(packet), &mut Vec::new());
    }
}

fn gatun(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatun"));
    command.args(args).env_remove("GATUN_CONTROL").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn outcome(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("gatun writes UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// With the same timeout however slow this machine is: 240 s less a few.
fn settled(text: &str) -> String {
    let mut text = text.to_owned();
    for seconds in 200..240 {
        text = text.replace(&format!("tcp      6 {seconds} "), "tcp      6 239 ");
        text = text.replace(&format!("expires in {seconds} s"), "expires in 239 s");
    }
    text
}

fn syn(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(client, [203, 0, 113, 10], 64);
    builder.tcp(port, 80, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
    packet
}

fn syn_ack() -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4([10, 20, 0, 11], [198, 51, 100, 2], 64);
    builder.tcp(8080, 40_000, 7, 65_535).syn().ack(2).write(&mut packet, &[]).unwrap();
    packet
}

fn syn6() -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(address("2001:db8:1::2"), address("2001:db8:f::10"), 64);
    builder.tcp(40_001, 80, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
    packet
}

const COMMANDS: &[&[&str]] = &[
    &["status"],
    &["ping"],
    &["conntrack", "list"],
    &["conntrack", "watch"],
    &["conntrack", "count"],
    &["conntrack", "delete", "--dport", "80"],
    &["conntrack", "flush"],
    &["conntrack", "stats"],
    &["conntrack", "expect"],
    &["nat", "list"],
    &["nat", "pools"],
    &["service", "list"],
    &["server", "list"],
    &["persistence", "list"],
    &["explain", "tcp", "192.0.2.1:1", "203.0.113.10:80"],
    &["reload"],
    &["diff"],
    &["save"],
    &["service", "add", "mail", "--listen", "203.0.113.10:25"],
    &["service", "set", "web", "--scheduler", "rr"],
    &["service", "remove", "web"],
    &["server", "add", "web", "10.20.0.14:8080"],
    &["server", "set", "web/10.20.0.11:8080", "--weight", "2"],
    &["server", "drain", "10.20.0.11:8080"],
    &["server", "remove", "web", "10.20.0.11:8080"],
];

#[test]
fn without_a_gateway_every_command_says_so_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let path = path.to_str().unwrap();
    for args in COMMANDS {
        let (code, stdout, stderr) = outcome(gatun(args).args(["--control", path]).output().unwrap());
        let expected = format!(
            "gatun: no gateway answers on {path}: start one with `gatun run`, or name its socket with --control\n"
        );
        assert_eq!((code, stdout.as_str(), stderr), (Some(1), "", expected), "{args:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let rows: &[&[&str]] = &[
        &[],
        &["dance"],
        &["conntrack"],
        &["conntrack", "list", "-o", "xml"],
        &["conntrack", "list", "--sport", "70000"],
        &["conntrack", "delete"],
        &["conntrack", "expect", "--sport", "1"],
        &["nat"],
        &["nat", "list", "--server", "10.20.0.11"],
        &["explain", "tcp", "192.0.2.1", "203.0.113.10:80"],
        &["explain", "tcp", "192.0.2.1:1", "nowhere:80"],
        &["explain", "tcp", "192.0.2.1:1", "[2001:db8::1]:80"],
        &["explain", "carrier-pigeon", "192.0.2.1:1", "203.0.113.10:80"],
        &["explain", "tcp", "192.0.2.1:1", "203.0.113.10:80", "--tcp-flags", "Z"],
        &["replay", "in.pcap", "out.pcap"],
        &["run", "--no-routes", "--print-routes"],
        &["completions", "cobol"],
        &["status", "--shiny"],
        &["service", "add", "web"],
        &["service", "set", "web", "--netmask", "24"],
        &["server", "add", "web"],
        &["server", "set"],
        &["server", "drain", "one", "two", "three"],
        &["server", "drain", "one", "--then", "rst"],
        &["server", "drain", "one", "--deadline", "5m", "--then", "explode"],
        &["server", "drain", "one", "--cancel", "--wait"],
    ];
    for args in rows {
        let (code, stdout, stderr) = outcome(gatun(args).output().unwrap());
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(!stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn the_flow_table_in_the_format_of_conntrack_tools() {
    let fixture = fixture();
    fixture.handle(&syn([198, 51, 100, 2], 40_000));
    let (code, stdout, stderr) = fixture.run(&["conntrack", "list"]);
    assert_eq!(
        (code, settled(&stdout).as_str(), stderr.as_str()),
        (
            Some(0),
            "tcp      6 239 SYN_SENT src=198.51.100.2 dst=203.0.113.10 sport=40000 dport=80 [UNREPLIED] \
             src=10.20.0.11 dst=198.51.100.2 sport=8080 dport=40000 mark=0 use=1\n",
            "conntrack v1.4.7 (conntrack-tools): 1 flow entries have been shown.\n"
        )
    );
    fixture.handle(&syn_ack());
    let line = "tcp      6 239 SYN_RECV src=198.51.100.2 dst=203.0.113.10 sport=40000 dport=80 src=10.20.0.11 \
                dst=198.51.100.2 sport=8080 dport=40000 mark=0 use=1";
    assert_eq!(fixture.ok(&["conntrack", "list", "-o", "extended"]), format!("ipv4     2 {line}\n"));
    let stamped = fixture.ok(&["conntrack", "list", "-o", "extended,timestamp"]);
    let (stamp, rest) = stamped.split_once('\t').unwrap();
    assert!(stamp.starts_with('[') && stamp.ends_with(']') && stamp.contains('.'), "{stamp}");
    assert_eq!(rest, format!("ipv4     2 {line}\n"));
    let wide = fixture.ok(&["conntrack", "list", "-o", "wide"]);
    assert!(wide.contains("dport=80 packets=1 bytes=40 src=10.20.0.11 "), "{wide}");
    assert!(wide.contains(" service=web server=10.20.0.11:8080 method=nat shard="), "{wide}");

    fixture.handle(&syn6());
    assert_eq!(
        fixture.ok(&["conntrack", "list", "-o", "extended", "--service", "web6"]),
        "ipv6     10 tcp      6 239 SYN_SENT src=2001:db8:1::2 dst=2001:db8:f::10 sport=40001 dport=80 [UNREPLIED] \
         src=fd20::11 dst=2001:db8:1::2 sport=8080 dport=40001 mark=0 use=1\n"
    );
    for (filter, flows) in [
        (["--proto", "tcp"], 2),
        (["--proto", "udp"], 0),
        (["--src", "198.51.100.0/24"], 1),
        (["--dst", "2001:db8::/32"], 1),
        (["--sport", "40001"], 1),
        (["--dport", "80"], 2),
        (["--state", "SYN_RECV"], 1),
        (["--server", "10.20.0.11:8080"], 1),
        (["--server", "10.20.0.12"], 0),
        (["--method", "nat"], 2),
    ] {
        let stdout = fixture.ok(&["conntrack", "list", filter[0], filter[1]]);
        assert_eq!(stdout.lines().count(), flows, "{filter:?}: {stdout}");
    }
    let (code, _, stderr) = fixture.run(&["conntrack", "list", "--service", "wep"]);
    assert_eq!((code, stderr.as_str()), (Some(1), "gatun: no service is named \"wep\"; there are: web, web6\n"));
}

#[test]
fn every_list_speaks_json() {
    let fixture = fixture();
    fixture.handle(&syn([198, 51, 100, 2], 40_000));
    fixture.handle(&syn([198, 51, 100, 3], 40_000));
    for (args, lines) in [
        (&["status", "--json"][..], 1),
        (&["ping", "--json"], 1),
        (&["conntrack", "list", "--json"], 2),
        (&["conntrack", "list", "-o", "json"], 2),
        (&["conntrack", "count", "--json"], 1),
        (&["conntrack", "stats", "--json"], 1),
        (&["service", "list", "--json"], 2),
        (&["server", "list", "--json"], 3),
        (&["explain", "tcp", "192.0.2.1:1", "203.0.113.10:80", "--json"], 1),
        (&["conntrack", "delete", "--src", "198.51.100.2", "--json"], 1),
        (&["conntrack", "flush", "--json"], 1),
    ] {
        let (code, stdout, stderr) = fixture.run(args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        let objects: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(objects.len() == lines && objects.iter().all(Value::is_object), "{args:?}: {stdout}");
    }
}

#[test]
fn the_other_commands_answer() {
    let fixture = fixture();
    for number in 0..6 {
        fixture.handle(&syn([198, 51, 100, number], 40_000));
    }
    assert_eq!(fixture.ok(&["conntrack", "count"]), "6\n");
    let status = fixture.ok(&["status"]);
    assert!(status.contains("web  tcp 203.0.113.10:80  nat  rr\n"), "{status}");
    assert!(!status.contains('\x1b'), "no colours in a pipe");
    let servers = fixture.ok(&["server", "list", "--service", "web"]);
    assert_eq!(servers.lines().count(), 3, "{servers}");
    let drained = fixture.ok(&["server", "drain", "web/10.20.0.12:8080", "--deadline", "5m"]);
    assert_eq!(drained, "web/10.20.0.12:8080: draining, 3 flows left, 5m00s until rst\n");
    let servers = fixture.ok(&["server", "list"]);
    assert!(servers.contains("draining, "), "{servers}");
    let cancelled = fixture.ok(&["server", "drain", "web", "10.20.0.12:8080", "--cancel"]);
    assert_eq!(cancelled, "web/10.20.0.12:8080: not drained, 3 flows\n");
    let (code, _, stderr) = fixture.run(&["server", "drain", "10.20.0.19"]);
    let expected = "gatun: no server is named \"10.20.0.19\"; `gatun server list` shows them\n";
    assert_eq!((code, stderr.as_str()), (Some(1), expected));
    let stats = fixture.ok(&["conntrack", "stats"]);
    assert!(stats.lines().any(|line| line.split_whitespace().eq(["flows_created", "6"])), "{stats}");
    assert!(stats.lines().any(|line| line.split_whitespace().eq(["drop", "no_service", "0"])), "{stats}");
    let deleted = fixture.ok(&["conntrack", "delete", "--src", "198.51.100.0/31"]);
    assert_eq!(deleted, "conntrack v1.4.7 (conntrack-tools): 2 flow entries have been deleted.\n");
    let flushed = fixture.ok(&["conntrack", "flush"]);
    assert_eq!(flushed, "conntrack v1.4.7 (conntrack-tools): 4 flow entries have been deleted.\n");
    let (code, _, stderr) = fixture.run(&["reload"]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fixture = fixture();
    for number in 0..5_000_u16 {
        let [high, low] = number.to_be_bytes();
        fixture.handle(&syn([198, 51, high, low], 40_000));
    }
    let mut child =
        fixture.command(&["conntrack", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("tcp "), "{first}");
    // The reader is gone; the list is not at its end.
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_watch_shows_flows_as_they_come_and_go() {
    let fixture = fixture();
    let mut child = fixture.command(&["conntrack", "watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Until the watch has begun nothing is recorded; events show that it has.
    let gateway = fixture.gateway.clone();
    let (seen, is_seen) = mpsc::channel::<()>();
    let traffic = std::thread::spawn(move || {
        for number in 0..500_u16 {
            let [high, low] = number.to_be_bytes();
            let packet = syn([198, 51, high, low], 40_000);
            gateway.handle_packet(&mut PacketBuf::from_packet(&packet), &mut Vec::new());
            if is_seen.recv_timeout(std::time::Duration::from_millis(20)).is_ok() {
                return;
            }
        }
    });
    let new = lines.next().unwrap().unwrap();
    assert!(new.starts_with("    [NEW] tcp      6 2"), "{new}");
    assert!(new.contains("SYN_SENT src=198.51.") && new.contains(" [UNREPLIED] "), "{new}");
    assert!(!new.contains("mark="), "events tell no mark: {new}");
    seen.send(()).unwrap();
    traffic.join().unwrap();
    fixture.ok(&["conntrack", "flush"]);
    let destroyed = lines.map_while(Result::ok).find(|line| !line.starts_with("    [NEW] ")).unwrap();
    assert!(destroyed.starts_with("[DESTROY] tcp      6 src=198.51."), "{destroyed}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn import_takes_the_file_that_it_is_given() {
    let fixture = fixture();
    let file = "virtual_server 203.0.113.10 80 {\n lb_kind NAT\n real_server 10.20.0.11 8080 {\n }\n}\n";
    std::fs::write(fixture.directory.path().join("keepalived.conf"), file).unwrap();
    let made = fixture.ok(&["import", "keepalived.conf"]);
    assert!(made.contains("listen = \"203.0.113.10:80\"") && made.contains("10.20.0.11:8080"), "{made}");
}

#[test]
fn explain_answers_from_a_file_alone() {
    let fixture = fixture();
    let explain = |args: &[&str]| fixture.ok(&[&["explain", "-c", "gatun.toml"], args].concat());
    assert_eq!(
        explain(&["tcp", "198.51.100.2:40000", "203.0.113.10:80"]),
        "\
packet     tcp 198.51.100.2:40000 > 203.0.113.10:80, flags S
verdict    forward
service    web
scheduler  rr: no server picked yet
server     10.20.0.11:8080 (2 of 2 servers available)
chosen by  the scheduler
method     nat
flow       new; towards the server
after      tcp 198.51.100.2:40000 > 10.20.0.11:8080
"
    );
    let dropped = explain(&["tcp", "198.51.100.2:40000", "203.0.113.10:80", "--tcp-flags", "A"]);
    assert!(
        dropped.contains("\nverdict    drop no_flow, answered with a TCP RST\nmeaning    A TCP packet that is no SYN"),
        "{dropped}"
    );
    let reset = explain(&["tcp", "198.51.100.2:40000", "203.0.113.10:81", "--tcp-flags", "R"]);
    assert!(reset.contains("\nverdict    drop no_service\n"), "nobody answers a RST: {reset}");
    let closed = explain(&["udp", "198.51.100.2:40000", "203.0.113.10:9"]);
    assert!(closed.contains("\nverdict    drop no_service, answered with an ICMP port unreachable\n"), "{closed}");
    let echo = explain(&["icmpv6", "2001:db8:1::2", "2001:db8:f::10"]);
    assert!(echo.contains("\nverdict    reply\n"), "{echo}");
    let passed = explain(&["udp", "[2001:db8:1::2]:5", "[2001:db8:1::3]:53"]);
    assert!(passed.contains("\nverdict    pass\n"), "{passed}");
    // Nothing was admitted by asking the running gateway either.
    let known = fixture.ok(&["explain", "tcp", "198.51.100.2:40000", "203.0.113.10:80"]);
    assert!(known.contains("\nflow       new; "), "{known}");
    fixture.handle(&syn([198, 51, 100, 2], 40_000));
    let known = fixture.ok(&["explain", "tcp", "10.20.0.11:8080", "198.51.100.2:40000", "--tcp-flags", "SA"]);
    assert!(known.contains("\nflow       known, SYN_SENT, expires in 239 s; towards the client\n"), "{known}");
    assert!(known.contains("\nafter      tcp 203.0.113.10:80 > 198.51.100.2:40000\n"), "{known}");
}

#[test]
fn the_help_names_the_control_socket_where_one_is_spoken_to() {
    let help = |command: &str| outcome(gatun(&[command, "--help"]).output().unwrap()).1;
    for command in ["status", "run", "explain", "reload"] {
        assert!(help(command).contains("--control"), "{command}");
    }
    for command in ["check", "replay", "completions", "man"] {
        assert!(!help(command).contains("--control"), "{command}");
        // A script may pass it all the same.
        let (_, _, stderr) = outcome(gatun(&[command, "--control", "x", "--frobnicate"]).output().unwrap());
        assert!(stderr.contains("--frobnicate") && !stderr.contains("'--control'"), "{stderr}");
    }
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, stdout, _) = outcome(gatun(&["completions", shell]).output().unwrap());
        assert!(code == Some(0) && stdout.contains("conntrack"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man");
    let status = gatun(&["man", "--dir", pages.to_str().unwrap()]).status().unwrap();
    assert!(status.success());
    for (page, word) in [("gatun", "SUBCOMMANDS"), ("gatun-run", "print\\-routes"), ("gatun-conntrack-list", "sport")] {
        let text = std::fs::read_to_string(pages.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(&format!(".TH {page} 1")) || text.contains(&page.to_uppercase()), "{page}");
        assert!(text.contains(word), "{page}: {text}");
    }
    let (code, stdout, _) = outcome(gatun(&["man", "conntrack", "watch"]).output().unwrap());
    assert!(code == Some(0) && stdout.contains("gatun conntrack watch"), "{stdout}");
}
