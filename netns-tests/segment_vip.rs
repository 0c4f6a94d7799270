//! A VIP on the client's own segment: nobody routes to it, so gatun has to answer for it (ARP, NDP).

use anyhow::{Result, ensure};

use crate::client::{answers, spread};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

const ON_SEGMENT: [&str; 2] = ["198.51.100.50", "[2001:db8:1::50]"];

fn services() -> String {
    dual_service(80, "tcp", "rr", &THREE, 8080)
        .replace(VIPS[0], ON_SEGMENT[0])
        .replace("2001:db8:f::10", "2001:db8:1::50")
}

/// The link address under which the client knows an address.
fn neighbour(lab: &Lab, address: &str) -> Result<String> {
    let line = lab.sh("client", &format!("ip neigh show {address}"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "lladdr");
    Ok(words.nth(1).unwrap_or_default().to_string())
}

fn uplink_mac(lab: &Lab) -> Result<String> {
    Ok(lab
        .sh("gw", "cat /proc/self/net/dev >/dev/null; ip -o link show eth0 | sed 's/.*ether //; s/ .*//'")?
        .trim()
        .to_string())
}

#[test]
fn is_answered_for() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let _gateway = Setup::new(services()).start(lab)?;
        for vip in ON_SEGMENT {
            let names = answers(lab, vip, 9)?;
            ensure!(spread(&names).values().all(|n| *n == 3), "{names:?}");
            ensure!(neighbour(lab, vip.trim_matches(['[', ']']))? == uplink_mac(lab)?, "another link address");
        }
        // For nothing else.
        for (stranger, ping) in [("198.51.100.51", "-4"), ("2001:db8:1::51", "-6")] {
            let ping = lab.run("client", &["ping", ping, "-c", "1", "-W", "1", stranger])?;
            ensure!(!ping.status.success() && neighbour(lab, stranger)?.is_empty(), "{stranger} was answered for");
        }
        Ok(())
    });
}

/// At take-over the segment hears who has the VIP now: a client that knew another owner changes its mind.
#[test]
fn take_over_is_announced() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        for vip in ON_SEGMENT {
            let vip = vip.trim_matches(['[', ']']);
            lab.sh("client", &format!("ip neigh replace {vip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"))?;
        }
        let _gateway = Setup::new(services()).start(lab)?;
        let mac = uplink_mac(lab)?;
        for vip in ON_SEGMENT {
            let vip = vip.trim_matches(['[', ']']);
            crate::process::eventually(&format!("{vip} is announced"), std::time::Duration::from_secs(5), || {
                neighbour(lab, vip).is_ok_and(|known| known == mac)
            })?;
        }
        Ok(())
    });
}
