//! Step by step what the kernel's own test of IPVS does (tools/testing/selftests/net/netfilter/ipvs.sh): a director that
//! knows nothing of gatun, the service added before the VIP is an address of its own, a client and a server that send
//! 32 bytes. The server has a way to the client past the director, but for NAT.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Node;
use crate::lab::{Lab, scenario_on};
use crate::process::eventually;

const VIP: &str = "207.175.44.110";

#[test]
fn direct_routing() {
    run(|lab, director| {
        director.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=1
             ipvsadm -A -t {VIP}:8080 -s rr
             ipvsadm -a -t {VIP}:8080 -r 172.16.0.2:8080
             ip addr add {VIP}/32 dev lo:1"
        ))?;
        lab.sh("rs1", &holds_vip()).map(drop)
    });
}

#[test]
fn address_translation() {
    run(|lab, director| {
        director.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=1
             ipvsadm -A -t {VIP}:8080 -s rr
             ipvsadm -a -m -t {VIP}:8080 -r 172.16.0.2:8080
             ip addr add {VIP}/32 dev lo:1"
        ))?;
        lab.sh("rs1", "ip link del veth20; ip route add default via 172.16.0.1 dev veth21").map(drop)
    });
}

#[test]
fn tunnelling() {
    run(|lab, director| {
        director.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=0
             sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
             ipvsadm -A -t {VIP}:8080 -s rr
             ipvsadm -a -i -t {VIP}:8080 -r 172.16.0.2:8080
             ip addr add {VIP}/32 dev lo:1"
        ))?;
        let gatun = crate::gateway::binary();
        let words = ["real-server", "--vip", VIP, "--gateway", "172.16.0.1", "--tunnel", "ipip"];
        let control = lab.path("rs.sock").display().to_string();
        let state = lab.path("rs").display().to_string();
        let further = ["--control", &control, "--state-dir", &state];
        lab.keep("rs1", "real-server", &[&[gatun.to_str().context("UTF-8")?], &words[..], &further].concat())?;
        let up = || lab.sh("rs1", "ip addr show dev gatun-rs0").is_ok_and(|text| text.contains(VIP));
        eventually("the tunnel's end is up", Duration::from_secs(10), up)?;
        lab.sh("rs1", &holds_vip()).map(drop)
    });
}

/// The server has the VIP, and tells nobody.
fn holds_vip() -> String {
    format!(
        "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
         sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.veth21.rp_filter=0
         ip addr add {VIP}/32 dev lo:1"
    )
}

fn run(set_up: impl FnOnce(&Lab, &Node<'_>) -> Result<()>) {
    scenario_on("bare", &["sysctl"], |lab| {
        links(lab)?;
        lab.sh("client", &format!("ip route add {VIP} via 10.0.0.1 dev br0"))?;
        let director = Node::new(lab, "gw")?;
        set_up(lab, &director)?;
        // Until the gateway has seen the new address, the host refuses as it does at any address of its own.
        let ruled = || lab.sh("gw", "ip rule").is_ok_and(|rules| rules.contains(VIP));
        eventually("the gateway takes the new address", Duration::from_secs(5), ruled)?;
        exchange(lab)?;
        let connections = director.sh("ipvsadm -Lcn")?;
        ensure!(connections.contains(&format!("{VIP}:8080 172.16.0.2:8080")), "{connections}");
        let stats = director.sh(&format!("ipvsadm -Ln -t {VIP}:8080 --stats"))?;
        let server = stats.lines().last().unwrap_or_default();
        let words: Vec<&str> = server.split_whitespace().collect();
        ensure!(words.get(1..3) == Some(&["172.16.0.2:8080", "1"]), "one connection was expected: {stats}");
        Ok(())
    });
}

/// The client's bridge reaches the director and the server; another link leads from the director to the server.
fn links(lab: &Lab) -> Result<()> {
    let pair = |node: &str, name: &str, other: &str, peer: &str| {
        let (node, other) = (lab.netns(node), lab.netns(other));
        format!("ip link add {name} netns {node} type veth peer name {peer} netns {other}")
    };
    let pairs = [
        pair("client", "veth01", "gw", "veth10"),
        pair("client", "veth02", "rs1", "veth20"),
        pair("gw", "veth12", "rs1", "veth21"),
    ];
    lab.sh("client", &pairs.join("\n"))?;
    lab.sh(
        "client",
        "ip link set lo up; ip link set veth01 up; ip link set veth02 up
         ip link add br0 type bridge; ip link set veth01 master br0; ip link set veth02 master br0
         ip link set br0 up; ip addr add 10.0.0.2/24 dev br0",
    )?;
    lab.sh(
        "gw",
        "ip link set lo up; ip link set veth10 up; ip addr add 10.0.0.1/24 dev veth10
         ip link set veth12 up; ip addr add 172.16.0.1/24 dev veth12",
    )?;
    lab.sh(
        "rs1",
        "ip link set lo up; ip link set veth21 up; ip addr add 172.16.0.2/24 dev veth21
         ip link set veth20 up; ip addr add 10.0.0.3/24 dev veth20",
    )?;
    Ok(())
}

/// 32 bytes from the client to the server.
fn exchange(lab: &Lab) -> Result<()> {
    let sent: Vec<u8> = (0..32).map(|byte| byte ^ 0x5a).collect();
    let listener = lab.inside("rs1", || TcpListener::bind("0.0.0.0:8080"))??;
    let receiver = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let mut received = Vec::new();
        listener.accept()?.0.read_to_end(&mut received)?;
        Ok(received)
    });
    let vip: SocketAddr = format!("{VIP}:8080").parse()?;
    let connect = || TcpStream::connect_timeout(&vip, Duration::from_secs(5));
    let mut stream = lab.inside("client", connect)?.context("the client cannot connect")?;
    stream.write_all(&sent)?;
    drop(stream);
    let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(received == sent, "{received:?} came");
    Ok(())
}
