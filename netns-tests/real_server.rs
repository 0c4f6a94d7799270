//! `gatun real-server`: packets out of the tunnel reach the host's own programs, which answer under the VIP.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cleanup::{ensure_same, snapshot_of};
use crate::client::{answers, download, random_file, sha256, spread, upload};
use crate::encapsulator::{Checksums, Encapsulator, Tunnel, Wrapper};
use crate::gateway::{Setup, binary, state_dir};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::mss::mss;
use crate::process::{self, Running, eventually};
use crate::servers::{VIPS, address, nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];
const GATEWAYS: &str = "\"10.20.0.1\", \"fd20::1\"";

/// A gatun on a server.
struct RealServer {
    node: String,
    config: PathBuf,
    control: PathBuf,
    running: RefCell<Running>,
}

impl RealServer {
    /// With a file of these lines.
    fn start(lab: &Lab, node: &str, lines: &str) -> Result<RealServer> {
        let config = lab.path(&format!("{node}.toml"));
        let control = lab.path(&format!("{node}.sock"));
        fs::write(&config, text(&control, lines))?;
        let running = RefCell::new(launch(lab, node, &config)?);
        let server = RealServer { node: node.to_string(), config, control, running };
        server.wait(lab)?;
        Ok(server)
    }

    /// The VIPs, every tunnel.
    fn usual(lab: &Lab, node: &str) -> Result<RealServer> {
        RealServer::start(lab, node, &lines("\"ipip\", \"gue\""))
    }

    fn wait(&self, lab: &Lab) -> Result<()> {
        let ready = || self.status(lab).is_ok();
        eventually("the real server is ready", PATIENCE, || ready() || !self.running.borrow_mut().alive())?;
        ensure!(self.running.borrow_mut().alive(), "it did not start: {}", log(lab, &self.node));
        Ok(())
    }

    fn status(&self, lab: &Lab) -> Result<Value> {
        let mut command = process::command_in(&lab.netns(&self.node), binary())?;
        command.args(["real-server", "--status", "--json"]).arg("--control").arg(&self.control);
        Ok(serde_json::from_str(&process::finish(command, PATIENCE)?.success()?)?)
    }

    fn drops(&self, lab: &Lab, reason: &str) -> Result<u64> {
        let status = self.status(lab)?;
        let drops = status["drops"].as_array().context("drops")?;
        Ok(drops.iter().filter(|one| one["reason"] == reason).filter_map(|one| one["packets"].as_u64()).sum())
    }

    fn reload(&self, lab: &Lab, lines: &str) -> Result<()> {
        let before = log(lab, &self.node).matches("reload").count();
        fs::write(&self.config, text(&self.control, lines))?;
        self.running.borrow().signal(libc::SIGHUP);
        eventually("it says how the reload went", PATIENCE, || {
            let log = log(lab, &self.node);
            log.matches("reload").count() >= before + 2
        })
    }

    fn stop(&self, lab: &Lab) -> Result<()> {
        self.running.borrow_mut().stop(Duration::from_secs(10)).with_context(|| log(lab, &self.node))
    }
}

fn lines(tunnels: &str) -> String {
    format!("vip = [\"203.0.113.10\", \"2001:db8:f::10\"]\ngateway = [{GATEWAYS}]\ntunnel = [{tunnels}]\n")
}

fn text(control: &std::path::Path, lines: &str) -> String {
    format!("[real_server]\ncontrol = \"{}\"\n{lines}", control.display())
}

fn launch(lab: &Lab, node: &str, config: &std::path::Path) -> Result<Running> {
    let mut command = process::command_in(&lab.netns(node), binary())?;
    command.args(["real-server", "--log", "info,gatun=debug", "-c"]).arg(config).env("GATUN_STATE_DIR", state_dir(lab));
    Running::logged(command, &lab.path(&format!("real-{node}.log")))
}

fn log(lab: &Lab, node: &str) -> String {
    fs::read_to_string(lab.path(&format!("real-{node}.log"))).unwrap_or_default()
}

/// What the device of the hand-made gateway takes: 1500 less 40 and 12.
const TUNNEL_MTU: u32 = 1448;

fn carries(lab: &Lab, tunnel: Tunnel, checksums: Checksums, to: &str) -> Result<()> {
    let _gateway = Encapsulator::start(lab, tunnel, checksums, &[to], &VIPS, TUNNEL_MTU)?;
    for vip in VIPS {
        let what = || format!("{tunnel:?} to {to}, {checksums:?} checksums, {vip}");
        ensure!(answers(lab, vip, 3).with_context(what)?.iter().all(|name| name == "rs1"), "{}", what());
        upload(lab, vip, "original", "uploaded").with_context(what)?;
        download(lab, vip, "original", "downloaded").with_context(what)?;
        for copy in ["uploaded", "downloaded"] {
            ensure!(sha256(lab, copy)? == sha256(lab, "original")?, "{}: {copy} differs", what());
        }
    }
    Ok(())
}

/// 4in4 and 6in4, 4in6 and 6in6, GUE over both; 5 MB each way.
#[test]
fn every_tunnel_carries_connections() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        random_file(lab, "original", 5)?;
        let server = RealServer::usual(lab, "rs1")?;
        for tunnel in [Tunnel::Ipip, Tunnel::Gue(6080)] {
            for to in ["10.20.0.11", "fd20::11"] {
                for checksums in [Checksums::Partial, Checksums::Complete] {
                    carries(lab, tunnel, checksums, to)?;
                }
            }
        }
        let status = server.status(lab)?;
        for tunnel in ["ipip", "gue"] {
            // Four times an upload of 5 MB in segments of at most 1396 bytes, for two VIPs.
            let packets = status[tunnel]["packets"].as_u64().unwrap_or(0);
            ensure!(packets > 4 * 2 * 3_500, "{packets} packets by {tunnel}: {status}");
        }
        ensure!(status["write_errors"] == 0 && status["drops"] == serde_json::json!([]), "{status}");
        // Segments are put together: far fewer packets are written than were received.
        let (written, received) = (status["written"].as_u64(), status["ipip"]["packets"].as_u64());
        ensure!(written < received, "nothing was put together: {status}");
        Ok(())
    });
}

/// A server on another segment answers by its own way; two servers share a VIP.
#[test]
fn servers_answer_clients_themselves() {
    scenario(&NEEDS, |lab| {
        for node in ["rs1", "rs4"] {
            nginx(lab, node, &[80])?;
        }
        // What a distribution may have set: strict filtering, and answers under any address.
        lab.sh("rs4", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")?;
        let servers = [RealServer::usual(lab, "rs1")?, RealServer::usual(lab, "rs4")?];
        let _gateway = Encapsulator::start(
            lab,
            Tunnel::Ipip,
            Checksums::Partial,
            &["10.20.0.11", "10.30.0.14"],
            &VIPS,
            TUNNEL_MTU,
        )?;
        for vip in VIPS {
            let names = answers(lab, vip, 40)?;
            let counts = spread(&names);
            ensure!(counts.len() == 2 && counts.values().all(|count| *count > 5), "{vip}: {counts:?}");
        }
        // What rs4 answers does not cross gw, whose counters of the way to the client stand still.
        let sent = || -> Result<u64> {
            let line = lab.sh("rs4", "ip -s -j link show dev eth0")?;
            let json: Value = serde_json::from_str(&line)?;
            json[0]["stats64"]["tx"]["packets"].as_u64().context("packets")
        };
        ensure!(sent()? > 40, "rs4 answers");
        let router = lab.sh("router", "ip -s -j link show dev eth2")?;
        let json: Value = serde_json::from_str(&router)?;
        ensure!(json[0]["stats64"]["tx"]["packets"].as_u64().unwrap_or(0) > 40, "by its own router: {router}");
        servers.iter().try_for_each(|server| server.stop(lab))
    });
}

/// gatun at both ends of the tunnel.
#[test]
fn behind_a_gatun_gateway() {
    scenario(&NEEDS, |lab| {
        random_file(lab, "original", 5)?;
        // By the router: the gateway forwards what comes from clients only.
        lab.sh("rs1", "ip route replace default via 10.20.0.254; ip -6 route replace default via fd20::254")?;
        let mut servers = Vec::new();
        for node in ["rs1", "rs4"] {
            nginx(lab, node, &[80])?;
            servers.push(RealServer::usual(lab, node)?);
        }
        let services = |tunnel: &str, family: usize| {
            let one = |at: usize| {
                let servers: String = ["rs1", "rs4"]
                    .iter()
                    .map(|name| format!("\n  [[service.server]]\n  address = \"{}\"\n", address(name)[family]))
                    .collect();
                let listen = VIPS[at];
                format!(
                    "\n[[service]]\nname = \"web{at}\"\nlisten = \"{listen}:80\"\nmethod = \"tunnel\"\n\
                     tunnel = \"{tunnel}\"\nscheduler = \"rr\"\n{servers}"
                )
            };
            one(0) + &one(1)
        };
        let gateway = Setup::new(services("ipip", 0)).uncaptured().start(lab)?;
        for (tunnel, family) in [("ipip", 0), ("ipip", 1), ("gue", 0), ("gue", 1)] {
            gateway.reload(lab, &services(tunnel, family))?;
            for vip in VIPS {
                let what = || format!("{tunnel} over family {family}, {vip}");
                let names = answers(lab, vip, 8).with_context(what)?;
                ensure!(spread(&names).values().all(|count| *count == 4), "{}: {names:?}", what());
                // One of each for each server.
                for _ in 0..2 {
                    upload(lab, vip, "original", "uploaded").with_context(what)?;
                    ensure!(sha256(lab, "uploaded")? == sha256(lab, "original")?, "{}", what());
                }
                for _ in 0..2 {
                    download(lab, vip, "original", "downloaded").with_context(what)?;
                    ensure!(sha256(lab, "downloaded")? == sha256(lab, "original")?, "{}", what());
                }
            }
        }
        for server in &servers {
            let status = server.status(lab)?;
            ensure!(status["drops"] == serde_json::json!([]) && status["write_errors"] == 0, "{status}");
            ensure!(status["gue"]["packets"].as_u64() > Some(1000), "{status}");
        }
        Ok(())
    });
}

/// The outer packet in fragments: the kernel puts it together before anybody sees it.
#[test]
fn fragments_of_the_outer_packet_are_put_together() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        random_file(lab, "original", 2)?;
        let server = RealServer::usual(lab, "rs1")?;
        // A narrow way, and no DF on the outer header (IP_PMTUDISC_DONT).
        lab.sh("gw", "ip link set lan mtu 1300")?;
        let _gateway =
            Encapsulator::fragmenting(lab, Tunnel::Ipip, Checksums::Partial, &["10.20.0.11"], &VIPS[..1], TUNNEL_MTU)?;
        upload(lab, VIPS[0], "original", "uploaded")?;
        ensure!(sha256(lab, "uploaded")? == sha256(lab, "original")?, "the checksums differ");
        let reassembled = lab.sh("rs1", "awk '/^Ip:/ { n++; if (n == 2) print $16 }' /proc/net/snmp")?;
        ensure!(reassembled.trim().parse::<u64>()? > 1000, "{reassembled} packets were put together");
        ensure!(server.status(lab)?["drops"] == serde_json::json!([]), "{}", server.status(lab)?);
        Ok(())
    });
}

fn raw(node: &str, lab: &Lab, tunnel: Tunnel, to: &str, packet: &[u8]) -> Result<()> {
    let to: IpAddr = to.parse()?;
    lab.inside(node, || Wrapper::new(tunnel, to)?.send(packet))?
}

/// A UDP packet to port 7, without a checksum.
fn datagram(src: &str, dst: &str) -> Result<Vec<u8>> {
    let (src, dst): (std::net::Ipv4Addr, std::net::Ipv4Addr) = (src.parse()?, dst.parse()?);
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    packet.extend([0x13, 0x88, 0, 7, 0, 12, 0, 0, b'p', b'i', b'n', b'g']);
    Ok(packet)
}

#[test]
fn what_is_not_allowed_is_dropped_with_a_reason() {
    scenario(&NEEDS, |lab| {
        let server = RealServer::start(lab, "rs1", &lines("\"gue\""))?;
        let fine = datagram("198.51.100.2", "203.0.113.10")?;
        let mut malformed = fine.clone();
        malformed[10] ^= 1;
        let gue = Tunnel::Gue(6080);
        for (what, node, tunnel, packet, reason) in [
            ("a neighbour's", "rs2", gue, fine.clone(), "unknown_gateway"),
            ("a neighbour's", "rs2", Tunnel::Ipip, fine.clone(), "unknown_gateway"),
            ("not by this tunnel", "gw", Tunnel::Ipip, fine.clone(), "tunnel_not_allowed"),
            ("for another address", "gw", gue, datagram("198.51.100.2", "10.20.0.11")?, "not_our_vip"),
            ("for another VIP", "gw", gue, datagram("198.51.100.2", "203.0.113.11")?, "not_our_vip"),
            ("from the VIP", "gw", gue, datagram("203.0.113.10", "203.0.113.10")?, "martian"),
            ("from the loopback", "gw", gue, datagram("127.0.0.1", "203.0.113.10")?, "martian"),
            ("with a wrong checksum", "gw", gue, malformed, "bad_ip_checksum"),
        ] {
            let before = server.drops(lab, reason)?;
            raw(node, lab, tunnel, "10.20.0.11", &packet)?;
            eventually(&format!("{what} is counted as {reason}"), PATIENCE, || {
                server.drops(lab, reason).is_ok_and(|now| now == before + 1)
            })?;
        }
        let status = server.status(lab)?;
        ensure!(status["written"] == 0, "something got through: {status}");
        raw("gw", lab, gue, "10.20.0.11", &fine)?;
        eventually("the right one gets through", PATIENCE, || {
            server.status(lab).is_ok_and(|status| status["written"] == 1)
        })
    });
}

#[test]
fn the_syn_ack_says_what_fits_the_tunnel() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        random_file(lab, "original", 2)?;
        let server = RealServer::usual(lab, "rs1")?;
        ensure!(server.status(lab)?["tunnel_mtu"] == TUNNEL_MTU, "{}", server.status(lab)?);
        // The gateway takes whatever comes: nobody is told that a packet is too large.
        let _gateway = Encapsulator::start(lab, Tunnel::Gue(6080), Checksums::Partial, &["fd20::11"], &VIPS, 1500)?;
        for (vip, headers) in VIPS.iter().zip([40, 60]) {
            let to: SocketAddr = format!("{vip}:80").parse()?;
            let stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
            let largest = TUNNEL_MTU as i32 - headers - 12;
            ensure!(mss(&stream)? == largest, "{vip}: the client sends with {}, not {largest}", mss(&stream)?);
            upload(lab, vip, "original", "uploaded")?;
            ensure!(sha256(lab, "uploaded")? == sha256(lab, "original")?, "the checksums differ");
        }
        Ok(())
    });
}

/// The copy of the routes follows the main table, also after the kernel has taken it away with its link.
#[test]
fn replies_follow_the_main_table() {
    scenario(&NEEDS, |lab| {
        let _server = RealServer::usual(lab, "rs1")?;
        let routes = |client: &str, vip: &str| lab.sh("rs1", &format!("ip route get {client} from {vip}"));
        for (client, vip, next, mss) in [
            ("198.51.100.2", "203.0.113.10", "via 10.20.0.1 ", "advmss 1408"),
            ("2001:db8:1::2", "2001:db8:f::10", "via fd20::1 ", "advmss 1388"),
        ] {
            let found = routes(client, vip)?;
            ensure!(found.contains(next) && found.contains(mss), "{found}");
        }
        let follows = |client: &'static str, vip: &'static str, next: &'static str| {
            eventually(&format!("the way of {vip} is {next}"), PATIENCE, || {
                routes(client, vip).is_ok_and(|found| found.contains(next) && found.contains("advmss"))
            })
        };
        lab.sh("rs1", "ip route replace default via 10.20.0.254; ip -6 route replace default via fd20::254")?;
        follows("198.51.100.2", "203.0.113.10", "via 10.20.0.254 ")?;
        follows("2001:db8:1::2", "2001:db8:f::10", "via fd20::254 ")?;
        lab.sh("rs1", "ip route add unreachable 198.51.100.0/24 metric 5")?;
        eventually("what leads nowhere leads nowhere", PATIENCE, || routes("198.51.100.2", "203.0.113.10").is_err())?;
        lab.sh("rs1", "ip route del unreachable 198.51.100.0/24; ip link set eth0 down; ip link set eth0 up")?;
        lab.sh("rs1", "ip addr replace fd20::11/64 dev eth0 nodad")?;
        lab.sh("rs1", "ip route replace default via 10.20.0.1; ip -6 route replace default via fd20::1")?;
        follows("198.51.100.2", "203.0.113.10", "via 10.20.0.1 ")?;
        follows("2001:db8:1::2", "2001:db8:f::10", "via fd20::1 ")
    });
}

/// On the segment the VIPs are the gateway's: no server answers for them.
#[test]
fn neighbours_do_not_learn_of_the_vips() {
    scenario(&["ping"], |lab| {
        let _server = RealServer::usual(lab, "rs1")?;
        lab.sh("rs2", "ip route add 203.0.113.10 dev eth0; ip route add 2001:db8:f::10 dev eth0")?;
        for vip in ["203.0.113.10", "2001:db8:f::10"] {
            let answer = lab.run("rs2", &["ping", "-c", "1", "-W", "2", vip])?;
            ensure!(!answer.status.success(), "{vip} is answered for: {answer}");
            let neighbour = lab.sh("rs2", &format!("ip neigh show {vip}"))?;
            ensure!(!neighbour.contains("lladdr"), "{neighbour}");
        }
        // The host's own address stays what it was.
        lab.sh("rs2", "ping -c 1 -W 2 10.20.0.11; ping -c 1 -W 2 fd20::11")?;
        // Nor does the host ask under a VIP, or begin anything by itself from there.
        lab.sh("rs1", "ip neigh flush dev eth0")?;
        for (target, vip) in [("10.20.0.12", "203.0.113.10"), ("fd20::12", "2001:db8:f::10")] {
            lab.run("rs1", &["ping", "-c", "1", "-W", "1", "-I", vip, target])?;
            let known = lab.sh("rs2", &format!("ip neigh show {vip}"))?;
            ensure!(!known.contains("lladdr"), "rs2 has learnt {known}");
            let source = lab.sh("rs1", &format!("ip route get {target}"))?;
            ensure!(!source.contains(vip), "{source}");
        }
        Ok(())
    });
}

#[test]
fn everything_is_undone() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        let before = snapshot_of(lab, "rs1")?;
        let server = RealServer::usual(lab, "rs1")?;
        ensure!(snapshot_of(lab, "rs1")? != before, "it changes something");
        server.stop(lab)?;
        ensure_same(&before, &snapshot_of(lab, "rs1")?)?;

        let server = RealServer::usual(lab, "rs1")?;
        server.running.borrow_mut().kill();
        ensure!(snapshot_of(lab, "rs1")? != before, "a killed one leaves something");
        *server.running.borrow_mut() = launch(lab, "rs1", &server.config)?;
        server.wait(lab)?;
        let gateway = Encapsulator::start(lab, Tunnel::Ipip, Checksums::Partial, &["10.20.0.11"], &VIPS, TUNNEL_MTU)?;
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 2).map(drop))?;
        drop(gateway);
        server.running.borrow_mut().kill();
        // Its record is lost as well: the marks in the kernel have to do, but for the parameters.
        let state = state_dir(lab);
        for file in fs::read_dir(&state)? {
            fs::remove_file(file?.path())?;
        }
        *server.running.borrow_mut() = launch(lab, "rs1", &server.config)?;
        server.wait(lab)?;
        server.stop(lab)?;
        let without_sysctls = |text: String| {
            let kept = text.lines().filter(|line| !line.contains("all.arp_")).map(str::to_string);
            kept.collect::<Vec<_>>().join("\n")
        };
        ensure_same(&without_sysctls(before), &without_sysctls(snapshot_of(lab, "rs1")?))
    });
}

#[test]
fn a_reload_changes_addresses() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        let server = RealServer::usual(lab, "rs1")?;
        let vips = ["203.0.113.10", "203.0.113.11"];
        let _gateway = Encapsulator::start(lab, Tunnel::Ipip, Checksums::Partial, &["10.20.0.11"], &vips, TUNNEL_MTU)?;
        answers(lab, vips[0], 2)?;
        ensure!(answers(lab, vips[1], 1).is_err(), "not there yet");
        server.reload(lab, &lines("\"ipip\", \"gue\"").replace("203.0.113.10", "203.0.113.11"))?;
        answers(lab, vips[1], 2)?;
        ensure!(answers(lab, vips[0], 1).is_err(), "not there any more");
        // A mistake changes nothing.
        server.reload(lab, "vip = [\"nonsense\"]\n")?;
        answers(lab, vips[1], 2)?;
        // Another gateway: the first one is a stranger now.
        server.reload(
            lab,
            &lines("\"ipip\", \"gue\"").replace("203.0.113.10", "203.0.113.11").replace(GATEWAYS, "\"10.20.0.9\""),
        )?;
        ensure!(answers(lab, vips[1], 1).is_err(), "a stranger is heard");
        ensure!(server.drops(lab, "unknown_gateway")? > 0, "{}", server.status(lab)?);
        Ok(())
    });
}

/// Said on the command line, with one tunnel and a port of its own.
#[test]
fn by_the_command_line() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        let mut command = process::command_in(&lab.netns("rs1"), binary())?;
        let words = "real-server --vip 203.0.113.10,2001:db8:f::10 --gateway 10.20.0.1 --tunnel gue:7000 --device rs0";
        command.args(words.split(' ')).arg("--control").arg(lab.path("rs.sock")).env("GATUN_STATE_DIR", state_dir(lab));
        let mut running = Running::logged(command, &lab.path("real-rs1.log"))?;
        let _gateway =
            Encapsulator::start(lab, Tunnel::Gue(7000), Checksums::Partial, &["10.20.0.11"], &VIPS, TUNNEL_MTU)?;
        for vip in VIPS {
            eventually(vip, PATIENCE, || answers(lab, vip, 1).is_ok())?;
        }
        let addresses = lab.sh("rs1", "ip -o addr show dev rs0")?;
        ensure!(addresses.contains("203.0.113.10/32") && addresses.contains("2001:db8:f::10/128"), "{addresses}");
        running.stop(Duration::from_secs(10))
    });
}
