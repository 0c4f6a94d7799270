//! From plan and facts to changes, without a kernel.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::io::host::attract;
use crate::io::host::change::{Action, Change, Family, LinkProperty, Ports, Rule, TABLE_MAIN};
use crate::io::host::plan::{
    Facts, HostPlan, Listener, ProbePath, ReturnPath, Uplink, VipPlan, Way, Zone, changes, table,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn server(text: &str, protocol: u8, port: u16) -> ReturnPath {
    ReturnPath { from: IpNet::from(ip(text)), protocol: Some(protocol), ports: Some(Ports::one(port)) }
}

fn vip(text: &str, protocol: u8, port: u16) -> VipPlan {
    VipPlan {
        address: ip(text),
        listeners: vec![Listener { protocol, ports: Some(Ports::one(port)) }],
        peers: Vec::new(),
    }
}

fn plan() -> HostPlan {
    HostPlan {
        bridge: None,
        device: "gatun0".into(),
        mtu: Some(1500),
        txqueuelen: 4096,
        uplinks: vec!["eth0".into()],
        vips: vec![vip("203.0.113.10", TCP, 80), vip("2001:db8:f::10", TCP, 80)],
        prefixes: Vec::new(),
        returns: vec![
            server("10.20.0.11", TCP, 8080),
            server("10.20.0.12", TCP, 8080),
            server("10.20.0.13", TCP, 8080),
            server("fd20::11", TCP, 8080),
        ],
        one_way: Vec::new(),
        probes: Vec::new(),
    }
}

fn facts(plan: &HostPlan) -> Facts {
    let uplink = Uplink { name: "eth0".into(), resolves: true };
    let way = |net: &IpNet| Way {
        device: Some("lan".into()),
        resolves: true,
        others: Vec::new(),
        local: false,
        source: Some(if net.addr().is_ipv4() { ip("10.20.0.1") } else { ip("fd20::1") }),
    };
    let peers = plan.vips.iter().flat_map(|vip| &vip.peers);
    let nets = plan.returns.iter().map(|r| &r.from).chain(&plan.one_way).chain(peers);
    Facts {
        uplinks4: vec![uplink.clone()],
        uplinks6: vec![uplink],
        ways: nets.map(|net| (*net, way(net))).collect(),
        local_first4: true,
        local_first6: true,
        force_forwarding: true,
        ..Facts::default()
    }
}

fn commands(list: &[Change]) -> Vec<String> {
    list.iter().flat_map(|change| change.commands(&[(0, 272)])).collect()
}

#[test]
fn routed_vip_is_routed_announced_and_its_replies_come_back() {
    let plan = plan();
    let list = commands(&changes(&plan, &facts(&plan)));
    let expected = [
        "ip link set dev gatun0 mtu 1500",
        "ip link set dev gatun0 txqueuelen 4096",
        "sysctl -w net.ipv6.conf.gatun0.addr_gen_mode=1",
        "sysctl -w net.ipv6.conf.gatun0.accept_ra=0",
        "ip link set dev gatun0 up",
        "sysctl -w net.ipv4.conf.gatun0.rp_filter=0",
        "sysctl -w net.ipv4.conf.gatun0.accept_local=1",
        "sysctl -w net.ipv4.conf.gatun0.send_redirects=0",
        "sysctl -w net.ipv4.conf.eth0.forwarding=1",
        "sysctl -w net.ipv4.conf.gatun0.forwarding=1",
        "sysctl -w net.ipv4.conf.lan.forwarding=1",
        "ip rule add pref 303 nop",
        "ip rule add pref 288 iif gatun0 goto 303",
        "ip route add 0.0.0.0/0 dev gatun0 table 26368",
        "ip rule add pref 294 iif lo ipproto icmp dport 768-1023 lookup 26368",
        "ip rule add pref 294 iif lo ipproto icmp dport 2816-3327 lookup 26368",
        "ip rule add pref 295 iif lo goto 303",
        "ip rule add pref 296 iif lan ipproto icmp lookup 26368",
        "ip rule add pref 297 from 10.20.0.11/32 ipproto tcp sport 8080 lookup 26368",
        "ip rule add pref 297 from 10.20.0.12/31 ipproto tcp sport 8080 lookup 26368",
        "ip rule add pref 300 ipproto tcp sport 1-65534 goto 303",
        "ip rule add pref 301 from 10.20.0.11/32 ipproto tcp lookup 26368",
        "ip rule add pref 301 from 10.20.0.12/31 ipproto tcp lookup 26368",
        "ip route add 203.0.113.10/32 dev gatun0",
        "sysctl -w net.ipv4.neigh.eth0.proxy_delay=0",
        "ip neigh add proxy 203.0.113.10 dev eth0",
        "sysctl -w net.ipv6.conf.gatun0.disable_ipv6=0",
        "sysctl -w net.ipv6.conf.eth0.force_forwarding=1",
        "sysctl -w net.ipv6.conf.gatun0.force_forwarding=1",
        "sysctl -w net.ipv6.conf.lan.force_forwarding=1",
        "sysctl -w net.ipv6.conf.eth0.forwarding=1",
        "ip -6 rule add pref 303 nop",
        "ip -6 rule add pref 288 iif gatun0 goto 303",
        "ip -6 rule add pref 289 from fe80::/10 goto 303",
        "ip -6 route add ::/0 dev gatun0 table 26368",
        "ip -6 rule add pref 294 iif lo ipproto ipv6-icmp dport 256-1279 lookup 26368",
        "ip -6 rule add pref 295 iif lo goto 303",
        "ip -6 rule add pref 296 iif lan ipproto ipv6-icmp lookup 26368",
        "ip -6 rule add pref 297 from fd20::11/128 ipproto tcp sport 8080 lookup 26368",
        "ip -6 rule add pref 300 ipproto tcp sport 1-65534 goto 303",
        "ip -6 rule add pref 301 from fd20::11/128 ipproto tcp lookup 26368",
        "ip -6 route add 2001:db8:f::10/128 dev gatun0",
        "sysctl -w net.ipv6.conf.all.proxy_ndp=1",
        "sysctl -w net.ipv6.conf.eth0.proxy_ndp=1",
        "sysctl -w net.ipv6.neigh.eth0.proxy_delay=0",
        "ip -6 neigh add proxy 2001:db8:f::10 dev eth0",
    ];
    assert_eq!(list, expected);
}

/// A pool of the servers' own segment, and one beyond it.
#[test]
fn pools_are_answered_for_on_the_links_to_who_answers_to_them() {
    let mut plan = plan();
    plan.returns.clear();
    let pool = |address: &str, servers: &[&str]| VipPlan {
        address: ip(address),
        listeners: Vec::new(),
        peers: servers.iter().map(|server| IpNet::from(ip(server))).collect(),
    };
    plan.vips.extend([pool("10.20.0.200", &["10.20.0.11", "10.20.0.12"]), pool("fd20::200", &["fd20::11"])]);
    let facts = facts(&plan);
    let list = commands(&changes(&plan, &facts));
    for wanted in [
        "sysctl -w net.ipv4.conf.lan.forwarding=1",
        "ip route add 10.20.0.200/32 dev gatun0",
        "sysctl -w net.ipv4.neigh.lan.proxy_delay=0",
        "ip neigh add proxy 10.20.0.200 dev eth0",
        "ip neigh add proxy 10.20.0.200 dev lan",
        "sysctl -w net.ipv6.conf.lan.force_forwarding=1",
        "sysctl -w net.ipv6.conf.lan.forwarding=1",
        "sysctl -w net.ipv6.conf.lan.proxy_ndp=1",
        "ip -6 route add fd20::200/128 dev gatun0",
        "ip -6 neigh add proxy fd20::200 dev lan",
    ] {
        assert!(list.iter().any(|line| line == wanted), "no {wanted} in {list:#?}");
    }
    assert!(!list.iter().any(|line| line.contains("rule")), "answers find their way by the address alone: {list:#?}");
    assert!(!list.iter().any(|line| line.ends_with("203.0.113.10 dev lan")), "servers need no VIP: {list:#?}");
    let lan = attract::answered(&plan, &facts, Family::V4).into_iter().find(|answered| answered.link == "lan");
    assert_eq!(lan.map(|lan| lan.addresses), Some([ip("10.20.0.200")].into()), "what is told at the start");
}

#[test]
fn what_inside_networks_send_elsewhere_goes_to_the_device() {
    let mut plan = plan();
    plan.vips = vec![VipPlan { address: ip("203.0.113.100"), listeners: Vec::new(), peers: Vec::new() }];
    plan.prefixes = vec!["2001:db8:40::/64".parse().unwrap()];
    let inside = ["10.40.0.0/24", "10.41.0.0/16", "fd40::/64"].map(|net| net.parse::<IpNet>().unwrap());
    plan.returns = inside.iter().map(|net| ReturnPath { from: *net, protocol: None, ports: None }).collect();
    let mut facts = facts(&plan);
    if let Some(way) = facts.ways.get_mut(&inside[1]) {
        way.others = vec!["lan2".to_owned()];
    }
    let list = commands(&changes(&plan, &facts));
    for wanted in [
        "sysctl -w net.ipv4.conf.lan.forwarding=1",
        "sysctl -w net.ipv4.conf.lan2.forwarding=1",
        "ip rule add pref 295 iif lo goto 303",
        "ip rule add pref 296 iif lan2 ipproto icmp lookup 26368",
        "ip rule add pref 299 from 10.40.0.0/24 lookup 26368",
        "ip rule add pref 299 from 10.41.0.0/16 lookup 26368",
        "ip route add 203.0.113.100/32 dev gatun0",
        "ip neigh add proxy 203.0.113.100 dev eth0",
        "sysctl -w net.ipv6.conf.lan.force_forwarding=1",
        "ip -6 rule add pref 299 from fd40::/64 lookup 26368",
        "ip -6 route add 2001:db8:40::/64 dev gatun0",
    ] {
        assert!(list.iter().any(|line| line == wanted), "no {wanted} in {list:#?}");
    }
    assert!(!list.iter().any(|line| line.contains("neigh add proxy 2001")), "nobody answers for a prefix: {list:#?}");
    let at = |text: &str| list.iter().position(|line| line.contains(text)).unwrap();
    assert!(at("pref 288 iif gatun0 goto 303") < at("pref 299 from"), "else what comes back would loop");
}

/// The most common use: behind the uplink's own address.
#[test]
fn local_pool_gives_up_only_its_ports() {
    let mut plan = plan();
    let pool = Ports { first: 1024, last: 32767 };
    plan.vips = vec![VipPlan {
        address: ip("198.51.100.1"),
        listeners: [TCP, UDP].map(|protocol| Listener { protocol, ports: Some(pool) }).to_vec(),
        peers: Vec::new(),
    }];
    plan.returns = vec![ReturnPath { from: "10.40.0.0/24".parse().unwrap(), protocol: None, ports: None }];
    let mut facts = facts(&plan);
    facts.local_vips.insert(ip("198.51.100.1"), Some("eth0".into()));
    let list = commands(&changes(&plan, &facts));
    for wanted in [
        "ip rule add pref 20 to 198.51.100.1/32 ipproto tcp dport 1024-32767 lookup 26368",
        "ip rule add pref 20 to 198.51.100.1/32 ipproto udp dport 1024-32767 lookup 26368",
        "ip rule add pref 21 to 198.51.100.1/32 ipproto icmp lookup 26368",
        "ip rule add pref 24 to 198.51.100.1/32 ipproto tcp dport 1-65534 goto 31",
        "ip rule add pref 25 to 198.51.100.1/32 ipproto tcp lookup 26368",
        "ip rule add pref 272 lookup local",
        "ip rule add pref 299 from 10.40.0.0/24 lookup 26368",
    ] {
        assert!(list.iter().any(|line| line == wanted), "no {wanted} in {list:#?}");
    }
    assert!(!list.iter().any(|line| line.contains("neigh")), "{list:#?}");
}

/// A router next to the servers says that their replies are too big: to the VIP, which is beyond this host for the kernel.
#[test]
fn errors_about_replies_that_go_another_way_are_forwarded() {
    let mut plan = plan();
    plan.returns.clear();
    // The other end of a tunnel, of one family for VIPs of both.
    plan.one_way = vec!["10.30.0.14/32".parse().unwrap()];
    let list = commands(&changes(&plan, &facts(&plan)));
    for wanted in ["sysctl -w net.ipv4.conf.lan.forwarding=1", "sysctl -w net.ipv6.conf.lan.force_forwarding=1"] {
        assert!(list.iter().any(|line| line == wanted), "no {wanted} in {list:#?}");
    }
    assert!(!list.iter().any(|line| line.contains("rule")), "{list:#?}");
}

#[test]
fn local_vip_gives_up_only_its_services() {
    let mut plan = plan();
    plan.vips = vec![VipPlan {
        address: ip("198.51.100.1"),
        listeners: vec![
            Listener { protocol: TCP, ports: Some(Ports { first: 8000, last: 8099 }) },
            Listener { protocol: UDP, ports: None },
        ],
        peers: Vec::new(),
    }];
    plan.returns.retain(|r| r.from.addr().is_ipv4());
    let mut facts = facts(&plan);
    facts.local_vips.insert(ip("198.51.100.1"), Some("eth0".into()));
    let list = commands(&changes(&plan, &facts));
    let zone_a: Vec<&str> = list.iter().map(String::as_str).skip_while(|line| !line.contains("pref 31 ")).collect();
    assert_eq!(
        zone_a,
        [
            "ip rule add pref 31 nop",
            "ip rule add pref 16 iif gatun0 goto 31",
            "ip rule add pref 20 to 198.51.100.1/32 ipproto tcp dport 8000-8099 lookup 26368",
            "ip rule add pref 21 to 198.51.100.1/32 ipproto udp lookup 26368",
            "ip rule add pref 21 to 198.51.100.1/32 ipproto icmp lookup 26368",
            "ip rule add pref 24 to 198.51.100.1/32 ipproto tcp dport 1-65534 goto 31",
            "ip rule add pref 25 to 198.51.100.1/32 ipproto tcp lookup 26368",
            "ip rule add pref 22 from 10.20.0.11/32 to 198.51.100.1/32 ipproto tcp sport 8080 lookup 26368",
            "ip rule add pref 22 from 10.20.0.12/31 to 198.51.100.1/32 ipproto tcp sport 8080 lookup 26368",
            "ip rule add pref 272 lookup local",
            "ip rule del pref 0 lookup local",
        ]
    );
    assert!(list.contains(&"ip route add 0.0.0.0/0 dev gatun0 table 26368 src 198.51.100.1".to_owned()));
    assert!(!list.iter().any(|line| line.contains("neigh") || line.contains("/32 dev")), "it stays a local address");
}

#[test]
fn host_does_not_talk_to_servers_and_vips_from_the_same_address() {
    let mut plan = plan();
    plan.vips = vec![vip("10.20.0.1", TCP, 80)];
    let mut facts = facts(&plan);
    facts.local_vips.insert(ip("10.20.0.1"), Some("lan".into()));
    let list = changes(&plan, &facts);
    assert!(list.iter().all(|change| !matches!(change, Change::Route { source: Some(_), .. })));
    assert!(list.iter().all(|change| !matches!(change, Change::Rule(Rule { from: Some(_), to: Some(_), .. }))));
}

#[test]
fn ports_that_no_rule_can_name_take_the_way_of_fragments() {
    let mut plan = plan();
    plan.vips = vec![vip("198.51.100.1", TCP, 65535)];
    plan.vips[0].listeners.push(Listener { protocol: UDP, ports: Some(Ports { first: 1024, last: 65535 }) });
    plan.returns = vec![server("10.20.0.11", TCP, 65535)];
    let mut facts = facts(&plan);
    facts.local_vips.insert(ip("198.51.100.1"), None);
    let list = commands(&changes(&plan, &facts));
    assert!(!list.iter().any(|line| line.contains("65535")), "the kernel refuses it: {list:#?}");
    for line in [
        "ip rule add pref 20 to 198.51.100.1/32 ipproto udp dport 1024-65534 lookup 26368",
        "ip rule add pref 25 to 198.51.100.1/32 ipproto tcp lookup 26368",
        "ip rule add pref 301 from 10.20.0.11/32 ipproto tcp lookup 26368",
    ] {
        assert!(list.contains(&line.to_owned()), "{line}");
    }
}

#[test]
fn equal_plans_make_no_difference() {
    let plan = plan();
    assert_eq!(changes(&plan, &facts(&plan)), changes(&plan.clone(), &facts(&plan)));
}

#[test]
fn rules_of_one_preference_match_on_the_same_attributes() {
    // Else a deletion could hit another rule than it means.
    let mut plan = plan();
    plan.vips.push(vip("198.51.100.1", UDP, 53));
    let listeners = vec![Listener { protocol: TCP, ports: None }];
    plan.vips.push(VipPlan { address: ip("198.51.100.2"), listeners, peers: Vec::new() });
    plan.returns.push(ReturnPath { from: "10.30.0.0/24".parse().unwrap(), protocol: None, ports: None });
    plan.returns.push(ReturnPath { from: "10.20.0.15/32".parse().unwrap(), protocol: Some(UDP), ports: None });
    plan.returns.push(server("198.51.100.1", TCP, 81));
    let mut facts = facts(&plan);
    facts.others = vec![(Zone::A, 3, "gatun1".into()), (Zone::B, 3, "gatun1".into()), (Zone::B, 4, "gatun2".into())];
    facts.local_first4 = false;
    facts.local_vips.insert(ip("198.51.100.1"), Some("eth0".into()));
    facts.local_vips.insert(ip("198.51.100.2"), None);
    facts.ways.insert("198.51.100.1/32".parse().unwrap(), Way { local: true, ..Way::default() });
    let mut shapes = std::collections::HashMap::new();
    let mut rules = 0;
    for change in changes(&plan, &facts) {
        let Change::Rule(rule) = change else { continue };
        let shape = (
            rule.from.map(|net| net.prefix_len() > 0),
            rule.to.is_some(),
            rule.iif.is_some(),
            rule.protocol.is_some(),
            rule.sport.is_some(),
            rule.dport.is_some(),
            std::mem::discriminant(&rule.action),
        );
        let known = *shapes.entry((rule.family, rule.pref)).or_insert(shape);
        assert_eq!(known, shape, "{rule}");
        rules += 1;
    }
    assert!(rules > 30, "{rules} rules are not the whole plan");
}

#[test]
fn later_block_skips_the_earlier_so_that_a_packet_visits_each_gateway_once() {
    let plan = plan();
    let mut facts = facts(&plan);
    facts.slot = 1;
    facts.others = vec![(Zone::B, 0, "gatunA".into()), (Zone::B, 2, "gatunB".into())];
    let list = changes(&plan, &facts);
    let skip = |slot, device: &str| {
        let rule = Rule::new(Family::V4, Zone::B.start(slot) + 2, Action::Goto(Zone::B.end(slot)));
        Change::Rule(rule.iif(device))
    };
    assert!(list.contains(&skip(0, "gatun0")));
    assert!(list.contains(&skip(1, "gatunB")));
    assert!(!list.contains(&skip(1, "gatunA")));
}

#[test]
fn many_servers_make_few_rules() {
    let mut plan = plan();
    plan.returns =
        (0..200u8).flat_map(|n| [80, 81, 82].map(|port| server(&format!("10.20.{n}.11"), TCP, port))).collect();
    let list = changes(&plan, &facts(&plan));
    let rules = list.iter().filter(|change| matches!(change, Change::Rule(_))).count();
    assert!(rules < 60, "{rules} rules");
    for n in 0..200u8 {
        let address = IpNet::from(ip(&format!("10.20.{n}.11")));
        let covered = list.iter().any(|change| match change {
            Change::Rule(rule) => {
                rule.from.is_some_and(|net| net.contains(&address)) && rule.action == Action::Lookup(table(0))
            }
            _ => false,
        });
        assert!(covered, "{address}");
    }
}

#[test]
fn strict_reverse_path_filter_of_all_is_loosened_on_the_device() {
    let plan = plan();
    for (all, expected) in [(0, "0"), (1, "2"), (2, "0")] {
        let facts = Facts { rp_filter_all: all, ..facts(&plan) };
        let path = "net/ipv4/conf/gatun0/rp_filter".to_owned();
        assert!(changes(&plan, &facts).contains(&Change::Sysctl { path, value: expected.into() }), "all={all}");
    }
}

#[test]
fn advertised_routes_survive_that_the_host_becomes_a_router() {
    let plan = plan();
    let mut facts = facts(&plan);
    facts.accepts_ra = ["eth0", "mgmt", "idle"].map(String::from).into();
    facts.ra_default = ["mgmt"].map(String::from).into();
    let list = changes(&plan, &facts);
    let at = |name: &str, key: &str| {
        let path = format!("net/ipv6/conf/{name}/{key}");
        list.iter().position(|change| matches!(change, Change::Sysctl { path: p, .. } if *p == path))
    };
    let router = at("eth0", "forwarding").expect("NDP is answered on a router's interface only");
    assert!(at("eth0", "accept_ra").expect("it goes on listening") < router);
    assert!(at("mgmt", "accept_ra").expect("its default route would be purged") < router);
    assert_eq!(at("idle", "accept_ra"), None, "nothing changes for it");

    facts.force_forwarding = false;
    let list = changes(&plan, &facts);
    assert!(list.contains(&Change::ForwardAll6));
    let kept = list.iter().filter(|c| matches!(c, Change::Sysctl { path, .. } if path.ends_with("accept_ra")));
    assert_eq!(kept.count(), 4, "all three, and the device");
}

#[test]
fn uplink_without_neighbours_gets_no_proxy_entry() {
    let plan = plan();
    let mut facts = facts(&plan);
    facts.uplinks4 = vec![Uplink { name: "wg0".into(), resolves: false }];
    facts.uplinks6 = facts.uplinks4.clone();
    let list = changes(&plan, &facts);
    assert!(!list.iter().any(|change| matches!(change, Change::Proxy { .. })));
    assert!(commands(&list).contains(&"sysctl -w net.ipv4.conf.wg0.forwarding=1".to_owned()));
}

#[test]
fn a_change_of_value_is_a_change_of_the_same_thing() {
    let link = |property| Change::Link { device: "gatun0".into(), property };
    assert!(link(LinkProperty::Mtu(1500)).same_place(&link(LinkProperty::Mtu(9000))));
    assert!(!link(LinkProperty::Mtu(1500)).same_place(&link(LinkProperty::TxQueueLen(1500))));
    let route = |source| Change::Route {
        table: TABLE_MAIN,
        destination: "0.0.0.0/0".parse().unwrap(),
        device: "gatun0".into(),
        source,
    };
    assert!(route(None).same_place(&route(Some(ip("192.0.2.1")))));
}

#[test]
fn interface_names_with_dots_print_as_sysctl_takes_them() {
    let change = Change::Sysctl { path: "net/ipv4/conf/eth0.7/forwarding".into(), value: "1".into() };
    assert_eq!(change.to_string(), "sysctl -w net/ipv4/conf/eth0.7/forwarding=1");
}

#[test]
fn what_can_be_an_answer_to_a_probe_goes_to_the_device() {
    let mut plan = plan();
    let before = commands(&changes(&plan, &facts(&plan)));
    let from = |own: &str, from: &str, protocol, ports| ProbePath {
        own: ip(own),
        from: ReturnPath { from: IpNet::from(ip(from)), protocol: Some(protocol), ports },
    };
    let web = Some(Ports::one(8080));
    plan.probes = vec![
        from("10.20.0.1", "10.20.0.12", TCP, web),
        from("10.20.0.1", "10.20.0.13", TCP, web),
        from("10.20.0.1", "203.0.113.10", UDP, None),
        from("fd20::1", "fd20::11", TCP, web),
    ];
    plan.one_way = vec![IpNet::from(ip("10.20.0.14"))];
    let mut facts = facts(&plan);
    facts.strict = ["lan".to_owned()].into();
    let list = commands(&changes(&plan, &facts));
    let added: Vec<&str> = list.iter().filter(|line| !before.contains(line)).map(String::as_str).collect();
    let expected = [
        "sysctl -w net.ipv4.conf.lan.rp_filter=2",
        "ip rule add pref 31 nop",
        "ip rule add pref 16 iif gatun0 goto 31",
        "ip rule add pref 19 from 10.20.0.12/31 to 10.20.0.1/32 ipproto tcp sport 8080 dport 61000-61999 lookup 26368",
        "ip rule add pref 19 from 203.0.113.10/32 to 10.20.0.1/32 ipproto udp sport 1-65534 dport 61000-61999 lookup 26368",
        "ip rule add pref 272 lookup local",
        "ip rule del pref 0 lookup local",
        "ip -6 rule add pref 31 nop",
        "ip -6 rule add pref 16 iif gatun0 goto 31",
        "ip -6 rule add pref 17 from fe80::/10 goto 31",
        "ip -6 rule add pref 19 from fd20::11/128 to fd20::1/128 ipproto tcp sport 8080 dport 61000-61999 lookup 26368",
        "ip -6 rule add pref 272 lookup local",
        "ip -6 rule del pref 0 lookup local",
    ];
    assert_eq!(added, expected);
    // Nothing else is to come back from servers: the rules are made all the same.
    plan.returns.clear();
    plan.vips.clear();
    let list = commands(&changes(&plan, &facts));
    assert!(list.iter().any(|line| line.contains("pref 19 from 10.20.0.12/31")), "{list:#?}");
}
