//! A hop of 1400 bytes: its "too big" reaches the one who sends, and the transfer gets through.

use anyhow::{Result, ensure};

use crate::client::{download, random_file, sha256, upload};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{VIPS, dual_service, nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];

fn bare(vip: &str) -> &str {
    vip.trim_matches(['[', ']'])
}

/// What a node's kernel has learnt about the path to an address.
fn path_mtu(lab: &Lab, node: &str, to: &str) -> Result<String> {
    lab.sh(node, &format!("ip route get {to}"))
}

/// Behind the gateway: the client's upload meets a router that can forward 1400 bytes to the server.
#[test]
fn narrow_hop_behind_the_gateway() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs4", &[8080])?;
        random_file(lab, "original", 20)?;
        // "lock" makes the router refuse larger packets as a link of that size would; its way to the client leads by gw.
        lab.sh(
            "router",
            "ip route replace 10.30.0.14/32 dev eth1 mtu lock 1400
             ip route replace fd30::14/128 dev eth1 mtu lock 1400
             ip route replace 198.51.100.0/24 via 10.20.0.1
             ip route replace 2001:db8:1::/64 via fd20::1",
        )?;
        let _gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs4", 1)], 8080)).start(lab)?;
        for vip in VIPS {
            upload(lab, vip, "original", "uploaded")?;
            ensure!(sha256(lab, "uploaded")? == sha256(lab, "original")?, "the checksums differ");
            let learnt = path_mtu(lab, "client", bare(vip))?;
            ensure!(learnt.contains("mtu 1400"), "the client did not learn it: {learnt}");
        }
        Ok(())
    });
}

/// On the client's side: gw itself must say "too big" to the VIP, whose packets are the server's.
#[test]
fn narrow_hop_before_the_gateway() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 20)?;
        lab.sh(
            "gw",
            "ip route add 198.51.100.2/32 dev eth0 mtu lock 1400
             ip route add 2001:db8:1::2/128 dev eth0 mtu lock 1400",
        )?;
        let _gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).start(lab)?;
        for (vip, client) in VIPS.iter().zip(["198.51.100.2", "2001:db8:1::2"]) {
            download(lab, vip, "original", "downloaded")?;
            ensure!(sha256(lab, "downloaded")? == sha256(lab, "original")?, "the checksums differ");
            let learnt = path_mtu(lab, "rs1", client)?;
            ensure!(learnt.contains("mtu 1400"), "the server did not learn it: {learnt}");
        }
        Ok(())
    });
}
