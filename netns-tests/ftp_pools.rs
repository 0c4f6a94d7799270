//! FTP and TFTP where sources are translated as well: by `fullnat`, and in a masquerade, with vsftpd and tftpd-hpa as servers
//! and curl and tftp as clients; active and passive, over both families.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ftp::vsftpd;
use crate::gateway::Setup;
use crate::lab::{Lab, scenario, scenario_on};
use crate::process;
use crate::servers::{VIPS, address, dual_service, named_service};
use crate::tftp::tftpd;

const NEEDS: [&str; 4] = ["vsftpd", "curl", "in.tftpd", "tftp"];
const TEXT: &str = "a few bytes\n";
const CLIENT: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

/// Puts files there for the servers to give, and makes room for what they take.
fn files(lab: &Lab) -> Result<()> {
    fs::write(lab.path("ftp/small"), TEXT)?;
    Ok(fs::write(lab.path("tftp/small"), TEXT)?)
}

/// Every way in which the client at `own` can have the file, and one in which it brings one.
fn all_modes(lab: &Lab, node: &str, own: &str, server: &str) -> Result<()> {
    let (base, file) = (format!("ftp://{server}"), lab.path("ftp/small"));
    let mut modes: Vec<Vec<&str>> = vec![vec![], vec!["-P", own]];
    if !own.contains(':') {
        // What IPv4 alone has: PASV and PORT.
        modes.extend([vec!["--disable-epsv"], vec!["-P", own, "--disable-eprt"]]);
    }
    let (small, file) = (format!("{base}/small"), file.to_str().context("a path in UTF-8")?);
    for mode in modes {
        let got = curl(lab, node, own, &[&mode[..], &[&small]].concat()).with_context(|| format!("{base} {mode:?}"))?;
        ensure!(got == TEXT, "{base} {mode:?}: {got}");
    }
    let name = format!("in/by-{node}-{}", own.replace(':', "."));
    for (n, mode) in [&[][..], &["-P", own]].into_iter().enumerate() {
        let name = format!("{name}-{n}");
        curl(lab, node, own, &[mode, &["-T", file, &format!("{base}/{name}")]].concat())
            .with_context(|| format!("{base} {mode:?}, up"))?;
        ensure!(fs::read_to_string(lab.path(&format!("ftp/{name}")))? == TEXT, "{base} {mode:?}: what went up differs");
    }
    Ok(())
}

/// From this one of the client's addresses: servers take no announcement of another one.
fn curl(lab: &Lab, node: &str, own: &str, words: &[&str]) -> Result<String> {
    let command = lab.command(node, &[&["curl", "-sSg", "--max-time", "10", "--interface", own], words].concat())?;
    process::finish(command, Duration::from_secs(15))?.success()
}

/// A file comes, and one goes.
fn tftp(lab: &Lab, node: &str, family: usize, server: &str) -> Result<()> {
    let (flag, down, up) = (["-4", "-6"][family], lab.path(&format!("down{family}")), format!("up{family}"));
    let from = lab.path("tftp/small");
    let server = server.trim_matches(['[', ']']);
    lab.sh(node, &format!("tftp {flag} {server} -m binary -c get small {}", down.display()))?;
    lab.sh(node, &format!("tftp {flag} {server} -m binary -c put {} {up}", from.display()))?;
    ensure!(fs::read_to_string(down)? == TEXT, "{server}: what came down differs");
    ensure!(fs::read_to_string(lab.path(&format!("tftp/{up}")))? == TEXT, "{server}: what went up differs");
    Ok(())
}

#[test]
fn by_fullnat() {
    scenario(&NEEDS, |lab| {
        vsftpd(lab, "rs1")?;
        (0..2).try_for_each(|family| tftpd(lab, "rs1", family))?;
        files(lab)?;
        let keys = |helper: &str| {
            format!("method = \"fullnat\"\npool = [\"10.20.0.200\", \"fd20::200\"]\nhelper = \"{helper}\"")
        };
        let services = dual_service(21, "tcp", "rr", &[("rs1", 1)], 21).replace("method = \"nat\"", &keys("ftp"))
            + &named_service("tftp", 69, "udp", "rr", &[("rs1", 1)], 69).replace("method = \"nat\"", &keys("tftp"));
        let gateway = Setup::new(services).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            all_modes(lab, "client", CLIENT[family], vip)?;
            tftp(lab, "client", family, vip)?;
        }
        // The server has seen nobody but the pool.
        let pools: Vec<std::net::IpAddr> = vec!["10.20.0.200".parse()?, "fd20::200".parse()?];
        let flows = gateway.flows(&[])?;
        ensure!(flows.iter().all(|flow| pools.contains(&flow.reply.dst)), "{flows:?}");
        let data = flows.iter().filter(|flow| !matches!(flow.original.ports.1, 21 | 69)).count();
        ensure!(data >= 14, "{data} connections followed from others: {flows:?}");
        Ok(())
    });
}

#[test]
fn in_a_masquerade() {
    scenario_on("masquerade", &NEEDS, |lab| {
        ["out1", "in2"].iter().try_for_each(|node| vsftpd(lab, node))?;
        (0..2).try_for_each(|family| tftpd(lab, "out1", family))?;
        files(lab)?;
        // Nothing comes in by itself.
        let lan = |name: &str, from: &str, to: &str| {
            format!(
                "[[masquerade]]\nname = \"{name}\"\nfrom = [\"{from}\"]\nto = [\"{to}\"]\n\
                 filtering = \"address-port\"\nhelpers = [\"ftp\", \"tftp\"]\n"
            )
        };
        let forward = |name: &str, listen: &str, to: &str| {
            format!("[[forward]]\nname = \"{name}\"\nlisten = \"{listen}\"\nprotocol = \"tcp\"\nto = \"{to}\"\n")
        };
        let outside = ["203.0.113.100", "2001:db8:f::100"];
        let [in4, in6] = address("in2");
        let tables = lan("lan", "10.40.0.0/24", outside[0])
            + &lan("lan6", "fd40::/64", outside[1])
            + &forward("ftp", &format!("{}:21", outside[0]), &format!("{in4}:21"))
            + &forward("ftp6", &format!("[{}]:21", outside[1]), &format!("[{in6}]:21"));
        let gateway = Setup::new(tables).wan().start(lab)?;
        for (family, outside) in outside.iter().enumerate() {
            let bracketed = |address: &str| if family == 0 { address.to_owned() } else { format!("[{address}]") };
            let server = bracketed(address("out1")[family]);
            all_modes(lab, "in1", address("in1")[family], &server).context("the client inside")?;
            tftp(lab, "in1", family, &server)?;
            all_modes(lab, "out2", address("out2")[family], &bracketed(outside)).context("the server inside")?;
        }
        let flows = gateway.flows(&[])?;
        let outside: Vec<std::net::IpAddr> = outside.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
        ensure!(flows.iter().all(|flow| outside.contains(&flow.reply.dst)), "{flows:?}");
        Ok(())
    });
}
