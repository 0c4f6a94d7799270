//! Mode "tap": a server that is not there. It does not answer ARP or NDP, so its clients are told, soon, and it is counted;
//! once it is back, it is found within a second or two.

use std::time::Instant;

use anyhow::ensure;

use crate::client::{answers, curl};
use crate::gateway::Setup;
use crate::lab::{PATIENCE, scenario_on};
use crate::process::eventually;
use crate::servers::{VIPS, dual_service, nginx};

#[test]
fn clients_are_told() {
    scenario_on("bridged", &["nginx", "curl"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        lab.sh("rs1", "ip link set eth0 down")?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).tap().start(lab)?;
        for vip in VIPS {
            let asked = Instant::now();
            let told = curl(lab, &format!("http://{vip}/"))?;
            // 7: it could not connect; 28 would be that it waited in vain.
            ensure!(told.status.code() == Some(7), "{vip}: {told}");
            ensure!(asked.elapsed().as_secs() < 5, "{vip}: told after {:?}", asked.elapsed());
            // From then on at once.
            let asked = Instant::now();
            ensure!(curl(lab, &format!("http://{vip}/"))?.status.code() == Some(7), "{vip}");
            ensure!(asked.elapsed().as_millis() < 900, "{vip}: told after {:?}", asked.elapsed());
        }
        let reason = "reason=\"neighbour_unreachable\"";
        ensure!(gateway.metric("gatun_drops_total", &[reason])? >= 4.0, "it is not counted");
        let list = gateway.gatun(&["neighbour", "list"])?.success()?;
        let of_server =
            |list: &str| list.lines().filter(|line| line.contains("0.11 ") || line.contains("::11 ")).count();
        ensure!(of_server(&list) == 2 && list.matches("failed").count() == 2, "{list}");

        // Its default routes went with the link.
        lab.sh(
            "rs1",
            "ip link set eth0 up; ip addr replace fd20::11/64 dev eth0 nodad
             ip route replace default via 10.20.0.2; ip route replace default via fd20::2",
        )?;
        for vip in VIPS {
            eventually(&format!("{vip} is served again"), PATIENCE, || answers(lab, vip, 1).is_ok())?;
        }
        Ok(())
    });
}
