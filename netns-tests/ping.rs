//! A VIP answers ping, although it is on no interface.

use anyhow::ensure;

use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service};

#[test]
fn vip_answers() {
    scenario(&["ping", "curl"], |lab| {
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).start(lab)?;
        for vip in VIPS {
            let vip = vip.trim_matches(['[', ']']);
            for size in ["56", "1400", "6000"] {
                let words = ["ping", "-c", "5", "-i", "0.05", "-W", "2", "-s", size, vip];
                let output = lab.run("client", &words)?;
                ensure!(output.stdout.contains(" 0% packet loss"), "{size} bytes: {output}");
            }
        }
        ensure!(gateway.metric("gatun_replied_total", &[])? >= 20.0, "it was not gatun who answered");
        Ok(())
    });
}
