//! Clients that use a port again: at once, or for two services that lead to the same server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, named_service, nginx, three_nginx};

const NEEDS: [&str; 2] = ["nginx", "curl"];

/// A connection from a given port of the client.
fn connect_from(lab: &Lab, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let from: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0_u16; 8], port).into() };
    loop {
        let socket = lab.inside("client", || Socket::new(Domain::for_address(to), Type::STREAM, None))??;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        match socket.connect_timeout(&to.into(), Duration::from_secs(5)) {
            // The client's own kernel waits for the last ACK of the connection before; nothing has been sent yet.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            connected => {
                connected?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                return Ok(socket.into());
            }
        }
    }
}

fn request(stream: &mut TcpStream, connection: &str) -> Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n")?;
    let mut answer = String::new();
    let mut buffer = [0; 1024];
    while !(answer.contains("\r\n\r\n") && answer.ends_with('\n') && answer.contains("rs")) {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "the server closed: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..length])?);
    }
    Ok(answer.lines().last().unwrap_or_default().to_string())
}

/// The server closes first, so the client's port is free at once. A gateway that still has the old connection in
/// TIME_WAIT must let the new one through without a pause: its SYN starts it anew.
#[test]
fn reused_at_once() {
    scenario(&NEEDS, |lab| {
        three_nginx(lab)?;
        let gateway = Setup::new(dual_service(80, "tcp", "rr", &THREE, 8080)).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:80").parse()?;
            let begin = Instant::now();
            for _ in 0..20 {
                let mut stream = connect_from(lab, 40000, to)?;
                request(&mut stream, "close")?;
                ensure!(stream.read(&mut [0; 16])? == 0, "the server closes");
            }
            // A lost SYN would be sent again after a second.
            ensure!(begin.elapsed() < Duration::from_millis(900), "twenty requests took {:?}", begin.elapsed());
        }
        ensure!(gateway.flows(&["--sport", "40000"])?.len() == 2, "one flow of each family is left");
        ensure!(gateway.metric("gatun_flows_reused_total", &[])? >= 38.0, "not counted");
        Ok(())
    });
}

/// The same client port, two services, one server: on the server's side the two must not be one.
#[test]
fn of_two_services_with_one_server() {
    scenario(&NEEDS, |lab| {
        nginx(lab, "rs1", &[8080])?;
        let services = dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)
            + &named_service("other", 81, "tcp", "rr", &[("rs1", 1)], 8080);
        let gateway = Setup::new(services).start(lab)?;
        for vip in VIPS {
            let mut first = connect_from(lab, 40001, format!("{vip}:80").parse()?)?;
            let mut second = connect_from(lab, 40001, format!("{vip}:81").parse()?)?;
            for _ in 0..3 {
                ensure!(request(&mut first, "keep-alive")? == "rs1" && request(&mut second, "keep-alive")? == "rs1");
            }
            let flows = gateway.flows(&["--sport", "40001", "--dst", vip.trim_matches(['[', ']'])])?;
            ensure!(flows.len() == 2 && flows[0].reply != flows[1].reply, "{flows:?}");
        }
        Ok(())
    });
}
