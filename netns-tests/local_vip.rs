//! A VIP that is an address of the gateway itself: the service's port is balanced, every other port is the host's own.

use anyhow::{Context, ensure};

use crate::cleanup::{ensure_same, snapshot};
use crate::client::{answers, curl, download, random_file, sha256, spread};
use crate::fragments;
use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service, named_service, nginx, three_nginx, udp_echo, udp_echo_at};

const NEEDS: [&str; 2] = ["nginx", "curl"];

/// `vips` are on the gateway's `device`.
fn local(vips: [&'static str; 2], add: &'static str) {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        if !add.is_empty() {
            lab.sh("gw", add)?;
        }
        // The host's own server, on another port of the same addresses.
        nginx(lab, "gw", &[8081])?;
        let before = snapshot(lab)?;
        let services = dual_service(80, "tcp", "rr", &THREE, 8080)
            .replace(VIPS[0], vips[0])
            .replace(VIPS[1].trim_matches(['[', ']']), vips[1].trim_matches(['[', ']']));
        let gateway = Setup::new(services).start(lab)?;
        for vip in vips {
            let names = answers(lab, vip, 9)?;
            ensure!(spread(&names).values().all(|n| *n == 3), "{names:?}");
            let own = curl(lab, &format!("http://{vip}:8081/"))?.success()?;
            ensure!(own == "gw\n", "the host's own port answered {own}");
            curl(lab, &format!("http://{vip}:8082/"))?.exits(7)?;
            // A program on the gateway is a client as well; it takes the VIP itself for its own address, and the answers
            // must find the shard of the questions.
            let url = format!("http://{vip}/");
            for _ in 0..6 {
                lab.run("gw", &["curl", "-sf", "--max-time", "3", &url])?
                    .success()
                    .context("from the gateway itself")?;
            }
            let ping = ["ping", "-c", "1", "-W", "2", vip.trim_matches(['[', ']'])];
            lab.run("client", &ping)?.success()?;
        }
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)?;
        for vip in vips {
            ensure!(curl(lab, &format!("http://{vip}:8081/"))?.success()? == "gw\n", "after gatun has gone");
        }
        Ok(())
    });
}

#[test]
fn on_lo() {
    local(VIPS, "ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8:f::10/128 dev lo nodad");
}

#[test]
fn on_the_uplink() {
    local(
        ["198.51.100.80", "[2001:db8:1::80]"],
        "ip addr add 198.51.100.80/24 dev eth0; ip addr add 2001:db8:1::80/64 dev eth0 nodad",
    );
}

/// The only address the gateway has.
#[test]
fn is_the_gateways_own_address() {
    local(["198.51.100.1", "[2001:db8:1::1]"], "");
}

/// A strict reverse path filter, as some distributions set it.
#[test]
fn with_strict_rp_filter() {
    local(
        VIPS,
        "ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8:f::10/128 dev lo nodad
         for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$f; done",
    );
}

/// The same for a VIP that is routed.
#[test]
fn routed_with_strict_rp_filter() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        lab.sh("gw", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 >$f; done")?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).start(lab)?;
        for vip in VIPS {
            answers(lab, vip, 6)?;
        }
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// Fragments, which carry no port, and "too big" messages find their way all the same.
#[test]
fn with_fragments_and_a_narrow_hop() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        random_file(lab, "original", 10)?;
        udp_echo(lab, "rs1", 9000)?;
        lab.sh("gw", "ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8:f::10/128 dev lo nodad")?;
        // The host's own server of the same kind, on another port of the same addresses.
        VIPS.iter().try_for_each(|vip| udp_echo_at(lab, "gw", &format!("{vip}:9001")))?;
        let services = dual_service(80, "tcp", "rr", &THREE, 8080)
            + &named_service("echo", 9000, "udp", "rr", &[("rs1", 1)], 9000);
        let _gateway = Setup::new(services).start(lab)?;
        fragments::exchange(lab, VIPS, 9000)?;
        fragments::exchange(lab, VIPS, 9001).context("the host's own port")?;
        lab.sh(
            "gw",
            "ip route add 198.51.100.2/32 dev eth0 mtu lock 1400
             ip route add 2001:db8:1::2/128 dev eth0 mtu lock 1400",
        )?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            ensure!(sha256(lab, "downloaded")? == sha256(lab, "original")?, "the checksums differ");
        }
        Ok(())
    });
}
