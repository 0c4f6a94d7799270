//! The Prometheus page: what passed is in it, service by service and server by server.

use anyhow::ensure;

use crate::client::answers;
use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{THREE, VIPS, dual_service, three_nginx};

#[test]
fn count_what_passed() {
    scenario(&["nginx", "curl"], |lab| {
        three_nginx(lab)?;
        let gateway =
            Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).conntrack("max_flows = 5000").start(lab)?;
        for vip in VIPS {
            answers(lab, vip, 30)?;
        }
        for service in ["service", "service6"] {
            let service = format!("service=\"{service}\"");
            ensure!(gateway.metric("gatun_server_flows_admitted_total", &[&service])? == 30.0, "{service}: flows");
        }
        ensure!(
            gateway.metric("gatun_server_flows_admitted_total", &["server=\"10.20.0.12:8080\""])? == 10.0,
            "rs2's flows"
        );
        for direction in ["to_server", "to_client"] {
            let direction = format!("direction=\"{direction}\"");
            let packets = gateway.metric("gatun_server_packets_total", &["service=\"service\"", &direction])?;
            let bytes = gateway.metric("gatun_server_bytes_total", &["service=\"service\"", &direction])?;
            // SYN, ACK, request, FIN, and their answers: four to eight packets a connection and direction.
            ensure!((90.0..=270.0).contains(&packets), "{packets} packets {direction}");
            ensure!(bytes > packets * 40.0, "{bytes} bytes in {packets} packets {direction}");
        }
        ensure!(gateway.metric("gatun_flows", &[])? == gateway.flow_count()? as f64, "the table's size");
        ensure!(gateway.metric("gatun_flows_limit", &[])? >= 5000.0, "the table's limit");
        // Every reason to drop is there from the start, at zero.
        for reason in ["no_service", "no_server", "table_full", "bad_ip_checksum"] {
            gateway.metric("gatun_drops_total", &[&format!("reason=\"{reason}\"")])?;
        }
        // A page that a Prometheus would accept: HELP and TYPE for each family, numbers as values.
        let page = gateway.metrics()?;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().unwrap_or_default();
            ensure!(value.parse::<f64>().is_ok(), "no number: {line}");
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let family = name.strip_suffix("_total").unwrap_or(name);
            ensure!(page.contains(&format!("# TYPE {family} ")), "no TYPE for {line}");
        }
        Ok(())
    });
}
