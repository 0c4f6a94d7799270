//! What is shown of expectations, mappings and pools.

use etherparse::PacketBuilder;
use serde_json::Value;

use super::{Fixture, fixture_of};

const CONFIG: &str = r#"
[[service]]
name = "boot"
listen = "203.0.113.10:69"
protocol = "udp"
helper = "tftp"
server = [{ address = "10.20.0.11:69" }]

[[service]]
name = "shop"
listen = "203.0.113.10:80"
method = "fullnat"
pool = ["10.20.0.100"]
server = [{ address = "10.20.0.12:8080" }]

[[masquerade]]
name = "lan"
from = ["10.20.0.0/24"]
to = ["203.0.113.100", "203.0.113.101"]

[[masquerade]]
name = "six"
from = ["fd20::/48"]
prefix = "2001:db8:20::/48"

[[forward]]
name = "ssh"
listen = "203.0.113.100:2222"
to = "10.20.0.13:22"
"#;

fn udp(src: ([u8; 4], u16), dst: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(src.0, dst.0, 64).udp(src.1, dst.1).write(&mut packet, payload).unwrap();
    packet
}

/// With the same timeout however slow this machine is.
fn settled(line: &str) -> String {
    let (timeout, rest) = line.split_once(" proto=").unwrap_or(("", line));
    let seconds: u64 = timeout.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    assert!((40..=60).contains(&seconds), "{line}");
    format!("proto={rest}")
}

fn expecting() -> Fixture {
    let fixture = fixture_of(CONFIG);
    for client in [2, 3] {
        let request = udp(([198, 51, 100, client], 2000), ([203, 0, 113, 10], 69), b"\0\x01boot\0octet\0");
        fixture.handle(&request);
    }
    fixture
}

#[test]
fn what_is_expected_is_shown_as_conntrack_shows_it() {
    let fixture = expecting();
    let (code, stdout, stderr) = fixture.run(&["conntrack", "expect"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr, "conntrack v1.4.7 (conntrack-tools): 2 expectations have been shown.\n");
    let mut lines: Vec<String> = stdout.lines().map(settled).collect();
    lines.sort();
    let expected = |client: u8| {
        format!(
            "proto=17 src=10.20.0.11 dst=198.51.100.{client} sport=0 dport=2000 mask-src=255.255.255.255 \
             mask-dst=255.255.255.255 sport=0 dport=65535 master-src=198.51.100.{client} master-dst=203.0.113.10 \
             sport=2000 dport=69 class=0 helper=tftp"
        )
    };
    assert_eq!(lines, [expected(2), expected(3)]);
    let extended = fixture.ok(&["conntrack", "expect", "-o", "extended"]);
    assert!(extended.lines().all(|line| line.starts_with("ipv4     2 ")), "{extended}");
    let json = fixture.ok(&["conntrack", "expect", "--json"]);
    for line in json.lines() {
        let told: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&told["service"], &told["server"]), (&"boot".into(), &"10.20.0.11:69".into()));
        assert_eq!((&told["opener"], &told["master"]["sport"]), (&"server".into(), &2000.into()));
    }
    assert_eq!(json.lines().count(), 2);
    // The flow that announced it is gone; what it announced may still come.
    fixture.ok(&["conntrack", "flush"]);
    let orphaned = fixture.ok(&["conntrack", "expect"]);
    let master = "master-src=198.51.100.2 master-dst=203.0.113.10 sport=0 dport=0 ";
    assert!(orphaned.contains(master), "{orphaned}");
}

#[test]
fn pools_and_masquerades() {
    let fixture = fixture_of(CONFIG);
    let pools = fixture.ok(&["nat", "pools"]);
    let words: Vec<Vec<&str>> = pools.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    for (words, (address, usage, user)) in words.iter().zip([
        ("203.0.113.100", "masquerade", "lan"),
        ("203.0.113.101", "masquerade", "lan"),
        ("10.20.0.100", "fullnat", "shop"),
    ]) {
        assert_eq!((words[0], words[1], words[2]), (address, "1024-65535", usage), "{pools}");
        assert_eq!(words.last(), Some(&user), "{pools}");
    }
    let told: Value = serde_json::from_str(&fixture.ok(&["nat", "pools", "--json"])).unwrap();
    assert_eq!(told["masquerades"][1]["prefix"], "2001:db8:20::/48");
    assert_eq!(told["masquerades"][0]["from"][0], "10.20.0.0/24");
    assert_eq!(told["forwards"][0]["to"], "10.20.0.13:22");
    let (code, _, stderr) = fixture.run(&["nat", "list", "--masquerade", "lam"]);
    assert_eq!((code, stderr.as_str()), (Some(1), "gatun: no masquerade is named \"lam\"; there are: lan, six\n"));
    let (code, _, stderr) = fixture.run(&["nat", "list", "--inside", "10.20.0.11:port"]);
    assert!(code == Some(1) && stderr.contains("\"10.20.0.11:port\" is no address, prefix"), "{stderr}");
}

fn syn(src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(src.0, dst.0, 64).tcp(src.1, dst.1, 1, 65_535).syn().write(&mut packet, &[]).unwrap();
    packet
}

#[test]
fn fullnat_from_the_list_of_flows_to_the_pool() {
    let fixture = fixture_of(CONFIG);
    // Of many clients some fall to each shard.
    for client in 2..18 {
        fixture.handle(&syn(([198, 51, 100, client], 40_000), ([203, 0, 113, 10], 80)));
    }
    let flows = fixture.ok(&["conntrack", "list", "--method", "fullnat", "-o", "wide"]);
    assert_eq!(flows.lines().count(), 16, "{flows}");
    assert!(flows.lines().all(|line| line.contains(" src=10.20.0.12 dst=10.20.0.100 sport=8080 dport=")), "{flows}");
    assert!(flows.contains(" service=shop server=10.20.0.12:8080 method=fullnat "), "{flows}");
    let taken = |fixture: &Fixture| {
        let told: Value = serde_json::from_str(&fixture.ok(&["nat", "pools", "--json"])).unwrap();
        let pools = told["pools"].as_array().unwrap();
        let of_shop = pools.iter().find(|pool| pool["users"][0] == "shop").unwrap();
        ["in_use", "quarantined", "size"].map(|key| of_shop[key].as_u64().unwrap())
    };
    assert_eq!(taken(&fixture), [16, 0, 64_512]);
    let services = fixture.ok(&["service", "list"]);
    let shop = services.lines().find(|line| line.starts_with("shop ")).unwrap();
    assert!(shop.contains(" fullnat ") && shop.ends_with("pool 10.20.0.100"), "{services}");
    let status = fixture.ok(&["status"]);
    let head = "\nnat      masquerades 2, mappings 0; addresses 3, the fullest 10.20.0.100: 0.0 % taken\n";
    assert!(status.contains(head), "{status}");
    assert!(status.contains("\n  10.20.0.100    fullnat shop        16           0  64512    0.0 %\n"), "{status}");
    fixture.ok(&["conntrack", "delete", "--method", "fullnat", "--src", "198.51.100.7"]);
    assert_eq!(taken(&fixture), [15, 1, 64_512], "its port rests");
}
