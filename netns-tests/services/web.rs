//! The web: nginx, HTTP and HTTPS, the latter with sessions: clients stay on their servers.

use std::fs;
use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::common::{Cluster, Method, Plan, Service, daemon, run, utf8, write_file};
use super::wire::{Protocol, TLS_NAME, Wire, no_greeting};
use crate::client::{download, random_file, sha256};
use crate::lab::Lab;
use crate::servers::VIPS;

/// Who signed the certificate is looked at as well.
const HTTPS: &str = "type = \"https\", sni = \"web.test\", ca = \"{lab}/certificate.pem\"";

fn plan() -> Plan {
    Plan {
        needs: &["nginx", "curl", "openssl"],
        services: vec![
            Service { name: "http", port: Some(80), protocol: "tcp", check: "type = \"http\"", keys: "" },
            Service {
                name: "https",
                port: Some(443),
                protocol: "tcp",
                check: HTTPS,
                keys: "persistence = { timeout = \"1m\" }\n",
            },
        ],
        protocols: |lab, _| {
            certify(lab)?;
            let http = Protocol::tcp("http", 80, no_greeting, ask);
            let https =
                Protocol { tls: Some(trust(lab)?), roams: true, ..Protocol::tcp("https", 443, no_greeting, ask) };
            Ok(vec![http, https])
        },
        start,
        healthy,
    }
}

fn ask(wire: &mut Wire) -> Result<String> {
    Ok(wire.get("/")?.1)
}

/// A certificate of the scenario's own, for all servers.
fn certify(lab: &Lab) -> Result<()> {
    let (key, certificate) = (utf8(&lab.path("key.pem"))?, utf8(&lab.path("certificate.pem"))?);
    let (subject, name) = (format!("/CN={TLS_NAME}"), format!("subjectAltName=DNS:{TLS_NAME}"));
    let make =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    // For a client it is an end entity that it trusts, not an authority.
    let of = ["-subj", &subject, "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
    let into = ["-keyout", &key, "-out", &certificate];
    lab.run("client", &[&make[..], &of, &into].concat())?.success().map(drop)
}

fn trust(lab: &Lab) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(lab.path("certificate.pem"))?)?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

fn start(lab: &Lab, _: Method, node: &str) -> Result<()> {
    let directory = lab.path(node);
    fs::create_dir_all(&directory)?;
    let (files, work) = (utf8(&lab.directory)?, utf8(&directory)?);
    // A master and a worker, as anywhere; both root, so that it runs in a user namespace, too.
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {work}/pid; error_log {work}/error.log;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; default_type text/plain; keepalive_requests 1000000;
             client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
             uwsgi_temp_path {work}; scgi_temp_path {work};
             ssl_certificate {files}/certificate.pem; ssl_certificate_key {files}/key.pem;
             server {{
                 listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl;
                 location / {{ return 200 \"{node}\"; }}
                 location /files/ {{ alias {files}/; }}
             }}
         }}"
    );
    let path = write_file(lab, node, "nginx.conf", &config)?;
    daemon(lab, node, "nginx", &["nginx", "-e", &format!("{work}/error.log"), "-c", &path])
}

fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    random_file(lab, "original", 5)?;
    let sum = sha256(lab, "original")?;
    let certificate = utf8(&lab.path("certificate.pem"))?;
    for vip in VIPS {
        download(lab, vip, "original", "downloaded")?;
        ensure!(sha256(lab, "downloaded")? == sum, "{vip}: the checksums differ");
        let (resolve, url) = (format!("{TLS_NAME}:443:{vip}"), format!("https://{TLS_NAME}/files/original"));
        let into = utf8(&lab.path("downloaded-by-https"))?;
        let curl =
            ["curl", "-sSf", "--max-time", "20", "--cacert", &certificate, "--resolve", &resolve, "-o", &into, &url];
        lab.run("client", &curl)?.success()?;
        ensure!(sha256(lab, "downloaded-by-https")? == sum, "{vip}: the checksums differ by HTTPS");
    }
    cluster.stays(&cluster.protocols[1])
}

#[test]
fn by_nat() {
    run(&plan(), Method::Nat);
}

#[test]
fn by_direct() {
    run(&plan(), Method::Direct);
}

#[test]
fn by_tunnel() {
    run(&plan(), Method::Tunnel);
}
