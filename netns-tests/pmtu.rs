//! A hop of 1400 bytes: its "too big" reaches the one who sends, and the transfer gets through.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::client::{download, random_file, sha256, upload};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{VIPS, dual_service, nginx, udp_echo};

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

/// Routers do not fragment IPv6: the first datagram that is too large is lost, and the error about it quotes a fragment.
/// The server learns from it, so the next one arrives.
#[test]
fn narrow_hop_and_fragments_of_ipv6() {
    scenario(&[], |lab| {
        udp_echo(lab, "rs1", 9000)?;
        lab.sh("gw", "ip route add 2001:db8:1::2/128 dev eth0 mtu lock 1400")?;
        let _gateway = Setup::new(dual_service(9000, "udp", "rr", &[("rs1", 1)], 9000)).start(lab)?;
        let socket = lab.inside("client", || UdpSocket::bind("[::]:0"))??;
        socket.connect(format!("{}:9000", VIPS[1]))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let sent = vec![7; 4000];
        socket.send(&sent)?;
        ensure!(socket.recv(&mut [0; 8192]).is_err(), "the hop is not narrow");
        let learnt = path_mtu(lab, "rs1", "2001:db8:1::2")?;
        ensure!(learnt.contains("mtu 1400"), "the server did not learn it: {learnt}");
        for _ in 0..5 {
            socket.send(&sent)?;
            let mut received = [0; 8192];
            let length = socket.recv(&mut received)?;
            ensure!(received[..length] == sent, "other bytes came back");
        }
        Ok(())
    });
}
