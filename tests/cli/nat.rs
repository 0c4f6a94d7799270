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

[[service]]
name = "guarded"
listen = "203.0.113.10:443"
method = "fullnat"
pool = ["10.20.0.100"]
syn_proxy = "always"
new_flows_per_second = 1000
server = [{ address = "10.20.0.12:8443" }]

[[masquerade]]
name = "lan"
from = ["10.20.0.0/24"]
to = ["203.0.113.100", "203.0.113.101"]
filtering = "address"

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
        ("10.20.0.100", "fullnat", "guarded"),
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
    let head =
        "\nnat      masquerades 2, inside hosts 0, mappings 0; addresses 3, the fullest 10.20.0.100: 0.0 % taken\n";
    assert!(status.contains(head), "{status}");
    assert!(status.contains("\n  10.20.0.100    fullnat 2 users      16           0  64512    0.0 %\n"), "{status}");
    fixture.ok(&["conntrack", "delete", "--method", "fullnat", "--src", "198.51.100.7"]);
    assert_eq!(taken(&fixture), [15, 1, 64_512], "its port rests");
}

/// An inside host that talks to two others from one port, and a third one from another.
fn talking() -> Fixture {
    let fixture = fixture_of(CONFIG);
    for (port, remote) in [(5000, 2), (5000, 3), (5002, 4)] {
        fixture.handle(&udp(([10, 20, 0, 5], port), ([198, 51, 100, remote], 53), b"?"));
    }
    fixture
}

#[test]
fn mappings_and_the_flows_of_a_masquerade() {
    let fixture = talking();
    let list = |args: &[&str]| {
        let (code, stdout, stderr) = fixture.run(&[&["nat", "list", "--json"], args].concat());
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let udp = list(&["--proto", "udp"]);
    let mut shown: Vec<(u64, u64)> =
        udp.iter().map(|told| (told["inside"]["port"].as_u64().unwrap(), told["flows"].as_u64().unwrap())).collect();
    shown.sort_unstable();
    assert_eq!(shown, [(5000, 2), (5002, 1)], "the flows of one inside endpoint share its mapping");
    let outside = udp[0]["outside"]["address"].as_str().unwrap().to_owned();
    assert!(udp.iter().all(|told| told["outside"]["address"] == *outside), "one host has one address");
    assert!(udp.iter().all(|told| (200..=300).contains(&told["timeout"].as_u64().unwrap())), "{udp:?}");
    assert_eq!(udp[0]["masquerade"], "lan");
    let all = list(&[]);
    let forward = all.iter().find(|told| told["forward"] == true).expect("it stays without flows");
    assert_eq!((&forward["inside"]["port"], &forward["timeout"]), (&22.into(), &Value::Null));
    for (args, count) in [
        (&["--masquerade", "lan"][..], 3),
        (&["--inside", "10.20.0.5"], 2),
        (&["--inside", "10.20.0.5:5002"], 1),
        (&["--inside", "10.20.0.0/28", "--proto", "tcp"], 1),
        (&["--outside", "198.51.100.0/24"], 0),
        (&["--outside", &outside, "--proto", "17"], 2),
    ] {
        assert_eq!(list(args).len(), count, "{args:?}");
    }
    let (_, table, summary) = fixture.run(&["nat", "list", "--inside", "10.20.0.5:5002"]);
    assert_eq!(summary, "1 mappings have been shown.\n");
    assert!(table.lines().nth(1).unwrap().starts_with("udp       10.20.0.5:5002  203.0.113.10"), "{table}");

    let flows = fixture.ok(&["conntrack", "list", "--service", "lan", "-o", "wide"]);
    assert_eq!(flows.lines().count(), 3, "{flows}");
    assert!(flows.lines().all(|line| line.contains(" service=lan server=- method=masquerade ")), "{flows}");
    assert_eq!(fixture.ok(&["conntrack", "list", "--method", "masquerade"]).lines().count(), 3);
    let status = fixture.ok(&["status"]);
    let of = |name: &str| status.lines().find(|line| line.starts_with(&format!("  {name} "))).unwrap_or_default();
    let words: Vec<&str> = of("lan").split_whitespace().collect();
    assert_eq!(words[words.len() - 3..], ["3", "2", "address"], "{status}");
    assert!(status.contains("\nnat      masquerades 2, inside hosts 1, mappings 2; "), "{status}");
    let deleted = fixture.ok(&["conntrack", "delete", "--service", "lan", "--sport", "5000"]);
    assert!(deleted.contains(": 2 flow entries have been deleted."), "{deleted}");
    assert_eq!(list(&["--proto", "udp"]).len(), 1, "it goes with its last flow");
    let told: Value = serde_json::from_str(&fixture.ok(&["nat", "pools", "--json"])).unwrap();
    let sum = |key: &str| told["pools"].as_array().unwrap().iter().map(|pool| pool[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("in_use"), sum("quarantined")), (1, 1));
}

#[test]
fn what_translates_sources_is_explained() {
    let fixture = talking();
    let explain = |args: &[&str]| fixture.ok(&[&["explain"], args].concat());
    let has = |told: &str, rows: &[&str]| {
        for row in rows {
            let is = |line: &str| line.split_whitespace().eq(row.split_whitespace());
            assert!(told.lines().any(is), "{row}\n{told}");
        }
    };
    let by_fullnat = explain(&["tcp", "198.51.100.2:40000", "203.0.113.10:80"]);
    has(&by_fullnat, &["verdict forward", "service shop", "method fullnat", "pool 10.20.0.100"]);
    assert!(by_fullnat.contains("\nafter      tcp 10.20.0.100:"), "{by_fullnat}");
    let proxied = explain(&["tcp", "198.51.100.2:40000", "203.0.113.10:443"]);
    has(&proxied, &["verdict reply, answered with a SYN cookie", "service guarded"]);
    has(&proxied, &["flow none until the client answers; towards the server"]);

    // The same endpoint to somebody else: the mapping that there is. Its address is one of two.
    let inside = explain(&["udp", "10.20.0.5:5000", "198.51.100.9:53", "--json"]);
    let told: Value = serde_json::from_str(&inside).unwrap();
    let outside = &told["mapping"]["outside"];
    let (address, port) = (outside["address"].as_str().unwrap(), outside["port"].as_u64().unwrap());
    assert_eq!((&told["mapping"]["exists"], &told["service"]), (&true.into(), &"lan".into()));
    assert_eq!((&told["after"]["src"], &told["after"]["sport"]), (&address.into(), &port.into()));
    let outside = format!("{address}:{port}");
    let again = explain(&["udp", "10.20.0.5:5000", "198.51.100.9:53"]);
    has(&again, &[&format!("mapping 10.20.0.5:5000 is {outside} outside; there is one"), "masquerade lan"]);
    has(&again, &["method masquerade", "flow new; to the outside"]);
    let known = explain(&["udp", "10.20.0.5:5000", "198.51.100.2:53"]);
    assert!(known.contains("\nmasquerade lan\n") && !known.contains("\nserver "), "{known}");
    assert!(known.contains("; to the outside\n"), "{known}");
    let fresh = explain(&["tcp", "10.20.0.7:6000", "198.51.100.9:80"]);
    assert!(fresh.contains(" outside; it would be made\n"), "{fresh}");
    // Inwards: who has been sent to, from any port, and who has not.
    let let_in = explain(&["udp", "198.51.100.2:99", &outside]);
    has(&let_in, &["filtering address: let in, since the inside endpoint has sent to that address"]);
    has(&let_in, &["flow new; towards the inside host", "after udp 198.51.100.2:99 > 10.20.0.5:5000"]);
    let kept_out = explain(&["udp", "198.51.100.77:99", &outside]);
    has(&kept_out, &["verdict drop filtered", "service lan"]);
    let nobody = explain(&["udp", "198.51.100.2:99", "203.0.113.101:9"]);
    has(&nobody, &["verdict drop no_mapping"]);
    let forwarded = explain(&["tcp", "198.51.100.77:99", "203.0.113.100:2222"]);
    has(&forwarded, &["mapping 10.20.0.13:22 is 203.0.113.100:2222 outside; forwarded by \"ssh\""]);
    has(&forwarded, &["filtering none: the port is forwarded for everybody"]);
    let hairpin = explain(&["tcp", "10.20.0.7:6000", "203.0.113.100:2222"]);
    has(&hairpin, &["then a hairpin: it comes in again, to the mapping of its destination"]);
    let six = explain(&["udp", "[fd20::5]:5000", "[2001:db8:1::2]:53"]);
    has(&six, &["masquerade six", "prefix fd20::/48 is 2001:db8:20::/48", "flow none is kept; to the outside"]);
    assert!(six.contains("\nafter      udp [2001:db8:20:"), "{six}");

    // An announced flow.
    let request = udp(([198, 51, 100, 8], 2000), ([203, 0, 113, 10], 69), b"\0\x01boot\0octet\0");
    fixture.handle(&request);
    let expected = explain(&["udp", "10.20.0.11:3333", "198.51.100.8:2000"]);
    has(&expected, &["chosen by a helper: announced by udp 198.51.100.8:2000 > 203.0.113.10:69"]);
}

#[test]
fn limits_on_new_flows_are_explained() {
    let text = CONFIG.replace("new_flows_per_second = 1000", "new_flows_per_second = 1");
    let fixture = fixture_of(&text.replace("syn_proxy = \"always\"", ""));
    fixture.handle(&syn(([198, 51, 100, 2], 40_000), ([203, 0, 113, 10], 443)));
    let told = fixture.ok(&["explain", "tcp", "198.51.100.3:40000", "203.0.113.10:443"]);
    assert!(told.contains("\nverdict    drop service_rate\n"), "{told}");
}
