//! A gateway that is started by the first service, and stops by itself.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Node;
use crate::lab::{PATIENCE, scenario, scenario_on};
use crate::process::{Running, eventually};

const EMPTY: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
                     Prot LocalAddress:Port Scheduler Flags\n  \
                     -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n";

#[test]
fn first_calls_at_a_time_start_one_gateway_that_stops_when_its_table_is_empty() {
    scenario(&[], |lab| {
        let node = Node::new(lab, "gw")?.idle(1);
        ensure!(node.sh("ipvsadm -Ln; ipvsadm -C; ipvsadm -Z")? == EMPTY, "without a gateway the table is empty");
        ensure!(node.gateways() == 0, "listing and clearing start nothing");
        let missing = node.run("ipvsadm -a -t 203.0.113.10:1 -r 10.20.0.11 -m")?.exits(255)?;
        ensure!(missing.stderr == "Service not defined\n", "{missing}");

        let calls: Vec<Running> = (1..=8)
            .map(|port| {
                let add = format!("ipvsadm -A -t 203.0.113.10:{port} && ping -qc1 -W5 203.0.113.10");
                Running::piped(node.command(&["sh", "-ec", &add])?)
            })
            .collect::<Result<_>>()?;
        for call in calls {
            call.finish(PATIENCE)?.success()?;
        }
        let table = node.sh("ipvsadm -Sn")?;
        ensure!(table.lines().count() == 8, "{table}");
        ensure!(node.gateways() == 1, "{} gateways", node.gateways());
        let services = node.sh(&format!("{} service list", crate::gateway::binary().display()))?;
        ensure!(services.contains("203.0.113.10:8 "), "gatun's own commands find it as well: {services}");

        for round in 0..3 {
            node.sh("ipvsadm -C")?;
            let gone = || node.gateways() == 0 && lab.sh("gw", "ip link show gatun0").is_err();
            // A call that comes while the gateway stops waits for that, and starts the next one.
            if round > 0 {
                eventually("the gateway has stopped", Duration::from_secs(10), gone)?;
            } else {
                std::thread::sleep(Duration::from_millis(1450));
            }
            node.sh("ipvsadm -A -t 203.0.113.10:80; ipvsadm -Ln -t 203.0.113.10:80")?;
        }
        node.sh("ipvsadm -D -t 203.0.113.10:80")?;
        eventually("the gateway has stopped", Duration::from_secs(10), || node.gateways() == 0)?;
        let rules = lab.sh("gw", "ip rule; ip route show table all")?;
        ensure!(!rules.contains("gatun") && !rules.contains("203.0.113.10"), "{rules}");
        ensure!(node.sh("ipvsadm -Ln")? == EMPTY);
        Ok(())
    });
}

#[test]
fn timeouts_that_were_set_are_kept_and_another_name_of_the_gateway_counts() {
    scenario(&[], |lab| {
        let node = Node::new(lab, "gw")?.idle(1);
        node.sh("ipvsadm --set 60 10 5; ipvsadm -A -t 203.0.113.10:80; ipvsadm -C")?;
        std::thread::sleep(Duration::from_secs(2));
        let timeouts = node.sh("ipvsadm -L --timeout")?;
        ensure!(timeouts == "Timeout (tcp tcpfin udp): 60 10 5\n", "{timeouts}");
        let nobody = node.run("GATUN_CONTROL=/nonexistent/sock ipvsadm -A -t 203.0.113.10:81")?.exits(1)?;
        ensure!(nobody.stderr.starts_with("no gateway answers on /nonexistent/sock"), "{nobody}");
        let other = node.run("ipvsadm --control=/nonexistent/sock -Ln")?.exits(1)?;
        ensure!(other.stdout.is_empty(), "{other}");
        Ok(())
    });
}

#[test]
fn a_gateway_in_a_namespace_that_lost_its_links_stops() {
    scenario_on("bare", &[], |lab| {
        let node = Node::new(lab, "gw")?;
        node.sh("ip link set lo up; ip link add v0 type veth peer name v1; ipvsadm -A -t 203.0.113.10:80")?;
        ensure!(node.gateways() == 1);
        // It looks twice a second.
        std::thread::sleep(Duration::from_millis(2500));
        node.sh("ip link del v0")?;
        // Ten seconds after that.
        eventually("the gateway has stopped", Duration::from_secs(20), || node.gateways() == 0)
    });
}
