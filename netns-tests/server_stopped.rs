//! A server that stops: its share is refused, nothing hangs, the others go on; without weight it is asked no more.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::{answers, curl};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, named_service, three_nginx};

/// Six requests: how many were answered and how many refused. Another end, or a slow one, is an error.
fn outcomes(lab: &Lab, vip: &str) -> Result<(usize, usize)> {
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..6 {
        let begin = Instant::now();
        let finished = curl(lab, &format!("http://{vip}/"))?;
        ensure!(begin.elapsed() < Duration::from_secs(2), "took {:?}: {finished}", begin.elapsed());
        match finished.status.code() {
            Some(0) => answered += 1,
            Some(7) => refused += 1,
            _ => anyhow::bail!("neither answered nor refused: {finished}"),
        }
    }
    Ok((answered, refused))
}

#[test]
fn refuses_and_is_drained() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let services = |rs2| dual_service(80, "tcp", "rr", &[THREE[0], ("rs2", rs2), THREE[2]], 8080);
        let gateway = Setup::new(services(1)).start(lab)?;
        for vip in VIPS {
            ensure!(outcomes(lab, vip)? == (6, 0));
        }
        lab.end("nginx-rs2")?;
        for vip in VIPS {
            // The server's kernel answers the SYN with a RST, which has to reach the client.
            ensure!(outcomes(lab, vip)? == (4, 2), "two of six are rs2's");
        }
        gateway.reload(lab, &services(0))?;
        for vip in VIPS {
            ensure!(outcomes(lab, vip)? == (6, 0), "rs2 has no weight");
        }
        Ok(())
    });
}

/// A server that lost its link answers nothing at all: clients time out, but the others' do not notice.
#[test]
fn silent_server_hurts_nobody_else() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let services = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)
            + &named_service("silent", 81, "tcp", "rr", &[("rs2", 1)], 8080);
        let _gateway = Setup::new(services).start(lab)?;
        lab.sh("gw", "ip link set lan-rs2 down")?;
        for vip in VIPS {
            let url = format!("http://{vip}:81/");
            let silent = lab.start("client", &["curl", "-sg", "--max-time", "3", &url])?;
            let begin = Instant::now();
            answers(lab, vip, 20)?;
            ensure!(begin.elapsed() < Duration::from_secs(3), "twenty requests took {:?}", begin.elapsed());
            silent.finish(Duration::from_secs(6))?;
        }
        Ok(())
    });
}
