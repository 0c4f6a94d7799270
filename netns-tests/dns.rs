//! DNS over UDP and TCP: dig, and dnsperf without a lost query.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::client::spread;
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, unbound};

const NEEDS: [&str; 3] = ["unbound", "dig", "dnsperf"];
const SERVER_PORT: u16 = 5353;

fn dns(protocol: &str) -> String {
    dual_service(53, protocol, "rr", &THREE, SERVER_PORT)
}

fn bare(vip: &str) -> &str {
    vip.trim_matches(['[', ']'])
}

fn whoami(lab: &Lab, vip: &str, transport: &str) -> Result<String> {
    let server = format!("@{}", bare(vip));
    let dig = ["dig", &server, "+time=2", "+tries=1", "+short", transport, "whoami.test.", "TXT"];
    Ok(lab.run("client", &dig)?.success()?.trim().trim_matches('"').to_string())
}

#[test]
fn dig() {
    scenario(&NEEDS, |lab| {
        for server in ["rs1", "rs2", "rs3"] {
            unbound(lab, server, SERVER_PORT)?;
        }
        let gateway = Setup::new(dns("tcp+udp")).start(lab)?;
        for vip in VIPS {
            for transport in ["+notcp", "+tcp"] {
                let names = (0..9).map(|_| whoami(lab, vip, transport)).collect::<Result<Vec<_>>>()?;
                ensure!(
                    spread(&names) == BTreeMap::from([("rs1", 3), ("rs2", 3), ("rs3", 3)]),
                    "{transport}: {names:?}"
                );
            }
            for protocol in ["udp", "tcp"] {
                let flows = gateway.flows(&["--proto", protocol, "--dst", bare(vip), "--dport", "53"])?;
                ensure!(flows.len() == 9, "{} flows of {protocol}", flows.len());
                ensure!(flows.iter().all(|flow| !flow.unreplied && flow.reply.ports.0 == SERVER_PORT), "{flows:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn dnsperf_loses_nothing() {
    scenario(&NEEDS, |lab| {
        for server in ["rs1", "rs2", "rs3"] {
            unbound(lab, server, SERVER_PORT)?;
        }
        let gateway = Setup::new(dns("udp")).uncaptured().start(lab)?;
        let queries: String = (0..100).map(|n| format!("h{n}.test. A\n")).collect();
        let file = lab.path("queries");
        fs::write(&file, queries)?;
        let file = file.to_str().context("a path in UTF-8")?;
        for vip in VIPS {
            // Thirty sockets, thirty flows, all servers; at a rate that the servers' receive buffers bear.
            let words = ["dnsperf", "-s", bare(vip), "-d", file, "-l", "3", "-Q", "3000", "-c", "30", "-q", "60"];
            let output = lab.run("client", &words)?.success()?;
            let figure = |name: &str| -> Result<u64> {
                let line = output.lines().find(|line| line.trim_start().starts_with(name));
                let figure =
                    line.and_then(|line| line.split(':').nth(1)).and_then(|rest| rest.split_whitespace().next());
                figure.and_then(|figure| figure.parse().ok()).with_context(|| format!("no \"{name}\" in:\n{output}"))
            };
            ensure!(figure("Queries sent")? > 3000, "too few queries:\n{output}");
            ensure!(figure("Queries lost")? == 0, "lost queries:\n{output}");
            ensure!(output.contains("NOERROR") && !output.contains("SERVFAIL"), "{output}");
            let flows = gateway.flows(&["--proto", "udp", "--dst", bare(vip)])?;
            ensure!(flows.len() >= 30, "{} flows for thirty sockets", flows.len());
        }
        Ok(())
    });
}
