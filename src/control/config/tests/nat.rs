//! What is said of pools, masquerades and forwarded ports that cannot be.

use super::*;
use crate::service::HelperKind;

/// A service that `keys` are added to.
fn service(keys: &str) -> String {
    format!(
        "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\n{keys}\n\
         server = [{{ address = \"10.20.0.11:8080\" }}, {{ address = \"10.20.0.12:8080\" }}]\n"
    )
}

/// A masquerade of 10.40.0.0/24.
fn masquerade(name: &str, from: &str, to: &str, keys: &str) -> String {
    format!("[[masquerade]]\nname = \"{name}\"\nfrom = [{from}]\nto = [{to}]\n{keys}\n")
}

fn lan(keys: &str) -> String {
    masquerade("lan", "\"10.40.0.0/24\"", "\"203.0.113.100\"", keys)
}

fn forward(name: &str, listen: &str, protocol: &str, to: &str) -> String {
    format!("[[forward]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"{protocol}\"\nto = \"{to}\"\n")
}

fn prefix(name: &str, from: &str, prefix: &str, keys: &str) -> String {
    format!("[[masquerade]]\nname = \"{name}\"\nfrom = [{from}]\nprefix = \"{prefix}\"\n{keys}\n")
}

/// Fails unless this, and nothing else, is said, each at a place.
fn says(parts: &[&str], expected: &[&str]) {
    told(&[(&parts.concat(), expected)]);
}

fn is_good(parts: &[&str]) {
    good(&parts.concat());
}

#[test]
fn pools_of_services() {
    says(
        &[&service("method = \"fullnat\"")],
        &[
            "3:10: service \"web\": method \"fullnat\" needs an IPv4 address to come from; name one in pool, or in pool of [nat]",
        ],
    );
    let by_one_server = "[[service]]\nname = \"web\"\nlisten = \"[2001:db8::1]:80\"\npool = [\"10.20.0.200\"]\nserver = [{ address = \"fd20::1\", method = \"fullnat\" }]\n";
    says(
        &[by_one_server],
        &[
            "3:10: service \"web\": method \"fullnat\" needs an IPv6 address to come from; name one in pool, or in pool of [nat]",
        ],
    );
    is_good(&["[nat]\npool = [\"10.20.0.200\"]\n", &service("method = \"fullnat\"")]);
    let alone = "is no IP address; write for example \"203.0.113.10\" or \"2001:db8::1\"";
    let one_by_one = "name the addresses of the pool one by one";
    for (wrong, why) in [
        ("10.20.0.300", alone),
        ("2001:db8::zz", alone),
        ("10.20.0.200:80", "has a port; write the address alone"),
        ("10.20.0.200-10.20.0.210", &format!("is a range; {one_by_one}")),
        ("10.20.0.200-210", &format!("is a range; {one_by_one}")),
        ("10.20.0.0/24", &format!("is a network; {one_by_one}")),
    ] {
        let keys = format!("method = \"fullnat\"\npool = [\"{wrong}\"]");
        says(&[&service(&keys)], &[&format!("5:9: [[service]] \"web\": pool {wrong:?} {why}")]);
        let nat = format!("[nat]\npool = [\"{wrong}\"]\n");
        says(&[&nat, &service("method = \"fullnat\"")], &[&format!("2:9: [nat]: pool {wrong:?} {why}")]);
    }
    says(
        &[&service("method = \"fullnat\"\npools = [\"10.20.0.200\"]")],
        &["5:1: [[service]] \"web\": unknown key \"pools\"; did you mean \"pool\"?"],
    );
    says(
        &[&lan("").replace("to =", "pool =")],
        &["4:1: [[masquerade]] \"lan\": unknown key \"pool\"; it is called \"to\" here"],
    );
    // At the VIP, beside its ports.
    is_good(&[&service("method = \"fullnat\"\npool = [\"203.0.113.10\"]\npool_ports = \"1024-65535\"")]);
    says(
        &[&service("method = \"fullnat\"\npool = [\"203.0.113.10\"]\npool_ports = \"1-65535\"")],
        &[
            "5:9: service \"web\": the pool's ports * of 203.0.113.10 reach into those of service \"web\" there, 80; give the pool ports beside these, or another address",
        ],
    );
    let ftp = "method = \"fullnat\"\npool = [\"203.0.113.10\"]\nhelper = \"ftp\"\ndata_ports = \"40000-40100\"";
    says(
        &[&service(ftp)],
        &[
            "5:9: service \"web\": the pool's ports 1024-65535 of 203.0.113.10 reach into those of service \"web\" there, 40000-40100; give the pool ports beside these, or another address",
        ],
    );
    says(
        &["[nat]\npool = [\"10.20.0.200\", \"10.20.0.12\"]\n", &service("method = \"fullnat\"")],
        &[
            "7:56: service \"web\": server \"10.20.0.12:8080\" has an address that service \"web\" takes for itself; give one of them another",
        ],
    );
    // Two services may come from one address, but from the same ports.
    let two = |ports: &str| {
        let second = service(&format!("method = \"fullnat\"\npool_ports = \"{ports}\""));
        let second = second.replace("\"web\"", "\"other\"").replace(":80\"\n", ":81\"\n");
        ["[nat]\npool = [\"10.20.0.200\"]\n".to_owned(), service("method = \"fullnat\""), second].concat()
    };
    is_good(&[&two("1024-65535")]);
    says(
        &[&two("1024-2047")],
        &[
            "2:9: service \"web\" and service \"other\" share 10.20.0.200 of their pools, the one with ports 1024-65535, the other with ports 1024-2047; give both the same pool_ports",
        ],
    );
}

#[test]
fn keys_of_services_that_their_method_or_protocol_cannot_do() {
    let past = "needs to change what the server reads, which method \"direct\" cannot; use \"fullnat\" or \"nat\", or leave it out";
    says(
        &[&service("proxy_protocol = \"v2\"\nprotocol = \"udp\"")],
        &[
            "4:18: service \"web\": proxy_protocol tells servers of TCP connections; let protocol be \"tcp\", or leave it out",
        ],
    );
    let direct = |keys: &str| service(&format!("method = \"direct\"\n{keys}")).replace(":8080", "");
    says(&[&direct("proxy_protocol = \"v1\"")], &[&format!("5:18: service \"web\": proxy_protocol {past}")]);
    says(
        &[&direct("syn_proxy = \"always\"")],
        &[
            "5:13: service \"web\": with syn_proxy = \"always\" the gateway stands between client and server all the time, and with method \"direct\" replies go past it; use \"nat\" or \"fullnat\", or leave it out",
        ],
    );
    says(
        &[&service("syn_proxy = \"always\"\nprotocol = \"udp\"")],
        &["4:13: service \"web\": syn_proxy answers TCP connections, and protocol is \"udp\"; leave it out"],
    );
    says(
        &[&service("method = \"fullnat\"\npool = [\"10.20.0.200\"]\nprotocol = \"udp\"\none_packet = true")],
        &[
            "3:10: service \"web\": with one_packet nothing is kept of a flow, so that method \"fullnat\" cannot have a port for it; use \"nat\", or keep flows",
        ],
    );
    is_good(&[&service("proxy_protocol = \"v2\"\nsyn_proxy = \"always\"")]);
    is_good(&[&direct("syn_proxy = \"auto\"")]);
}

#[test]
fn networks_of_masquerades() {
    let outside = "\"203.0.113.100\"";
    says(
        &[&masquerade("lan", "", outside, "")],
        &["2:8: masquerade \"lan\": \"from\" is empty; name the inside networks"],
    );
    says(
        &[&masquerade("lan", "\"10.40.0.0/24\", \"fd40::/64\"", outside, "")],
        &["3:25: masquerade \"lan\": fd40::/64 needs an IPv6 address to go out by; name one in \"to\""],
    );
    says(
        &[&masquerade("lan", "\"0.0.0.0/0\"", outside, "")],
        &[
            "3:9: masquerade \"lan\": 0.0.0.0/0 is every address, and what goes from inside to inside is left alone; name the networks that are inside",
        ],
    );
    let second = |from: &str| masquerade("other", from, "\"203.0.113.101\"", "");
    says(
        &[&lan(""), &second("\"10.40.0.0/24\"")],
        &[
            "8:9: masquerades \"lan\" and \"other\" both have 10.40.0.0/24 inside; let one of them have it, or a part of it",
        ],
    );
    is_good(&[&lan(""), &second("\"10.40.0.128/25\"")]);
    says(
        &[&lan(""), &second("\"10.41.0.0/24\"").replace("\"other\"", "\"lan\"")],
        &["7:8: masquerade \"lan\": there is a masquerade of this name; names must differ"],
    );
    says(
        &[&lan("").replace("\"lan\"", "\"web\""), &service("")],
        &["2:8: masquerade \"web\": there is a service of this name; names must differ"],
    );
}

#[test]
fn outside_addresses_have_one_use() {
    let second = |to: &str| masquerade("other", "\"10.41.0.0/24\"", to, "");
    says(
        &[&lan(""), &second("\"203.0.113.100\"")],
        &[
            "9:7: 203.0.113.100 of the pool of masquerade \"other\" is in that of masquerade \"lan\" already; an address serves one masquerade, or services by \"fullnat\"",
        ],
    );
    says(
        &[&lan(""), &service("method = \"fullnat\"\npool = [\"203.0.113.100\"]")],
        &[
            "10:9: 203.0.113.100 of the pool of service \"web\" is in that of masquerade \"lan\" already; an address serves one masquerade, or services by \"fullnat\"",
        ],
    );
    says(
        &[&lan(""), &second("\"10.40.0.77\"")],
        &[
            "9:7: masquerade \"other\": 10.40.0.77 is within 10.40.0.0/24, an inside network of masquerade \"lan\"; an outside address must be another one",
        ],
    );
    // Behind the VIP of a service, whose ports are no pool's.
    let at_vip = |ports: &str| lan(&format!("ports = \"{ports}\"")).replace(".100", ".10");
    is_good(&[&at_vip("1024-65535"), &service("")]);
    says(
        &[&at_vip("80-90"), &service("")],
        &[
            "4:7: masquerade \"lan\": the pool's ports 80-90 of 203.0.113.10 reach into those of service \"web\" there, 80; give the pool ports beside these, or another address",
        ],
    );
    says(
        &[&lan("").replace("203.0.113.100", "10.20.0.11"), &service("")],
        &[
            "10:23: service \"web\": server \"10.20.0.11:8080\" has an address that masquerade \"lan\" takes for itself; give one of them another",
        ],
    );
    // Servers may be inside, and those by fullnat answer to an address of their own segment.
    is_good(&[
        &masquerade("lan", "\"10.20.0.0/24\"", "\"203.0.113.100\"", ""),
        &service("method = \"fullnat\"\npool = [\"10.20.0.200\"]"),
    ]);
    let many: Vec<String> = (0..1025).map(|n| format!("\"198.18.{}.{}\"", n >> 8, n & 255)).collect();
    let text = masquerade("lan", "\"10.40.0.0/24\"", &many.join(", "), "");
    let errors = parse(&text).expect_err("that many");
    assert_eq!(errors.problems()[0].message, "too many addresses of pools: at most 1024 are possible");
    assert_eq!(errors.problems().len(), 1);
    let networks: Vec<String> = (0..257).map(|n| format!("\"10.{}.{}.0/24\"", n >> 8, n & 255)).collect();
    let errors = parse(&masquerade("lan", &networks.join(", "), "\"203.0.113.1\"", "")).expect_err("that many");
    assert_eq!(errors.problems()[0].message, "too many inside networks: at most 256 are possible");
}

#[test]
fn prefixes() {
    let of = |from: &str, to: &str| prefix("six", from, to, "");
    is_good(&[&of("\"fd40::/48\"", "2001:db8:40::/48")]);
    let bad = |from: &str, to: &str, wrong: &str| {
        says(&[&of(from, to)], &[&format!("4:10: masquerade \"six\": prefix {to} {wrong}")]);
    };
    bad("\"10.40.0.0/24\"", "203.0.113.0/24", "is of IPv4; NPTv6 (RFC 6296) is for IPv6");
    bad("\"10.40.0.0/24\"", "2001:db8::/64", "cannot stand for 10.40.0.0/24: NPTv6 (RFC 6296) is for IPv6");
    bad("\"fd40::/64\"", "2001:db8:40::/48", "must be as long as the inside network fd40::/64, so /64");
    bad("\"fd40::/96\"", "2001:db8:40::/96", "must have from 1 to 64 bits");
    let several = "stands for one inside network; give each network a masquerade of its own";
    bad("\"fd40::/64\", \"fd41::/64\"", "2001:db8:40::/64", several);
    bad(
        "\"fd40::/64\"",
        "fd40::/64",
        "meets the inside network fd40::/64 of masquerade \"six\"; it must be another one",
    );
    says(
        &[&prefix("six", "\"fd40::/64\"", "2001:db8:40::/64", "to = [\"2001:db8::1\"]\nhelpers = [\"ftp\"]")],
        &[
            "4:10: masquerade \"six\": prefix 2001:db8:40::/64 goes without a pool: nothing is kept of its flows; leave \"to\" out",
            "6:1: [[masquerade]] \"six\": \"helpers\" has no use with \"prefix\", which keeps nothing of any flow; leave it out",
        ],
    );
    let other = prefix("other", "\"fd41::/64\"", "2001:db8:40::/64", "");
    says(
        &[&of("\"fd40::/64\"", "2001:db8:40::/64"), &other],
        &[
            "9:10: masquerade \"other\": prefix 2001:db8:40::/64 meets that of masquerade \"six\"; each needs one of its own",
        ],
    );
    let vip = "[[service]]\nname = \"web\"\nlisten = \"[2001:db8:40::1]:80\"\nserver = []\n";
    says(
        &[&of("\"fd40::/64\"", "2001:db8:40::/64"), vip],
        &[
            "4:10: masquerade \"six\": prefix 2001:db8:40::/64 has the VIP 2001:db8:40::1 of service \"web\" in it; what comes there is for inside hosts",
        ],
    );
    says(
        &[&of("\"fd40::/64\"", "2001:db8:40::/64"), &forward("ssh", "[2001:db8:40::9]:22", "tcp", "fd50::1")],
        &[
            "8:10: forward \"ssh\": 2001:db8:40::9 is within 2001:db8:40::/64, the outside prefix of masquerade \"six\", all of which is for inside hosts; use another address",
        ],
    );
}

#[test]
fn forwarded_ports() {
    let ssh = forward("ssh", "203.0.113.100:2222", "tcp", "10.40.0.2:22");
    // Out of the pool, or from an address of their own; TCP and UDP are apart, and so are ports.
    is_good(&[&lan(""), &ssh, &forward("dns", "203.0.113.100:2222", "udp", "10.40.0.3:53")]);
    is_good(&[&forward("web", "203.0.113.7:8000-8010", "tcp+udp", "10.40.0.2:80"), &service("")]);
    says(
        &[&ssh, &forward("ssh", "203.0.113.100:2223", "tcp", "10.40.0.2:22")],
        &["7:8: two forwards are named \"ssh\"; names must differ"],
    );
    says(
        &[&ssh, &forward("all", "203.0.113.100:*", "tcp+udp", "10.40.0.3")],
        &[
            "8:10: forward \"all\": its ports * of 203.0.113.100 are, at least in part, those of forward \"ssh\", 2222; use others",
        ],
    );
    says(
        &[&service(""), &forward("web", "203.0.113.10:70-80", "tcp", "10.40.0.2")],
        &[
            "8:10: forward \"web\": its ports 70-80 of 203.0.113.10 are, at least in part, those of service \"web\", 80; use others",
        ],
    );
    says(
        &[
            &service("method = \"fullnat\"\npool = [\"10.20.0.200\"]"),
            &forward("ssh", "10.20.0.200:22", "tcp", "10.40.0.2"),
        ],
        &[
            "9:10: forward \"ssh\": 10.20.0.200 is of the pool of service \"web\", by method \"fullnat\"; forward from an address of a masquerade's pool, or from one of its own",
        ],
    );
    let target = |to: &str, wrong: &str| {
        let range = forward("range", "203.0.113.100:2000-2999", "tcp", to);
        says(&[&lan(""), &service(""), &range], &[&format!("15:6: forward \"range\": {wrong}")]);
    };
    target("[fd40::2]:22", "fd40::2 is of another address family than 203.0.113.100");
    target("10.40.0.2:65000", "10.40.0.2 has no room for the ports 2000-2999 from port 65000 on");
    let loops = "name an inside host, or packets would loop";
    target("203.0.113.10", &format!("203.0.113.10 is the VIP of service \"web\"; {loops}"));
    target("203.0.113.100", &format!("203.0.113.100 is an address of the pool of masquerade \"lan\"; {loops}"));
    says(
        &[&ssh, &forward("loop", "203.0.113.101:22", "tcp", "203.0.113.100:2222")],
        &[&format!("10:6: forward \"loop\": 203.0.113.100 is the outside address of forward \"ssh\"; {loops}")],
    );
    says(
        &[&lan(""), &forward("ssh", "10.40.0.9:22", "tcp", "10.40.0.2")],
        &[
            "8:10: forward \"ssh\": 10.40.0.9 is within 10.40.0.0/24, an inside network of masquerade \"lan\"; an outside address must be another one",
        ],
    );
    says(
        &[&service(""), &forward("ssh", "10.20.0.12:22", "tcp", "10.40.0.2")],
        &[
            "5:56: service \"web\": server \"10.20.0.12:8080\" has an address that forward \"ssh\" takes for itself; give one of them another",
        ],
    );
}

#[test]
fn forwards_leave_ports_to_inside_hosts() {
    let all = |protocol: &str| forward("all", "203.0.113.100:*", protocol, "10.40.0.2");
    let none = |protocol: &str| {
        format!(
            "8:10: forward \"all\": with it all {protocol} ports that masquerade \"lan\" has at 203.0.113.100 are forwarded, and none is left for inside hosts; forward fewer, or take the address out of \"to\""
        )
    };
    says(&[&lan(""), &all("tcp+udp")], &[&none("tcp")]);
    says(&[&lan(""), &all("udp")], &[&none("udp")]);
    is_good(&[&masquerade("lan", "\"10.40.0.0/24\"", "\"203.0.113.101\"", ""), &all("tcp+udp")]);
    // Together.
    let ports = "ports = \"2000-2999\"";
    let [low, high] = [("low", "1-2499"), ("all", "2500-2999")]
        .map(|(name, ports)| forward(name, &format!("203.0.113.100:{ports}"), "udp", "10.40.0.2"));
    is_good(&[&lan(ports), &low]);
    is_good(&[&lan(ports), &high]);
    is_good(&[&lan(ports), &low, &high.replace("2999", "2998")]);
    is_good(&[&lan(ports), &low, &high.replace("udp", "tcp")]);
    says(&[&lan(ports), &low, &high], &[&none("udp").replace("8:10", "13:10")]);
    let many: Vec<String> =
        (0..1025).map(|n| forward(&format!("f{n}"), &format!("203.0.113.7:{}", 1 + n), "tcp", "10.40.0.2")).collect();
    let errors = parse(&many.concat()).expect_err("that many");
    assert_eq!(errors.problems()[0].message, "too many forwards: at most 1024 are possible");
    assert_eq!(errors.problems().len(), 1);
}

#[test]
fn networks_of_no_ordinary_host() {
    let from = |network: &str| masquerade("lan", &format!("\"{network}\""), "\"203.0.113.100\", \"2001:db8::1\"", "");
    for (network, what) in [
        ("127.0.0.0/8", "loopback"),
        ("127.1.0.0/16", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255", "reserved (RFC 1112)"),
        ("0.0.0.0/8", "of \"this network\" (RFC 1122)"),
        ("::1", "loopback"),
        ("::", "unspecified"),
        ("fe80::/10", "link-local"),
        ("ff02::/16", "multicast"),
    ] {
        let wrong = format!("is no network of hosts that are reached through others: it is {what}");
        says(&[&from(network)], &[&format!("3:9: [[masquerade]] \"lan\": from \"{network}\" {wrong}")]);
        is_good(&[&lan(&format!("except = [\"{network}\"]"))]);
    }
    is_good(&[&from("0.0.0.0/1")]);
    is_good(&[&lan("except = [\"0.0.0.0/0\", \"::/0\"]")]);
    says(
        &[&prefix("six", "\"fd40::/48\"", "ff00::/48", "")],
        &[
            "4:10: [[masquerade]] \"six\": prefix \"ff00::/48\" is no network of hosts that are reached through others: it is multicast",
        ],
    );
}

#[test]
fn what_is_there_twice_or_has_another_meaning() {
    says(
        &[&service("method = \"fullnat\"\npool = [\"10.20.0.200\", \"10.20.0.201\", \"10.20.0.200\"]")],
        &["5:39: [[service]] \"web\": pool has 10.20.0.200 twice; name it once"],
    );
    says(
        &[&lan("").replace("\"lan\"", "\"forward\"")],
        &[
            "2:8: [[masquerade]] \"forward\": name \"forward\" is what flows by forwarded ports are shown as; choose another name",
        ],
    );
    let helpers = parse(&lan("helpers = [\"ftp\", \"tftp\", \"ftp\"]")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(helpers.masquerades[0].helpers, [HelperKind::Ftp, HelperKind::Tftp]);
}

#[test]
fn addresses_of_the_segment() {
    let tap = "[gateway]\nmode = \"tap\"\naddress = [\"10.20.0.2/24\"]\nrouter = [\"10.20.0.254\"]\n";
    let nat = "[nat]\npool = [\"10.20.0.254\"]\n";
    let behind = |to: &str| masquerade("lan", "\"10.40.0.0/24\"", to, "");
    says(
        &[tap, nat, &behind("\"10.20.0.254\""), &forward("ssh", "10.20.0.254:22", "tcp", "10.40.0.2")],
        &[
            "6:9: 10.20.0.254 is the router's address; a pool needs another one",
            "10:7: 10.20.0.254 is the router's address; a pool needs another one",
            "14:10: forward \"ssh\": 10.20.0.254 is the router's address",
        ],
    );
    // Behind the gateway's own address.
    is_good(&[tap, &behind("\"10.20.0.2\"")]);
}
