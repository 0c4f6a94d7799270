//! A forward proxy: squid, with a web server on another node behind it.

use anyhow::{Context, Result, ensure};

use super::common::{Cluster, Method, Plan, Service, daemon, run, utf8, without_dns, write_file};
use super::wire::{Protocol, Wire, field, no_greeting};
use crate::client::{random_file, sha256};
use crate::lab::Lab;
use crate::servers::{VIPS, address, nginx};

const PORT: u16 = 3128;

/// Where the web server is: the one that is no proxy.
fn origin(method: Method) -> &'static str {
    if method == Method::Tunnel { "rs3" } else { "rs4" }
}

const ORIGIN_PORT: u16 = 8080;

fn plan() -> Plan {
    Plan {
        needs: &["squid", "nginx", "curl"],
        services: vec![Service { name: "proxy", port: Some(PORT), protocol: "tcp", check: "type = \"tcp\"", keys: "" }],
        protocols: |lab, method| {
            nginx(lab, origin(method), &[ORIGIN_PORT])?;
            let ask = if method == Method::Tunnel {
                |wire: &mut Wire| ask(wire, "rs3")
            } else {
                |wire: &mut Wire| ask(wire, "rs4")
            };
            Ok(vec![Protocol::tcp("proxy", PORT, no_greeting, ask)])
        },
        start,
        healthy,
    }
}

/// A page of the web server's; the proxy that it came by says so.
fn ask(wire: &mut Wire, origin: &str) -> Result<String> {
    let (header, body) = wire.get(&format!("http://{}:{ORIGIN_PORT}/", address(origin)[0]))?;
    ensure!(body.trim_end() == origin, "{body} for {origin}");
    // Via: 1.1 rs1 (squid/5.7)
    let via = field(&header, "via").with_context(|| format!("no Via: {header:?}"))?;
    Ok(via.split(' ').nth(1).unwrap_or_default().to_string())
}

fn start(lab: &Lab, _: Method, node: &str) -> Result<()> {
    without_dns(lab, node)?;
    let work = utf8(&lab.path(node))?;
    let config = format!(
        "http_port {PORT}
visible_hostname {node}
unique_hostname {node}
pid_filename {work}/squid.pid
cache_log {work}/cache.log
access_log none
cache_store_log none
coredump_dir {work}
cache deny all
http_access allow all
dns_nameservers 127.0.0.1
icp_port 0
htcp_port 0
pinger_enable off
netdb_filename none
cache_mem 8 MB
memory_pools off
max_filedescriptors 1024
shutdown_lifetime 1 second
"
    );
    let path = write_file(lab, node, "squid.conf", &config)?;
    let script = format!("chown -R proxy:proxy {work}; rm -f {work}/squid.pid; exec squid -N -f {path}");
    daemon(lab, node, "squid", &["sh", "-ec", &script])
}

/// A download through each, and a tunnel made by CONNECT.
fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    let origin = address(origin(cluster.method));
    random_file(lab, "original", 5)?;
    let sum = sha256(lab, "original")?;
    let into = utf8(&lab.path("downloaded"))?;
    for vip in VIPS {
        let proxy = format!("http://{vip}:{PORT}");
        for (way, host) in [(&[][..], origin[0].to_string()), (&["-p"], format!("[{}]", origin[1]))] {
            let url = format!("http://{host}:{ORIGIN_PORT}/files/original");
            let curl = ["curl", "-sSgf", "--max-time", "20", "-x", &proxy, "-o", &into, &url];
            lab.run("client", &[&curl[..], way].concat())?.success()?;
            ensure!(sha256(lab, "downloaded")? == sum, "{url} by {vip}: the checksums differ");
        }
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
