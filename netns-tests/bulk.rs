//! 100 MB each way, byte for byte.

use anyhow::{Result, ensure};

use crate::client::{download, random_file, sha256, upload};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{VIPS, dual_service, nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];
const MEGABYTES: u32 = 100;

fn transfer(vip: &'static str, body: impl FnOnce(&Lab, &str) -> Result<String>) {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", MEGABYTES)?;
        let services = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080);
        let gateway = Setup::new(services).uncaptured().start(lab)?;
        let copy = body(lab, vip)?;
        ensure!(sha256(lab, &copy)? == sha256(lab, "original")?, "the checksums differ");
        ensure!(gateway.flows(&["--proto", "tcp", "--dport", "80"])?.len() == 1, "one flow carried it all");
        Ok(())
    });
}

fn down(lab: &Lab, vip: &str) -> Result<String> {
    download(lab, vip, "original", "downloaded")?;
    Ok("downloaded".to_string())
}

fn up(lab: &Lab, vip: &str) -> Result<String> {
    upload(lab, vip, "original", "uploaded")?;
    Ok("uploaded".to_string())
}

#[test]
fn download_ipv4() {
    transfer(VIPS[0], down);
}

#[test]
fn download_ipv6() {
    transfer(VIPS[1], down);
}

#[test]
fn upload_ipv4() {
    transfer(VIPS[0], up);
}

#[test]
fn upload_ipv6() {
    transfer(VIPS[1], up);
}

/// Segments of ordinary size instead of super-packets: what a physical network card without offloads delivers.
#[test]
fn without_offloads() {
    scenario(&["nginx", "curl", "ethtool"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 20)?;
        for (node, device) in [("client", "eth0"), ("rs1", "eth0"), ("gw", "eth0"), ("gw", "lan-rs1")] {
            lab.sh(node, &format!("ethtool -K {device} tso off gso off gro off tx off rx off >/dev/null"))?;
        }
        let _gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).uncaptured().start(lab)?;
        let sum = sha256(lab, "original")?;
        for vip in VIPS {
            download(lab, vip, "original", "downloaded")?;
            upload(lab, vip, "original", "uploaded")?;
            ensure!(
                sha256(lab, "downloaded")? == sum && sha256(lab, "uploaded")? == sum,
                "{vip}: the checksums differ"
            );
        }
        Ok(())
    });
}
