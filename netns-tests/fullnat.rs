//! Method `fullnat`: servers that have no route back to clients answer all the same, to an address of their own segment.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cleanup::{ensure_same, snapshot};
use crate::client::{answers, curl, spread};
use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::reload::requests_without_error;
use crate::servers::{THREE, VIPS, dual_service, named_service, three_nginx, unbound};

const NAT: &str = "[nat]\npool = [\"10.20.0.200\", \"fd20::200\"]\n";

fn by_fullnat(services: &str) -> String {
    services.replace("method = \"nat\"", "method = \"fullnat\"")
}

/// Web and DNS, both families.
fn services() -> String {
    let web = dual_service(80, "tcp", "rr", &THREE, 8080);
    let dns = named_service("dns", 53, "udp", "rr", &[("rs1", 1), ("rs2", 1)], 53);
    format!("{NAT}{}", by_fullnat(&format!("{web}{dns}")))
}

/// The servers know their own segment, and what is said of the VIPs; nothing else.
fn cut_off(lab: &Lab) -> Result<()> {
    for server in ["rs1", "rs2", "rs3"] {
        lab.sh(
            server,
            "ip route del default; ip -6 route del default
             ip route add 203.0.113.0/24 via 10.20.0.1; ip -6 route add 2001:db8:f::/64 via fd20::1",
        )?;
    }
    Ok(())
}

fn whoami(lab: &Lab, vip: &str) -> Result<()> {
    let at = format!("@{}", vip.trim_matches(['[', ']']));
    let answer = lab.run("client", &["dig", &at, "+time=2", "+tries=2", "+short", "whoami.test.", "TXT"])?.success()?;
    ensure!(answer.contains("rs"), "{vip} answers {answer:?}");
    Ok(())
}

#[test]
fn servers_answer_without_a_route_back() {
    scenario(&["nginx", "curl", "unbound", "dig", "wrk"], |lab| {
        three_nginx(lab)?;
        unbound(lab, "rs1", 53)?;
        unbound(lab, "rs2", 53)?;
        cut_off(lab)?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(services()).gateway("queues = 2").start(lab)?;
        for (vip, pool) in VIPS.into_iter().zip(["10.20.0.200", "fd20::200"]) {
            let names = answers(lab, vip, 9)?;
            ensure!(spread(&names).values().all(|n| *n == 3), "{names:?}");
            let seen = curl(lab, &format!("http://{vip}/client"))?.success()?;
            ensure!(seen.starts_with(&format!("{pool} ")), "servers see {seen}");
            whoami(lab, vip)?;
            // A server is a client of its own cluster, itself among the servers.
            let own = lab.run(
                "rs1",
                &["curl", "-sSf", "--max-time", "5", "-H", "Connection: close", &format!("http://{vip}/?[1-6]")],
            )?;
            let own = own.success().context("from a server to its own cluster")?;
            ensure!(own.lines().collect::<std::collections::BTreeSet<_>>().len() == 3, "{own}");
        }
        let flows = gateway.flows(&["--method", "fullnat"])?;
        ensure!(
            flows.iter().any(|flow| flow.reply.dst == IpAddr::from([10, 20, 0, 200])),
            "no flow answers to the pool: {flows:?}"
        );

        // Reloads under load: the pool stays, grows, and goes to another address.
        let url = format!("http://{}/", VIPS[0]);
        let words = ["wrk", "-t", "1", "-c", "8", "-d", "2s", "--timeout", "5s", "-H", "Connection: close", &url];
        let load = lab.start("client", &words)?;
        for pools in ["\"10.20.0.200\", \"10.20.0.201\", \"fd20::200\"", "\"10.20.0.202\", \"fd20::200\""] {
            std::thread::sleep(Duration::from_millis(300));
            gateway.reload(lab, &services().replace("\"10.20.0.200\", \"fd20::200\"", pools))?;
        }
        let output = load.finish(Duration::from_secs(20))?.success()?;
        ensure!(requests_without_error(&output)? > 100, "{output}");
        let seen = curl(lab, &format!("http://{}/client", VIPS[0]))?.success()?;
        ensure!(seen.starts_with("10.20.0.202 "), "{seen}");
        // An address that is no longer in the file goes with its last flow.
        gateway.gatun(&["conntrack", "flush"])?.success()?;
        let gone = || snapshot(lab).is_ok_and(|now| !now.contains("10.20.0.200") && !now.contains("10.20.0.201"));
        eventually("addresses that nothing uses are let go of", PATIENCE, gone)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}
