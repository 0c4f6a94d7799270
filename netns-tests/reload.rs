//! Reloads under load lose no connection; a bad file changes nothing.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::{answers, spread};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::process::Running;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

/// wrk's count of requests; it must not have met a single error.
pub fn requests_without_error(output: &str) -> Result<u64> {
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), "{output}");
    let line = output.lines().find(|line| line.contains("requests in")).with_context(|| output.to_string())?;
    line.split_whitespace().next().and_then(|n| n.parse().ok()).with_context(|| output.to_string())
}

fn wrk(lab: &Lab, vip: &str, headers: &[&str]) -> Result<Running> {
    let url = format!("http://{vip}/");
    lab.start("client", &[&["wrk", "-t", "1", "-c", "16", "-d", "6s", "--timeout", "5s"], headers, &[&url]].concat())
}

#[test]
fn loses_no_connection() {
    scenario(&["nginx", "curl", "wrk"], |lab| {
        three_nginx(lab)?;
        let variants: Vec<String> = [
            ("rr", &THREE[..]),
            ("wlc", &[("rs1", 5), ("rs2", 1), ("rs3", 1)]),
            ("wrr", &[("rs1", 0), ("rs2", 3), ("rs3", 1)]),
            ("mh", &THREE),
        ]
        .iter()
        .map(|(scheduler, servers)| dual_service(80, "tcp", scheduler, servers, 8080))
        .collect();
        let gateway = Setup::new(variants[0].clone()).uncaptured().start(lab)?;
        // Long connections over IPv4, one for each request over IPv6.
        let kept = wrk(lab, VIPS[0], &[])?;
        let single = wrk(lab, VIPS[1], &["-H", "Connection: close"])?;
        std::thread::sleep(Duration::from_millis(500));
        for n in 1..=20 {
            gateway.reload(lab, &variants[n % variants.len()])?;
            std::thread::sleep(Duration::from_millis(200));
        }
        let kept = kept.finish(Duration::from_secs(20))?.success()?;
        let single = single.finish(Duration::from_secs(20))?.success()?;
        ensure!(requests_without_error(&kept)? > 1000, "{kept}");
        ensure!(requests_without_error(&single)? > 300, "{single}");
        ensure!(gateway.alive(), "gatun ended");
        Ok(())
    });
}

#[test]
fn by_sighup_and_with_a_bad_file() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).start(lab)?;
        let only_rs1 = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080);

        // A bad file is refused, with its place, and the gateway goes on as it was.
        gateway.rewrite(lab, &only_rs1.replace("weight", "wieght"))?;
        let refused = gateway.gatun(&["reload"])?.exits(1)?;
        ensure!(refused.stderr.contains("wieght") && refused.stderr.contains("weight"), "{refused}");
        let names = answers(lab, VIPS[0], 6)?;
        ensure!(spread(&names).len() == 3, "{names:?}");

        // diff says what would change, and changes nothing.
        gateway.rewrite(lab, &only_rs1)?;
        let diff = gateway.gatun(&["diff", "-c", &gateway.config.to_string_lossy()])?;
        ensure!(diff.stdout.contains("10.20.0.12:8080") && diff.stdout.contains("[fd20::13]:8080"), "{diff}");
        ensure!(!diff.stdout.contains("10.20.0.11:8080"), "rs1 stays: {diff}");
        ensure!(spread(&answers(lab, VIPS[0], 6)?).len() == 3, "diff changed the gateway");

        gateway.hang_up();
        crate::process::eventually("SIGHUP reloads", Duration::from_secs(5), || {
            answers(lab, VIPS[0], 6).is_ok_and(|names| spread(&names).len() == 1)
        })?;
        ensure!(spread(&answers(lab, VIPS[1], 6)?).len() == 1, "both services were reloaded");
        fs::write(&gateway.config, "no toml at all [")?;
        gateway.hang_up();
        std::thread::sleep(Duration::from_millis(300));
        ensure!(gateway.alive() && answers(lab, VIPS[0], 6).is_ok(), "a bad file at SIGHUP");
        Ok(())
    });
}
