//! FTP through `nat`: vsftpd on three servers, curl and lftp as clients, passive and active, over both families.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::client::{random_file, sha256};
use crate::gateway::{Gateway, Setup};
use crate::lab::{Lab, PATIENCE, scenario};
use crate::process::{self, eventually};
use crate::servers::{THREE, VIPS, address, dual_service};

const NEEDS: [&str; 3] = ["vsftpd", "curl", "lftp"];
const PASSIVE_PORTS: (u16, u16) = (40000, 40010);

/// The client's addresses, as `curl -P` takes them.
const CLIENT: [&str; 2] = ["198.51.100.2", "2001:db8:1::2"];

/// Anonymous FTP on a node, one daemon a family. They serve `ftp/` of the lab's directory, and take files into `ftp/in/`.
pub fn vsftpd(lab: &Lab, node: &str) -> Result<()> {
    let root = lab.path("ftp");
    fs::create_dir_all(root.join("in"))?;
    fs::set_permissions(&lab.directory, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("in"), fs::Permissions::from_mode(0o777))?;
    fs::create_dir_all("/run/vsftpd/empty")?;
    let (first, last) = PASSIVE_PORTS;
    for (family, listen) in
        ["listen=YES\nlisten_address", "listen=NO\nlisten_ipv6=YES\nlisten_address6"].iter().enumerate()
    {
        let own = address(node)[family];
        let config = format!(
            "{listen}={own}\nbackground=NO\nanonymous_enable=YES\nanon_root={}\nlocal_enable=NO\nwrite_enable=YES\n\
             anon_upload_enable=YES\nanon_umask=022\nno_anon_password=YES\nport_enable=YES\nconnect_from_port_20=YES\n\
             pasv_enable=YES\npasv_min_port={first}\npasv_max_port={last}\nsecure_chroot_dir=/run/vsftpd/empty\n\
             ftpd_banner={node}\nseccomp_sandbox=NO\n",
            root.display()
        );
        let path = lab.path(&format!("vsftpd-{node}-{family}.conf"));
        fs::write(&path, config)?;
        let path = path.to_str().context("a path in UTF-8")?;
        lab.keep(node, &format!("vsftpd-{node}-{family}"), &["vsftpd", path])?;
        let at = SocketAddr::new(own.parse()?, 21);
        eventually(&format!("vsftpd on {at}"), PATIENCE, || {
            lab.inside(node, || TcpStream::connect(at)).is_ok_and(|connected| connected.is_ok())
        })?;
    }
    Ok(())
}

fn three_vsftpd(lab: &Lab) -> Result<()> {
    ["rs1", "rs2", "rs3"].iter().try_for_each(|server| vsftpd(lab, server))
}

fn services() -> String {
    with_helper(&dual_service(21, "tcp", "rr", &THREE, 21), "helper = \"ftp\"")
}

fn with_helper(services: &str, keys: &str) -> String {
    services.replace("protocol = ", &format!("{keys}\nprotocol = "))
}

fn curl(lab: &Lab, words: &[&str]) -> Result<String> {
    let common = ["curl", "-sSg", "--max-time", "20"];
    let ask = || process::finish(lab.command("client", &[&common, words].concat())?, Duration::from_secs(25));
    let mut output = ask()?;
    // In active mode curl 7.88 at times looks at the address of a connection that it has not taken yet, and gives up. What goes
    // wrong on the way looks otherwise.
    for _ in 0..2 {
        if output.stderr.contains("sa_addr inet_ntop() failed") {
            output = ask()?;
        }
    }
    output.success()
}

/// Every connection there is or was goes to one of the servers, and so many of them at least carried data.
fn ensure_data_flows(gateway: &Gateway, ports: impl Fn(u16) -> bool, least: usize) -> Result<()> {
    let flows = gateway.flows(&["--proto", "tcp"])?;
    let servers: Vec<IpAddr> =
        THREE.iter().flat_map(|(name, _)| address(name)).map(|ip| ip.parse().expect(ip)).collect();
    ensure!(flows.iter().all(|flow| servers.contains(&flow.reply.src)), "{flows:?}");
    let found = flows.iter().filter(|flow| flow.original.ports.1 != 21 && ports(flow.original.ports.1)).count();
    ensure!(found >= least, "{found} data connections of {least}: {flows:?}");
    Ok(())
}

#[test]
fn curl_in_every_mode() {
    scenario(&NEEDS, |lab| {
        three_vsftpd(lab)?;
        fs::write(lab.path("ftp/small"), "a few bytes\n")?;
        let gateway = Setup::new(services()).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let (url, client) = (format!("ftp://{vip}/small"), CLIENT[family]);
            let mut modes: Vec<Vec<&str>> = vec![vec![], vec!["-P", client]];
            if family == 0 {
                // What IPv4 alone has: PASV and PORT.
                modes.extend([vec!["--disable-epsv"], vec!["-P", client, "--disable-eprt"]]);
            }
            for mode in modes {
                for _ in 0..3 {
                    let got = curl(lab, &[&mode[..], &[&url]].concat()).with_context(|| format!("{vip} {mode:?}"))?;
                    ensure!(got == "a few bytes\n", "{vip} {mode:?}: {got}");
                }
            }
        }
        // Three times each: passive twice for IPv4, once for IPv6; active the same.
        ensure_data_flows(&gateway, |port| (PASSIVE_PORTS.0..=PASSIVE_PORTS.1).contains(&port), 9)?;
        ensure_data_flows(&gateway, |port| port == 20, 9)?;
        let banners: Vec<String> = (0..3).map(|_| banner(lab, VIPS[0])).collect::<Result<_>>()?;
        ensure!(
            ["rs1", "rs2", "rs3"].iter().all(|name| banners.iter().any(|banner| banner.contains(name))),
            "{banners:?}"
        );
        Ok(())
    });
}

fn banner(lab: &Lab, vip: &str) -> Result<String> {
    let to: SocketAddr = format!("{vip}:21").parse()?;
    let mut stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 256];
    let len = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// 50 MB each way with lftp, whose connection stays for all of it.
fn bulk(passive: &str) {
    scenario(&NEEDS, |lab| {
        three_vsftpd(lab)?;
        random_file(lab, "ftp/original", 50)?;
        let gateway = Setup::new(services()).uncaptured().start(lab)?;
        let sum = sha256(lab, "ftp/original")?;
        for (family, vip) in VIPS.iter().enumerate() {
            let (down, up) = (format!("down{family}"), format!("up{family}"));
            let (down_path, from) = (lab.path(&down), lab.path("ftp/original"));
            let script = format!(
                "set net:timeout 10; set net:max-retries 1; set ftp:passive-mode {passive}; set ftp:ssl-allow no; \
                 set cmd:fail-exit yes; open ftp://{vip}; get original -o {}; put {} -o in/{up}; cls in/{up}",
                down_path.display(),
                from.display()
            );
            let lftp = lab.command("client", &["lftp", "-c", &script])?;
            let listed = process::finish(lftp, Duration::from_secs(40))?.success().context(*vip)?;
            ensure!(listed.contains(&up), "{listed}");
            ensure!(sha256(lab, &down)? == sum, "{vip}: what came down differs");
            ensure!(sha256(lab, &format!("ftp/in/{up}"))? == sum, "{vip}: what went up differs");
        }
        // Down, up, and the listing.
        match passive {
            "yes" => ensure_data_flows(&gateway, |port| (PASSIVE_PORTS.0..=PASSIVE_PORTS.1).contains(&port), 6),
            _ => ensure_data_flows(&gateway, |port| port == 20, 6),
        }
    });
}

#[test]
fn bulk_passive() {
    bulk("yes");
}

#[test]
fn bulk_active() {
    bulk("no");
}

/// The VIPs are addresses of the gateway itself: the ports that data comes to are led to the device as well.
#[test]
fn with_a_local_vip() {
    scenario(&NEEDS, |lab| {
        three_vsftpd(lab)?;
        fs::write(lab.path("ftp/small"), "a few bytes\n")?;
        lab.sh("gw", "ip addr add 203.0.113.10/32 dev lo; ip addr add 2001:db8:f::10/128 dev lo nodad")?;
        let keys = format!("helper = \"ftp\"\ndata_ports = \"{}-{}\"", PASSIVE_PORTS.0, PASSIVE_PORTS.1);
        let _gateway = Setup::new(with_helper(&dual_service(21, "tcp", "rr", &THREE, 21), &keys)).start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let url = format!("ftp://{vip}/small");
            for mode in [&[][..], &["-P", CLIENT[family]]] {
                let got = curl(lab, &[mode, &[&url]].concat()).with_context(|| format!("{vip} {mode:?}"))?;
                ensure!(got == "a few bytes\n", "{vip} {mode:?}: {got}");
            }
        }
        Ok(())
    });
}

/// A server whose reply comes in pieces, with pauses longer than the sender waits before it repeats: the client reads the
/// VIP's address, and neither end is stuck.
#[test]
fn a_reply_in_pieces() {
    scenario(&[], |lab| {
        let gateway = Setup::new(with_helper(&dual_service(21, "tcp", "rr", &[("rs1", 1)], 21), "helper = \"ftp\""))
            .start(lab)?;
        let at = SocketAddr::new(address("rs1")[0].parse()?, 21);
        let listener = lab.inside("rs1", || TcpListener::bind(at))??;
        let server = std::thread::spawn(move || -> Result<String> {
            let (mut control, _) = listener.accept()?;
            control.set_nodelay(true)?;
            control.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut line = [0; 6];
            control.read_exact(&mut line)?;
            for piece in ["227 Passive (1", "0,20", ",0,11,1", "56,64", ").\r\n"] {
                control.write_all(piece.as_bytes())?;
                std::thread::sleep(Duration::from_millis(700));
            }
            control.write_all(b"226 Done\r\n")?;
            let mut rest = String::new();
            control.read_to_string(&mut rest)?;
            Ok(String::from_utf8_lossy(&line).into_owned() + &rest)
        });
        let to: SocketAddr = format!("{}:21", VIPS[0]).parse()?;
        let mut control = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
        control.set_read_timeout(Some(Duration::from_secs(20)))?;
        control.write_all(b"PASV\r\n")?;
        let mut heard = String::new();
        while !heard.ends_with("226 Done\r\n") {
            let mut buffer = [0; 256];
            let len = control.read(&mut buffer)?;
            ensure!(len > 0, "the server closed after {heard}");
            heard.push_str(std::str::from_utf8(&buffer[..len])?);
        }
        ensure!(heard == "227 Passive (203,0,113,10,156,64).\r\n226 Done\r\n", "{heard}");
        control.write_all(b"QUIT\r\n")?;
        drop(control);
        let said = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        ensure!(said == "PASV\r\nQUIT\r\n", "{said}");
        ensure!(gateway.metric("gatun_drops_total", &["reason=\"too_early\""])? == 0.0, "segments came too early");
        Ok(())
    });
}

/// The server connects to a port of the client that it did not announce, and to one that it did.
#[test]
fn only_what_is_announced_comes_from_the_vip() {
    scenario(&[], |lab| {
        let _gateway = Setup::new(with_helper(&dual_service(21, "tcp", "rr", &[("rs1", 1)], 21), "helper = \"ftp\""))
            .start(lab)?;
        for family in 0..2 {
            let (own, client): (IpAddr, IpAddr) = (address("rs1")[family].parse()?, CLIENT[family].parse()?);
            let listener = lab.inside("rs1", || TcpListener::bind((own, 21)))??;
            let announced = lab.inside("client", || TcpListener::bind((client, 33000)))??;
            let other = lab.inside("client", || TcpListener::bind((client, 33001)))??;
            let to: SocketAddr = format!("{}:21", VIPS[family]).parse()?;
            let mut control = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
            let number = family + 1;
            control.write_all(format!("EPRT |{number}|{client}|33000|\r\n").as_bytes())?;
            let (mut server, _) = listener.accept()?;
            server.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut line = [0; 8];
            server.read_exact(&mut line)?;
            let connect = |port: u16| -> Result<TcpStream> {
                let to = SocketAddr::new(client, port);
                lab.inside("rs1", || -> Result<TcpStream> {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                    socket.set_reuse_address(true)?;
                    socket.bind(&SocketAddr::new(own, 20).into())?;
                    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
                    Ok(socket.into())
                })?
            };
            let _data = connect(33000)?;
            ensure!(announced.accept()?.1 == SocketAddr::new(to.ip(), 20), "who connected to the announced port");
            let _data = connect(33001)?;
            ensure!(other.accept()?.1 == SocketAddr::new(own, 20), "who connected to the other one");
        }
        Ok(())
    });
}
