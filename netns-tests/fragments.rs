//! Datagrams of 4000 bytes, in three fragments each way.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service, udp_echo};

#[test]
fn udp_4000_both_ways() {
    scenario(&[], |lab| {
        for server in ["rs1", "rs2", "rs3"] {
            udp_echo(lab, server, 9000)?;
        }
        let gateway = Setup::new(dual_service(9000, "udp", "rr", &THREE, 9000)).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:9000").parse()?;
            let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            for client in 0..6_u8 {
                let socket: UdpSocket = lab.inside("client", || UdpSocket::bind(unspecified))??;
                socket.connect(to)?;
                socket.set_read_timeout(Some(Duration::from_secs(3)))?;
                for round in 0..20_u8 {
                    let sent: Vec<u8> = (0..4000_u32).map(|n| (n as u8) ^ client ^ round.rotate_left(3)).collect();
                    socket.send(&sent)?;
                    let mut received = vec![0; 8192];
                    let length = socket.recv(&mut received).with_context(|| format!("{vip}, datagram {round}"))?;
                    ensure!(received[..length] == sent, "{vip}, datagram {round}: other bytes came back");
                }
            }
            let flows = gateway.flows(&["--proto", "udp", "--dst", vip.trim_matches(['[', ']'])])?;
            ensure!(flows.len() == 6, "six sockets, six flows, not {}", flows.len());
        }
        // They were fragments indeed: the client's kernel counts what it made and what it put together.
        for counter in ["IpFragOKs", "Ip6FragOKs", "IpReasmOKs", "Ip6ReasmOKs"] {
            let line = lab.sh("client", &format!("nstat -asz {counter} | grep -w {counter}"))?;
            let count: u64 =
                line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).with_context(|| line.clone())?;
            ensure!(count >= 120, "{line}");
        }
        Ok(())
    });
}
