//! Pools and inside networks: what is changed on the host for them, and that it is undone.

use ipnet::IpNet;

use super::namespace::printed_commands;
use super::support::{
    LOCAL, TCP, assert_same, claim_again, close, host_with_two_links, in_namespace, ip, plan, route_get, settled, sh,
    sysctl, tun, value,
};
use crate::io::host::{Host, HostError, HostPlan, Listener, Ports, ReturnPath, VipPlan};

const UDP: u8 = 17;

/// A routed pool that servers answer to, a local one with an inside network, and a prefix.
fn pools() -> HostPlan {
    let mut plan = plan("gatun0", &LOCAL);
    let pool = Listener { protocol: TCP, ports: Some(Ports { first: 1024, last: 32767 }) };
    plan.vips.iter_mut().for_each(|vip| vip.listeners = vec![pool]);
    for (pool, server) in [("10.20.0.200", "10.20.0.11"), ("fd20::200", "fd20::11")] {
        let peers = vec![IpNet::from(ip(server))];
        plan.vips.push(VipPlan { address: ip(pool), listeners: Vec::new(), peers });
    }
    plan.prefixes = vec!["2001:db8:40::/64".parse().unwrap()];
    plan.returns = ["10.20.0.0/24", "10.0.0.0/8", "fd20::/64"]
        .map(|net| ReturnPath { from: net.parse().unwrap(), protocol: None, ports: None })
        .into();
    plan
}

#[test]
fn pools_and_inside_networks_are_set_up_and_undone() {
    in_namespace("pools_and_inside_networks_are_set_up_and_undone", async |directory| {
        host_with_two_links();
        // A part of the wide network that is elsewhere.
        sh("ip link add far type veth peer name farther; ip link set far up; ip link set farther up
            ip addr add 10.50.0.1/24 dev far");
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&pools()).await.unwrap();

        let out = |from: &str, rest: &str| route_get(&format!("203.0.113.7 from {from} {rest}"));
        for protocol in ["ipproto udp sport 5000 dport 53", "ipproto icmp", "ipproto udp"] {
            assert!(out("10.20.0.11", &format!("iif lan {protocol}")).contains("dev gatun0"), "{protocol}");
        }
        assert!(out("10.50.0.9", "iif far ipproto udp sport 5000 dport 53").contains("dev gatun0"));
        let back = out("10.20.0.11", "iif gatun0 ipproto udp sport 5000 dport 53");
        assert!(back.contains("dev up0"), "what is passed goes its usual way: {back}");
        assert!(out("198.51.100.9", "iif up0 ipproto udp sport 5000 dport 53").contains("dev up0"), "not from inside");
        let own = route_get("203.0.113.7 from 10.20.0.1 ipproto tcp sport 5000 dport 53");
        assert!(own.contains("dev up0"), "the host's own connections: {own}");
        let to_host = route_get("10.20.0.1 from 10.20.0.11 iif lan ipproto tcp sport 5000 dport 22");
        assert!(to_host.contains("local 10.20.0.1"), "{to_host}");
        assert!(route_get("2001:db8:9::9 from fd20::11 iif lan").contains("dev gatun0"));
        assert!(route_get("2001:db8:40::7 from 2001:db8:1::2 iif up0").contains("dev gatun0"));

        let pool =
            |port| route_get(&format!("198.51.100.1 from 198.51.100.2 iif up0 ipproto tcp sport 80 dport {port}"));
        assert!(pool(2000).contains("dev gatun0") && pool(40000).contains("local"));
        let proxies = sh("ip neigh show proxy; ip -6 neigh show proxy");
        for wanted in ["10.20.0.200 dev lan", "10.20.0.200 dev up0", "fd20::200 dev lan"] {
            assert!(proxies.contains(wanted), "{proxies}");
        }
        for path in [
            "net/ipv4/conf/lan/forwarding",
            "net/ipv4/conf/far/forwarding",
            "net/ipv6/conf/lan/forwarding",
            "net/ipv6/conf/lan/proxy_ndp",
        ] {
            assert_eq!(value(&before, path), "0", "{path}: the test shows nothing");
            assert_eq!(sysctl(path), "1", "{path}");
        }

        // A reload takes away what is no longer wanted, and the end the rest.
        let mut fewer = pools();
        fewer.vips.truncate(2);
        fewer.prefixes.clear();
        fewer.returns.truncate(1);
        host.apply(&fewer).await.unwrap();
        let left = sh("ip route; ip -6 route; ip rule; ip neigh show proxy; ip -6 neigh show proxy");
        for gone in ["10.20.0.200", "2001:db8:40", "10.0.0.0/8"] {
            assert!(!left.contains(gone), "{gone} is left: {left}");
        }
        assert!(left.contains("from 10.20.0.0/24"), "{left}");
        host.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn remains_of_pools_are_cleaned_at_the_next_start() {
    in_namespace("remains_of_pools_are_cleaned_at_the_next_start", async |directory| {
        host_with_two_links();
        let before = settled().await;
        for lost in [false, true] {
            let device = tun("gatun0");
            let mut host = Host::claim("gatun0", directory).await.unwrap();
            host.apply(&pools()).await.unwrap();
            drop(host);
            close(device, "gatun0");
            if lost {
                for entry in std::fs::read_dir(directory).unwrap() {
                    std::fs::write(entry.unwrap().path(), "\0rubbish{{{\n").unwrap();
                }
            }
            assert!(sh("ip neigh show proxy").contains("10.20.0.200"), "the test shows nothing");
            let host = claim_again("gatun0", directory).await;
            if lost {
                // Kernel parameters carry no mark.
                let left = sh(
                    "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip neigh show proxy; ip -6 neigh show proxy",
                );
                for gone in ["goto", "10.20.0.200", "fd20::200", "2001:db8:40", "table 26368"] {
                    assert!(!left.contains(gone), "{gone} is left: {left}");
                }
            } else {
                assert_same(&before, &settled().await);
            }
            host.undo().await;
        }
    });
}

#[test]
fn printed_commands_do_what_apply_does_for_pools() {
    printed_commands("printed_commands_do_what_apply_does_for_pools", pools());
}

/// The uplink's own prefix, as somebody might try.
#[test]
fn a_prefix_that_is_somewhere_else_is_refused() {
    in_namespace("a_prefix_that_is_somewhere_else_is_refused", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let mut plan = pools();
        plan.prefixes = vec!["2001:db8:1::/64".parse().unwrap()];
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let refused = host.apply(&plan).await.expect_err("it is on the uplink");
        assert!(matches!(refused, HostError::PrefixTaken { .. }), "{refused}");
        host.undo().await;
    });
}

/// The kernel looks for the way of a UDP packet when it is asked for that to an address, and UDP to this one belongs to the
/// gateway by then: that must not make it somebody else's.
#[test]
fn an_own_address_stays_one_when_its_udp_is_the_gateways() {
    in_namespace("an_own_address_stays_one_when_its_udp_is_the_gateways", async |directory| {
        host_with_two_links();
        // Of a network of the host's own, every address is.
        sh("ip route add local 192.0.2.0/24 dev lo; ip -6 route add local 2001:db8:2::/64 dev lo");
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let mut plan = plan("gatun0", &[]);
        let own = ["198.51.100.1", "2001:db8:1::1", "10.20.0.1", "fd20::1", "192.0.2.7", "2001:db8:2::7"];
        plan.vips = own
            .map(|own| VipPlan {
                address: ip(own),
                listeners: [TCP, UDP]
                    .map(|protocol| Listener { protocol, ports: Some(Ports { first: 1024, last: 32767 }) })
                    .into(),
                peers: vec![IpNet::from(ip(if own.contains(':') { "fd20::11" } else { "10.20.0.11" }))],
            })
            .into();
        // Servers may have it as well, and what is inside may be part of its network.
        plan.returns = ["10.20.0.1/32", "10.20.0.0/30", "fd20::1/128", "fd20::/126", "0.0.0.0/0", "::/0"]
            .map(|net| ReturnPath { from: net.parse().unwrap(), protocol: None, ports: None })
            .into();
        plan.one_way = plan.returns.iter().map(|path| path.from).take(1).collect();
        host.apply(&plan).await.unwrap();
        let udp = route_get("198.51.100.1");
        assert!(udp.contains("dev gatun0"), "the test shows nothing: {udp}");
        let applied = settled().await;
        for _ in 0..2 {
            host.apply(&plan).await.unwrap();
            assert_same(&applied, &settled().await);
        }
        host.undo().await;
        assert_same(&before, &settled().await);
    });
}
