//! Whole files: what they compile to, and what is said of bad ones.

mod nat;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::service::PortRange;

const GOOD: &str = r#"
[gateway]
mode = "tun"
device = "gw0"
uplink = ["eth0", "eth1"]
queues = 4
priority = 20
resolver = ["10.0.0.53", "10.0.0.54:5353"]
offload = false
control = "/run/gw.sock"
metrics = "[::1]:9000"
routes = false
mtu = 9000
seed = 0xff

[conntrack]
max_flows = 4_096
profile = "ipvs"
timeouts = { tcp_established = "2h4m", udp = "90s" }

[limits]
replies_per_second = 5
fragmented_packets = 100
held_fragment_bytes = 65536

[[service]]
name = "web"
listen = "203.0.113.10:80"
protocol = "tcp+udp"
method = "nat"
scheduler = "mh"

  [[service.server]]
  address = "10.20.0.11:8080"
  weight = 0

  [[service.server]]
  name = "second"
  address = "10.20.0.12"

[[service]]
name = "all"
listen = "[2001:db8:f::10]:*"
server = []
"#;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("x.toml"), text)
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn addr(text: &str) -> crate::wire::Addr {
    text.parse::<IpAddr>().expect("an address in a test").into()
}

#[test]
fn every_key_arrives_where_it_belongs() {
    let config = good(GOOD);
    assert_eq!(
        config.gateway,
        GatewayConfig {
            tap: None,
            device: "gw0".to_owned(),
            uplinks: vec!["eth0".to_owned(), "eth1".to_owned()],
            queues: Queues::Count(4),
            control: "/run/gw.sock".into(),
            metrics: Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 9000))),
            routes: false,
            offload: false,
            priority: 20,
            resolvers: vec![SocketAddr::from(([10, 0, 0, 53], 53)), SocketAddr::from(([10, 0, 0, 54], 5353))],
            mtu: Some(9000),
            max_flows: 4096,
        }
    );
    let spec = compile(&config).unwrap_or_else(|errors| panic!("{errors}"));
    let timeouts =
        Timeouts { tcp_established: Duration::from_secs(7440), udp: Duration::from_secs(90), ..Timeouts::IPVS };
    assert_eq!(spec.timeouts, timeouts);
    assert_eq!(
        spec.limits,
        Limits { replies_per_second: 5, fragmented_packets: 100, held_fragment_bytes: 65536, ..Limits::default() }
    );
    assert_eq!((spec.mtu, spec.seed), (9000, 255));
    let [web, all] = &spec.services[..] else { panic!("two services, not {}", spec.services.len()) };
    assert_eq!((web.name.as_str(), web.vip, web.ports), ("web", addr("203.0.113.10"), PortRange::single(80)));
    assert_eq!((web.protocols, web.scheduler), (Protocols::TcpAndUdp, SchedulerKind::Mh));
    let servers: Vec<_> = web.servers.iter().map(|s| (s.name.as_str(), s.address, s.port, s.weight)).collect();
    let expected = [("10.20.0.11:8080", addr("10.20.0.11"), Some(8080), 0), ("second", addr("10.20.0.12"), None, 1)];
    assert_eq!(servers, expected);
    assert_eq!((all.vip, all.ports), (addr("2001:db8:f::10"), PortRange::ALL));
    assert_eq!((all.protocols, all.method, all.scheduler), (Protocols::Tcp, Method::Nat, SchedulerKind::Wlc));
    assert_eq!(all.servers, []);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = good("");
    assert_eq!(config.gateway, GatewayConfig::default());
    assert_eq!(compile(&config).unwrap_or_else(|errors| panic!("{errors}")), crate::service::SnapshotSpec::default());
    assert_eq!(good("[gateway]\nqueues = \"auto\"\nmtu = \"auto\"\nmetrics = \"off\"\n").gateway.metrics, None);
}

#[test]
fn a_config_changed_after_it_was_parsed_is_checked_again() {
    let mut config = good(GOOD);
    config.services[1].name.value = "web".to_owned();
    let errors = compile(&config).expect_err("two services of one name");
    assert!(errors.to_string().starts_with("x.toml:42:8: two services are named \"web\""), "{errors}");
}

/// A file, and the first line of each of its problems, without the name of the file.
const BAD: &[(&str, &[&str])] = &[
    // Syntax.
    ("a = \n", &["1:5: string values must be quoted, expected literal string"]),
    ("[gateway\n", &["1:9: unclosed table, expected `]`"]),
    (
        "[gateway]\nmtu = 1500\nmtu = 1400\nroutes = yes\n",
        &["3:1: duplicate key", "4:10: string values must be quoted, expected literal string"],
    ),
    // Keys.
    ("[gatway]\n", &["1:2: unknown key \"gatway\"; did you mean \"gateway\"?"]),
    ("[gateway]\ndevise = \"x\"\n", &["2:1: [gateway]: unknown key \"devise\"; did you mean \"device\"?"]),
    ("[gateway]\nmax_flows = 1\n", &["2:1: [gateway]: unknown key \"max_flows\"; it belongs in [conntrack]"]),
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80-81\"\nserver = []\npassive = { fall = 1 }\n",
        &[
            "5:11: [[service]] \"a\": passive checks need a service of a single port: that one of many is closed says nothing of the server",
        ],
    ),
    (
        "[limits]\nfrobnicate = 1\n",
        &[
            "2:1: [limits]: unknown key \"frobnicate\"; keys here are replies_per_second, fragmented_packets, held_fragment_bytes, persistent_clients, expectations, half_open, new_flows_per_client, new_flows_per_second, unsolicited_syns",
        ],
    ),
    (
        "[conntrack]\ntimeouts = { tcp_etsablished = \"1h\" }\n",
        &["2:14: [conntrack.timeouts]: unknown key \"tcp_etsablished\"; did you mean \"tcp_established\"?"],
    ),
    (
        "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nschedular = \"rr\"\nserver = [{ address = \"10.0.0.1\", wieght = 2 }]\n",
        &[
            "4:1: [[service]] \"web\": unknown key \"schedular\"; did you mean \"scheduler\"?",
            "5:35: [[service]] \"web\", server \"10.0.0.1\": unknown key \"wieght\"; did you mean \"weight\"?",
        ],
    ),
    // What is yet to come.
    (
        "[[masquerade]]\nname = \"lan\"\n",
        &[
            "1:1: [[masquerade]] \"lan\": \"from\" is missing; add for example from = [\"10.20.0.0/24\"]",
            "1:1: [[masquerade]] \"lan\": \"to\" is missing; add for example to = [\"203.0.113.100\"]",
        ],
    ),
    (
        "[gateway]\nmode = \"tap\"\nuplink = [\"eth0\"]\nroutes = true\n",
        &[
            "1:1: [gateway]: \"address\" is missing; add for example address = [\"10.20.0.2/24\"]",
            "3:1: [gateway]: \"uplink\" is for mode \"tun\"; this is mode \"tap\"",
            "4:1: [gateway]: \"routes\" is for mode \"tun\"; this is mode \"tap\"",
        ],
    ),
    (
        "[gateway]\nbridge = \"br0\"\nmac = \"auto\"\naddress = []\nrouter = []\n",
        &[
            "2:1: [gateway]: \"bridge\" is for mode \"tap\"; this is mode \"tun\"",
            "3:1: [gateway]: \"mac\" is for mode \"tap\"; this is mode \"tun\"",
            "4:1: [gateway]: \"address\" is for mode \"tap\"; this is mode \"tun\"",
            "5:1: [gateway]: \"router\" is for mode \"tap\"; this is mode \"tun\"",
        ],
    ),
    (
        "[gateway]\nmode = \"tap\"\nbridge = \"a/b\"\nmac = \"01:00:00:00:00:01\"\naddress = [\"10.20.0.2\", \"10.20.0.0/24\", \"10.20.0.2/24\", \"10.20.0.2/16\", \"fe80::1/64\", \"x/24\"]\nrouter = [\"10.20.0.2\", \"10.30.0.1\", \"fe80::1\", \"10.20.0.254\", \"y\"]\n",
        &[
            "3:10: [gateway]: bridge \"a/b\" is no name of an interface; it must be without spaces, \"/\", \":\" and \"%\"",
            "4:7: [gateway]: mac \"01:00:00:00:00:01\" is no MAC of one host; the second digit must be even, and not all of it zero",
            "5:12: [gateway]: address \"10.20.0.2\" has no prefix length; write for example \"10.20.0.2/24\" or \"fd20::2/64\"",
            "5:25: [gateway]: address \"10.20.0.0/24\" names the segment, not a host on it",
            "5:57: [gateway]: address \"10.20.0.2/16\" is there twice",
            "5:73: [gateway]: address \"fe80::1/64\" cannot be the gateway's: it is link-local",
            "5:87: [gateway]: address \"x/24\" is no address with a prefix length; write for example \"10.20.0.2/24\"",
            "6:11: [gateway]: router \"10.20.0.2\" is the gateway's own address",
            "6:24: [gateway]: router \"10.30.0.1\" is on no segment that \"address\" names",
            "6:37: [gateway]: router \"fe80::1\" is on no segment that \"address\" names",
            "6:63: [gateway]: router \"y\" is no IP address; names are not looked up",
        ],
    ),
    (
        "[gateway]\nmode = \"tap\"\nmac = \"02\"\naddress = [\"10.20.0.2/24\"]\nrouter = [\"10.20.0.254\"]\n[[service]]\nname = \"a\"\nlisten = \"10.20.0.2:80\"\nserver = [{ address = \"10.20.0.11\" }]\n[[service]]\nname = \"b\"\nlisten = \"10.20.0.254:80\"\nserver = [{ address = \"10.20.0.11\" }]\n",
        &[
            "3:7: [gateway]: mac \"02\" is no MAC; write \"auto\", or six bytes as \"02:00:00:00:00:01\"",
            "8:10: service \"a\": 10.20.0.2 is the gateway's own address; a VIP must be another one",
            "12:10: service \"b\": 10.20.0.254 is the router's address",
        ],
    ),
    (
        "[gateway]\nmode = \"tap\"\naddress = [\"10.20.0.2/24\"]\n[[service]]\nname = \"a\"\nlisten = \"10.20.0.3:80\"\nserver = [{ address = \"10.20.0.2\" }]\n",
        &["7:23: service \"a\": server \"10.20.0.2\" has the gateway's own address"],
    ),
    (
        "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nprotocol = \"sctp\"\nmethod = \"fullnat\"\nscheduler = \"lblc\"\npersistence = { timeout = \"6m\" }\nsorry_server = \"10.0.0.9:80\"\nquorum = 1\nhelper = \"ftp\"\ncheck = { type = \"http\" }\nserver = [{ address = \"10.0.0.1\", slow_start = \"30s\" }]\n",
        &[
            "3:10: service \"web\": method \"fullnat\" needs an IPv4 address to come from; name one in pool, or in pool of [nat]",
            "4:12: [[service]] \"web\": protocol \"sctp\" is not supported by this version yet; there are tcp, udp, tcp+udp",
        ],
    ),
    // Checks.
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:8000-8010\"\nquorum = 2\nhysteresis = 2\nquorum_up = [\"true\"]\nquorum_down = []\ncheck = { type = \"tcp\", expect = [200], jitter = \"3s\", timeout = 1, intervall = \"1s\" }\nserver = [{ address = \"10.0.0.1\" }]\n",
        &[
            "5:14: [[service]] \"a\": hysteresis = 2 must be less than quorum = 2; the quorum could never be lost",
            "6:13: [[service]] \"a\": quorum_up must begin with the absolute path of a program",
            "7:15: [[service]] \"a\": quorum_down must begin with the absolute path of a program",
            "8:9: service \"a\": the check has no port to ask at server \"10.0.0.1\"; add for example port = 8000",
            "8:25: [[service]] \"a\", check: \"expect\" is for http, https, udp, smtp, ftp, nntp, not for tcp",
            "8:50: [[service]] \"a\", check: jitter \"3s\" is no share of the interval such as \"10%\", and no duration up to 2s",
            "8:66: [[service]] \"a\", check: timeout needs a unit; 1 seconds are written \"1s\"",
            "8:69: [[service]] \"a\", check: unknown key \"intervall\"; did you mean \"interval\"?",
        ],
    ),
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\ncheck = { type = \"https\", path = \"x y\", method = \"get\", expect = [99, \"300-200\"], body = \"(\", digest = \"00\", sni = \"10.0.0.1\", ca = \"ca.pem\", certificate = \"/c\" }\nserver = [{ address = \"10.0.0.1\", check = \"tcp\" }, { address = \"10.0.0.2\", check = true }, { address = \"10.0.0.3\", check = { type = \"ping\", via = \"path\" } }, { address = \"10.0.0.4\", check = {} }]\n",
        &[
            "4:34: [[service]] \"a\", check: path \"x y\" is no path of a URL; write for example \"/healthz\", and anything but plain letters as %20",
            "4:50: [[service]] \"a\", check: method \"get\" is no method of HTTP; write for example \"GET\" or \"HEAD\"",
            "4:67: [[service]] \"a\", check: expect must be a list of numbers from 100 to 599 and of ranges such as \"100-599\"",
            "4:71: [[service]] \"a\", check: expect must be a list of numbers from 100 to 599 and of ranges such as \"100-599\"",
            "4:90: [[service]] \"a\", check: body \"(\" is no regular expression: found open group without closing ')'",
            "4:104: [[service]] \"a\", check: digest \"00\" is no MD5 sum; it has 32 hexadecimal digits",
            "4:116: [[service]] \"a\", check: sni \"10.0.0.1\" is no host name",
            "4:133: [[service]] \"a\", check: ca \"ca.pem\" is no absolute path of a file",
            "4:157: [[service]] \"a\", check: certificate means something only together with key",
            "5:43: [[service]] \"a\", server \"10.0.0.1\": check \"tcp\" is written { type = \"tcp\" }",
            "5:84: [[service]] \"a\", server \"10.0.0.2\": check = true does not say what to do; write a table",
            "5:141: [[service]] \"a\", server \"10.0.0.3\", check: \"via\" is for tcp, http, https, udp, dns, smtp, ftp, nntp, not for ping",
        ],
    ),
    (
        "[[service]]\nname = \"ftp\"\nlisten = \"203.0.113.10:21\"\nprotocol = \"udp\"\nhelper = \"ftp\"\ndata_ports = \"40010-40000\"\nserver = [{ address = \"10.0.0.1\" }]\n[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\ndata_ports = \"40000\"\nserver = [{ address = \"10.0.0.1\" }]\n",
        &[
            "5:10: [[service]] \"ftp\": helper \"ftp\" is for protocol \"tcp\", \"tftp\" for \"udp\"",
            "6:14: [[service]] \"ftp\": data_ports \"40010-40000\" has its port range the wrong way round; write \"40000-40010\"",
            "11:14: [[service]] \"web\": data_ports means something only together with helper",
        ],
    ),
    // Values.
    (
        "[gateway]\ndevice = \"a-very-long-name\"\nuplink = \"eth0\"\nqueues = 17\ncontrol = \"gatun.sock\"\nmetrics = \"9108\"\nroutes = \"no\"\nmtu = 1279\nseed = -1\n",
        &[
            "2:10: [gateway]: device \"a-very-long-name\" is no name of an interface; it must be 1 to 15 bytes long",
            "3:10: [gateway]: \"uplink\" must be a list of strings such as [\"eth0\"], not a string",
            "4:10: [gateway]: queues = 17 is out of range; it must be \"auto\" or a whole number from 1 to 16",
            "5:11: [gateway]: control \"gatun.sock\" is no absolute path of a socket; write for example \"/run/gatun/control.sock\"",
            "6:11: [gateway]: metrics \"9108\" is no address and port; write for example \"127.0.0.1:9108\", or \"off\"",
            "7:10: [gateway]: \"routes\" must be true or false, not a string",
            "8:7: [gateway]: mtu = 1279 is out of range; it must be \"auto\" or a whole number from 1280 to 65535",
            "9:8: [gateway]: seed = -1 is out of range; it must be a whole number from 0 to 18446744073709551615",
        ],
    ),
    (
        "[gateway]\nuplink = [\"eth0\", 1, \"a/b\"]\nqueues = \"all\"\ndevice = \"gatun%d\"\n",
        &[
            "2:19: [gateway]: \"uplink\" must be a list of strings such as [\"eth0\"], not an integer",
            "2:22: [gateway]: uplink \"a/b\" is no name of an interface; it must be without spaces, \"/\", \":\" and \"%\"",
            "3:10: [gateway]: queues \"all\" must be \"auto\" or a whole number from 1 to 16",
            "4:10: [gateway]: device \"gatun%d\" is no name of an interface; it must be without spaces, \"/\", \":\" and \"%\"",
        ],
    ),
    (
        "[conntrack]\nmax_flows = 1000\nprofile = \"rcf\"\n[conntrack.timeouts]\nudp = 300\nicmp = \"5 min\"\ntcp_close = \"100ms\"\ntcp_syn_sent = \"32d\"\ntcp_none = true\n",
        &[
            "2:13: [conntrack]: max_flows = 1000 is out of range; it must be a whole number from 1024 to 16777216",
            "3:11: [conntrack]: profile \"rcf\" is unknown; did you mean \"rfc\"? (rfc, ipvs)",
            "5:7: [conntrack.timeouts]: udp needs a unit; 300 seconds are written \"300s\"",
            "6:8: [conntrack.timeouts]: icmp \"5 min\" is no duration; write it as \"500ms\", \"2s\", \"5m\" or \"2h4m\"",
            "7:13: [conntrack.timeouts]: tcp_close \"100ms\" is out of range; it must be 1s to 31d",
            "8:16: [conntrack.timeouts]: tcp_syn_sent \"32d\" is out of range; it must be 1s to 31d",
            "9:12: [conntrack.timeouts]: \"tcp_none\" must be a duration such as \"5m\", not a boolean",
        ],
    ),
    (
        "[[service]]\nname = \"my web\"\nlisten = \"2001:db8::1:80\"\nscheduler = \"wlcc\"\nprotocol = \"icmp\"\n\n[[service.server]]\naddress = \"web1.example.org:80\"\nweight = 65536\n\n[[service.server]]\nweight = 1.5\n",
        &[
            "2:8: [[service]] \"my web\": name \"my web\" is no name; it must be without spaces and control characters",
            "3:10: [[service]] \"my web\": listen \"2001:db8::1:80\" is an IPv6 address without brackets; write \"[2001:db8::1]:80\"",
            "4:13: [[service]] \"my web\": scheduler \"wlcc\" is unknown; did you mean \"wlc\"? (rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos)",
            "5:12: [[service]] \"my web\": protocol \"icmp\" is unknown; there are tcp, udp, tcp+udp",
            "8:11: [[service]] \"my web\", server \"web1.example.org:80\": address \"web1.example.org:80\" is no IP address; a name that is to be looked up is written \"dns:web.internal:8080\"",
            "9:10: [[service]] \"my web\", server \"web1.example.org:80\": weight = 65536 is out of range; it must be a whole number from 0 to 65535",
            "11:1: [[service]] \"my web\", server number 2: \"address\" is missing; add for example address = \"10.20.0.11:8080\"",
            "12:10: [[service]] \"my web\", server number 2: \"weight\" must be a whole number from 0 to 65535, not a float",
        ],
    ),
    // Shapes.
    ("gateway = 3\n", &["1:11: \"gateway\" must be a table; write [gateway], not an integer"]),
    ("[[gateway]]\n", &["1:1: \"gateway\" can be there only once; write [gateway]"]),
    ("[service]\nname = \"web\"\n", &["1:1: \"service\" is a list of tables; write [[service]], not […]"]),
    ("service = [1]\n", &["1:12: \"service\" must be a list of tables; write [[service]], not an integer"]),
    (
        "\n[[service]]\n",
        &[
            "2:1: [[service]] number 1: \"name\" is missing; add for example name = \"web\"",
            "2:1: [[service]] number 1: \"listen\" is missing; add for example listen = \"203.0.113.10:80\"",
            "2:1: [[service]] number 1: \"server\" is missing; add for example [[service.server]] with address = \"10.20.0.11:8080\", or server = [] for none",
        ],
    ),
    (
        "[[service]]\nnam = \"web\"\nlisten = \"203.0.113.10:80\"\nservers = []\n",
        &[
            "2:1: [[service]] number 1: unknown key \"nam\"; did you mean \"name\"?",
            "4:1: [[service]] number 1: unknown key \"servers\"; did you mean \"server\"?",
        ],
    ),
    // What only the whole tells.
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80-90\"\nserver = [\n  { address = \"203.0.113.10:80\" },\n  { address = \"[fd20::1]:80\" },\n  { address = \"10.0.0.1:65530\" },\n  { address = \"10.0.0.2\" },\n  { address = \"10.0.0.2\" },\n]\n[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:85-95\"\nserver = []\n",
        &[
            "5:15: service \"a\": server \"203.0.113.10:80\" has the VIP of service \"a\" as its address; packets would loop",
            "6:15: service \"a\": server \"[fd20::1]:80\" is of another address family than the VIP 203.0.113.10; only method \"tunnel\" goes from one to the other",
            "7:15: service \"a\": the port range 80-90 does not fit from port 65530 on at server \"10.0.0.1:65530\"",
            "9:15: service \"a\": two servers are named \"10.0.0.2\"; names must differ",
            "12:8: two services are named \"a\"; names must differ",
            "13:10: services \"a\" and \"a\" both listen on tcp 203.0.113.10 port 85-95",
        ],
    ),
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\nserver = [\n  { name = \"x\", address = \"203.0.113.11\" },\n  { name = \"y\", address = \"203.0.113.11\" },\n]\n[[service]]\nname = \"b\"\nlisten = \"203.0.113.11:80\"\nserver = []\n",
        &[
            "5:27: service \"a\": server \"x\" has the VIP of service \"b\" as its address; packets would loop",
            "6:27: service \"a\": servers \"x\" and \"y\" have one address and port; add up their weights",
            "6:27: service \"a\": server \"y\" has the VIP of service \"b\" as its address; packets would loop",
        ],
    ),
    // Methods that translate nothing.
    (
        "[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\nmethod = \"direct\"\ntunnel = \"gre\"\n[[service.server]]\naddress = \"10.0.0.1:8080\"\n[[service.server]]\naddress = \"fd20::1\"\n[[service.server]]\naddress = \"fd20::2\"\nmethod = \"tunnel\"\ntunnel = \"gue:0\"\n[[service.server]]\naddress = \"10.0.0.2:8080\"\nmethod = \"nat\"\ntunnel = \"gux\"\n",
        &[
            "5:10: [[service]] \"a\": tunnel \"gre\" is not supported by this version yet; there are ipip, gue",
            "7:11: service \"a\": server \"10.0.0.1:8080\" has port 8080, but method \"direct\" leaves ports as they are; leave the port out",
            "9:11: service \"a\": server \"[fd20::1]\" is of another address family than the VIP 203.0.113.10; only method \"tunnel\" goes from one to the other",
            "13:10: [[service]] \"a\", server \"fd20::2\": tunnel \"gue:0\" has no port from 1 to 65535 behind \"gue:\"",
            "17:10: [[service]] \"a\", server \"10.0.0.2:8080\": tunnel \"gux\" is unknown; did you mean \"gue\"? (ipip, gue)",
        ],
    ),
    // Mistakes of several kinds come together, in the order of the file.
    (
        "[gateway]\nmtu = 1\n[[service]]\nname = \"a\"\nlisten = \"203.0.113.10:80\"\nserver = [{ address = \"203.0.113.10\" }]\n[[service]]\nname = \"b\"\nlisten = \"203.0.113.10:80\"\nserver = []\nschedular = \"rr\"\n",
        &[
            "2:7: [gateway]: mtu = 1 is out of range; it must be \"auto\" or a whole number from 1280 to 65535",
            "6:23: service \"a\": server \"203.0.113.10\" has the VIP of service \"a\" as its address; packets would loop",
            "9:10: services \"a\" and \"b\" both listen on tcp 203.0.113.10 port 80",
            "11:1: [[service]] \"b\": unknown key \"schedular\"; did you mean \"scheduler\"?",
        ],
    ),
];

#[test]
fn bad_files_are_told_what_is_wrong_and_where() {
    told(BAD);
}

/// Each file, and what is said of it.
fn told(files: &[(&str, &[&str])]) {
    for (text, expected) in files {
        let errors = parse(text).expect_err(text);
        let position = |problem: &Problem| errors.position(problem).expect("it is in the text");
        let found: Vec<String> = errors
            .problems()
            .iter()
            .map(|problem| format!("{}:{}: {}", position(problem).0, position(problem).1, problem.message))
            .collect();
        assert_eq!(found, *expected, "in\n{text}");
    }
}

#[test]
fn a_problem_is_shown_with_its_line() {
    let text = "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\n  schedular = \"rr\"\nserver = []\n";
    assert_eq!(
        parse(text).expect_err("a misspelt key").to_string(),
        "x.toml:4:3: [[service]] \"web\": unknown key \"schedular\"; did you mean \"scheduler\"?\n    \
         4 |   schedular = \"rr\"\n      |   ^^^^^^^^^"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_sentence() {
    let directory = tempfile::tempdir().expect("a place for temporary files");
    let missing = directory.path().join("missing.toml");
    let shown = Config::load(&missing).expect_err("there is no file").to_string();
    assert_eq!(shown, format!("{}: cannot be read: No such file or directory (os error 2)", missing.display()));
    let latin = directory.path().join("latin.toml");
    std::fs::write(&latin, b"# caf\xe9\n[gateway]\n").expect("a file of our own");
    let shown = Config::load(&latin).expect_err("it is not UTF-8").to_string();
    assert!(shown.starts_with(&format!("{}:1:6: this is not UTF-8", latin.display())), "{shown}");
}

#[test]
fn deep_nesting_is_an_error_like_any_other() {
    assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(parse(&format!("a = {}", "{ a = ".repeat(100_000))).is_err());
    assert!(parse(&format!("[{}a]", "a.".repeat(100_000))).is_err());
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn every_example_is_right() {
    let files = std::fs::read_dir(example("")).expect("the directory of examples");
    let files = files.map(|file| file.expect("it can be listed").path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")).collect();
    for name in ["minimal.toml", "full.toml", "demo.toml", "fullnat.toml", "masquerade.toml", "real-server.toml"] {
        assert!(files.contains(&example(name)), "{name} is missing");
    }
    for file in files {
        let config = match AnyConfig::load(&file).unwrap_or_else(|errors| panic!("{errors}")) {
            AnyConfig::Gateway(config) => config,
            AnyConfig::RealServer(config) => {
                assert!(!config.vips.is_empty() && !config.gateways.is_empty(), "{} takes nothing", file.display());
                continue;
            }
        };
        let compiled = config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
        let spec = compiled.snapshot;
        assert!(!spec.services.is_empty() || !spec.masquerades.is_empty(), "{} forwards nothing", file.display());
    }
}

#[test]
fn the_full_example_has_every_key_with_its_default() {
    let text = std::fs::read_to_string(example("full.toml")).expect("the full example");
    let with_options = with_options(&text);
    good(&with_options);
    let file = toml::Value::Table(with_options.parse::<toml::Table>().expect("it parses"));
    let service = &file["service"][0];
    let text_of_server = std::fs::read_to_string(example("real-server.toml")).expect("the real server's example");
    let real_server = toml::Value::Table(text_of_server.parse::<toml::Table>().expect("it parses"));
    let masquerades = file["masquerade"].as_array().expect("some").iter().filter_map(toml::Value::as_table);
    let masquerade: toml::Table = masquerades.flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    let tables = [
        (&real_server, &keys::REAL_SERVER_FILE),
        (&real_server["real_server"], &keys::REAL_SERVER),
        (&file, &keys::FILE),
        (&file["gateway"], &keys::GATEWAY),
        (&file["conntrack"], &keys::CONNTRACK),
        (&file["conntrack"]["timeouts"], &keys::TIMEOUTS),
        (&file["limits"], &keys::LIMITS),
        (service, &keys::SERVICE),
        (&service["server"][0], &keys::SERVER),
        (&file["nat"], &keys::NAT),
        (&toml::Value::Table(masquerade), &keys::MASQUERADE),
        (&file["forward"][0], &keys::FORWARD),
        (&service["persistence"], &keys::PERSISTENCE),
        (&service["passive"], &keys::PASSIVE),
        (&toml::Value::Table(every_check(&text)), &keys::CHECK),
    ];
    assert_eq!(tables.len(), keys::ALL.len());
    for (table, keys) in tables {
        // Those of the other mode stand there as comments: `the_full_example_in_mode_tap` reads them.
        let there = |key: &str| table.get(key).is_some() || tap::TAP_ONLY.contains(&key);
        let missing: Vec<_> = keys.known.iter().filter(|key| !there(key)).collect();
        assert!(missing.is_empty(), "{missing:?} of {} are in no example", keys.header);
    }
    let mut full = good(&text).compiled().unwrap_or_else(|errors| panic!("{errors}"));
    let least =
        "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = [{ address = \"10.20.0.11:8080\" }]\n";
    let least = good(least).compiled().unwrap_or_else(|errors| panic!("{errors}"));
    let changes: Vec<String> = difference(&least, &full).iter().map(Change::to_string).collect();
    assert_eq!(changes, [""; 0], "full.toml has other values than the defaults");
    full.snapshot.services.clear();
    full.health.services.clear();
    assert_eq!(full, good("").compiled().unwrap_or_else(|errors| panic!("{errors}")));
}

/// The keys of every check that stands in the comments, each of which must be right.
fn every_check(text: &str) -> toml::Table {
    let mut keys = toml::Table::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("#   ").filter(|rest| rest.starts_with("check = {"))) {
        let service = "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nserver = []\n";
        good(&format!("{service}{line}\n"));
        let table = line.parse::<toml::Table>().expect("it parses");
        keys.extend(table["check"].as_table().expect("a table").clone());
    }
    keys
}

/// With what stands there as a comment, having no default: the keys of services and servers that do nothing when absent.
fn with_options(text: &str) -> String {
    let tables = [&keys::SERVICE, &keys::SERVER, &keys::MASQUERADE, &keys::FORWARD];
    let known: Vec<&str> = tables.into_iter().flat_map(|keys| keys.known).copied().collect();
    let turned = |line: &str| {
        let option = line.trim_start().strip_prefix("# ").filter(|rest| {
            let key = rest.split(' ').next().unwrap_or_default();
            (key.starts_with("[["))
                || known.contains(&key) && rest[key.len()..].starts_with(" = ") && !tap::TAP_ONLY.contains(&key)
        });
        option.unwrap_or(line).to_owned()
    };
    text.lines().map(turned).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_full_example_in_mode_tap() {
    let text = std::fs::read_to_string(example("full.toml")).expect("the full example");
    let is = |line: &str, keys: &[&str]| keys.iter().any(|key| line.starts_with(&format!("{key} = ")));
    let turned: Vec<String> = text
        .lines()
        .filter(|line| !is(line, tap::TUN_ONLY))
        .map(|line| match line.strip_prefix("# ").filter(|rest| is(rest, tap::TAP_ONLY)) {
            Some(key) => key.to_owned(),
            None => line.replace("mode = \"tun\"", "mode = \"tap\""),
        })
        .collect();
    let tap = good(&turned.join("\n")).gateway.tap.expect("mode tap");
    assert_eq!((tap.bridge.as_deref(), tap.mac), (Some("br0"), None));
    assert_eq!((tap.addresses.len(), tap.routers.len()), (2, 2));
}

#[test]
fn mode_tap_makes_the_gateway_a_hop_with_addresses_of_its_own() {
    let text = r#"
[gateway]
mode = "tap"
mac = "02:00:00:00:00:07"
address = ["10.20.0.2/24", "fd20::2/64"]
router = ["10.20.0.254", "fe80::1"]
[[service]]
name = "web"
listen = "203.0.113.10:80"
server = [{ address = "10.20.0.11" }, { address = "10.30.0.14" }]
"#;
    let config = good(text);
    let tap = config.gateway.tap.clone().expect("mode tap");
    assert_eq!(tap.mac("gatun0", b"").to_string(), "02:00:00:00:00:07");
    assert_eq!(tap.routers, [addr("10.20.0.254"), addr("fe80::1")]);
    let spec = config.compiled().unwrap_or_else(|errors| panic!("{errors}")).snapshot;
    assert!(spec.is_hop);
    assert_eq!(spec.own_addresses, [addr("10.20.0.2"), addr("fd20::2")]);
    let own = addr("10.20.0.2");
    assert_eq!(spec.tunnel_sources, [(addr("10.20.0.11"), own), (addr("10.30.0.14"), own)]);

    let auto = TapConfig { mac: None, ..tap.clone() };
    let other = TapConfig { addresses: tap.addresses[1..].to_vec(), ..auto.clone() };
    let mac = auto.mac("gatun0", b"host");
    assert_eq!(mac, auto.mac("gatun0", b"host"), "the same over restarts");
    assert_eq!((mac.0[0] & 3, mac.is_unicast()), (2, true), "locally administered, one host's");
    for different in [auto.mac("gatun1", b"host"), auto.mac("gatun0", b"other"), other.mac("gatun0", b"host")] {
        assert_ne!(mac, different);
    }

    let changed = good(
        &text.replace("tap\"\nmac = \"02:00:00:00:00:07\"", "tap\"\nbridge = \"br0\"").replace("fe80::1", "fd20::fe"),
    );
    let compiled = |config: &Config| config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
    let lines: Vec<String> =
        difference(&compiled(&config), &compiled(&changed)).iter().map(Change::to_string).collect();
    assert_eq!(
        lines,
        [
            r#"~ [gateway]: bridge none -> "br0" (needs a restart)"#,
            r#"~ [gateway]: mac "02:00:00:00:00:07" -> "auto" (needs a restart)"#,
            r#"~ [gateway]: router ["10.20.0.254", "fe80::1"] -> ["10.20.0.254", "fd20::fe"] (needs a restart)"#,
        ]
    );
}

/// Replaces or inserts at a place of the text, the way a slip of an editor does.
fn edited(text: &str, edits: &[(prop::sample::Index, usize, String)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, removed, inserted) in edits {
        let start = at.index(chars.len() + 1);
        let end = (start + removed).min(chars.len());
        chars.splice(start..end, inserted.chars());
    }
    chars.into_iter().collect()
}

fn fragment() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "",
        "\n",
        "\"",
        "[",
        "]",
        "[[",
        "=",
        "{",
        "}",
        "0",
        "-1",
        "65536",
        "99999999999999999999",
        "é",
        "\u{0}",
        "#",
        ".",
        "*",
        ":",
        "[[service]]\n",
        "[[service.server]]\n",
        "\"203.0.113.10:80\"",
        "server = []\n",
        "true",
        "1979-05-27",
    ];
    prop_oneof![prop::sample::select(WORDS).prop_map(str::to_owned), ".{0,6}"]
}

proptest! {
    /// Whatever is typed into a good file: an error with a place in the text, or a file that compiles.
    #[test]
    fn edits_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, fragment()), 1..6)) {
        let text = edited(GOOD, &edits);
        match parse(&text) {
            Ok(config) => {
                let compiled = config.compiled();
                prop_assert!(compiled.is_ok(), "what parses must compile:\n{}", text);
                let compiled = compiled.expect("just seen");
                prop_assert!(difference(&compiled, &compiled).is_empty());
            }
            Err(errors) => {
                prop_assert!(!errors.problems().is_empty());
                let lines = text.matches('\n').count() + 1;
                for problem in errors.problems() {
                    let (line, column) = errors.position(problem).expect("every problem of a text has a place");
                    prop_assert!(line <= lines && column >= 1);
                }
                prop_assert!(errors.to_string().starts_with("x.toml:"));
            }
        }
    }

    /// Values of the right shape in every place: what compiles makes a snapshot.
    #[test]
    fn what_compiles_makes_a_snapshot(
        vips in prop::collection::vec((0..3_u8, 1..200_u16, 0..5_u16, 0..3_usize, 0..6_usize), 0..5),
        servers in prop::collection::vec((0..3_u8, prop::option::of(1..=u16::MAX), 0..4_u32), 0..4),
    ) {
        let mut text = String::new();
        for (index, (vip, port, width, protocol, scheduler)) in vips.iter().enumerate() {
            let protocol = ["tcp", "udp", "tcp+udp"][*protocol];
            let scheduler = SchedulerKind::ALL[*scheduler].word();
            let last = port + width;
            text.push_str(&format!(
                "[[service]]\nname = \"s{index}\"\nlisten = \"10.0.0.{vip}:{port}-{last}\"\nprotocol = \"{protocol}\"\n\
                 scheduler = \"{scheduler}\"\nserver = ["
            ));
            for (host, port, weight) in &servers {
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                text.push_str(&format!("{{ address = \"10.0.0.{host}{port}\", weight = {weight} }}, "));
            }
            text.push_str("]\n");
        }
        if let Ok(config) = parse(&text) {
            let spec = compile(&config).unwrap_or_else(|errors| panic!("{errors}"));
            let snapshot = crate::service::Snapshot::build(spec, None);
            prop_assert!(snapshot.is_ok(), "{:?}\n{}", snapshot.err(), text);
        }
    }
}
