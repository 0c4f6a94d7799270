//! Mode "tap": a server that is not there. It does not answer ARP or NDP, so its clients are told, soon, and it is counted;
//! once it is back, it is found within a second or two.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::client::{answers, curl};
use crate::gateway::Setup;
use crate::lab::{PATIENCE, scenario_on};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, dual_service, nginx, three_nginx};

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
        // The first waited for the server's MAC; those after it found no server to be had.
        for (reason, least) in [("neighbour_unreachable", 1.0), ("no_server", 1.0)] {
            let counted = gateway.metric("gatun_drops_total", &[&format!("reason=\"{reason}\"")])?;
            ensure!(counted >= least, "{reason} is counted {counted} times");
        }
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

/// It dies in the midst of everything: within some seconds new connections go to the others, and come back when it does.
#[test]
fn others_take_over() {
    scenario_on("bridged", &["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).tap().start(lab)?;
        VIPS.iter().try_for_each(|vip| answers(lab, vip, 3).map(drop))?;
        lab.sh("rs2", "ip link set eth0 down")?;
        let marked =
            || gateway.gatun(&["status"]).is_ok_and(|status| status.stdout.matches("unreachable").count() >= 2);
        eventually("the server is marked", Duration::from_secs(12), marked)?;
        for vip in VIPS {
            let names = answers(lab, vip, 6)?;
            ensure!(!names.contains(&"rs2".to_string()), "{names:?}");
        }
        lab.sh(
            "rs2",
            "ip link set eth0 up; ip addr replace fd20::12/64 dev eth0 nodad
             ip route replace default via 10.20.0.2; ip route replace default via fd20::2",
        )?;
        for vip in VIPS {
            let back = || answers(lab, vip, 3).is_ok_and(|names| names.contains(&"rs2".to_string()));
            eventually("the server serves again", Duration::from_secs(5), back)?;
        }
        ensure!(gateway.log_text().contains("can be reached again"), "the log does not tell of it");
        Ok(())
    });
}
