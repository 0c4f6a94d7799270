//! What fits into a tunnel: the client learns it, nothing goes down a black hole, and what may be fragmented is.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{random_file, sha256, upload};
use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::one_way::{Way, bare, echo};
use crate::servers::{VIPS, bind_udp, nginx, udp_echo_at};

/// The MTU that the client has learnt for the way to a VIP; none: that of the link.
fn learnt(lab: &Lab, vip: &str) -> Result<Option<u16>> {
    let route = lab.sh("client", &format!("ip route get {}", bare(vip)))?;
    let mtu = route.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// An upload of `megabytes` whose first segments are as large as the client's link allows. It finishes soon, and
/// afterwards the client knows the MTUs expected for IPv4 and IPv6.
fn uploads(lab: &Lab, way: Way, server: &str, expected: [u16; 2]) -> Result<()> {
    way.serve(lab, server)?;
    nginx(lab, server, &[80])?;
    random_file(lab, "original", 10)?;
    let sum = sha256(lab, "original")?;
    let _gateway = Setup::new(way.services(80, "tcp", &[server])).uncaptured().start(lab)?;
    for (vip, expected) in VIPS.iter().zip(expected) {
        let begin = Instant::now();
        upload(lab, vip, "original", "uploaded")?;
        ensure!(begin.elapsed() < Duration::from_secs(4), "{vip}: took {:?}", begin.elapsed());
        ensure!(sha256(lab, "uploaded")? == sum, "{vip}: the checksums differ");
        let learnt = learnt(lab, vip)?;
        ensure!(learnt == Some(expected), "{vip}: the client learnt {learnt:?}, not {expected}");
    }
    Ok(())
}

/// Links of 1500 bytes everywhere: what fits is that less the outer headers.
fn ordinary(way: Way, expected: [u16; 2]) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| uploads(lab, way, "rs4", expected));
}

#[test]
fn ipip() {
    ordinary(Way::Kernel("ipip"), [1480, 1460]);
}

#[test]
fn ipip_crossed() {
    ordinary(Way::KernelCrossed("ipip"), [1460, 1480]);
}

#[test]
fn gue() {
    ordinary(Way::Kernel("gue"), [1468, 1448]);
}

#[test]
fn gue_crossed() {
    ordinary(Way::KernelCrossed("gue"), [1448, 1468]);
}

/// "lock" makes the router refuse larger packets as a link of that size would.
const NARROW: &str = "ip route replace 10.30.0.14/32 dev eth1 mtu lock 1400
                      ip route replace fd30::14/128 dev eth1 mtu lock 1400";

/// A hop of 1400 bytes between the gateway and the server: its "too big" is sent to the gateway.
fn narrow(way: Way, expected: [u16; 2]) {
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        lab.sh("router", NARROW)?;
        uploads(lab, way, "rs4", expected)
    });
}

#[test]
fn narrow_hop() {
    narrow(Way::Kernel("ipip"), [1380, 1360]);
}

#[test]
fn narrow_hop_crossed() {
    narrow(Way::KernelCrossed("ipip"), [1360, 1380]);
}

#[test]
fn narrow_hop_gue() {
    narrow(Way::Kernel("gue"), [1368, 1348]);
}

/// `gatun real-server` tells clients by its MSS what fits, so that nothing too large is sent in the first place.
#[test]
fn real_server_says_it_by_the_mss() {
    let way = Way::RealServer("ipip");
    scenario(&way.needs(&["nginx", "curl"]), |lab| {
        way.serve(lab, "rs4")?;
        nginx(lab, "rs4", &[80])?;
        random_file(lab, "original", 10)?;
        let _gateway = Setup::new(way.services(80, "tcp", &["rs4"])).uncaptured().start(lab)?;
        for vip in VIPS {
            upload(lab, vip, "original", "uploaded")?;
            ensure!(sha256(lab, "uploaded")? == sha256(lab, "original")?, "{vip}: the checksums differ");
            ensure!(learnt(lab, vip)?.is_none(), "{vip}: a segment was too large");
        }
        Ok(())
    });
}

/// Its uploads get through a narrow hop as well, where the MSS promised too much.
#[test]
fn narrow_hop_to_real_server() {
    narrow(Way::RealServer("ipip"), [1380, 1360]);
}

/// A client's UDP socket; with DF or without it on IPv4.
fn client_udp(lab: &Lab, vip: &str, discover: i32) -> Result<UdpSocket> {
    let local = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }.parse()?;
    let socket = lab.inside("client", move || bind_udp(local))??;
    if local.is_ipv4() {
        // SAFETY: the pointer and the length are those of `discover`.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const discover).cast(),
                size_of_val(&discover) as libc::socklen_t,
            )
        };
        ensure!(result == 0, "setsockopt: {}", std::io::Error::last_os_error());
    }
    socket.connect(format!("{vip}:9000"))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// UDP over IPv4: a datagram with DF that does not fit is refused with "too big", and the next one is never sent; one
/// without is cut before it is wrapped, and arrives.
#[test]
fn datagrams() {
    let way = Way::Kernel("ipip");
    scenario(&way.needs(&[]), |lab| {
        way.serve(lab, "rs4")?;
        udp_echo_at(lab, "rs4", &format!("{}:9000", VIPS[0]))?;
        let gateway = Setup::new(way.services(9000, "udp", &["rs4"])).start(lab)?;

        let without = client_udp(lab, VIPS[0], libc::IP_PMTUDISC_DONT)?;
        // 1452 is what fits beside 28 bytes of headers and the 20 of the tunnel.
        for length in [1, 1452, 1453, 1472, 1473, 4000, 8000, 20_000, 60_000] {
            ensure!(
                echo(&without, length).with_context(|| format!("{length} bytes"))?,
                "{length}: other bytes came back"
            );
        }
        ensure!(learnt(lab, VIPS[0])?.is_none(), "nobody needs to be told");

        let with = client_udp(lab, VIPS[0], libc::IP_PMTUDISC_DO)?;
        ensure!(echo(&with, 1452)?, "other bytes came back");
        let error = echo(&with, 1453).err().context("1453 bytes with DF came through")?;
        ensure!(error.raw_os_error() == Some(libc::EMSGSIZE) || error.kind() == ErrorKind::WouldBlock, "{error}");
        ensure!(learnt(lab, VIPS[0])? == Some(1480), "the client learnt {:?}", learnt(lab, VIPS[0])?);
        let error = echo(&with, 1453).err().context("1453 bytes with DF came through")?;
        ensure!(error.raw_os_error() == Some(libc::EMSGSIZE), "{error}");
        ensure!(echo(&with, 1452)?, "other bytes came back");
        ensure!(
            gateway.metric("gatun_drops_total", &["reason=\"too_big\""])? >= 1.0,
            "it was not the gateway who said so"
        );
        Ok(())
    });
}

/// The same over IPv6, where only the sender fragments: the first datagram that does not fit is lost.
#[test]
fn datagrams_of_ipv6() {
    let way = Way::Kernel("ipip");
    scenario(&way.needs(&[]), |lab| {
        way.serve(lab, "rs4")?;
        udp_echo_at(lab, "rs4", &format!("{}:9000", VIPS[1]))?;
        let _gateway = Setup::new(way.services(9000, "udp", &["rs4"])).start(lab)?;
        let socket = client_udp(lab, VIPS[1], 0)?;
        // Beside 48 bytes of headers and the 40 of the tunnel.
        ensure!(echo(&socket, 1412)?, "other bytes came back");
        ensure!(echo(&socket, 1413).is_err(), "what does not fit came through");
        ensure!(learnt(lab, VIPS[1])? == Some(1460), "the client learnt {:?}", learnt(lab, VIPS[1])?);
        for length in [1413, 4000, 20_000] {
            ensure!(
                echo(&socket, length).with_context(|| format!("{length} bytes"))?,
                "{length}: other bytes came back"
            );
        }
        Ok(())
    });
}
