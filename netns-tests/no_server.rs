//! A service without a server that may take a flow: TCP is reset, UDP gets a port unreachable, both at once.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{VIPS, dual_service};

fn refused_tcp(lab: &Lab, to: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    let outcome = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let error = outcome.err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::ConnectionRefused), "TCP to {to}: {error:?}");
    ensure!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
    Ok(())
}

fn refused_udp(lab: &Lab, to: SocketAddr) -> Result<()> {
    let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.inside("client", || UdpSocket::bind(unspecified))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(b"anybody?")?;
    let begin = Instant::now();
    let error = socket.recv(&mut [0; 64]).err().map(|error| error.kind());
    ensure!(error == Some(ErrorKind::ConnectionRefused), "UDP to {to}: {error:?}");
    ensure!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn refused_at_once() {
    scenario(&["curl"], |lab| {
        let services = dual_service(80, "tcp+udp", "rr", &[("rs1", 0), ("rs2", 0)], 8080);
        let gateway = Setup::new(services).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:80").parse()?;
            for _ in 0..3 {
                refused_tcp(lab, to)?;
                refused_udp(lab, to)?;
            }
        }
        ensure!(gateway.flow_count()? == 0, "a refused packet makes no flow");
        let dropped = gateway.metric("gatun_drops_total", &["reason=\"no_server\""])?;
        ensure!(dropped >= 12.0, "{dropped} counted");
        Ok(())
    });
}
