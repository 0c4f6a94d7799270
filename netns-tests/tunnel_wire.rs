//! What a wrapped packet looks like on the wire, as judged by scapy and tshark (`encapsulated.py`).

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::capture::Capture;
use crate::client::answers;
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::one_way::Way;
use crate::servers::{VIPS, bind_udp, nginx};

fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the pointer and the length are those of `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Datagrams of every DF, several TOS with every ECN, several TTLs and lengths; no two are alike. How many.
fn datagrams(lab: &Lab, vip: &str) -> Result<usize> {
    let to: SocketAddr = format!("{vip}:9000").parse()?;
    let local: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = lab.inside("client", move || bind_udp(local))??;
    let mut count = 0;
    for tos in [0x00, 0x01, 0x02, 0x03, 0xb8, 0x48 | 0x02] {
        for ttl in [5, 64, 255] {
            for df in [true, false] {
                if to.is_ipv4() {
                    set_option(&socket, libc::IPPROTO_IP, libc::IP_TOS, tos)?;
                    set_option(&socket, libc::IPPROTO_IP, libc::IP_TTL, ttl)?;
                    let discover = if df { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
                    set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
                } else {
                    set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)?;
                    set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl)?;
                }
                // An odd length and an even one, and the longest that fits through all tunnels.
                for length in [1, 100, 1400] {
                    count += 1;
                    socket.send_to(&vec![count as u8; length], to)?;
                }
            }
        }
    }
    Ok(count)
}

fn judged(way: Way, kind: &str, gateway: [&str; 2], server: [&str; 2]) {
    let needs = way.needs(&["nginx", "curl", "ethtool", "scapy", "tshark"]);
    scenario(&needs, |lab| {
        way.serve(lab, "rs1")?;
        nginx(lab, "rs1", &[80])?;
        // Whole checksums in the captures, and no super-packets: those are cut before they are wrapped.
        lab.sh("client", "ethtool -K eth0 tx off tso off gso off >/dev/null")?;
        lab.sh("gw", "ethtool -K lan tx off >/dev/null")?;
        let services = way.services(80, "tcp", &["rs1"])
            + &way.services(9000, "udp", &["rs1"]).replace("\"service", "\"datagrams");
        let _gateway = Setup::new(services).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let (sent, wrapped) = (lab.path("sent.pcap"), lab.path("wrapped.pcap"));
            let captures = [
                Capture::of_interface(&lab.netns("gw"), "eth0", &sent)?,
                Capture::of_interface(&lab.netns("gw"), "lan", &wrapped)?,
            ];
            let mut count = datagrams(lab, vip)?;
            answers(lab, vip, 3)?;
            // SYN, ACK, request, ACK, FIN at the least.
            count += 3 * 4;
            drop(captures);
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-tests/encapsulated.py");
            let words = [&script, &sent, &wrapped].map(|path| path.to_string_lossy().into_owned());
            // Debian's scapy is Debian's python3's, whatever other one comes first in PATH.
            let [script, sent, wrapped] = words.each_ref().map(String::as_str);
            let python = ["/usr/bin/python3", script, sent, wrapped, gateway[family], server[family], kind];
            let compared = lab.run("gw", &python)?;
            ensure!(compared.status.success(), "{vip}: {compared}");
            let compared: usize = compared.stdout.trim().parse()?;
            ensure!(compared >= count, "{vip}: only {compared} packets were compared");
        }
        Ok(())
    });
}

const GATEWAY: [&str; 2] = ["10.20.0.1", "fd20::1"];
const SERVER: [&str; 2] = ["10.20.0.11", "fd20::11"];

fn crossed(addresses: [&'static str; 2]) -> [&'static str; 2] {
    [addresses[1], addresses[0]]
}

#[test]
fn ipip() {
    judged(Way::Kernel("ipip"), "ipip", GATEWAY, SERVER);
}

#[test]
fn ipip_crossed() {
    judged(Way::KernelCrossed("ipip"), "ipip", crossed(GATEWAY), crossed(SERVER));
}

#[test]
fn gue() {
    judged(Way::Kernel("gue"), "gue", GATEWAY, SERVER);
}

#[test]
fn gue_crossed() {
    judged(Way::KernelCrossed("gue"), "gue", crossed(GATEWAY), crossed(SERVER));
}
