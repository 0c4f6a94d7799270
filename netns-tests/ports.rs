//! Ports: translated, ranges of them, all of them.

use anyhow::{Result, ensure};

use crate::client::curl;
use crate::gateway::{Setup, service};
use crate::lab::{Lab, scenario};
use crate::servers::{VIPS, address, nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];

/// The port on which the server saw a request.
fn server_port(lab: &Lab, vip: &str, port: u16) -> Result<u16> {
    Ok(curl(lab, &format!("http://{vip}:{port}/port"))?.success()?.trim().parse()?)
}

fn endpoint(server: &str, family: usize, port: Option<u16>) -> String {
    let address = address(server)[family];
    match (port, family) {
        (None, 0) => address.to_string(),
        (None, _) => format!("[{address}]"),
        (Some(port), 0) => format!("{address}:{port}"),
        (Some(port), _) => format!("[{address}]:{port}"),
    }
}

fn services(ports: &str, server_port: Option<u16>) -> String {
    let one = |family: usize| {
        let server = endpoint("rs1", family, server_port);
        service(&format!("s{family}"), &format!("{}:{ports}", VIPS[family]), "tcp", "rr", &[(&server, 1)])
    };
    one(0) + &one(1)
}

#[test]
fn translated() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[8080])?;
        let gateway = Setup::new(services("80", Some(8080))).start(lab)?;
        for vip in VIPS {
            ensure!(server_port(lab, vip, 80)? == 8080);
            // The server sees the client's own address and port: nat changes the destination only.
            let seen = curl(lab, &format!("http://{vip}/client"))?.success()?;
            let client = seen.split(' ').next().unwrap_or_default().to_string();
            ensure!(["198.51.100.2", "2001:db8:1::2"].contains(&client.as_str()), "the server saw {seen}");
            // Another port is none of the service's.
            let refused = curl(lab, &format!("http://{vip}:81/port"))?;
            ensure!(!refused.status.success(), "port 81 answered: {refused}");
        }
        for flow in gateway.flows(&[])? {
            ensure!((flow.original.ports.1, flow.reply.ports.0) == (80, 8080), "{flow:?}");
            ensure!(flow.original.ports.0 == flow.reply.ports.1, "the client's port changed: {flow:?}");
        }
        Ok(())
    });
}

#[test]
fn range_keeps_ports() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[8000, 8042, 8099])?;
        let _gateway = Setup::new(services("8000-8099", None)).start(lab)?;
        for vip in VIPS {
            for port in [8000, 8042, 8099] {
                ensure!(server_port(lab, vip, port)? == port);
            }
            for port in [7999, 8100] {
                let outside = curl(lab, &format!("http://{vip}:{port}/port"))?;
                ensure!(!outside.status.success(), "port {port} is outside: {outside}");
            }
        }
        Ok(())
    });
}

/// The server's port is where the range begins there.
#[test]
fn range_is_moved() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[9000, 9042, 9099])?;
        let _gateway = Setup::new(services("8000-8099", Some(9000))).start(lab)?;
        for vip in VIPS {
            for port in [8000, 8042, 8099] {
                ensure!(server_port(lab, vip, port)? == port + 1000);
            }
        }
        Ok(())
    });
}

#[test]
fn all_ports() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80, 8080, 65535])?;
        let _gateway = Setup::new(services("*", None)).start(lab)?;
        for vip in VIPS {
            for port in [80, 8080, 65535] {
                ensure!(server_port(lab, vip, port)? == port);
            }
            // The server refuses for itself, through gatun.
            curl(lab, &format!("http://{vip}:81/"))?.exits(7)?;
        }
        Ok(())
    });
}

/// A service on one port goes before one on all ports of the same address.
#[test]
fn one_port_before_all() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[80])?;
        nginx(lab, "rs2", &[80, 8080])?;
        let mut tables = String::new();
        for (family, vip) in VIPS.iter().enumerate() {
            let [rs1, rs2] = ["rs1", "rs2"].map(|server| endpoint(server, family, None));
            tables += &service(&format!("all{family}"), &format!("{vip}:*"), "tcp", "rr", &[(&rs2, 1)]);
            tables += &service(&format!("one{family}"), &format!("{vip}:80"), "tcp", "rr", &[(&rs1, 1)]);
        }
        let _gateway = Setup::new(tables).start(lab)?;
        for vip in VIPS {
            ensure!(curl(lab, &format!("http://{vip}/"))?.success()? == "rs1\n");
            ensure!(curl(lab, &format!("http://{vip}:8080/"))?.success()? == "rs2\n");
        }
        Ok(())
    });
}
