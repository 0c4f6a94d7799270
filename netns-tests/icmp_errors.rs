//! ICMP errors about translated packets: they reach the client's own socket, as if gatun were not there.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::gateway::Setup;
use crate::lab::{Lab, PATIENCE, scenario};
use crate::servers::{VIPS, dual_service};

/// A connected UDP socket of the client that keeps the errors it gets (RECVERR).
fn client_socket(lab: &Lab, to: SocketAddr) -> Result<UdpSocket> {
    let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.inside("client", || UdpSocket::bind(unspecified))??;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    match to {
        SocketAddr::V4(_) => set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?,
        SocketAddr::V6(_) => set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?,
    }
    Ok(socket)
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) -> Result<()> {
    // SAFETY: the pointer and the length are those of `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "setsockopt: {}", std::io::Error::last_os_error());
    Ok(())
}

/// An entry of a socket's error queue: ICMP type, code, and who sent it.
#[derive(Debug, PartialEq)]
struct IcmpError {
    kind: u8,
    code: u8,
    from: IpAddr,
}

/// Takes one entry from the error queue (ip(7), IP_RECVERR).
fn take_error(socket: &UdpSocket) -> Result<IcmpError> {
    let mut payload = [0_u8; 256];
    let mut control = [0_u64; 64];
    let mut slice = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: an all-zero msghdr is a valid one; every pointer put into it outlives the call, and the kernel writes
    // within the lengths given. CMSG_* walk only what the kernel has filled in; a sock_extended_err is followed by the
    // offender's address (SO_EE_OFFENDER), read unaligned.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut slice;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE);
        ensure!(length >= 0, "no error in the queue: {}", std::io::Error::last_os_error());
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let is = |level, kind| (*header).cmsg_level == level && (*header).cmsg_type == kind;
            if is(libc::IPPROTO_IP, libc::IP_RECVERR) || is(libc::IPPROTO_IPV6, libc::IPV6_RECVERR) {
                let error: libc::sock_extended_err =
                    libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned();
                let offender = libc::CMSG_DATA(header).add(size_of::<libc::sock_extended_err>());
                let family = offender.cast::<libc::sa_family_t>().read_unaligned();
                let from = match i32::from(family) {
                    libc::AF_INET => {
                        let address = offender.cast::<libc::sockaddr_in>().read_unaligned();
                        IpAddr::from(address.sin_addr.s_addr.to_ne_bytes())
                    }
                    libc::AF_INET6 => {
                        IpAddr::from(offender.cast::<libc::sockaddr_in6>().read_unaligned().sin6_addr.s6_addr)
                    }
                    other => bail!("an offender of family {other}"),
                };
                return Ok(IcmpError { kind: error.ee_type, code: error.ee_code, from });
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    bail!("an error without its origin")
}

/// The server has no such socket: its port unreachable comes to the client as one from the VIP.
#[test]
fn port_unreachable_is_connection_refused() {
    scenario(&[], |lab| {
        let gateway = Setup::new(dual_service(9000, "udp", "rr", &[("rs1", 1)], 9009)).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:9000").parse()?;
            let socket = client_socket(lab, to)?;
            socket.send(b"anybody?")?;
            let error = socket.recv(&mut [0; 64]).err().context("an error was due")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
            let (kind, code) = if to.is_ipv4() { (3, 3) } else { (1, 4) };
            let from_vip = IcmpError { kind, code, from: to.ip() };
            let taken = take_error(&socket)?;
            ensure!(taken == from_vip, "{taken:?}, not {from_vip:?}");
        }
        // RFC 4787 REQ-12: the flow survives the error.
        ensure!(gateway.flows(&["--proto", "udp", "--dport", "9000"])?.len() == 2, "one flow of each family");
        Ok(())
    });
}

/// Lets everything of rs4 go through the gateway, as `nat` needs it: the router sends to the client by way of gw.
fn rs4_behind_the_gateway(lab: &Lab) -> Result<()> {
    lab.sh("router", "ip route replace 198.51.100.0/24 via 10.20.0.1; ip route replace 2001:db8:1::/64 via fd20::1")
        .map(drop)
}

/// A packet whose life ends at the router behind the gateway.
#[test]
fn time_exceeded_behind_the_gateway() {
    scenario(&[], |lab| {
        rs4_behind_the_gateway(lab)?;
        let _gateway = Setup::new(dual_service(9000, "udp", "rr", &[("rs4", 1)], 9000)).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:9000").parse()?;
            let socket = client_socket(lab, to)?;
            // With each hop limit from 1 to 4 the packet dies one station further on: gw, gatun's own hops, the router.
            let mut seen = Vec::new();
            for hops in 1..=6 {
                match to {
                    SocketAddr::V4(_) => socket.set_ttl(hops)?,
                    SocketAddr::V6(_) => set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops as i32)?,
                }
                socket.send(b"how far?")?;
                let error = socket.recv(&mut [0; 64]).err().context("an error was due")?;
                let taken = take_error(&socket).with_context(|| format!("hop limit {hops}: {error}"))?;
                seen.push(taken);
                if error.kind() == ErrorKind::ConnectionRefused {
                    break;
                }
            }
            let exceeded = if to.is_ipv4() { (11, 0) } else { (3, 0) };
            let (last, before) = seen.split_last().context("errors")?;
            // The end is the server's port unreachable, from the VIP; all before it are time exceeded.
            ensure!(last.from == to.ip(), "{seen:?}");
            ensure!(before.iter().all(|error| (error.kind, error.code) == exceeded), "{seen:?}");
            ensure!(before.len() >= 2, "gw and the router at least: {seen:?}");
            let servers_side: [IpAddr; 2] = ["10.20.0.11".parse()?, "fd20::11".parse()?];
            ensure!(!seen.iter().any(|error| servers_side.contains(&error.from)), "{seen:?}");
        }
        Ok(())
    });
}

/// The program everybody uses gets to the VIP.
#[test]
fn traceroute() {
    scenario(&["traceroute"], |lab| {
        rs4_behind_the_gateway(lab)?;
        let _gateway = Setup::new(dual_service(9000, "udp", "rr", &[("rs4", 1)], 9000)).start(lab)?;
        for vip in VIPS {
            let vip = vip.trim_matches(['[', ']']);
            let words = ["traceroute", "-n", "-U", "-p", "9000", "-q", "1", "-w", "1", "-m", "8", vip];
            let output = lab.run("client", &words)?.success()?;
            let last = output.lines().last().unwrap_or_default();
            ensure!(
                last.contains(vip) && !output.contains('*'),
                "every hop answers, the VIP is the last one:\n{output}"
            );
        }
        Ok(())
    });
}

/// An established TCP connection learns from the server's network that the server is gone.
#[test]
fn host_unreachable_reaches_a_connecting_client() {
    scenario(&["curl"], |lab| {
        rs4_behind_the_gateway(lab)?;
        // Administratively prohibited, said by the router in front of the server.
        lab.sh("router", "ip route add prohibit 10.30.0.14/32; ip -6 route add prohibit fd30::14/128")?;
        let _gateway = Setup::new(dual_service(80, "tcp", "rr", &[("rs4", 1)], 8080)).start(lab)?;
        for vip in VIPS {
            let to: SocketAddr = format!("{vip}:80").parse()?;
            let begin = std::time::Instant::now();
            let outcome = lab.inside("client", || std::net::TcpStream::connect_timeout(&to, PATIENCE))?;
            let error = outcome.err().context("a connection to nowhere")?;
            // IPv4: EHOSTUNREACH, IPv6: EACCES (tcp_v4_err, tcp_v6_err and the tables they use).
            let expected = if to.is_ipv4() { libc::EHOSTUNREACH } else { libc::EACCES };
            ensure!(error.raw_os_error() == Some(expected), "{to}: {error}");
            ensure!(begin.elapsed() < Duration::from_secs(3), "took {:?}", begin.elapsed());
        }
        Ok(())
    });
}
