//! One service, one page, servers reached by every method.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::capture::{Capture, endpoints, packets};
use crate::client::{answers, spread};
use crate::gateway::{Setup, service};
use crate::lab::{Lab, scenario};
use crate::one_way::{Way, bare};
use crate::servers::{VIPS, endpoints as servers, nginx};

/// The servers, and the lines that their tables have besides address and weight.
fn members() -> [(&'static str, String); 4] {
    [
        ("rs1", "  method = \"nat\"\n".to_string()),
        ("rs2", Way::Direct.server_lines()),
        ("rs3", Way::Kernel("ipip").server_lines()),
        ("rs4", Way::Kernel("gue").server_lines()),
    ]
}

fn services() -> String {
    let one = |family: usize| {
        let names = members().map(|(name, _)| name);
        let addresses = servers(&names, family, 80);
        let listen = format!("{}:80", VIPS[family]);
        let mut table = service(["service", "service6"][family], &listen, "tcp", "rr", &[]);
        for (address, (_, lines)) in addresses.iter().zip(members()) {
            table += &format!("\n  [[service.server]]\n  address = \"{address}\"\n{lines}");
        }
        table
    };
    one(0) + &one(1)
}

fn serve(lab: &Lab) -> Result<()> {
    Way::Direct.serve(lab, "rs2")?;
    Way::Kernel("ipip").serve(lab, "rs3")?;
    Way::Kernel("gue").serve(lab, "rs4")?;
    members().iter().try_for_each(|(server, _)| nginx(lab, server, &[80]))
}

#[test]
fn nat_direct_and_tunnel() {
    scenario(&Way::Kernel("ipip").needs(&["nginx", "curl"]), |lab| {
        serve(lab)?;
        let gateway = Setup::new(services()).start(lab)?;
        let file = lab.path("crossing.pcap");
        let capture = Capture::of_interface(&lab.netns("gw"), "eth0", &file)?;
        for vip in VIPS {
            let names = answers(lab, vip, 20)?;
            ensure!(spread(&names) == BTreeMap::from([("rs1", 5), ("rs2", 5), ("rs3", 5), ("rs4", 5)]), "{names:?}");
            for method in ["nat", "direct", "tunnel"] {
                let flows = gateway.flows(&["--method", method, "--dst", bare(vip)])?;
                ensure!(flows.len() == if method == "tunnel" { 10 } else { 5 }, "{method}: {flows:?}");
                ensure!(flows.iter().all(|flow| flow.unreplied == (method != "nat")), "{method}: {flows:?}");
            }
        }
        // Of the four only rs1 answers by way of the gateway: a SYN-ACK for each of its connections.
        drop(capture);
        let packets = packets(&file)?;
        let mut replied: Vec<_> = packets
            .iter()
            .filter_map(|packet| endpoints(packet))
            .filter(|(from, _)| from.port() == 80)
            .map(|(_, to)| to)
            .collect();
        replied.sort_unstable();
        replied.dedup();
        ensure!(replied.len() == 10, "replies to {} connections cross the gateway: {replied:?}", replied.len());
        Ok(())
    });
}
