//! A private network goes out by a pool, behind the gateway's own address, and by another prefix.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cleanup::{ensure_same, snapshot};
use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario_on};
use crate::process::eventually;
use crate::servers::{address, bind_udp, nginx, udp_echo_at};

const NEEDS: [&str; 3] = ["nginx", "curl", "ping"];

/// The outside addresses of the pool.
const POOL: [&str; 2] = ["203.0.113.100", "2001:db8:f::100"];

fn masquerade(to: [&str; 2], keys: &str) -> String {
    format!(
        "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.40.0.0/24\", \"fd40::/64\"]\nto = [\"{}\", \"{}\"]\n{keys}\n",
        to[0], to[1]
    )
}

/// Port 8080 of an outside address leads to the web server on `in1`.
fn forwards(at: [&str; 2]) -> String {
    let one = |name: &str, listen: &str, to: &str| {
        format!("[[forward]]\nname = \"{name}\"\nlisten = \"{listen}:8080\"\nto = \"{to}:80\"\n")
    };
    one("web", at[0], "10.40.0.2") + &one("web6", &bracketed(at[1]), "[fd40::2]")
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// One request from a node; the answer.
fn get(lab: &Lab, node: &str, host: &str, rest: &str) -> Result<String> {
    let url = format!("http://{}{rest}", bracketed(host));
    let curl = lab.run(node, &["curl", "-sSgf", "--max-time", "5", &url])?;
    curl.success().with_context(|| format!("from {node} to {url}"))
}

/// Whom the web server on `to` takes `node` for.
fn seen_from(lab: &Lab, node: &str, host: &str, port: &str) -> Result<IpAddr> {
    let seen = get(lab, node, host, &format!("{port}/client"))?;
    seen.split_whitespace().next().context("an address")?.parse().with_context(|| seen.clone())
}

fn ping(lab: &Lab, node: &str, host: &str) -> Result<()> {
    lab.run(node, &["ping", "-c", "2", "-i", "0.2", "-W", "2", host])?.success().map(drop)
}

/// Datagrams of several sockets of a node come back.
fn echoes(lab: &Lab, node: &str, from: &str, to: &str) -> Result<()> {
    let (from, to): (SocketAddr, SocketAddr) = (format!("{from}:0").parse()?, to.parse()?);
    lab.inside(node, move || -> Result<()> {
        for n in 0..8u8 {
            let socket = bind_udp(from)?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            socket.send_to(&[n; 100], to)?;
            let mut buffer = [0; 200];
            let (length, peer) = socket.recv_from(&mut buffer).with_context(|| format!("{from} from {to}"))?;
            ensure!((length, buffer[0], peer) == (100, n, to), "{length} bytes of {} from {peer}", buffer[0]);
        }
        Ok(())
    })?
}

/// Nobody is at `to`, and a program on the node is told so.
fn refused(lab: &Lab, node: &str, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    lab.inside(node, move || -> Result<()> {
        let socket = bind_udp(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect(to)?;
        socket.send(b"nobody")?;
        let error = socket.recv(&mut [0; 10]).err().context("somebody answers")?;
        ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
        Ok(())
    })?
}

#[test]
fn by_a_pool() {
    scenario_on("masquerade", &NEEDS, |lab| {
        for node in ["out1", "out2", "in1"] {
            nginx(lab, node, &[80])?;
        }
        udp_echo_at(lab, "out1", "198.51.100.2:7000")?;
        udp_echo_at(lab, "out1", "[2001:db8:1::2]:7000")?;
        let before = snapshot(lab)?;
        let config = |pool| masquerade(pool, "") + &forwards(POOL);
        let gateway = Setup::new(config(POOL)).wan().gateway("queues = 2").start(lab)?;
        for (family, pool) in POOL.into_iter().enumerate() {
            for (inside, outside) in [("in1", "out1"), ("in1", "out2"), ("in2", "out1")] {
                let seen = seen_from(lab, inside, address(outside)[family], "")?;
                ensure!(seen == pool.parse::<IpAddr>()?, "{outside} takes {inside} for {seen}");
            }
            let outside = address("out1")[family];
            ping(lab, "in1", outside)?;
            echoes(lab, "in2", &bracketed(address("in2")[family]), &format!("{}:7000", bracketed(outside)))?;
            // In from outside by a forwarded port, and out and in again by the pool's address.
            ensure!(get(lab, "out2", pool, ":8080/")? == "in1\n", "the forwarded port");
            let seen = seen_from(lab, "in2", pool, ":8080")?;
            ensure!(seen == pool.parse::<IpAddr>()?, "a hairpin shows {seen}");
            // What stays inside, or is for the gateway's host, is none of it.
            ensure!(seen_from(lab, "in2", address("in1")[family], "")? == address("in2")[family].parse::<IpAddr>()?);
            ping(lab, "in1", ["10.40.0.1", "fd40::1"][family])?;
            ping(lab, "in1", ["198.51.100.1", "2001:db8:1::1"][family])?;
        }
        let mappings = gateway.gatun(&["nat", "list"])?.success()?;
        ensure!(mappings.contains("10.40.0.3") && mappings.contains(POOL[0]), "{mappings}");
        let flows = gateway.flows(&["--src", "10.40.0.2", "--proto", "tcp"])?;
        ensure!(flows.iter().any(|flow| flow.reply.dst == IpAddr::from([203, 0, 113, 100])), "{flows:?}");

        // A download goes on by the address that it began with while new flows go by another, also of a host that is not
        // inside any more.
        lab.sh("out1", &format!("head -c 2M /dev/urandom >{}", lab.path("big").display()))?;
        let url = format!("http://{}/slow/big", address("out1")[0]);
        let download = lab.start("in1", &["curl", "-sSf", "--max-time", "10", "-o", "/dev/null", &url])?;
        let begun = || gateway.flows(&["--state", "ESTABLISHED"]).is_ok_and(|flows| !flows.is_empty());
        eventually("the download begins", PATIENCE, begun)?;
        let narrower = masquerade(["203.0.113.101", POOL[1]], "").replace("10.40.0.0/24", "10.40.0.3");
        gateway.reload(lab, &narrower)?;
        let seen = seen_from(lab, "in2", address("out1")[0], "")?;
        ensure!(seen == "203.0.113.101".parse::<IpAddr>()?, "after the reload {seen}");
        ensure!(snapshot(lab)?.contains(POOL[0]), "the download needs it still");
        download.finish(PATIENCE)?.success().context("the download over the reload")?;
        gateway.gatun(&["conntrack", "flush"])?.success()?;
        let gone = || snapshot(lab).is_ok_and(|now| !now.contains(POOL[0]));
        eventually("an address that nothing uses is let go of", PATIENCE, gone)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// The most common use, and the prefix of a provider beside it.
#[test]
fn behind_the_gateways_own_address_and_by_a_prefix() {
    scenario_on("masquerade", &NEEDS, |lab| {
        for node in ["out1", "in1"] {
            nginx(lab, node, &[80])?;
        }
        // The host's own server, at a port beside the pool's.
        nginx(lab, "gw", &[8081])?;
        udp_echo_at(lab, "out1", "198.51.100.2:7000")?;
        let before = snapshot(lab)?;
        let own = "198.51.100.1";
        let config = format!(
            "[[masquerade]]\nname = \"lan\"\nfrom = [\"10.40.0.0/24\"]\nto = [\"{own}\"]\nports = \"10000-32767\"\n\
             [[masquerade]]\nname = \"six\"\nfrom = [\"fd40::/64\"]\nprefix = \"2001:db8:40::/64\"\n\
             [[forward]]\nname = \"web\"\nlisten = \"{own}:8080\"\nto = \"10.40.0.2:80\"\n"
        );
        let gateway = Setup::new(config.clone()).wan().gateway("queues = 2").start(lab)?;
        let own_address: IpAddr = own.parse()?;
        let outside = address("out1")[0];
        for inside in ["in1", "in2"] {
            let seen = seen_from(lab, inside, outside, "")?;
            ensure!(seen == own_address, "{inside} is seen as {seen}");
            echoes(lab, inside, address(inside)[0], "198.51.100.2:7000")?;
            ping(lab, inside, outside)?;
        }
        ensure!(get(lab, "out2", own, ":8080/")? == "in1\n", "the forwarded port");
        // The host keeps what is its own: its connections, its servers, its ping.
        ensure!(seen_from(lab, "gw", outside, "")? == own_address);
        ensure!(get(lab, "out1", own, ":8081/")? == "gw\n", "the host's own server from outside");
        ensure!(get(lab, "in1", own, ":8081/")? == "gw\n", "the host's own server from inside");
        ping(lab, "gw", outside)?;
        ping(lab, "out1", own)?;
        ping(lab, "in1", own)?;
        refused(lab, "gw", "198.51.100.2:7001")?;
        // Out and in again by that address.
        let seen = seen_from(lab, "in2", own, ":8080")?;
        ensure!(seen == own_address, "a hairpin shows {seen}");
        ensure!(!gateway.log_text().contains("WARN"), "{}", gateway.log_text());

        // By the prefix, both ways, and without a flow.
        let seen = seen_from(lab, "in1", address("out1")[1], "")?;
        ensure!(seen.to_string().starts_with("2001:db8:40:"), "in1 is seen as {seen}");
        ensure!(get(lab, "out1", &seen.to_string(), "/")? == "in1\n", "in by the prefix");
        ping(lab, "in2", address("out1")[1])?;
        ensure!(gateway.flows(&["--dst", address("out1")[1]])?.is_empty(), "the prefix keeps flows");

        // A second and a third look at the host find what the first one did.
        let running = snapshot(lab)?;
        lab.sh("out1", &format!("head -c 2M /dev/urandom >{}", lab.path("big").display()))?;
        let url = format!("http://{outside}/slow/big");
        let download = lab.start("in1", &["curl", "-sSf", "--max-time", "10", "-o", "/dev/null", &url])?;
        let begun = || gateway.flows(&["--state", "ESTABLISHED"]).is_ok_and(|flows| !flows.is_empty());
        eventually("the download begins", PATIENCE, begun)?;
        for _ in 0..2 {
            gateway.reload(lab, &config)?;
            ensure_same(&running, &snapshot(lab)?)?;
            echoes(lab, "in2", address("in2")[0], "198.51.100.2:7000")?;
        }
        download.finish(PATIENCE)?.success().context("the download over reloads")?;

        // Ports that the host uses itself are worth a word.
        gateway.reload(lab, &config.replace("10000-32767", "8081-65535"))?;
        let log = gateway.log_text();
        ensure!(log.contains("ip_local_port_range") && log.contains("listens at port 8081"), "{log}");
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// As a host of its own on the segment of servers that have no other way out, and no way back to clients.
#[test]
fn with_fullnat_on_a_segment() {
    scenario_on("bridged", &["nginx", "curl"], |lab| {
        for node in ["rs1", "rs2", "client"] {
            nginx(lab, node, &[80])?;
        }
        lab.sh("rs2", "ip route del default; ip -6 route del default")?;
        let config = "[nat]\npool = [\"10.20.0.200\", \"fd20::200\"]\n\
            [[masquerade]]\nname = \"lan\"\nfrom = [\"10.20.0.11\", \"fd20::11\"]\nto = [\"203.0.113.100\", \"2001:db8:f::100\"]\n\
            [[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\nmethod = \"fullnat\"\nserver = [{ address = \"10.20.0.12\" }]\n\
            [[service]]\nname = \"web6\"\nlisten = \"[2001:db8:f::10]:80\"\nmethod = \"fullnat\"\nserver = [{ address = \"fd20::12\" }]\n";
        Setup::new(config).tap().start(lab)?;
        for (family, client) in ["198.51.100.2", "2001:db8:1::2"].into_iter().enumerate() {
            let pool: IpAddr = ["10.20.0.200", "fd20::200"][family].parse()?;
            let seen = seen_from(lab, "client", ["203.0.113.10", "2001:db8:f::10"][family], "")?;
            ensure!(seen == pool, "rs2 takes the client for {seen}");
            let seen = seen_from(lab, "rs1", client, "")?;
            ensure!(seen == ["203.0.113.100", "2001:db8:f::100"][family].parse::<IpAddr>()?, "rs1 is seen as {seen}");
        }
        Ok(())
    });
}
