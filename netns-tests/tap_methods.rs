//! Mode "tap" with the methods whose replies go past the gateway: `direct` changes the MAC address only, `tunnel` wraps, and
//! cuts super-packets into pieces that each get an Ethernet header of their own.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::capture::{Capture, endpoints, packets};
use crate::client::{answers, download, random_file, sha256, spread, upload};
use crate::gateway::Setup;
use crate::lab::scenario_on;
use crate::one_way::{Way, bare};
use crate::servers::{VIPS, nginx};

const SERVERS: [&str; 3] = ["rs1", "rs2", "rs3"];

fn http(way: Way) {
    scenario_on("bridged", &way.needs(&["nginx", "curl", "ping"]), |lab| {
        for server in SERVERS {
            way.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        let gateway = Setup::new(way.services(80, "tcp", &SERVERS)).tap().start(lab)?;
        let file = lab.path("crossing.pcap");
        let crossing = Capture::of_interface(&lab.netns("gw"), "gatun0", &file)?;
        for vip in VIPS {
            let names = answers(lab, vip, 9)?;
            ensure!(spread(&names).values().all(|n| *n == 3), "{vip}: {names:?}");
            let ping = lab.run("client", &["ping", "-c", "2", "-i", "0.1", "-W", "2", bare(vip)])?;
            ensure!(ping.stdout.contains(" 0% packet loss"), "{ping}");
        }
        drop(crossing);
        let vips: Vec<IpAddr> = VIPS.iter().map(|vip| bare(vip).parse()).collect::<Result<_, _>>()?;
        let mut requests = 0;
        for (from, to) in packets(&file)?.iter().filter_map(|packet| endpoints(packet)) {
            ensure!(!(from.port() == 80 && vips.contains(&from.ip())), "a reply crosses the gateway: {from} > {to}");
            requests += usize::from(to.port() == 80 && vips.contains(&to.ip()));
        }
        ensure!(requests >= 18 * 4, "only {requests} packets of requests crossed");
        ensure!(gateway.flows(&["--method", way.method()])?.len() >= 18, "the flows are not listed");
        Ok(())
    });
}

fn bulk(way: Way) {
    scenario_on("bridged", &way.needs(&["nginx", "curl"]), |lab| {
        way.serve(lab, "rs1")?;
        nginx(lab, "rs1", &[80])?;
        random_file(lab, "original", way.megabytes() / 2)?;
        let sum = sha256(lab, "original")?;
        let _gateway = Setup::new(way.services(80, "tcp", &["rs1"])).tap().uncaptured().start(lab)?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            upload(lab, vip, "original", "uploaded")?;
            for copy in ["downloaded", "uploaded"] {
                ensure!(sha256(lab, copy)? == sum, "{vip}: {copy} differs");
            }
        }
        Ok(())
    });
}

#[test]
fn direct() {
    http(Way::Direct);
}

#[test]
fn direct_bulk() {
    bulk(Way::Direct);
}

#[test]
fn ipip() {
    http(Way::Kernel("ipip"));
}

#[test]
fn ipip_bulk() {
    bulk(Way::Kernel("ipip"));
}

/// The outer header of the other family.
#[test]
fn ipip_crossed_bulk() {
    bulk(Way::KernelCrossed("ipip"));
}

#[test]
fn gue_bulk() {
    bulk(Way::Kernel("gue"));
}
