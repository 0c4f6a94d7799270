//! The MSS of both ends is clamped to the device's MTU: no packet of a connection has to find out that it is too large.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::client::{download, random_file, sha256, upload};
use crate::gateway::Setup;
use crate::lab::scenario;
use crate::servers::{VIPS, dual_service, nginx};

/// The MSS that a connection sends with, options not counted (TCP_MAXSEG).
pub fn mss(stream: &TcpStream) -> Result<i32> {
    let mut value = 0_i32;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointers are those of `value` and `length`, which says how large it is.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "getsockopt: {}", std::io::Error::last_os_error());
    Ok(value)
}

#[test]
fn is_clamped_both_ways() {
    scenario(&["nginx", "curl"], |lab| {
        nginx(lab, "rs1", &[8080])?;
        random_file(lab, "original", 10)?;
        let gateway =
            Setup::new(dual_service(80, "tcp", "rr", &[("rs1", 1)], 8080)).gateway("mtu = 1320").start(lab)?;
        for (family, vip) in VIPS.iter().enumerate() {
            let to: SocketAddr = format!("{vip}:80").parse()?;
            let stream = lab.inside("client", || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
            // MTU less the headers, and less twelve bytes of timestamps.
            let largest = 1320 - [40, 60][family] - 12;
            ensure!(mss(&stream)? == largest, "{vip}: the client sends with {}, not {largest}", mss(&stream)?);
            // The server's side, as its kernel tells: mss is what it sends with.
            let peer = stream.local_addr()?.port();
            let socket = lab.sh("rs1", &format!("ss -Htni 'dport = {peer}'"))?;
            ensure!(socket.contains(&format!(" mss:{largest} ")), "{vip}: not {largest} in {socket}");
            download(lab, vip, "original", "downloaded")?;
            upload(lab, vip, "original", "uploaded")?;
            let sum = sha256(lab, "original")?;
            ensure!(sha256(lab, "downloaded")? == sum && sha256(lab, "uploaded")? == sum, "the checksums differ");
        }
        ensure!(gateway.metric("gatun_icmp_errors_total", &[])? == 0.0, "somebody had to be told");
        Ok(())
    });
}
