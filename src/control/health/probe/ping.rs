//! `ping`: an ICMP echo is answered (RFC 792, RFC 4443 section 4.1).
//!
//! By a ping socket where the host allows one (sysctl `net.ipv4.ping_group_range`, Linux net/ipv4/ping.c), for which the
//! kernel sees to the identifier; else by a raw socket, which needs CAP_NET_RAW.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::{Asked, Asking, Bad, Good, Outcome, Probe};
use crate::control::health::transport::Connect;
use crate::wire::checksum;

const HEADER: usize = 8;
/// A length that nobody mistakes for a scan.
const PAYLOAD: &[u8] = b"gatun health check";

pub struct Ping;

impl Ping {
    async fn run(&self, asked: &Asked) -> Outcome {
        let ip = asked.target.address.ip();
        let (socket, is_raw) = open(ip)?;
        let token = RandomState::new().hash_one(());
        let (id, sequence) = (token as u16, (token >> 16) as u16);
        let request = echo(ip, id, sequence);
        socket.send(&request).await?;
        let mut buffer = [0; 256];
        loop {
            let size = socket.recv(&mut buffer).await?;
            // A ping socket has the kernel's identifier, and gets what is for that one alone.
            if is_answer(ip, is_raw, &buffer[..size], is_raw.then_some(id), sequence) {
                return Ok(Good::said("answered"));
            }
        }
    }
}

impl Probe for Ping {
    fn ask<'a>(&'a self, asked: &'a Asked, _: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked))
    }
}

/// A connected socket, so that others' packets do not come; and whether it is a raw one.
fn open(ip: IpAddr) -> Result<(UdpSocket, bool), Bad> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let opened = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Socket::new(domain, Type::RAW, Some(protocol)).map(|socket| (socket, true))
        }
        other => other.map(|socket| (socket, false)),
    };
    let (socket, is_raw) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Bad::Ours("ping needs CAP_NET_RAW, or net.ipv4.ping_group_range to have gatun's group".to_owned())
        }
        _ => Bad::from(error),
    })?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(ip, 0).into())?;
    // It is no UDP socket, but one that is connected and sends and receives datagrams, which is all that tokio's type does.
    Ok((UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(socket)))?, is_raw))
}

/// The kernel sums ICMPv6, and ICMP of ping sockets (RFC 3542 section 3.1; Linux net/ipv4/ping.c).
fn echo(ip: IpAddr, id: u16, sequence: u16) -> Vec<u8> {
    let kind = if ip.is_ipv4() { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(PAYLOAD);
    if ip.is_ipv4() {
        let sum = !checksum::sum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

fn is_answer(ip: IpAddr, is_raw: bool, packet: &[u8], id: Option<u16>, sequence: u16) -> bool {
    // A raw IPv4 socket hands over the IP header as well.
    let header = match packet.first() {
        Some(first) if ip.is_ipv4() && is_raw => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let Some(message) = packet.get(header..).filter(|message| message.len() >= HEADER) else { return false };
    let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let reply = if ip.is_ipv4() { 0 } else { 129 };
    message[..2] == [reply, 0]
        && id.is_none_or(|id| id == word(4))
        && word(6) == sequence
        && &message[HEADER..] == PAYLOAD
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn the_answer_is_told_from_other_packets() {
        let mut reply = echo(V4, 7, 9);
        assert_eq!(checksum::sum(&reply), 0xffff);
        assert!(!is_answer(V4, false, &reply, None, 9), "our own request, on the loopback");
        reply[0] = 0;
        assert!(is_answer(V4, false, &reply, None, 9));
        assert!(!is_answer(V4, false, &reply, None, 8));
        let raw = [&[0x45; 1][..], &[0; 19], &reply].concat();
        assert!(is_answer(V4, true, &raw, Some(7), 9));
        assert!(!is_answer(V4, true, &raw, Some(8), 9));
        let mut reply = echo(V6, 7, 9);
        reply[0] = 129;
        assert!(is_answer(V6, true, &reply, Some(7), 9));
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet: Vec<u8>, v4: bool, is_raw: bool) {
            is_answer(if v4 { V4 } else { V6 }, is_raw, &packet, Some(1), 1);
        }
    }
}
