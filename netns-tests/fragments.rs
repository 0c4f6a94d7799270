//! Datagrams of 4000 bytes, in three fragments each way.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::gateway::Setup;
use crate::lab::{Lab, scenario};
use crate::servers::{THREE, VIPS, dual_service, udp_echo};

/// Large datagrams to each address and back, from six sockets of the client each.
pub fn exchange(lab: &Lab, vips: [&str; 2], port: u16) -> Result<()> {
    for vip in vips {
        let to: SocketAddr = format!("{vip}:{port}").parse()?;
        let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        for client in 0..6_u8 {
            let socket: UdpSocket = lab.inside("client", || UdpSocket::bind(unspecified))??;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            for round in 0..20_u8 {
                let sent = payload(client ^ round.rotate_left(3));
                socket.send(&sent)?;
                let mut received = vec![0; 8192];
                let length = socket.recv(&mut received).with_context(|| format!("{vip}, datagram {round}"))?;
                ensure!(received[..length] == sent, "{vip}, datagram {round}: other bytes came back");
            }
        }
    }
    Ok(())
}

/// 4000 bytes that tell one datagram from another.
fn payload(salt: u8) -> Vec<u8> {
    (0..4000_u32).map(|n| (n as u8) ^ salt).collect()
}

#[test]
fn udp_4000_both_ways() {
    scenario(&[], |lab| {
        for server in ["rs1", "rs2", "rs3"] {
            udp_echo(lab, server, 9000)?;
        }
        let gateway = Setup::new(dual_service(9000, "udp", "rr", &THREE, 9000)).start(lab)?;
        exchange(lab, VIPS, 9000)?;
        for vip in VIPS {
            let flows = gateway.flows(&["--proto", "udp", "--dst", vip.trim_matches(['[', ']'])])?;
            ensure!(flows.len() == 6, "six sockets, six flows, not {}", flows.len());
        }
        // They were fragments indeed: the client's kernel counts what it made and what it put together.
        for counter in ["IpFragOKs", "Ip6FragOKs", "IpReasmOKs", "Ip6ReasmOKs"] {
            let line = lab.sh("client", &format!("nstat -asz {counter} | grep -w {counter}"))?;
            let count: u64 =
                line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).with_context(|| line.clone())?;
            ensure!(count >= 120, "{line}");
        }
        Ok(())
    });
}

/// The last fragment first, as a network with several paths may deliver them: the first one, which alone knows the ports,
/// comes last.
#[test]
fn in_reverse_order() {
    scenario(&["curl"], |lab| {
        for server in ["rs1", "rs2", "rs3"] {
            udp_echo(lab, server, 9000)?;
        }
        let gateway = Setup::new(dual_service(9000, "udp", "rr", &THREE, 9000)).start(lab)?;
        for (vip, client) in VIPS.iter().zip(["198.51.100.2", "2001:db8:1::2"]) {
            let to: SocketAddr = format!("{vip}:9000").parse()?;
            let from = SocketAddr::new(client.parse()?, 40002);
            let socket = lab.inside("client", || UdpSocket::bind(from))??;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            // IPPROTO_RAW: the IP header is ours (raw(7), ipv6(7)).
            let domain = socket2::Domain::for_address(to);
            let protocol = Some(socket2::Protocol::from(libc::IPPROTO_RAW));
            let raw = lab.inside("client", || socket2::Socket::new(domain, socket2::Type::RAW, protocol))??;
            for round in 0..10_u8 {
                let sent = payload(round);
                for fragment in fragments(from, to, u16::from(round) + 1, &sent)?.iter().rev() {
                    raw.send_to(fragment, &SocketAddr::new(to.ip(), 0).into())?;
                }
                let mut received = vec![0; 8192];
                let (length, peer) = socket.recv_from(&mut received).with_context(|| format!("{vip}, {round}"))?;
                ensure!(peer == to && received[..length] == sent, "{vip}, {round}: other bytes came back from {peer}");
            }
        }
        ensure!(gateway.metric("gatun_fragments_held_total", &[])? >= 40.0, "they came in order");
        Ok(())
    });
}

/// A UDP datagram cut into IP packets of at most 1440 bytes.
fn fragments(from: SocketAddr, to: SocketAddr, id: u16, payload: &[u8]) -> Result<Vec<Vec<u8>>> {
    use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};
    let v4 = |length: usize| -> Result<Ipv4Header> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (from.ip(), to.ip()) else { anyhow::bail!("not of IPv4") };
        Ok(Ipv4Header::new(length.try_into()?, 64, IpNumber::UDP, from.octets(), to.octets())?)
    };
    let v6 = |length: usize| -> Result<Ipv6Header> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (from.ip(), to.ip()) else { anyhow::bail!("not of IPv6") };
        Ok(Ipv6Header {
            payload_length: length.try_into()?,
            next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
            hop_limit: 64,
            source: from.octets(),
            destination: to.octets(),
            ..Ipv6Header::default()
        })
    };
    let udp = match to {
        SocketAddr::V4(_) => UdpHeader::with_ipv4_checksum(from.port(), to.port(), &v4(0)?, payload)?,
        SocketAddr::V6(_) => UdpHeader::with_ipv6_checksum(from.port(), to.port(), &v6(0)?, payload)?,
    };
    let datagram = [&udp.to_bytes()[..], payload].concat();
    let pieces = datagram.chunks(1400).collect::<Vec<_>>();
    let cut = pieces.iter().enumerate().map(|(index, piece)| {
        let offset = IpFragOffset::try_new((index * 1400 / 8).try_into()?)?;
        let more = index + 1 < pieces.len();
        let header = match to {
            SocketAddr::V4(_) => {
                let mut header = v4(piece.len())?;
                (header.identification, header.fragment_offset) = (id, offset);
                (header.more_fragments, header.dont_fragment) = (more, false);
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            SocketAddr::V6(_) => {
                let header = v6(piece.len() + 8)?;
                let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, id.into());
                [&header.to_bytes()[..], &fragment.to_bytes()[..]].concat()
            }
        };
        Ok([&header[..], *piece].concat())
    });
    cut.collect()
}
