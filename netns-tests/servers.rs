//! The real servers: nginx and unbound on `rs1` to `rs4`, and small UDP ones where a test looks at single datagrams.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::{Lab, PATIENCE};
use crate::process::eventually;

/// A node's addresses, by its name: those of servers, and of the hosts inside and outside of topology `masquerade`.
pub fn address(server: &str) -> [&'static str; 2] {
    match server {
        "rs1" => ["10.20.0.11", "fd20::11"],
        "rs2" => ["10.20.0.12", "fd20::12"],
        "rs3" => ["10.20.0.13", "fd20::13"],
        "rs4" => ["10.30.0.14", "fd30::14"],
        "in1" => ["10.40.0.2", "fd40::2"],
        "in2" => ["10.40.0.3", "fd40::3"],
        "out1" => ["198.51.100.2", "2001:db8:1::2"],
        "out2" => ["198.51.100.4", "2001:db8:1::4"],
        other => panic!("no address of {other}"),
    }
}

/// The second addresses of `out1` and `out2`; nobody else has any.
pub fn other_addresses(node: &str) -> Vec<&'static str> {
    match node {
        "out1" => vec!["198.51.100.3", "2001:db8:1::3"],
        "out2" => vec!["198.51.100.5", "2001:db8:1::5"],
        _ => Vec::new(),
    }
}

/// The services' addresses, one of each family, as they stand in URLs and in `listen`.
pub const VIPS: [&str; 2] = ["203.0.113.10", "[2001:db8:f::10]"];

/// The servers of one family with a port, as they stand in `address`.
pub fn endpoints(servers: &[&str], family: usize, port: u16) -> Vec<String> {
    servers
        .iter()
        .map(|server| match family {
            0 => format!("{}:{port}", address(server)[0]),
            _ => format!("[{}]:{port}", address(server)[1]),
        })
        .collect()
}

/// A service of both families over the given servers and weights: one named `service`, one `service6`.
pub fn dual_service(port: u16, protocol: &str, scheduler: &str, servers: &[(&str, u32)], server_port: u16) -> String {
    named_service("service", port, protocol, scheduler, servers, server_port)
}

/// The same under another name.
pub fn named_service(
    name: &str,
    port: u16,
    protocol: &str,
    scheduler: &str,
    servers: &[(&str, u32)],
    server_port: u16,
) -> String {
    let names: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
    let one = |family: usize| {
        let endpoints = endpoints(&names, family, server_port);
        let weighted: Vec<(&str, u32)> =
            endpoints.iter().map(String::as_str).zip(servers.iter().map(|(_, weight)| *weight)).collect();
        let name = format!("{name}{}", ["", "6"][family]);
        crate::gateway::service(&name, &format!("{}:{port}", VIPS[family]), protocol, scheduler, &weighted)
    };
    one(0) + &one(1)
}

/// rs1 to rs3, equally.
pub const THREE: [(&str, u32); 3] = [("rs1", 1), ("rs2", 1), ("rs3", 1)];

/// nginx on a node. `/` answers with the node's name, `/files/` serves and takes (PUT) files of the lab's directory,
/// `/slow/` serves them at 1 MB/s, `/port` and `/client` tell what the server saw.
pub fn nginx(lab: &Lab, node: &str, ports: &[u16]) -> Result<()> {
    let directory = lab.path(&format!("nginx-{node}-{}", ports[0]));
    let work = directory.to_str().context("a path in UTF-8")?;
    let files = lab.directory.to_str().context("a path in UTF-8")?;
    fs::create_dir_all(&directory)?;
    let listen: String =
        ports.iter().map(|port| format!("listen {port} backlog=1024; listen [::]:{port} backlog=1024; ")).collect();
    // One process, which changes no user and owns no file as another one: so it runs in a user namespace, too.
    let config = format!(
        "daemon off; master_process off; user root; pid {work}/pid; error_log {work}/error.log;
         events {{ worker_connections 4096; }}
         http {{
             access_log off; default_type text/plain; keepalive_requests 1000000;
             client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
             uwsgi_temp_path {work}; scgi_temp_path {work};
             client_max_body_size 1g;
             server {{
                 {listen}
                 location / {{ return 200 \"{node}\\n\"; }}
                 location = /port {{ return 200 \"$server_port\\n\"; }}
                 location = /client {{ return 200 \"$remote_addr $remote_port\\n\"; }}
                 location /files/ {{ alias {files}/; dav_methods PUT; }}
                 location /slow/ {{ alias {files}/; limit_rate 1m; }}
             }}
         }}"
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, config)?;
    let name = format!("nginx-{node}");
    let path = path.to_str().context("a path in UTF-8")?;
    lab.keep(node, &name, &["nginx", "-e", &format!("{work}/error.log"), "-c", path])?;
    let url = format!("http://127.0.0.1:{}/", ports[0]);
    eventually(&format!("nginx on {node}"), PATIENCE, || {
        lab.run(node, &["curl", "-sf", "--max-time", "1", &url]).is_ok_and(|curl| curl.status.success())
    })
}

/// nginx on rs1 to rs3, port 8080.
pub fn three_nginx(lab: &Lab) -> Result<()> {
    ["rs1", "rs2", "rs3"].iter().try_for_each(|server| nginx(lab, server, &[8080]))
}

/// unbound on a node: authoritative for `test.`, where `whoami.test.` is the node's name and h0 to h99 have addresses.
pub fn unbound(lab: &Lab, node: &str, port: u16) -> Result<()> {
    unbound_at(lab, node, &["0.0.0.0", "::0"], address(node)[0], port)
}

/// The same on these addresses, one of which is `reached`. From a wildcard address answers leave under the node's own,
/// whatever address was asked.
pub fn unbound_at(lab: &Lab, node: &str, at: &[&str], reached: &str, port: u16) -> Result<()> {
    let interfaces: String = at.iter().map(|address| format!(" interface: {address}@{port}\n")).collect();
    let hosts: String = (0..100).map(|n| format!("local-data: \"h{n}.test. A 192.0.2.{n}\"\n")).collect();
    let config = format!(
        "server:\n{interfaces} access-control: 0.0.0.0/0 allow\n \
         access-control: ::/0 allow\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n \
         module-config: \"iterator\"\n do-not-query-localhost: yes\n so-rcvbuf: 0\n \
         local-zone: \"test.\" static\n local-data: \"whoami.test. TXT {node}\"\n{hosts}remote-control:\n control-enable: no\n"
    );
    let path = lab.path(&format!("unbound-{node}.conf"));
    fs::write(&path, config)?;
    let path = path.to_str().context("a path in UTF-8")?;
    lab.keep(node, &format!("unbound-{node}"), &["unbound", "-c", path, "-d"])?;
    let server = format!("@{reached}");
    eventually(&format!("unbound on {node}"), PATIENCE, || {
        let dig = ["dig", "-p", &port.to_string(), &server, "+time=1", "+tries=1", "+short", "whoami.test.", "TXT"];
        lab.run(node, &dig).is_ok_and(|dig| dig.stdout.contains(node))
    })
}

/// A UDP server on a node, on all of its addresses, that sends every datagram back, until the lab goes.
pub fn udp_echo(lab: &Lab, node: &str, port: u16) -> Result<()> {
    ["0.0.0.0", "[::]"].iter().try_for_each(|address| udp_echo_at(lab, node, &format!("{address}:{port}")))
}

/// The same on one address, which is then the source of what it sends.
pub fn udp_echo_at(lab: &Lab, node: &str, local: &str) -> Result<()> {
    let local: SocketAddr = local.parse()?;
    let socket = lab.inside(node, move || bind_udp(local))??;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // A peer that has gone answers with an ICMP error, which the next call reports.
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    Ok(())
}

/// A UDP socket, of IPv6 alone where its address is.
pub fn bind_udp(local: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(local), socket2::Type::DGRAM, None)?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&local.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(600)))?;
    Ok(socket.into())
}
