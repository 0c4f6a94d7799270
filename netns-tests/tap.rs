//! Mode "tap": the gateway as a host of its own on the segment, servers by nat. That everything works over it, that the
//! segment sees one host with one MAC, and that the gateway's host is left alone.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cleanup;
use crate::client::{answers, download, random_file, sha256, spread, upload};
use crate::gateway::{Gateway, Setup, gatun, state_dir};
use crate::lab::{Lab, PATIENCE, scenario_on};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, dual_service, nginx, three_nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];
const OWN: [&str; 2] = ["10.20.0.2", "fd20::2"];

fn web() -> String {
    dual_service(80, "tcp", "rr", &THREE, 8080)
}

fn bare(vip: &str) -> &str {
    vip.trim_matches(['[', ']'])
}

/// The MAC that a node has for an address.
fn known_mac(lab: &Lab, node: &str, address: &str) -> Result<String> {
    let line = lab.sh(node, &format!("ip neigh show {address}"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "lladdr");
    Ok(words.nth(1).unwrap_or_default().to_string())
}

fn own_mac(gateway: &Gateway) -> Result<String> {
    let status = gateway.gatun(&["status"])?.success()?;
    let line = status.lines().find(|line| line.starts_with("segment")).context("no line about the segment")?;
    let mac = line.split_once("MAC ").and_then(|(_, rest)| rest.split_once(','));
    Ok(mac.context("no MAC in it")?.0.to_string())
}

#[test]
fn http() {
    scenario_on("bridged", &NEEDS, |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web()).tap().start(lab)?;
        let mac = own_mac(&gateway)?;
        for vip in VIPS {
            let names = answers(lab, vip, 9)?;
            ensure!(spread(&names).values().all(|n| *n == 3), "{names:?}");
            ensure!(known_mac(lab, "router", bare(vip))? == mac, "the router knows the VIP by another MAC");
        }
        for own in OWN {
            ensure!(known_mac(lab, "rs1", own)? == mac, "the servers know their gateway by another MAC");
        }
        let list = gateway.gatun(&["neighbour", "list"])?.success()?;
        for (node, interface, addresses) in
            [("router", "eth1", ["10.20.0.254", "fd20::254"]), ("rs2", "eth0", ["10.20.0.12", "fd20::12"])]
        {
            let mac = lab.sh(node, &format!("ip -o link show {interface} | sed 's/.*ether //; s/ .*//'"))?;
            for address in addresses {
                let line = list.lines().find(|line| line.starts_with(&format!("{address} "))).context(list.clone())?;
                ensure!(line.contains(mac.trim()) && line.contains("reachable"), "{line}");
            }
        }
        let json = gateway.gatun(&["neighbour", "list", "--json"])?.success()?;
        ensure!(json.lines().count() == 8 && json.contains("\"state\":\"reachable\""), "{json}");
        // The gateway is the servers' router as well: it counts hops.
        ensure!(gateway.gatun(&["status"])?.success()?.contains("mode tap on lan"), "status says otherwise");
        Ok(())
    });
}

#[test]
fn bulk_both_ways() {
    scenario_on("bridged", &NEEDS, |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 100)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).tap().uncaptured().start(lab)?;
        let sum = sha256(lab, "original")?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            upload(lab, vip, "original", "uploaded")?;
            for copy in ["downloaded", "uploaded"] {
                ensure!(sha256(lab, copy)? == sum, "{vip}: {copy} differs");
            }
        }
        // Super-packets, not segments: otherwise the 400 MB would be 280,000 packets one way alone.
        let packets = gateway.metric("gatun_device_received_packets_total", &[])?;
        ensure!(packets < 200_000.0, "{packets} packets: super-packets did not pass whole");
        Ok(())
    });
}

/// Segments of ordinary size, their checksums complete: what comes from a real network.
#[test]
fn without_offloads() {
    scenario_on("bridged", &["nginx", "curl", "ethtool"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 20)?;
        for (node, device) in [("client", "eth0"), ("router", "eth0"), ("router", "eth1"), ("rs1", "eth0")] {
            lab.sh(node, &format!("ethtool -K {device} tso off gso off gro off tx off rx off >/dev/null"))?;
        }
        let services = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080);
        let _gateway = Setup::new(services).tap().gateway("offload = false").uncaptured().start(lab)?;
        let sum = sha256(lab, "original")?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            upload(lab, vip, "original", "uploaded")?;
            ensure!(sha256(lab, "downloaded")? == sum && sha256(lab, "uploaded")? == sum, "{vip}: a copy differs");
        }
        Ok(())
    });
}

#[test]
fn ping() {
    scenario_on("bridged", &["ping"], |lab| {
        let gateway = Setup::new(web()).tap().start(lab)?;
        let targets = VIPS.map(bare).into_iter().chain(OWN);
        for (target, node) in targets.flat_map(|target| [(target, "client"), (target, "rs1")]) {
            for size in ["56", "1400", "6000"] {
                let words = ["ping", "-c", "3", "-i", "0.05", "-W", "2", "-s", size, target];
                // The servers have no route to VIPs but by the gateway, which is where they are.
                let output = lab.run(node, &words)?;
                ensure!(output.stdout.contains(" 0% packet loss"), "{node} to {target}, {size} bytes: {output}");
            }
        }
        ensure!(gateway.metric("gatun_replied_total", &[])? >= 72.0, "it was not gatun who answered");
        Ok(())
    });
}

/// A bridge that watches multicast sends questions for an IPv6 address only to those who have said that they listen.
#[test]
fn a_snooping_bridge() {
    scenario_on("bridged", &NEEDS, |lab| {
        three_nginx(lab)?;
        // It believes its own questions only some seconds after the first one.
        lab.sh(
            "gw",
            "ip link set lan type bridge mcast_snooping 1 mcast_querier 1 mcast_query_response_interval 100
             ip link set lan addrgenmode eui64; ip link set lan down; ip link set lan up",
        )?;
        std::thread::sleep(Duration::from_secs(3));
        let _gateway = Setup::new(web()).tap().start(lab)?;
        let listens =
            || lab.sh("gw", "bridge mdb show dev lan").is_ok_and(|text| text.contains("gatun0 grp ff02::1:ff00:10"));
        eventually("the bridge knows that the gateway listens", Duration::from_secs(15), listens)?;
        lab.sh("router", "ip -6 neigh flush dev eth1")?;
        answers(lab, VIPS[1], 6).map(drop)
    });
}

/// Only what is the gateway's is answered for, and what is for nobody is dropped with its reason.
#[test]
fn nothing_else_is_answered_for() {
    scenario_on("bridged", &["ping", "nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web()).tap().start(lab)?;
        for stranger in ["203.0.113.77", "2001:db8:f::77"] {
            let ping = lab.run("client", &["ping", "-c", "1", "-W", "1", stranger])?;
            ensure!(
                !ping.status.success() && known_mac(lab, "router", stranger)?.is_empty(),
                "{stranger} is answered for"
            );
        }
        // What the servers send elsewhere is no flow's, and there is no host behind the gateway to route it.
        let ping = lab.run("rs1", &["ping", "-c", "1", "-W", "1", "198.51.100.2"])?;
        ensure!(!ping.status.success(), "the gateway forwarded what it does not know");
        ensure!(gateway.metric("gatun_drops_total", &["reason=\"not_ours\""])? >= 1.0, "and did not count it");
        let stats = gateway.gatun(&["conntrack", "stats"])?.success()?;
        ensure!(stats.contains("not_ours") && stats.contains("link_broadcast"), "{stats}");
        Ok(())
    });
}

/// A closed port is refused at once by VIPs and own addresses alike.
#[test]
fn closed_ports_are_refused() {
    scenario_on("bridged", &["curl"], |lab| {
        let _gateway = Setup::new(web()).tap().start(lab)?;
        for host in [VIPS[0], VIPS[1], "10.20.0.2", "[fd20::2]"] {
            let refused = lab.run("client", &["curl", "-sSg", "--max-time", "5", &format!("http://{host}:81/")])?;
            ensure!(refused.status.code() == Some(7), "{host}: {refused}");
        }
        Ok(())
    });
}

/// The neighbours of a host whose place a gateway takes: who knew another owner of the VIP changes his mind.
#[test]
fn take_over_is_announced_and_the_mac_stays() {
    scenario_on("bridged", &NEEDS, |lab| {
        three_nginx(lab)?;
        let wrong = |address: &str| format!("ip neigh replace {address} lladdr 02:00:00:00:00:99 dev eth1 nud stale");
        let addresses: Vec<&str> = VIPS.map(bare).into_iter().chain(OWN).collect();
        for address in &addresses {
            lab.sh("router", &wrong(address))?;
        }
        let gateway = Setup::new(web()).tap().start(lab)?;
        let mac = own_mac(&gateway)?;
        let announced = |address: &str| known_mac(lab, "router", address).is_ok_and(|known| known == mac);
        for address in &addresses {
            eventually(&format!("{address} is announced"), Duration::from_secs(5), || announced(address))?;
        }
        // Also to those who need it: a VIP that a reload adds.
        let added = "203.0.113.11";
        lab.sh("router", &wrong(added))?;
        gateway.reload(
            lab,
            &(web()
                + &dual_service(81, "tcp", "rr", &THREE, 8080)
                    .replace("service", "more")
                    .replace(VIPS[0], added)
                    .replace("2001:db8:f::10", "2001:db8:f::11")
                    .replace("[[more", "[[service")
                    .replace(".more]]", "]]")),
        )?;
        eventually("the added VIP is announced", Duration::from_secs(5), || announced(added))?;

        gateway.stop()?;
        gateway.restart(lab)?;
        ensure!(own_mac(&gateway)? == mac, "it has another MAC after a restart");
        gateway.crash();
        gateway.restart(lab)?;
        ensure!(own_mac(&gateway)? == mac, "it has another MAC after a crash");
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 6).map(drop))
    });
}

/// Another host takes the VIP for itself: it is told, counted, and answered.
#[test]
fn a_conflict_is_counted_and_answered() {
    scenario_on("bridged", &["nginx", "curl", "ping"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web()).tap().start(lab)?;
        let mac = own_mac(&gateway)?;
        answers(lab, VIPS[0], 1)?;
        // It asks for a neighbour in the VIP's name.
        lab.sh("rs3", "ip addr add 203.0.113.10/32 dev eth0; ping -c 1 -W 1 -I 203.0.113.10 10.20.0.99 || true")?;
        let counted = || gateway.metric("gatun_drops_total", &["reason=\"address_conflict\""]).is_ok_and(|n| n >= 1.0);
        eventually("the conflict is counted", PATIENCE, counted)?;
        let defended = || known_mac(lab, "router", "203.0.113.10").is_ok_and(|known| known == mac);
        eventually("the VIP is defended", PATIENCE, defended)?;
        eventually("the log tells of it", PATIENCE, || gateway.log_text().contains("another host claims"))?;
        // With IPv6 a host asks first, and does not get it.
        lab.sh("rs3", "sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=1; ip addr add 2001:db8:f::10/128 dev eth0")?;
        let refused = || lab.sh("rs3", "ip -6 addr show dev eth0").is_ok_and(|text| text.contains("dadfailed"));
        eventually("duplicate address detection finds the gateway", PATIENCE, refused)
    });
}

/// Nothing of the host is changed but that there is a device, and that goes with the gateway, however it ends.
#[test]
fn the_host_is_left_alone() {
    scenario_on("bridged", &NEEDS, |lab| {
        three_nginx(lab)?;
        let before = cleanup::snapshot(lab)?;
        let gateway = Setup::new(web()).tap().start(lab)?;
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 3).map(drop))?;
        let addresses = lab.sh("gw", "ip -o addr show dev gatun0")?;
        ensure!(addresses.is_empty(), "the kernel has addresses on the device: {addresses}");
        let of_others = |text: &str| -> String {
            let lines = text.lines().filter(|line| !line.contains("gatun0"));
            lines.map(|line| format!("{line}\n")).collect()
        };
        cleanup::ensure_same(&of_others(&before), &of_others(&cleanup::snapshot(lab)?))?;
        gateway.stop()?;
        cleanup::ensure_same(&before, &cleanup::snapshot(lab)?)?;

        gateway.restart(lab)?;
        gateway.crash();
        let gone = || lab.sh("gw", "ip -o link show").is_ok_and(|links| !links.contains("gatun0"));
        eventually("the device has gone with its process", PATIENCE, gone)?;
        gateway.restart(lab)?;
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 3).map(drop))?;
        gateway.stop()?;
        cleanup::ensure_same(&before, &cleanup::snapshot(lab)?)
    });
}

/// Without gatun's help the device is on no bridge; with the printed commands it works.
#[test]
fn by_hand() {
    scenario_on("bridged", &NEEDS, |lab| {
        three_nginx(lab)?;
        let setup = Setup::new(web()).tap();
        let config = setup.write(lab)?;
        let path = config.to_str().context("a path in UTF-8")?;
        let commands = gatun(lab, &["run", "-c", path, "--print-routes"])?.success()?;
        ensure!(commands.contains("ip link set dev gatun0 master lan"), "{commands}");
        for word in ["rule", "forwarding", "rp_filter", "proxy", "route add"] {
            ensure!(!commands.contains(word), "{word} in {commands}");
        }
        let _gateway = setup.argument("--no-routes").start(lab)?;
        ensure!(!lab.sh("gw", "ip -o link show gatun0")?.contains("master"), "it is on a bridge");
        lab.sh("gw", &commands)?;
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 3).map(drop))
    });
}

/// A reload does what it can, and says what has to wait.
#[test]
fn who_it_is_changes_at_a_restart_only() {
    scenario_on("bridged", &["nginx", "curl", "ping"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(web()).tap().start(lab)?;
        let file = std::fs::read_to_string(&gateway.config)?;
        let place =
            file.lines().filter(|line| ["mode", "bridge", "address", "router"].iter().any(|key| line.starts_with(key)));
        let place: String = place.map(|line| format!("{line}\n")).collect();
        let moved = file.replace("\"10.20.0.2/24\"", "\"10.20.0.3/24\"");
        for (changed, told) in [(moved, "address"), (file.replace(&place, ""), "mode \"tap\" -> \"tun\"")] {
            ensure!(changed != file, "nothing changed in:\n{file}");
            std::fs::write(&gateway.config, changed)?;
            let reload = gateway.gatun(&["reload"])?.success()?;
            ensure!(reload.contains(told) && reload.contains("needs a restart"), "{reload}");
            VIPS.iter().try_for_each(|vip| answers(lab, vip, 3).map(drop))?;
            let ping = lab.run("client", &["ping", "-c", "1", "-W", "2", OWN[0]])?;
            ensure!(ping.status.success(), "{ping}");
        }
        Ok(())
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named() {
    scenario_on("bridged", &[], |lab| {
        lab.sh("gw", "ip link add other type veth peer name another")?;
        let before = cleanup::snapshot(lab)?;
        for (bridge, told) in [("nosuch", "bridge nosuch does not exist"), ("other", "other is no bridge")] {
            let config = lab.path(&format!("{bridge}.toml"));
            std::fs::write(
                &config,
                format!(
                    "[gateway]\nmode = \"tap\"\nbridge = \"{bridge}\"\naddress = [\"10.20.0.2/24\"]\nmetrics = \"off\"\n\
                     control = \"{}\"\n",
                    lab.path("x.sock").display()
                ),
            )?;
            let run = gatun(lab, &["run", "-c", text(&config)?])?.exits(1)?;
            ensure!(run.stderr.contains(told), "{run}");
            let check = gatun(lab, &["check", "-c", text(&config)?])?;
            ensure!(check.status.success() && check.stderr.contains(bridge), "{check}");
        }
        let left = std::fs::read_dir(state_dir(lab)).map(|files| files.count()).unwrap_or(0);
        ensure!(left <= 1, "a record is left behind");
        cleanup::ensure_same(&before, &cleanup::snapshot(lab)?)
    });
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
