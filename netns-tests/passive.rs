//! Passive checks: what clients' own connections tell of a server, without anybody asking it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::curl;
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, dual_service, nginx, three_nginx};

/// How many of nine requests to the VIP are refused, and how long the slowest of the others takes. Another end is an error.
fn nine(lab: &Lab, vip: &str) -> Result<(usize, Duration)> {
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for _ in 0..9 {
        let begin = Instant::now();
        let finished = curl(lab, &format!("http://{vip}/"))?;
        match finished.status.code() {
            Some(0) => slowest = slowest.max(begin.elapsed()),
            Some(7) => refused += 1,
            _ => anyhow::bail!("neither answered nor refused: {finished}"),
        }
    }
    Ok((refused, slowest))
}

fn is_in(gateway: &Gateway, service: &str, state: &str) -> bool {
    let list = gateway.gatun(&["server", "list", "--service", service, "--json"]);
    list.is_ok_and(|list| {
        let servers = list.stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        servers.into_iter().any(|server| server["name"].as_str().is_some_and(is_rs2) && server["state"] == state)
    })
}

fn is_rs2(name: &str) -> bool {
    name.contains("10.20.0.12") || name.contains("fd20::12")
}

#[test]
fn a_server_gets_no_new_flow_after_its_first_failed_connection() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let passive = "scheduler = \"rr\"\npassive = { fall = 1, hold = \"2s\" }";
        let services = dual_service(80, "tcp", "rr", &THREE, 8080).replace("scheduler = \"rr\"", passive);
        let gateway = Setup::new(services).start(lab)?;
        for (vip, service) in VIPS.into_iter().zip(["service", "service6"]) {
            ensure!(nine(lab, vip)?.0 == 0, "three servers answer");

            // The server's host refuses: one client sees that, nobody else.
            lab.end("nginx-rs2")?;
            let (refused, _) = nine(lab, vip)?;
            ensure!(refused == 1, "{refused} of nine were refused");
            ensure!(is_in(&gateway, service, "down"), "it is told");
            nginx(lab, "rs2", &[8080])?;
            eventually("rs2 is tried again", PATIENCE, || is_in(&gateway, service, "up"))?;
            ensure!(nine(lab, vip)?.0 == 0, "it serves again");

            // Nobody answers: the client whose SYN was lost sends it again, and comes to another server with it.
            lab.sh("gw", "ip link set lan-rs2 down")?;
            let (refused, slowest) = nine(lab, vip)?;
            ensure!(refused == 0, "{refused} of nine were refused");
            ensure!(slowest > Duration::from_millis(900), "no SYN was lost: {slowest:?}");
            ensure!(slowest < Duration::from_secs(3), "the second SYN went where the first one did: {slowest:?}");
            ensure!(is_in(&gateway, service, "down"), "it is told");
            lab.sh("gw", "ip link set lan-rs2 up")?;
            eventually("rs2 is tried again", PATIENCE, || is_in(&gateway, service, "up"))?;
        }
        Ok(())
    });
}
