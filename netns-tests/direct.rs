//! Method `direct` in TUN mode: servers on the gateway's segment, who answer the client themselves.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::{answers, curl, spread};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::one_way::{self, Way};
use crate::process::eventually;
use crate::servers::{VIPS, nginx};

#[test]
fn http() {
    one_way::http(Way::Direct);
}

#[test]
fn bulk() {
    one_way::bulk(Way::Direct);
}

#[test]
fn dns() {
    one_way::dns(Way::Direct);
}

#[test]
fn ping() {
    one_way::ping(Way::Direct);
}

#[test]
fn expiry() {
    one_way::expiry(Way::Direct);
}

#[test]
fn narrow_way_to_the_client() {
    one_way::narrow_way_to_the_client(Way::Direct);
}

#[test]
fn fragments() {
    one_way::fragments(Way::Direct);
}

/// A server lost its link, and nobody answers ARP or NDP for it. Who was sent there is told within seconds, and after
/// that nobody is sent there any more, until it is back.
#[test]
fn server_without_link() {
    scenario(&["nginx", "curl"], |lab| {
        for server in Way::Direct.servers() {
            Way::Direct.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        lab.sh("gw", "ip link set lan-rs2 down")?;
        let _gateway = Setup::new(Way::Direct.services(80, "tcp", Way::Direct.servers())).start(lab)?;
        for vip in VIPS {
            // One of these three is rs2's.
            let refused = (0..3).map(|_| refused(lab, vip)).collect::<Result<Vec<_>>>()?;
            ensure!(refused.iter().filter(|refused| **refused).count() <= 1, "{vip}: {refused:?}");
            let names = answers(lab, vip, 8)?;
            ensure!(!spread(&names).contains_key("rs2") && spread(&names).len() == 2, "{vip}: {names:?}");
        }
        lab.sh("gw", "ip link set lan-rs2 up")?;
        for vip in VIPS {
            eventually("rs2 is asked again", Duration::from_secs(20), || {
                answers(lab, vip, 3).is_ok_and(|names| spread(&names).contains_key("rs2"))
            })?;
        }
        Ok(())
    });
}

/// A server that goes while it is in use: the kernel believes in its MAC address for some time yet.
#[test]
fn server_loses_link() {
    scenario(&["nginx", "curl"], |lab| {
        for server in Way::Direct.servers() {
            Way::Direct.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        let _gateway = Setup::new(Way::Direct.services(80, "tcp", Way::Direct.servers())).start(lab)?;
        for vip in VIPS {
            answers(lab, vip, 6)?;
        }
        lab.sh("gw", "ip link set lan-rs2 down")?;
        for vip in VIPS {
            // REACHABLE lasts up to 45 s, DELAY 5 s, three probes 3 s (Linux, net/core/neighbour.c).
            let left_out = || answers(lab, vip, 6).is_ok_and(|names| spread(&names).len() == 2);
            eventually("rs2 is left out", Duration::from_secs(60), left_out)?;
        }
        Ok(())
    });
}

/// A gateway that had no server of this method gets its first ones by a reload, while clients come.
#[test]
fn first_servers_by_reload() {
    scenario(&["nginx", "curl"], |lab| {
        for server in Way::Direct.servers() {
            Way::Direct.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        let gateway = Setup::new("").start(lab)?;
        gateway.reload(lab, &Way::Direct.services(80, "tcp", Way::Direct.servers()))?;
        for vip in VIPS {
            // No wait: a SYN that comes before the server is found comes again after a second.
            ensure!(spread(&answers(lab, vip, 6)?).len() == 3, "not all servers got their share");
        }
        Ok(())
    });
}

/// Whether a request was refused; it is that, or answered, but it may not just time out.
pub fn refused(lab: &Lab, vip: &str) -> Result<bool> {
    let begin = Instant::now();
    let finished = curl(lab, &format!("http://{vip}/"))?;
    ensure!(matches!(finished.status.code(), Some(0 | 7)), "neither answered nor refused: {finished}");
    ensure!(begin.elapsed() < Duration::from_millis(4500), "took {:?}: {finished}", begin.elapsed());
    Ok(!finished.status.success())
}
