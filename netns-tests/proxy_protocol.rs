//! The PROXY protocol with real receivers: nginx and HAProxy learn who the client is, in both versions and over both families.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::{download, random_file, sha256, upload};
use crate::gateway::{Setup, service};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::eventually;
use crate::servers::{VIPS, address, endpoints, nginx};

const CLIENT: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];
/// Where all of them take connections that begin with a header.
const PORT: u16 = 8080;
/// Where nginx takes others.
const PLAIN: u16 = 8081;

/// Port of the VIPs, version, server. Of what rs3 serves, the server speaks first.
const SERVICES: [(u16, &str, &str); 5] =
    [(80, "v1", "rs1"), (81, "v2", "rs1"), (82, "v1", "rs2"), (83, "v2", "rs2"), (84, "v1", "rs3")];

/// Servers see the client's address in the header alone.
const METHOD: &str = "\"fullnat\"\npool = [\"10.20.0.200\", \"fd20::200\"]";

const CHECK: &str = "check = { type = \"http\", path = \"/client\", interval = \"200ms\", timeout = \"2s\", rise = 1, fall = 2, via = \"path\" }";

fn services() -> String {
    let one = |(port, version, server): (u16, &str, &str), family: usize| {
        let (listen, at) = (format!("{}:{port}", VIPS[family]), endpoints(&[server], family, PORT).remove(0));
        let check = if server == "rs3" { "" } else { CHECK };
        let keys = format!("proxy_protocol = \"{version}\"\n{check}\nprotocol = ");
        let name = format!("told{port}-{family}");
        service(&name, &listen, "tcp", "rr", &[(&at, 1)]).replace("protocol = ", &keys).replace("\"nat\"", METHOD)
    };
    SERVICES.iter().flat_map(|of| [one(*of, 0), one(*of, 1)]).collect()
}

/// nginx on rs1: what it is told, and files.
fn told_nginx(lab: &Lab) -> Result<()> {
    let directory = lab.path("told");
    fs::create_dir_all(&directory)?;
    let (work, files) = (directory.display(), lab.directory.display());
    let config = format!(
        "daemon off; master_process off; user root; pid {work}/pid; error_log {work}/error.log;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; default_type text/plain;
             client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
             uwsgi_temp_path {work}; scgi_temp_path {work};
             client_max_body_size 1g;
             server {{
                 listen {PORT} proxy_protocol; listen [::]:{PORT} proxy_protocol;
                 location = /client {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\"; }}
                 location /files/ {{ alias {files}/; dav_methods PUT; }}
             }}
         }}"
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, config)?;
    let path = path.to_str().context("a path in UTF-8")?;
    lab.keep("rs1", "told-nginx", &["nginx", "-e", &format!("{work}/error.log"), "-c", path])
}

/// HAProxy on rs2, before the nginx of that node.
fn told_haproxy(lab: &Lab) -> Result<()> {
    nginx(lab, "rs2", &[PLAIN])?;
    let config = format!(
        "global\n maxconn 200\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         frontend told\n bind 0.0.0.0:{PORT} accept-proxy\n bind :::{PORT} v6only accept-proxy\n\
         \x20http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\" if {{ path /client }}\n\
         \x20default_backend plain\n\
         backend plain\n server nginx 127.0.0.1:{PLAIN}\n"
    );
    let path = lab.path("haproxy.cfg");
    fs::write(&path, config)?;
    let path = path.to_str().context("a path in UTF-8")?;
    lab.keep("rs2", "told-haproxy", &["haproxy", "-db", "-f", path])
}

fn listens(lab: &Lab, node: &str) -> Result<()> {
    let filter = format!("ss -Hnlt 'sport = {PORT}'");
    eventually(&format!("{node} listens"), PATIENCE, || {
        lab.sh(node, &filter).is_ok_and(|listening| listening.lines().count() == 2)
    })
}

/// On rs3: says who connected, as soon as it knows. A stranger to both programs, which wait for the client.
fn greeter(lab: &Lab) -> Result<()> {
    for own in address("rs3") {
        let at = SocketAddr::new(own.parse()?, PORT);
        let listener = lab.inside("rs3", || TcpListener::bind(at))??;
        std::thread::spawn(move || -> Result<()> {
            loop {
                let (mut stream, _) = listener.accept()?;
                let mut line = String::new();
                BufReader::new(stream.try_clone()?).read_line(&mut line)?;
                stream.write_all(line.as_bytes())?;
            }
        });
    }
    Ok(())
}

#[test]
fn servers_learn_who_the_client_is() {
    scenario(&["nginx", "haproxy", "curl", "nft"], |lab| {
        told_nginx(lab)?;
        told_haproxy(lab)?;
        greeter(lab)?;
        ["rs1", "rs2"].iter().try_for_each(|node| listens(lab, node))?;
        random_file(lab, "original", 20)?;
        let gateway = Setup::new(services()).uncaptured().start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            for (port, version, server) in SERVICES.into_iter().filter(|(.., server)| *server != "rs3") {
                // Several requests by one connection: only its beginning is changed.
                let url = format!("http://{vip}:{port}/client");
                let show = "\n%{local_port}\n";
                let words = ["curl", "-sSgf", "--max-time", "5", "-w", show, &url, &url];
                let told = lab.run("client", &words)?.success().with_context(|| format!("{url} of {server}"))?;
                let lines: Vec<&str> = told.lines().collect();
                let bare = vip.trim_matches(['[', ']']);
                let expected = format!("{} {} {bare} {port}", CLIENT[family], lines[1]);
                ensure!(lines.len() == 4 && lines[0] == expected && lines[2] == expected, "{version}: {lines:?}");
            }
            let greeted = greeting(lab, &format!("{vip}:84").parse()?)?;
            let start = format!("PROXY TCP{} {} ", [4, 6][family], CLIENT[family]);
            ensure!(greeted.starts_with(&start) && greeted.ends_with(" 84\r\n"), "{greeted}");
        }
        // The very packet that brings the header is lost, and the client has nothing to repeat.
        lab.sh(
            "rs3",
            "nft add table inet lost; nft 'add chain inet lost in { type filter hook input priority 0; }'; \
             nft 'add rule inet lost in tcp dport 8080 tcp flags & (syn | ack) == ack numgen inc mod 1000 0 counter drop'",
        )?;
        ensure!(
            greeting(lab, &format!("{}:84", VIPS[0]).parse()?)?.starts_with("PROXY TCP4 198.51.100.2 "),
            "no header"
        );
        let counted = lab.sh("rs3", "nft list table inet lost")?;
        ensure!(counted.contains("counter packets 1 "), "{counted}");
        let sum = sha256(lab, "original")?;
        for (vip, port) in [(VIPS[1], 81), (VIPS[0], 82)] {
            let (base, down, up) = (format!("{vip}:{port}"), format!("down{port}"), format!("up{port}"));
            download(lab, &base, "original", &down)?;
            upload(lab, &base, "original", &up)?;
            ensure!(sha256(lab, &down)? == sum && sha256(lab, &up)? == sum, "{base}: a file differs");
        }
        // The gateway's own questions are nobody's connections, and are answered.
        let delivered = || gateway.metric("gatun_delivered_total", &[]).unwrap_or(0.0);
        eventually("checks are answered", PATIENCE, || delivered() >= 4.0 * 8.0 * 2.0)?;
        ensure!(!gateway.log_text().contains(" is down"), "{}", gateway.log_text());
        Ok(())
    });
}

fn greeting(lab: &Lab, to: &SocketAddr) -> Result<String> {
    let mut stream = lab.inside("client", || TcpStream::connect_timeout(to, Duration::from_secs(5)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok(line)
}
