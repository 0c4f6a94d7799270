//! FTP: vsftpd. By `nat` the gateway follows the commands and lets the data connections through that they announce. By
//! `direct` and `tunnel` it does not see what servers announce: there a client's connections to all ports go to one server,
//! as with IPVS, and data connections are the client's to open (passive mode).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};

use super::common::{Cluster, Method, Plan, Service, daemon, run, utf8, vips, write_file};
use super::wire::{Protocol, Wire};
use crate::client::{random_file, sha256};
use crate::lab::Lab;
use crate::servers::VIPS;

/// The client's own addresses, for its active mode.
const CLIENT: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

const MEGABYTES: u32 = 3;

fn plan(method: Method) -> Plan {
    let service = match method {
        Method::Nat => Service {
            name: "ftp",
            port: Some(21),
            protocol: "tcp",
            check: "type = \"ftp\", port = 21",
            keys: "helper = \"ftp\"\n",
        },
        Method::Direct | Method::Tunnel => Service {
            name: "ftp",
            port: None,
            protocol: "tcp",
            check: "type = \"ftp\", port = 21",
            keys: "persistence = { timeout = \"1m\" }\n",
        },
    };
    Plan {
        needs: &["vsftpd", "curl", "lftp"],
        services: vec![service],
        protocols: |lab, method| {
            random_file(lab, "original", MEGABYTES)?;
            let ftp = Protocol::tcp("ftp", 21, greet, |wire| wire.command("NOOP", "200").map(|_| wire.server.clone()));
            Ok(vec![Protocol { roams: method != Method::Nat, ..ftp }])
        },
        start,
        healthy,
    }
}

fn greet(wire: &mut Wire) -> Result<()> {
    // 220 rs1
    wire.server = wire.reply("220")?[3..].trim().to_string();
    wire.command("USER anonymous", "230").map(drop)
}

fn start(lab: &Lab, _: Method, node: &str) -> Result<()> {
    let directory = lab.path(node);
    let (files, upload) = (directory.join("ftp"), directory.join("ftp/in"));
    fs::create_dir_all(&upload)?;
    // The daemon goes there as another user.
    for directory in [&lab.directory, &directory, &files] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(&upload, fs::Permissions::from_mode(0o777))?;
    if !files.join("original").exists() {
        fs::hard_link(lab.path("original"), files.join("original"))?;
    }
    let work = utf8(&directory)?;
    fs::create_dir_all(directory.join("empty"))?;
    let config = format!(
        "listen=NO\nlisten_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nanon_root={work}/ftp\nlocal_enable=NO\n\
         write_enable=YES\nanon_upload_enable=YES\nno_anon_password=YES\nport_enable=YES\nconnect_from_port_20=YES\n\
         pasv_enable=YES\npasv_min_port=40000\npasv_max_port=40100\nsecure_chroot_dir={work}/empty\n\
         ftpd_banner={node}\nseccomp_sandbox=NO\nmax_per_ip=0\n"
    );
    let path = write_file(lab, node, "vsftpd.conf", &config)?;
    daemon(lab, node, "vsftpd", &["vsftpd", &path])
}

/// Files down and up again, by one client after the other, each on one server with all that it does; passive and, where the
/// gateway helps, active.
fn healthy(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab;
    let (original, sum) = (utf8(&lab.path("original"))?, sha256(lab, "original")?);
    let into = utf8(&lab.path("downloaded"))?;
    let mut uploads = 0;
    for (vip, to) in VIPS.iter().zip(vips()) {
        let client = |_| match cluster.method {
            Method::Nat => CLIENT[usize::from(to.is_ipv6())].to_string(),
            _ => cluster.strangers.next(to).to_string(),
        };
        let clients = cluster.method.servers().map(client);
        let url = format!("ftp://{vip}/original");
        let curl = |from: &str, words: &[&str]| {
            let all = [&["curl", "-sSg", "--max-time", "10", "--interface", from], words].concat();
            lab.run("client", &all)?.success().map(drop)
        };
        // Each kind with all clients in turn, that is with all servers.
        for from in &clients {
            curl(from, &["-o", &into, &url])?;
            ensure!(sha256(lab, "downloaded")? == sum, "{url} from {from}: the checksums differ");
        }
        for from in &clients {
            uploads += 1;
            curl(from, &["-T", &original, &format!("ftp://{vip}/in/{uploads}")])?;
        }
        for from in clients.iter().filter(|_| cluster.method == Method::Nat) {
            curl(from, &["-P", from, "-o", &into, &url])?;
            ensure!(sha256(lab, "downloaded")? == sum, "{url} in active mode: the checksums differ");
        }
        let lftp = format!(
            "set net:max-retries 1; set net:timeout 5; set xfer:clobber yes; set ftp:passive-mode yes; open {vip};
             get original -o {into}; put {original} -o in/by-lftp-{}",
            usize::from(to.is_ipv6())
        );
        lab.run("client", &["lftp", "--norc", "-c", &lftp])?.success()?;
        ensure!(sha256(lab, "downloaded")? == sum, "{vip}: the checksums differ by lftp");
    }
    let mut kept = Vec::new();
    for server in cluster.method.servers() {
        let here = fs::read_dir(lab.path(server).join("ftp/in"))?.collect::<Result<Vec<_>, _>>()?;
        ensure!(here.len() >= 2, "{server} was given {} files", here.len());
        kept.extend(here);
    }
    for file in &kept {
        ensure!(file.metadata()?.len() == u64::from(MEGABYTES) << 20, "{} is not whole", file.path().display());
    }
    ensure!(
        kept.len() == uploads + 2,
        "{uploads} files were uploaded by curl and two by lftp, {} are there",
        kept.len()
    );
    if cluster.method == Method::Nat { Ok(()) } else { cluster.stays(&cluster.protocols[0]) }
}

#[test]
fn by_nat() {
    run(&plan(Method::Nat), Method::Nat);
}

#[test]
fn by_direct() {
    run(&plan(Method::Direct), Method::Direct);
}

#[test]
fn by_tunnel() {
    run(&plan(Method::Tunnel), Method::Tunnel);
}
