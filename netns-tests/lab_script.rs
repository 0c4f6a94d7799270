//! `scripts/lab` itself: it replaces topologies, repairs what is half made, and puts servers back as they were.

use std::path::Path;

use anyhow::ensure;

use crate::cleanup::{ensure_same, snapshot_of};
use crate::lab::{Lab, scenario};
use crate::servers::{address, other_addresses};

/// A server that was set up for other methods and then for `nat` is as `up` leaves it.
fn serves_and_undoes(needs: &[&str], server: &str, setup: &[&str]) {
    scenario(needs, |lab| {
        let before = snapshot_of(lab, server)?;
        lab.serve(server, setup)?;
        ensure!(snapshot_of(lab, server)? != before, "{setup:?} changes nothing");
        // Twice is as good as once.
        lab.serve(server, setup)?;
        lab.serve(server, &["nat"])?;
        ensure_same(&before, &snapshot_of(lab, server)?)
    });
}

#[test]
fn direct_is_undone() {
    serves_and_undoes(&[], "rs1", &["direct", "203.0.113.10", "2001:db8:f::10"]);
}

#[test]
fn tunnel_into_the_kernel_is_undone() {
    serves_and_undoes(&["clang", "tc"], "rs2", &["tunnel", "203.0.113.10", "2001:db8:f::10", "--kernel"]);
}

#[test]
fn tunnel_into_real_server_is_undone() {
    serves_and_undoes(&[], "rs4", &["tunnel", "203.0.113.10", "2001:db8:f::10"]);
}

#[test]
fn all_methods_are_undone() {
    let setup = ["nat", "direct", "203.0.113.11", "2001:db8:f::11", "tunnel", "203.0.113.12", "2001:db8:f::12"];
    serves_and_undoes(&[], "rs1", &setup);
}

fn is_there(lab: &Lab, node: &str) -> bool {
    Path::new("/run/netns").join(lab.netns(node)).exists()
}

#[test]
fn up_makes_the_topology_that_it_is_asked_for() {
    scenario(&["ping"], |lab| {
        let reaches = |server: &str| lab.sh("client", &format!("ping -c 1 -W 2 {server}")).map(drop);
        reaches("10.30.0.14")?;
        // A program that is left in it goes with it, and the next topology comes.
        let left = lab.start("rs4", &["sleep", "1000"])?;
        lab.script(&["up", "bridged"])?;
        ensure!(!left.finish(crate::lab::PATIENCE)?.status.success(), "a program outlives its node");
        ensure!(!is_there(lab, "rs4"), "bridged has no rs4");
        // Servers of bridged reply by the gateway, which is not there; one set up for direct does not need it.
        lab.serve("rs1", &["direct", "203.0.113.10"])?;
        reaches("10.20.0.11")?;
        ensure!(reaches("10.20.0.12").is_err(), "rs2 replies past the gateway");
        lab.script(&["serve", "rs4", "nat"]).err().map_or_else(|| anyhow::bail!("rs4 serves"), |_| Ok(()))?;
        // What is up already stays.
        let mut running = lab.start("rs3", &["sleep", "1000"])?;
        lab.script(&["up", "bridged"])?;
        ensure!(running.alive(), "a lab that is up was made again");
        // What is half made is made anew.
        lab.sh("gw", "ip link set lo alias ''")?;
        lab.script(&["up", "bridged"])?;
        ensure!(
            lab.sh("rs1", "ip addr show dev lo")?.lines().all(|line| !line.contains("203.0.113.10")),
            "not made anew"
        );
        lab.script(&["up"])?;
        reaches("10.30.0.14")?;
        lab.script(&["up", "masquerade"])?;
        ensure!(!is_there(lab, "client") && !is_there(lab, "rs1"), "masquerade has no client and no servers");
        for side in [["in1", "in2"], ["out1", "out2"]] {
            for address in address(side[1]).into_iter().chain(other_addresses(side[1])) {
                lab.sh(side[0], &format!("ping -c 1 -W 2 {address}"))?;
            }
        }
        // Whatever gw forwards: without a translation there is no way back.
        lab.sh("gw", "sysctl -qw net.ipv4.ip_forward=1")?;
        lab.sh("in1", "ping -c 1 -W 2 198.51.100.1")?;
        ensure!(lab.sh("in1", "ping -c 1 -W 1 198.51.100.2").is_err(), "out1 knows a way inside");
        Ok(())
    });
}
