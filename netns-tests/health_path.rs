//! Checks through the gateway (`via = "path"`): they see whether a server really serves clients by its method, which a check
//! from the host does not.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cleanup;
use crate::client::{answers, spread};
use crate::gateway::{Gateway, Setup, service};
use crate::lab::{Lab, PATIENCE, scenario, scenario_on};
use crate::one_way::{Way, bare};
use crate::process::eventually;
use crate::servers::{VIPS, endpoints, nginx};

const CHECK: &str =
    "check = { type = \"http\", interval = \"200ms\", timeout = \"2s\", rise = 1, fall = 2, via = \"path\" }\n";

/// The servers of the routed lab, and the lines that their tables have besides the address.
fn members() -> [(&'static str, String); 4] {
    [
        ("rs1", "  method = \"nat\"\n".to_string()),
        ("rs2", Way::Direct.server_lines()),
        // Its address is of the family that the VIP is not of.
        ("rs3", Way::Kernel("ipip").server_lines()),
        ("rs4", Way::Kernel("ipip").server_lines()),
    ]
}

fn address(server: &str, family: usize) -> String {
    endpoints(&[server], if server == "rs3" { 1 - family } else { family }, 80).remove(0)
}

/// A service of each family over `members`, each with `line`.
fn services(members: &[(&str, String)], line: &str) -> String {
    let one = |family: usize| {
        let listen = format!("{}:80", VIPS[family]);
        let mut table = service(["service", "service6"][family], &listen, "tcp", "rr", &[]) + line;
        for (server, lines) in members {
            table += &format!("\n  [[service.server]]\n  address = \"{}\"\n{lines}", address(server, family));
        }
        table
    };
    one(0) + &one(1)
}

/// Whether the log has the server up in both families, or down in both.
fn is(gateway: &Gateway, server: &str, state: &str) -> bool {
    let log = gateway.log_text();
    (0..2).all(|family| {
        let name = address(server, family);
        let of = format!("service \"{}\": server \"{name}\" is ", ["service", "service6"][family]);
        log.lines().filter_map(|line| line.split_once(&of)).next_back().is_some_and(|(_, told)| told.starts_with(state))
    })
}

fn becomes(gateway: &Gateway, server: &str, state: &str) -> Result<()> {
    eventually(&format!("{server} is {state}"), PATIENCE, || is(gateway, server, state))
}

/// Waits until every server has been asked through the gateway, in both families, and has answered.
fn all_answer(gateway: &Gateway, servers: f64) -> Result<()> {
    let delivered = || gateway.metric("gatun_delivered_total", &[]).unwrap_or(0.0);
    // Each exchange takes four packets of the server's at the least.
    eventually("answers come through the gateway", PATIENCE, || delivered() >= 4.0 * 2.0 * servers * 2.0)
}

fn serves_with(lab: &Lab, expected: &[&str]) -> Result<()> {
    for vip in VIPS {
        let names = answers(lab, vip, 3 * expected.len())?;
        let spread = spread(&names);
        ensure!(spread.keys().copied().eq(expected.iter().copied()), "{vip}: {names:?}");
    }
    Ok(())
}

fn remove_vips(lab: &Lab, server: &str) -> Result<()> {
    VIPS.iter().try_for_each(|vip| lab.sh(server, &format!("ip addr del {} dev lo", bare(vip))).map(drop))
}

#[test]
fn they_see_what_checks_from_the_host_do_not() {
    scenario(&Way::Kernel("ipip").needs(&["nginx", "curl"]), |lab| {
        Way::Direct.serve(lab, "rs2")?;
        Way::Kernel("ipip").serve(lab, "rs3")?;
        Way::Kernel("ipip").serve(lab, "rs4")?;
        members().iter().try_for_each(|(server, _)| nginx(lab, server, &[80]))?;
        // Strict: an answer from the VIP comes by a link that does not lead there.
        lab.sh("gw", "sysctl -qw net.ipv4.conf.lan.rp_filter=1")?;
        let before = cleanup::snapshot(lab)?;
        let gateway = Setup::new(services(&members(), "")).start(lab)?;
        // The first check through the gateway comes with a reload, and beside it one that asks the same from the host.
        let seen = service("seen", &format!("{}:81", VIPS[0]), "tcp", "rr", &[])
            + &CHECK.replace("via = \"path\"", "via = \"host\", port = 80")
            + "\n  [[service.server]]\n  address = \"10.20.0.12\"\n"
            + &Way::Direct.server_lines()
            + "\n  [[service.server]]\n  address = \"10.30.0.14\"\n"
            + &Way::Kernel("ipip").server_lines();
        gateway.reload(lab, &(services(&members(), CHECK) + &seen))?;
        all_answer(&gateway, 4.0)?;
        ensure!(!gateway.log_text().contains(" is down"), "{}", gateway.log_text());
        ensure!(gateway.flow_count()? == 0, "probes are no clients");
        let wide = gateway.gatun(&["conntrack", "list", "-o", "wide"])?.success()?;
        ensure!(wide.lines().all(|line| line.ends_with("marks=probe")), "{wide}");
        serves_with(lab, &["rs1", "rs2", "rs3", "rs4"])?;

        // The server does not hold the VIPs any more, the other end of the tunnel is gone, nobody listens.
        remove_vips(lab, "rs2")?;
        lab.sh("rs4", "tc qdisc del dev eth0 clsact")?;
        becomes(&gateway, "rs2", "down")?;
        becomes(&gateway, "rs4", "down")?;
        serves_with(lab, &["rs1", "rs3"])?;
        lab.end("nginx-rs1")?;
        becomes(&gateway, "rs1", "down")?;
        ensure!(gateway.log_text().contains("connection refused"), "a RST is told: {}", gateway.log_text());
        ensure!(!gateway.log_text().contains("service \"seen\": server"), "from the host all is well");

        nginx(lab, "rs1", &[80])?;
        Way::Direct.serve(lab, "rs2")?;
        Way::Kernel("ipip").serve(lab, "rs4")?;
        ["rs1", "rs2", "rs4"].iter().try_for_each(|server| becomes(&gateway, server, "up"))?;
        serves_with(lab, &["rs1", "rs2", "rs3", "rs4"])?;

        gateway.stop()?;
        cleanup::ensure_same(&before, &cleanup::snapshot(lab)?)
    });
}

/// What the host itself has at the ports of probes, and its connections from there, go on working; and a flush of the table
/// takes no server out.
#[test]
fn the_host_keeps_its_own_connections() {
    scenario(&["nginx", "curl"], |lab| {
        let members = &members()[..1];
        nginx(lab, "rs1", &[80, 81])?;
        let gateway = Setup::new(services(members, CHECK)).start(lab)?;
        all_answer(&gateway, 1.0)?;
        let own: SocketAddr = "10.20.0.1:61500".parse()?;
        let listener = lab.inside("gw", || TcpListener::bind(own))??;
        listener.set_nonblocking(true)?;
        for node in ["rs1", "client", "gw"] {
            let connected = lab.inside(node, || TcpStream::connect_timeout(&own, Duration::from_secs(5)))?;
            ensure!(connected.is_ok(), "{node} does not reach {own}: {connected:?}");
            eventually(&format!("{node} is heard"), PATIENCE, || listener.accept().is_ok())?;
        }
        // From ports that the kernel gives; and from those of the probes to where no probe goes.
        for (port, from) in [("80", "32768-60999"), ("81", "61900-61999")] {
            for address in crate::servers::address("rs1").map(|address| address.replace("fd20::11", "[fd20::11]")) {
                let url = format!("http://{address}:{port}/");
                let curl = lab.run("gw", &["curl", "-sf", "--max-time", "5", "--local-port", from, &url])?.success()?;
                ensure!(curl.trim() == "rs1", "{url} from {from}: {curl}");
            }
        }
        for _ in 0..3 {
            gateway.gatun(&["conntrack", "flush"])?.success()?;
        }
        all_answer(&gateway, 5.0)?;
        ensure!(!gateway.log_text().contains(" is down"), "{}", gateway.log_text());
        // Without such a check the host has its ports back.
        gateway.reload(lab, &services(members, ""))?;
        ensure!(!lab.sh("gw", "ip rule; ip -6 rule")?.contains("61000-61999"), "the rules stay");
        Ok(())
    });
}

#[test]
fn on_a_segment() {
    scenario_on("bridged", &["nginx", "curl"], |lab| {
        Way::Direct.serve(lab, "rs2")?;
        let members = &members()[..2];
        members.iter().try_for_each(|(server, _)| nginx(lab, server, &[80]))?;
        let gateway = Setup::new(services(members, CHECK)).tap().start(lab)?;
        all_answer(&gateway, 2.0)?;
        serves_with(lab, &["rs1", "rs2"])?;
        ensure!(!gateway.log_text().contains(" is down"), "{}", gateway.log_text());
        remove_vips(lab, "rs2")?;
        becomes(&gateway, "rs2", "down")?;
        serves_with(lab, &["rs1"])?;
        Way::Direct.serve(lab, "rs2")?;
        becomes(&gateway, "rs2", "up")?;
        serves_with(lab, &["rs1", "rs2"])
    });
}

/// VIPs that are addresses of the gateway's host, as ipvsadm and keepalived have them: an answer from one looks to the host as
/// if it had been sent by itself.
#[test]
fn with_local_vips() {
    scenario(&["nginx", "curl"], |lab| {
        Way::Direct.serve(lab, "rs2")?;
        let members = &members()[..2];
        members.iter().try_for_each(|(server, _)| nginx(lab, server, &[80]))?;
        lab.sh("gw", "ip addr add 203.0.113.10/32 dev eth0; ip addr add 2001:db8:f::10/128 dev eth0 nodad")?;
        let gateway = Setup::new(services(members, CHECK)).start(lab)?;
        all_answer(&gateway, 2.0)?;
        ensure!(!gateway.log_text().contains(" is down"), "{}", gateway.log_text());
        remove_vips(lab, "rs2")?;
        becomes(&gateway, "rs2", "down")
    });
}
