//! TFTP through `nat`: files come and go over the port that the server chose.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};

use crate::client::{random_file, sha256};
use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, address, dual_service};

/// tftpd-hpa on a node and family, with `tftp/` of the lab's directory.
pub fn tftpd(lab: &Lab, node: &str, family: usize) -> Result<()> {
    let root = lab.path("tftp");
    fs::create_dir_all(&root)?;
    fs::set_permissions(&lab.directory, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777))?;
    let at = match family {
        0 => format!("{}:69", address(node)[0]),
        _ => format!("[{}]:69", address(node)[1]),
    };
    let (root, flag) = (root.to_str().context("a path in UTF-8")?, ["-4", "-6"][family]);
    let words = ["in.tftpd", "-L", flag, "-a", &at, "-c", "-p", "-u", "root", "-s", root];
    lab.keep(node, &format!("tftpd-{node}-{family}"), &words)?;
    eventually(&format!("in.tftpd on {at}"), PATIENCE, || {
        lab.sh(node, "ss -Hnlu 'sport = 69'").is_ok_and(|listening| listening.contains(&at))
    })
}

#[test]
fn get_and_put() {
    scenario(&["in.tftpd", "tftp"], |lab| {
        for (node, _) in THREE {
            (0..2).try_for_each(|family| tftpd(lab, node, family))?;
        }
        random_file(lab, "tftp/original", 1)?;
        let sum = sha256(lab, "tftp/original")?;
        let services =
            dual_service(69, "udp", "rr", &THREE, 69).replace("protocol = ", "helper = \"tftp\"\nprotocol = ");
        let gateway = Setup::new(services).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let vip = vip.trim_matches(['[', ']']);
            let (flag, from) = (["-4", "-6"][family], lab.path("tftp/original"));
            for n in 0..3 {
                let (down, up) = (format!("down{family}{n}"), format!("up{family}{n}"));
                let (into, from) = (lab.path(&down), from.display());
                let get = format!("tftp {flag} {vip} -m binary -c get original {}", into.display());
                let put = format!("tftp {flag} {vip} -m binary -c put {from} {up}");
                lab.sh("client", &get)?;
                lab.sh("client", &put)?;
                ensure!(sha256(lab, &down)? == sum, "{vip}: what came down differs");
                ensure!(sha256(lab, &format!("tftp/{up}"))? == sum, "{vip}: what went up differs");
            }
        }
        let flows = gateway.flows(&["--proto", "udp"])?;
        let (requests, transfers): (Vec<_>, Vec<_>) = flows.iter().partition(|flow| flow.original.ports.1 == 69);
        ensure!((requests.len(), transfers.len()) == (12, 12), "{flows:?}");
        for request in requests {
            let of_it = |flow: &&&crate::flow_line::FlowLine| {
                flow.original.src == request.original.src && flow.original.ports.0 == request.original.ports.0
            };
            let transfer = transfers.iter().find(of_it).context("a request without a transfer")?;
            ensure!(transfer.reply.src == request.reply.src, "another server: {request:?} {transfer:?}");
        }
        Ok(())
    });
}
