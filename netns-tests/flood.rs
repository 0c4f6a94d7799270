//! A SYN flood fills the flow table: established connections go on, and new ones still come through, because the oldest
//! half-open flows make room.

use std::time::Duration;

use anyhow::ensure;

use crate::client::{curl, random_file, sha256};
use crate::gateway::Setup;
use crate::lab::{PATIENCE, scenario};
use crate::process::{self, Running, eventually};
use crate::servers::{VIPS, dual_service, nginx};

const MAX_FLOWS: u64 = 4096;

#[test]
fn spares_established_connections() {
    scenario(&["nginx", "curl", "hping3"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 6)?;
        // Answers to the forged sources go to the client, who drops what is not for it.
        lab.sh("gw", "ip route add default via 198.51.100.2")?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080))
            .conntrack(&format!("max_flows = {MAX_FLOWS}"))
            .uncaptured()
            .start(lab)?;

        // Six seconds at 1 MB/s.
        let copy = lab.path("downloaded");
        let mut curl_slow = lab.command("client", &["curl", "-sSf", "--max-time", "40"])?;
        curl_slow.arg("-o").arg(&copy).arg(format!("http://{}/slow/original", VIPS[0]));
        let download = Running::piped(curl_slow)?;
        let established = || gateway.flows(&["--state", "ESTABLISHED"]).is_ok_and(|flows| flows.len() == 1);
        eventually("the download is under way", PATIENCE, established)?;

        let flood = ["hping3", "-q", "-S", "-p", "80", "--rand-source", "-i", "u100", VIPS[0]];
        let mut flood = lab.start("client", &flood)?;
        let evicted = || gateway.metric("gatun_flows_evicted_total", &[]).is_ok_and(|n| n > 1000.0);
        eventually("half-open flows are evicted", PATIENCE, evicted)?;
        ensure!(gateway.flow_count()? <= MAX_FLOWS, "more flows than max_flows");

        for vip in VIPS {
            for _ in 0..10 {
                curl(lab, &format!("http://{vip}/"))?.success()?;
            }
        }
        ensure!(flood.alive(), "the flood went on all the time");
        let unharmed = established();
        drop(flood);
        ensure!(unharmed, "the download lost its flow");

        process::Running::finish(download, Duration::from_secs(30))?.success()?;
        ensure!(sha256(lab, "downloaded")? == sha256(lab, "original")?, "the checksums differ");
        ensure!(gateway.log_text().lines().count() < 200, "a stranger can fill the log");
        Ok(())
    });
}

/// When nothing in the table may be evicted, a new connection is refused, and counted; the old ones live.
#[test]
fn full_of_established_connections() {
    scenario(&["nginx", "curl"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080))
            .gateway("queues = 1")
            .conntrack("max_flows = 1024")
            .start(lab)?;
        let to: std::net::SocketAddr = format!("{}:80", VIPS[0]).parse()?;
        let connect = || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(1500));
        let mut held = Vec::new();
        let refused = lab.inside("client", || {
            for _ in 0..1100 {
                match connect() {
                    Ok(stream) => held.push(stream),
                    Err(error) => return Some(error),
                }
            }
            None
        })?;
        ensure!(refused.is_some(), "1100 connections in a table of 1024");
        let flows = gateway.flows(&["--state", "ESTABLISHED"])?.len();
        ensure!(flows == held.len() && flows >= 1000, "{flows} flows of {} connections", held.len());
        ensure!(gateway.metric("gatun_drops_total", &["reason=\"table_full\""])? >= 1.0, "not counted");
        // One goes, and there is room for one.
        use std::io::{Read, Write};
        for stream in &mut held {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
            ensure!(stream.read(&mut [0; 1024])? > 0, "an established connection is dead");
        }
        Ok(())
    });
}
