//! Method `tunnel`: servers on the gateway's segment and behind a router, who take the wrapping off and answer the client
//! themselves. Each wrapping against a kernel that shares no code with gatun, and against `gatun real-server`.

use anyhow::{Result, ensure};

use crate::client::{answers, spread};
use crate::direct::refused;
use crate::gateway::Setup;
use crate::lab::scenario;
use crate::one_way::{self, Way};
use crate::servers::{VIPS, nginx};

macro_rules! one_way {
    ($($name:ident: $scenario:ident, $way:expr;)*) => {
        $(
            #[test]
            fn $name() {
                one_way::$scenario($way);
            }
        )*
    };
}

one_way! {
    // IPv4 in IPv4 and IPv6 in IPv6; crossed: IPv4 in IPv6 and IPv6 in IPv4.
    http_to_kernel: http, Way::Kernel("ipip");
    http_to_kernel_crossed: http, Way::KernelCrossed("ipip");
    http_to_kernel_gue: http, Way::Kernel("gue");
    http_to_kernel_gue_crossed: http, Way::KernelCrossed("gue");
    http_to_real_server: http, Way::RealServer("ipip");
    http_to_real_server_gue: http, Way::RealServer("gue");
    bulk_to_kernel: bulk, Way::Kernel("ipip");
    bulk_to_kernel_crossed: bulk, Way::KernelCrossed("ipip");
    bulk_to_kernel_gue: bulk, Way::Kernel("gue");
    bulk_to_real_server: bulk, Way::RealServer("ipip");
    bulk_to_real_server_gue: bulk, Way::RealServer("gue");
    dns_to_kernel: dns, Way::Kernel("ipip");
    dns_to_real_server: dns, Way::RealServer("ipip");
    dns_to_real_server_gue: dns, Way::RealServer("gue");
    ping: ping, Way::Kernel("ipip");
    expiry: expiry, Way::Kernel("ipip");
    narrow_way_to_the_client: narrow_way_to_the_client, Way::Kernel("ipip");
    narrow_way_to_the_client_crossed: narrow_way_to_the_client, Way::KernelCrossed("gue");
    narrow_way_to_the_client_of_real_server: narrow_way_to_the_client, Way::RealServer("ipip");
    fragments: fragments, Way::Kernel("ipip");
    fragments_to_real_server: fragments, Way::RealServer("gue");
}

/// The server behind the router lost its link: the router's "host unreachable" is about a packet of the gateway's, and
/// has to reach the client whose packet was in it. The others go on.
#[test]
fn server_behind_the_router_without_link() {
    let way = Way::Kernel("ipip");
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        for server in ["rs1", "rs4"] {
            way.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        let _gateway = Setup::new(way.services(80, "tcp", &["rs1", "rs4"])).start(lab)?;
        for vip in VIPS {
            ensure!(spread(&answers(lab, vip, 4)?).len() == 2, "both answer");
        }
        lab.sh("rs4", "ip link set eth0 down")?;
        for vip in VIPS {
            let refused = (0..4).map(|_| refused(lab, vip)).collect::<Result<Vec<_>>>()?;
            ensure!(refused.iter().filter(|refused| **refused).count() == 2, "two of four are rs4's: {refused:?}");
        }
        Ok(())
    });
}

/// The same of a server on the segment: it is the gateway's own kernel that finds nobody there.
#[test]
fn server_on_the_segment_without_link() {
    let way = Way::Kernel("ipip");
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        for server in ["rs1", "rs2"] {
            way.serve(lab, server)?;
            nginx(lab, server, &[80])?;
        }
        lab.sh("gw", "ip link set lan-rs2 down")?;
        let _gateway = Setup::new(way.services(80, "tcp", &["rs1", "rs2"])).start(lab)?;
        for vip in VIPS {
            let refused = (0..4).map(|_| refused(lab, vip)).collect::<Result<Vec<_>>>()?;
            ensure!(refused.iter().filter(|refused| **refused).count() == 2, "two of four are rs2's: {refused:?}");
        }
        Ok(())
    });
}
