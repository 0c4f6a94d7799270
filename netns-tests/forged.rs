//! Whoever can send to a server can wrap a packet in whatever they like: a tunnel's end opens what comes from the gateway,
//! and nothing else (RFC 2003 section 6.2).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Lab, scenario};
use crate::one_way::{Way, bare};
use crate::servers::{VIPS, address, bind_udp, udp_echo_at};

const PORT: u16 = 9000;
const GUE_PORT: u16 = 6080;

/// An inner packet of the client's to a VIP's port, which whoever opens the wrapping hands to an echo server.
fn inner(client: SocketAddr, vip: IpAddr) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    match (client.ip(), vip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 60)
            .udp(client.port(), PORT)
            .write(&mut packet, b"forged")?,
        (IpAddr::V6(from), IpAddr::V6(to)) => etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 60)
            .udp(client.port(), PORT)
            .write(&mut packet, b"forged")?,
        _ => anyhow::bail!("{client} and {vip} are of two families"),
    }
    Ok(packet)
}

/// Sends `inner` from a node to a server, wrapped; the node's kernel writes the outer header, under `source`.
fn send(lab: &Lab, node: &str, source: &str, server: &str, gue: bool, inner: &[u8]) -> Result<()> {
    let (source, server): (IpAddr, IpAddr) = (source.parse()?, server.parse()?);
    let protocol: u8 = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let (kind, number, port) = if gue { (Type::DGRAM, 17, GUE_PORT) } else { (Type::RAW, protocol, 0) };
    let wrapped = if gue { [&[0, protocol, 0, 0], inner].concat() } else { inner.to_vec() };
    let socket = lab.inside(node, || {
        let to = SocketAddr::new(server, port);
        let socket = Socket::new(Domain::for_address(to), kind, Some(Protocol::from(i32::from(number))))?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect(&to.into())?;
        std::io::Result::Ok(socket)
    })??;
    socket.send(&wrapped)?;
    Ok(())
}

/// Whether the client hears the echo.
fn echoed(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 64]).is_ok()
}

/// The same packets, from the gateway's address and from others', in all four combinations of families, bare and in GUE.
fn only_the_gateways(way: Way, tunnels: &[bool]) {
    scenario(&way.needs(&[]), |lab| {
        way.serve(lab, "rs1")?;
        let server = address("rs1");
        for (vip, client) in VIPS.iter().zip(["0.0.0.0:0", "[::]:0"]) {
            udp_echo_at(lab, "rs1", &format!("{vip}:{PORT}"))?;
            let client: SocketAddr = client.parse()?;
            let socket = lab.inside("client", move || bind_udp(client))??;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            let vip: IpAddr = bare(vip).parse()?;
            let own = if vip.is_ipv4() { "198.51.100.2" } else { "2001:db8:1::2" };
            let inner = inner(SocketAddr::new(own.parse()?, socket.local_addr()?.port()), vip)?;
            for &gue in tunnels {
                for (family, gateway) in ["10.20.0.1", "fd20::1"].iter().enumerate() {
                    let what = format!("IPv{} in IPv{}, gue {gue}", [6, 4][usize::from(vip.is_ipv4())], [4, 6][family]);
                    send(lab, "gw", gateway, server[family], gue, &inner)?;
                    ensure!(echoed(&socket), "{what}: what the gateway sends is not opened");
                    // A neighbour, a host behind the router, and the client whose packet it is.
                    let strangers =
                        [["10.20.0.12", "fd20::12"], ["10.30.0.14", "fd30::14"], ["192.0.2.2", "2001:db8:2::2"]];
                    lab.sh(
                        "client",
                        "ip route replace 10.20.0.0/24 via 192.0.2.1; ip route replace fd20::/64 via 2001:db8:2::1",
                    )?;
                    for (node, stranger) in ["rs2", "rs4", "client"].iter().zip(strangers) {
                        send(lab, node, stranger[family], server[family], gue, &inner)
                            .with_context(|| format!("{what} from {node}"))?;
                        ensure!(!echoed(&socket), "{what}: what {node} sends is opened");
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn kernel() {
    only_the_gateways(Way::Kernel("ipip"), &[false, true]);
}

#[test]
fn real_server() {
    only_the_gateways(Way::RealServer("ipip"), &[false, true]);
}
