//! What happens to connections under way when their server is drained, or taken out of the configuration.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::client::{answers, random_file, sha256};
use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::{Running, eventually};
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

/// A download that takes four seconds.
fn slow_download(lab: &Lab, vip: &str, into: &str) -> Result<Running> {
    let mut curl = lab.command("client", &["curl", "-sSgf", "--max-time", "30", "-o"])?;
    curl.arg(lab.path(into)).arg(format!("http://{vip}/slow/original"));
    Running::piped(curl)
}

fn web(servers: &[(&str, u32)]) -> String {
    dual_service(80, "tcp", "rr", servers, 8080)
}

#[test]
fn connections_outlive_their_servers_place() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        random_file(lab, "original", 4)?;
        let gateway = Setup::new(web(&[("rs2", 1)])).start(lab)?;
        let downloads: Vec<Running> = VIPS
            .iter()
            .enumerate()
            .map(|(family, vip)| slow_download(lab, vip, &format!("downloaded{family}")))
            .collect::<Result<_>>()?;
        let under_way = || gateway.flows(&["--state", "ESTABLISHED"]).is_ok_and(|flows| flows.len() == 2);
        eventually("both downloads are under way", PATIENCE, under_way)?;

        // Weight 0: no new flow, old ones go on.
        gateway.reload(lab, &web(&[("rs1", 1), ("rs2", 0), ("rs3", 1)]))?;
        for vip in VIPS {
            let names = answers(lab, vip, 8)?;
            ensure!(!names.iter().any(|name| name == "rs2"), "{names:?}");
        }
        ensure!(under_way(), "a drained server's flows are gone");
        // Not even there any more.
        gateway.reload(lab, &web(&[THREE[0], THREE[2]]))?;
        ensure!(under_way(), "a removed server's flows are gone");
        // And now the whole service.
        gateway.reload(lab, &dual_service(81, "tcp", "rr", &[THREE[0]], 8080))?;
        for (family, download) in downloads.into_iter().enumerate() {
            download.finish(Duration::from_secs(20))?.success()?;
            let copy = sha256(lab, &format!("downloaded{family}"))?;
            ensure!(copy == sha256(lab, "original")?, "the checksums differ");
        }
        Ok(())
    });
}
