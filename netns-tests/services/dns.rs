//! DNS: unbound, over UDP and TCP.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use super::common::{Cluster, Method, Plan, Service, daemon, run, write_file};
use super::wire::{Protocol, Wire, no_greeting};
use crate::lab::Lab;
use crate::one_way::bare;
use crate::servers::VIPS;

const CHECK: &str = "type = \"dns\", name = \"h7.test.\", query = \"A\", answer = [\"192.0.2.7\"]";

fn plan() -> Plan {
    Plan {
        needs: &["unbound", "dig", "dnsperf"],
        services: vec![Service { name: "dns", port: Some(53), protocol: "tcp+udp", check: CHECK, keys: "" }],
        protocols: |_, _| {
            let tcp = Protocol::tcp("dns over TCP", 53, no_greeting, Wire::whoami);
            Ok(vec![Protocol { name: "dns over UDP", udp: true, ..tcp.clone() }, tcp])
        },
        start,
        healthy,
    }
}

fn start(lab: &Lab, method: Method, node: &str) -> Result<()> {
    let mut config = String::from("server:\n");
    for address in method.addresses(node) {
        writeln!(config, " interface: {address}@53")?;
    }
    // Not on all addresses: answers would leave under the server's own.
    write!(
        config,
        " access-control: 0.0.0.0/0 allow\n access-control: ::/0 allow\n do-daemonize: no\n username: \"\"\n \
         chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n module-config: \"iterator\"\n so-rcvbuf: 0\n \
         local-zone: \"test.\" static\n local-data: \"whoami.test. TXT {node}\"\n"
    )?;
    for n in 0..100 {
        writeln!(config, " local-data: \"h{n}.test. A 192.0.2.{n}\"")?;
    }
    config += "remote-control:\n control-enable: no\n";
    let path = write_file(lab, node, "unbound.conf", &config)?;
    daemon(lab, node, "unbound", &["unbound", "-c", &path, "-d"])
}

fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    let queries: String = (0..100).map(|n| format!("h{n}.test. A\n")).collect();
    let queries = write_file(lab, "client", "queries", &queries)?;
    for vip in VIPS.map(bare) {
        for transport in ["+notcp", "+tcp"] {
            let at = format!("@{vip}");
            let dig = ["dig", &at, "+time=2", "+tries=1", "+short", transport, "h42.test.", "A"];
            let answer = lab.run("client", &dig)?.success()?;
            ensure!(answer.trim() == "192.0.2.42", "{vip} {transport}: {answer}");
        }
        // Thirty sockets, thirty flows, all servers; at a rate that the servers' receive buffers bear.
        let words = ["dnsperf", "-s", vip, "-d", &queries, "-l", "1", "-Q", "2000", "-c", "30", "-q", "60"];
        let output = lab.run("client", &words)?.success()?;
        let figure = |name: &str| -> Result<u64> {
            let line =
                output.lines().find_map(|line| line.trim().strip_prefix(name)).with_context(|| output.clone())?;
            Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
        };
        ensure!(figure("Queries sent:")? >= 500 && figure("Queries lost:")? == 0, "{vip}: {output}");
        ensure!(output.contains("NOERROR") && !output.contains("SERVFAIL"), "{output}");
    }
    Ok(())
}

#[test]
fn by_nat() {
    run(&plan(), Method::Nat);
}

#[test]
fn by_direct() {
    run(&plan(), Method::Direct);
}

#[test]
fn by_tunnel() {
    run(&plan(), Method::Tunnel);
}
