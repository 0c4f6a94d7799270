//! What is changed on the host, and that it is undone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::support::{
    LOCAL, ROUTED, assert_same, claim_again, close, host_with_two_links, in_namespace, plan, route_get, settled, sh,
    snapshot, sysctl, tun, value,
};
use crate::io::host::change::Change;
use crate::io::host::make::{perform, prepare, revert};
use crate::io::host::netlink::Net;
use crate::io::host::state::Entry;
use crate::io::host::{Host, HostError, HostPlan, Ports};

#[test]
fn apply_and_undo_leave_the_host_as_it_was() {
    in_namespace("apply_and_undo_leave_the_host_as_it_was", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan("gatun0", &ROUTED)).await.unwrap();

        assert!(
            route_get("203.0.113.10 from 198.51.100.2 iif up0 ipproto tcp sport 4000 dport 80").contains("dev gatun0")
        );
        assert!(route_get("2001:db8:f::10 from 2001:db8:1::2 iif up0").contains("dev gatun0"));
        let reply = "198.51.100.2 from 10.20.0.11 iif lan ipproto tcp sport 8080 dport 4000";
        assert!(route_get(reply).contains("dev gatun0"));
        assert!(route_get(&reply.replace("8080", "8081")).contains("dev up0"), "another service of the server");
        assert!(route_get(&reply.replace("iif lan", "iif gatun0")).contains("dev up0"), "no loop");
        assert!(
            route_get("2001:db8:1::2 from fd20::11 iif lan ipproto tcp sport 8080 dport 4000").contains("dev gatun0")
        );
        // Fragments: the protocol is known, the ports are not.
        assert!(route_get("198.51.100.2 from 10.20.0.11 iif lan ipproto tcp").contains("dev gatun0"));
        assert!(route_get("198.51.100.2 from 10.20.0.11 iif lan ipproto udp").contains("dev up0"));
        // Errors of a router behind the servers; and what is for the host itself.
        assert!(route_get("198.51.100.2 from 10.20.0.254 iif lan ipproto icmp").contains("dev gatun0"));
        assert!(route_get("10.20.0.1 from 10.20.0.11 iif lan ipproto tcp sport 8080").contains("local 10.20.0.1"));

        assert!(sh("ip neigh show proxy").contains("203.0.113.10 dev up0"));
        assert!(sh("ip -6 neigh show proxy").contains("2001:db8:f::10 dev up0"));
        let link = sh("ip link show gatun0");
        assert!(link.contains("mtu 1400") && link.contains("qlen 4096") && link.contains("UP"), "{link}");
        assert!(!sh("ip -6 addr show dev gatun0").contains("fe80"), "no link-local address");
        for path in [
            "net/ipv4/conf/up0/forwarding",
            "net/ipv4/conf/lan/forwarding",
            "net/ipv4/conf/gatun0/accept_local",
            "net/ipv6/conf/up0/forwarding",
            "net/ipv6/conf/up0/proxy_ndp",
            "net/ipv6/conf/lan/force_forwarding",
        ] {
            assert_eq!(value(&before, path), "0", "{path}: the test shows nothing");
            assert_eq!(sysctl(path), "1", "{path}");
        }

        host.undo().await;
        assert_same(&before, &settled().await);
        assert!(!directory.join("gatun0.state").exists());
    });
}

#[test]
fn second_apply_changes_nothing_and_a_reload_only_the_difference() {
    in_namespace("second_apply_changes_nothing_and_a_reload_only_the_difference", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let first = plan("gatun0", &ROUTED);
        host.apply(&first).await.unwrap();
        let applied = settled().await;

        let monitor = tempfile::NamedTempFile::new().unwrap();
        let mut child =
            Command::new("ip").args(["monitor", "rule", "route"]).stdout(monitor.reopen().unwrap()).spawn().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        host.apply(&first).await.unwrap();
        assert_same(&applied, &snapshot());

        let mut second = plan("gatun0", &["203.0.113.11", "203.0.113.10"]);
        second.mtu = Some(1500);
        second.returns[0].ports = Some(Ports::one(9090));
        host.apply(&second).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let seen = std::fs::read_to_string(monitor.path()).unwrap();
        assert!(seen.contains("203.0.113.11") && seen.contains("9090"), "{seen}");
        assert!(!seen.contains("203.0.113.10 "), "the VIP that stays was touched: {seen}");

        let list = sh("ip rule");
        assert!(list.contains("9090") && !list.contains("8080"), "{list}");
        assert!(sh("ip link show gatun0").contains("mtu 1500"));
        assert!(!sh("ip -6 route").contains("2001:db8:f::10"));

        host.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn remains_of_a_killed_gateway_are_cleaned_at_the_next_start() {
    in_namespace("remains_of_a_killed_gateway_are_cleaned_at_the_next_start", async |directory| {
        host_with_two_links();
        let before = settled().await;
        for local in [false, true] {
            let device = tun("gatun0");
            let mut host = Host::claim("gatun0", directory).await.unwrap();
            host.apply(&plan("gatun0", if local { &LOCAL } else { &ROUTED })).await.unwrap();
            // As after SIGKILL: the descriptors close, nothing else happens.
            drop(host);
            close(device, "gatun0");
            assert!(sh("ip rule").contains("goto"), "the test shows nothing");

            let host = claim_again("gatun0", directory).await;
            assert_same(&before, &settled().await);
            host.undo().await;
        }
    });
}

#[test]
fn remains_are_found_by_their_marks_when_the_record_is_lost() {
    in_namespace("remains_are_found_by_their_marks_when_the_record_is_lost", async |directory| {
        host_with_two_links();
        let before = settled().await;
        for vips in [ROUTED, LOCAL] {
            let device = tun("gatun0");
            let mut host = Host::claim("gatun0", directory).await.unwrap();
            host.apply(&plan("gatun0", &vips)).await.unwrap();
            drop(host);
            close(device, "gatun0");
            for entry in std::fs::read_dir(directory).unwrap() {
                std::fs::write(entry.unwrap().path(), "\0rubbish{{{\n").unwrap();
            }
            let host = claim_again("gatun0", directory).await;
            let after = settled().await;
            // Former values of kernel parameters are lost with the record, and with forwarding left on an
            // interface keeps the anycast address of a router.
            let plain =
                |text: &str| text.lines().filter(|line| !line.starts_with("anycast")).collect::<Vec<_>>().join("\n");
            for (key, value) in before.iter().filter(|(key, _)| key.starts_with("ip ")) {
                assert_eq!(plain(value), plain(&after[key]), "{key}");
            }
            host.undo().await;
        }
    });
}

#[test]
fn local_vip_keeps_what_is_not_served() {
    in_namespace("local_vip_keeps_what_is_not_served", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan("gatun0", &LOCAL)).await.unwrap();

        for (vip, client) in [("198.51.100.1", "198.51.100.2"), ("2001:db8:1::1", "2001:db8:1::2")] {
            let get = |rest: &str| route_get(&format!("{vip} from {client} iif up0 {rest}"));
            assert!(get("ipproto tcp sport 4000 dport 80").contains("dev gatun0"), "{vip}");
            assert!(get("ipproto tcp").contains("dev gatun0"), "a fragment for {vip}");
            assert!(get("ipproto tcp sport 4000 dport 22").contains("local"), "{vip}");
            assert!(get("ipproto udp sport 4000 dport 80").contains("local"), "{vip}");
            let icmp = if vip.contains(':') { "ipv6-icmp" } else { "icmp" };
            assert!(get(&format!("ipproto {icmp}")).contains("dev gatun0"), "{vip}");
            let back = route_get(&format!("{vip} from {client} iif gatun0 ipproto tcp sport 4000 dport 80"));
            assert!(back.contains("local"), "what the gateway passes back reaches the host: {back}");
            // A program on the host itself.
            let own = route_get(&format!("{vip} ipproto tcp sport 4000 dport 80"));
            assert!(own.contains("dev gatun0") && own.contains(&format!("src {vip}")), "{own}");
        }
        let reply = route_get("198.51.100.1 from 10.20.0.11 iif lan ipproto tcp sport 8080 dport 4000");
        assert!(reply.contains("dev gatun0"), "the reply to a program on the host: {reply}");
        let first = sh("ip rule").lines().next().unwrap_or_default().to_owned();
        assert!(!first.starts_with("0:"), "{first}");

        host.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn two_gateways_do_not_disturb_each_other() {
    in_namespace("two_gateways_do_not_disturb_each_other", async |directory| {
        host_with_two_links();
        let _devices = (tun("gatun0"), tun("gatun1"));
        let before = settled().await;
        let mut first = Host::claim("gatun0", directory).await.unwrap();
        first.apply(&plan("gatun0", &["203.0.113.10", "198.51.100.1", "2001:db8:1::1"])).await.unwrap();
        let mut second = Host::claim("gatun1", directory).await.unwrap();
        let mut other = plan("gatun1", &["203.0.113.11", "198.51.100.1", "2001:db8:1::1"]);
        for vip in &mut other.vips {
            vip.listeners[0].ports = Some(Ports::one(81));
        }
        second.apply(&other).await.unwrap();

        let vip = |port: u16| {
            route_get(&format!("198.51.100.1 from 198.51.100.2 iif up0 ipproto tcp sport 4000 dport {port}"))
        };
        assert!(vip(80).contains("dev gatun0"));
        assert!(vip(81).contains("dev gatun1"));
        // A server of both: the reply visits each gateway once, then goes its way.
        let reply =
            |iif: &str| route_get(&format!("198.51.100.2 from 10.20.0.11 iif {iif} ipproto tcp sport 8080 dport 4000"));
        assert!(reply("lan").contains("dev gatun0"));
        assert!(reply("gatun0").contains("dev gatun1"));
        assert!(reply("gatun1").contains("dev up0"));

        first.undo().await;
        assert!(vip(81).contains("dev gatun1"), "the first one's end ended the second's VIP");
        assert!(vip(80).contains("local"));
        assert_eq!(sysctl("net/ipv4/conf/up0/forwarding"), "1");
        assert_eq!(sysctl("net/ipv6/conf/all/proxy_ndp"), "1");
        assert!(sh("ip neigh show proxy").contains("203.0.113.11"));
        assert!(!sh("ip neigh show proxy").contains("203.0.113.10"));
        second.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn gateway_that_comes_back_takes_its_place_again() {
    in_namespace("gateway_that_comes_back_takes_its_place_again", async |directory| {
        host_with_two_links();
        let device = tun("gatun0");
        let _other = tun("gatun1");
        let mut first = Host::claim("gatun0", directory).await.unwrap();
        first.apply(&plan("gatun0", &LOCAL)).await.unwrap();
        let mut second = Host::claim("gatun1", directory).await.unwrap();
        second.apply(&plan("gatun1", &ROUTED)).await.unwrap();
        let both = sh("ip rule; ip -6 rule");
        drop(first);
        close(device, "gatun0");
        let mut first = claim_again("gatun0", directory).await;
        let _device = tun("gatun0");
        first.apply(&plan("gatun0", &LOCAL)).await.unwrap();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(lines(&both), lines(&sh("ip rule; ip -6 rule")));
        first.undo().await;
        second.undo().await;
        assert!(!sh("ip rule; ip -6 rule").contains("goto"));
    });
}

#[test]
fn dead_neighbour_is_not_waited_for_and_the_value_before_both_comes_back() {
    in_namespace("dead_neighbour_is_not_waited_for_and_the_value_before_both_comes_back", async |directory| {
        host_with_two_links();
        let device = tun("gatun0");
        let _other = tun("gatun1");
        let before = settled().await;
        let mut first = Host::claim("gatun0", directory).await.unwrap();
        first.apply(&plan("gatun0", &ROUTED)).await.unwrap();
        let mut second = Host::claim("gatun1", directory).await.unwrap();
        second.apply(&plan("gatun1", &["203.0.113.11"])).await.unwrap();
        drop(first);
        close(device, "gatun0");
        second.undo().await;
        assert_eq!(sysctl("net/ipv4/conf/up0/forwarding"), value(&before, "net/ipv4/conf/up0/forwarding"));
    });
}

#[test]
fn what_somebody_else_set_meanwhile_stays() {
    in_namespace("what_somebody_else_set_meanwhile_stays", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        sh("echo 80 > /proc/sys/net/ipv4/neigh/up0/proxy_delay");
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan("gatun0", &ROUTED)).await.unwrap();
        assert_eq!(sysctl("net/ipv4/neigh/up0/proxy_delay"), "0");
        sh("echo 40 > /proc/sys/net/ipv4/neigh/up0/proxy_delay; ip route del 203.0.113.10");
        host.undo().await;
        assert_eq!(sysctl("net/ipv4/neigh/up0/proxy_delay"), "40");
    });
}

#[test]
fn failed_start_undoes_what_it_did() {
    in_namespace("failed_start_undoes_what_it_did", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        sh("ip route add 203.0.113.11/32 via 198.51.100.7");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let error = host.apply(&plan("gatun0", &["203.0.113.10", "203.0.113.11"])).await.unwrap_err();
        assert!(error.to_string().starts_with("203.0.113.11 is already routed to up0: remove that route"), "{error}");
        assert_same(&before, &settled().await);

        // A reload that fails leaves what was there.
        host.apply(&plan("gatun0", &ROUTED)).await.unwrap();
        let applied = settled().await;
        let mut bad = plan("gatun0", &["203.0.113.12", "203.0.113.11"]);
        bad.mtu = Some(1450);
        host.apply(&bad).await.unwrap_err();
        assert_same(&applied, &settled().await);
        host.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn errors_say_what_to_do() {
    in_namespace("errors_say_what_to_do", async |directory| {
        host_with_two_links();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let error = host.apply(&plan("gatun0", &ROUTED)).await.unwrap_err();
        assert!(matches!(&error, HostError::NoSuchDevice(name) if name == "gatun0"), "{error}");

        let _device = tun("gatun0");
        let mut wrong = plan("gatun0", &ROUTED);
        wrong.uplinks = vec!["eth77".into()];
        let error = host.apply(&wrong).await.unwrap_err();
        assert_eq!(error.to_string(), "uplink eth77 does not exist: name interfaces that `ip link` shows");
        let error = host.apply(&plan("gatun0", &["198.51.100.255"])).await.unwrap_err();
        assert!(matches!(error, HostError::NotUnicast(_)), "{error}");
        let error = Host::claim("gatun0", directory).await.unwrap_err();
        let text = format!("another gateway (process {}) uses device gatun0 already", std::process::id());
        assert!(error.to_string().starts_with(&text), "{error}");
        let error = Host::claim("gatun1", Path::new("/proc/gatun")).await.unwrap_err();
        assert!(matches!(error, HostError::State { .. }), "{error}");
    });
}

#[test]
fn default_routes_are_the_uplinks_unless_named() {
    in_namespace("default_routes_are_the_uplinks_unless_named", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        let mut plan = plan("gatun0", &ROUTED);
        plan.uplinks.clear();
        host.apply(&plan).await.unwrap();
        assert!(sh("ip neigh show proxy").contains("203.0.113.10 dev up0"));
        assert!(sh("ip -6 neigh show proxy").contains("2001:db8:f::10 dev up0"));
        host.undo().await;
    });
}

#[test]
fn printed_commands_do_what_apply_does() {
    printed_commands("printed_commands_do_what_apply_does", plan("gatun0", &ROUTED));
}

#[test]
fn printed_commands_do_what_apply_does_for_local_vips() {
    printed_commands("printed_commands_do_what_apply_does_for_local_vips", plan("gatun0", &LOCAL));
}

pub fn printed_commands(name: &str, plan: HostPlan) {
    in_namespace(name, async move |directory| {
        host_with_two_links();
        let bare = settled().await;
        let device = tun("gatun0");
        sh("echo 1 > /proc/sys/net/ipv6/conf/gatun0/addr_gen_mode; ip link set gatun0 up");
        let before = settled().await;
        let printed = Host::print_commands(&plan).await.unwrap();
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan).await.unwrap();
        // Only the marks differ.
        let unmarked = |snapshot: BTreeMap<String, String>| -> BTreeMap<String, String> {
            let unmark = |text: String| {
                let marks = ["103", "0x67", "kernel", "boot", "static", "unspec"];
                let text = marks.iter().fold(text, |text, mark| text.replace(&format!("proto {mark}"), ""));
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            };
            snapshot.into_iter().map(|(key, text)| (key, unmark(text))).collect()
        };
        let applied = unmarked(settled().await);
        host.undo().await;
        assert_same(&before, &settled().await);

        let type_in = |command: &str| {
            // Not every host has procps.
            match command.strip_prefix("sysctl -w ").and_then(|setting| setting.split_once('=')) {
                Some((name, value)) => sh(&format!("echo {value} > /proc/sys/{}", name.replace('.', "/"))),
                None => sh(command),
            }
        };
        for command in printed.lines().filter(|line| !line.starts_with('#')) {
            type_in(command);
        }
        let by_hand = settled().await;
        assert_same(&applied, &unmarked(by_hand.clone()));

        // A gateway that sets the host up after all leaves the operator's work alone.
        let mut host = claim_again("gatun0", directory).await;
        host.apply(&plan).await.unwrap();
        host.undo().await;
        assert_same(&by_hand, &settled().await);

        drop(device);
        let (_, back) = printed.split_once("# The way back").expect("the second part");
        for command in back.lines().skip(1) {
            type_in(command.strip_prefix("# ").expect("a comment"));
        }
        assert_same(&bare, &settled().await);
    });
}

/// Clients may be on any of the host's networks where nothing else says where they are.
#[test]
fn without_a_default_route_every_interface_with_an_address_is_an_uplink() {
    in_namespace("without_a_default_route_every_interface_with_an_address_is_an_uplink", async |directory| {
        host_with_two_links();
        sh("ip route del default; ip -6 route del default");
        let _device = tun("gatun0");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan("gatun0", &ROUTED)).await.unwrap();
        // The far ends are up, with link-local addresses only.
        for (link, forwards) in [("up0", "1"), ("lan", "1"), ("far0", "0"), ("rs", "0"), ("lo", "0")] {
            assert_eq!(sysctl(&format!("net/ipv4/conf/{link}/forwarding")), forwards, "{link}");
        }
        assert!(sh("ip neigh show proxy").contains("203.0.113.10 dev up0"));
        assert!(sh("ip -6 neigh show proxy").contains("2001:db8:f::10 dev up0"));
        assert!(!sh("ip neigh show proxy; ip -6 neigh show proxy").contains("dev far0"));
        host.undo().await;
        assert_same(&before, &settled().await);
    });
}

#[test]
fn forwarding_of_all_interfaces_is_undone_one_by_one() {
    // For kernels without force_forwarding; the kernel under the test may have it.
    in_namespace("forwarding_of_all_interfaces_is_undone_one_by_one", async |_| {
        host_with_two_links();
        sh("echo 1 > /proc/sys/net/ipv6/conf/lan/forwarding");
        let before = settled().await;
        let net = Net::connect().await.unwrap();
        let change = Change::ForwardAll6;
        let undo = prepare(&net, &change, &[]).await.unwrap().expect("IPv6 is there");
        perform(&net, &change, false).await.unwrap();
        assert_eq!(sysctl("net/ipv6/conf/up0/forwarding"), "1");
        revert(&net, &Entry { id: 0, change, undo }, &[]).await.unwrap();
        assert_same(&before, &settled().await);
    });
}

#[test]
fn read_only_parameters_are_no_reason_to_stop() {
    in_namespace("read_only_parameters_are_no_reason_to_stop", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        // SAFETY: unshare(2) takes no pointers; mounts of this thread are its own from here on.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        sh("mount --make-rprivate / && mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
        let before = settled().await;
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        host.apply(&plan("gatun0", &ROUTED)).await.unwrap();
        assert_eq!(sysctl("net/ipv4/conf/up0/forwarding"), "0", "the test shows nothing");
        assert!(sh("ip route").contains("203.0.113.10 dev gatun0"));
        host.undo().await;
        // Only the link-local address of the device may have come, for it could not be forbidden.
        let after = settled().await;
        assert_eq!(before["ip -d rule"], after["ip -d rule"]);
        assert_eq!(before["ip -d route show table all"], after["ip -d route show table all"]);
    });
}

#[test]
fn missing_privilege_is_one_sentence() {
    in_namespace("missing_privilege_is_one_sentence", async |directory| {
        host_with_two_links();
        let _device = tun("gatun0");
        let mut host = Host::claim("gatun0", directory).await.unwrap();
        caps::clear(None, caps::CapSet::Effective).unwrap();
        let printed = Host::print_commands(&plan("gatun0", &ROUTED)).await.unwrap();
        assert!(printed.contains("ip route add 203.0.113.10/32 dev gatun0\n"), "{printed}");
        let error = host.apply(&plan("gatun0", &ROUTED)).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, HostError::NoPrivilege { .. }) && text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    });
}
