//! What gatun changes on the host it undoes: at exit, after a crash at the next start, and when a start fails.

use anyhow::{Result, ensure};

use crate::client::answers;
use crate::gateway::{Gateway, Setup, gatun, state_dir};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];

fn web() -> String {
    dual_service(80, "tcp", "rr", &THREE, 8080)
}

/// Everything of the host that gatun could have changed: links, addresses, rules, routes, proxy neighbours, sysctls.
pub fn snapshot(lab: &Lab) -> Result<String> {
    snapshot_of(lab, "gw")
}

/// The same of any node.
pub fn snapshot_of(lab: &Lab, node: &str) -> Result<String> {
    let sh = |script: &str| lab.sh(node, &script.replace("STATE", &state_dir(lab).to_string_lossy()));
    sh(
        // The kernel's own entries for a moment (expires, cache) are none of ours.
        "ip -o link | sed 's/ qlen .*//'
         ip -o addr | sed 's/valid_lft.*//'
         ip rule; ip -6 rule
         ip route show table all; ip -6 route show table all | grep -v expires
         ip neigh show proxy; ip -6 neigh show proxy
         sysctl -a 2>/dev/null | grep -E '^net\\.(ipv[46]\\.(conf|neigh|ip_|route\\.)|core)' |
             grep -vE 'stable_secret|mtu_expires|nf_conntrack|netdev_rss|gc_|base_reachable'
         ls STATE 2>/dev/null || true",
    )
}

/// Fails unless two snapshots are equal, and says in which lines they differ.
pub fn ensure_same(before: &str, after: &str) -> Result<()> {
    let lines = |text: &str| text.lines().map(str::to_string).collect::<std::collections::BTreeSet<_>>();
    let (old, new) = (lines(before), lines(after));
    let gone: Vec<_> = old.difference(&new).collect();
    let left: Vec<_> = new.difference(&old).collect();
    ensure!(gone.is_empty() && left.is_empty(), "left behind: {left:#?}\nnot put back: {gone:#?}");
    Ok(())
}

fn works(lab: &Lab) -> Result<()> {
    VIPS.iter().try_for_each(|vip| answers(lab, vip, 6).map(drop))
}

/// It has to change something, or the comparison says nothing.
fn changed(lab: &Lab, before: &str) -> Result<()> {
    ensure!(snapshot(lab)? != before, "a running gateway changes rules, routes and sysctls");
    Ok(())
}

#[test]
fn after_a_clean_exit() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(web()).start(lab)?;
        works(lab)?;
        changed(lab, &before)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

#[test]
fn after_a_crash_and_a_restart() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(web()).start(lab)?;
        works(lab)?;
        gateway.crash();
        gateway.restart(lab)?;
        works(lab)?;
        gateway.crash();
        gateway.restart(lab)?;
        works(lab)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// The next start knows nothing of the services that the killed one had.
#[test]
fn after_a_crash_and_a_start_with_other_services() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(web()).start(lab)?;
        gateway.crash();
        gateway.rewrite(lab, &dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080))?;
        gateway.restart(lab)?;
        works(lab)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// Reloads add rules and routes. Those of a removed service stay for its old flows, and go soon after the last one.
#[test]
fn after_reloads() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let before = snapshot(lab)?;
        let gateway = Setup::new(web()).start(lab)?;
        let at_start = snapshot(lab)?;
        let elsewhere = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080).replace("203.0.113.10", "203.0.113.11");
        gateway.reload(lab, &elsewhere)?;
        answers(lab, "203.0.113.11", 3)?;
        gateway.reload(lab, &web())?;
        works(lab)?;
        ensure!(snapshot(lab)?.contains("203.0.113.11"), "its flows are in TIME_WAIT still");
        gateway.gatun(&["conntrack", "flush"])?.success()?;
        let gone = || snapshot(lab).is_ok_and(|now| !now.contains("203.0.113.11"));
        eventually("the routes go with the last flow", PATIENCE, gone)?;
        works(lab)?;
        ensure_same(&at_start, &snapshot(lab)?)?;
        gateway.stop()?;
        ensure_same(&before, &snapshot(lab)?)
    });
}

fn start_fails(lab: &Lab, setup: &Setup, because: &str) -> Result<()> {
    let config = setup.write(lab)?;
    let failed = gatun(lab, &["run", "-c", &config.to_string_lossy()])?;
    ensure!(failed.status.code() == Some(1), "{failed}");
    ensure!(failed.stderr.contains(because), "\"{because}\" was expected: {failed}");
    Ok(())
}

#[test]
fn after_a_failed_start() {
    scenario(&NEEDS, |lab| {
        // Somebody else's device of that name, which is no TUN.
        lab.sh("gw", "ip link add gatun0 type bridge")?;
        let before = snapshot(lab)?;
        start_fails(lab, &Setup::new(web()), "gatun0")?;
        ensure_same(&before, &snapshot(lab)?)?;
        // An address of the control socket where nothing can be made.
        let setup = Setup::new(web()).device("gatun1", 9109).gateway("queues = 1");
        let config = setup.write(lab)?;
        let text = std::fs::read_to_string(&config)?.replace("control = \"", "control = \"/proc/none");
        std::fs::write(&config, text)?;
        let failed = gatun(lab, &["run", "-c", &config.to_string_lossy()])?;
        ensure!(failed.status.code() == Some(1), "{failed}");
        ensure_same(&before, &snapshot(lab)?)
    });
}

/// `--print-routes` prints what `run` would do; done by hand, `--no-routes` works the same.
#[test]
fn by_hand_instead() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let setup = Setup::new(web()).argument("--no-routes");
        let config = setup.write(lab)?;
        let commands = gatun(lab, &["run", "-c", &config.to_string_lossy(), "--print-routes"])?.success()?;
        let before = snapshot(lab)?;
        let gateway: std::rc::Rc<Gateway> = setup.start(lab)?;
        lab.sh("gw", &commands)?;
        works(lab)?;
        gateway.stop()?;
        // Without its device only what the operator did is left, and none of that is gatun's to undo.
        ensure!(snapshot(lab)? != before, "the operator's sysctls were undone");
        Ok(())
    });
}
