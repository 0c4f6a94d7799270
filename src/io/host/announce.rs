//! Tell the neighbours at once where a VIP now is, instead of waiting until their entries expire:
//! gratuitous ARP (RFC 5227 section 3, RFC 826) and unsolicited neighbour advertisements (RFC 4861 section 7.2.6).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::netlink::Link;

/// One VIP on one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub vip: IpAddr,
    pub link: u32,
    pub mac: [u8; 6],
    /// The source of an advertisement; the unspecified address is not allowed there (RFC 4861 section 4.4).
    pub source: Ipv6Addr,
}

/// How often, and how far apart: RFC 4861 has 3 (MAX_NEIGHBOR_ADVERTISEMENT) with at least a second between.
const TIMES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl Announcement {
    pub fn new(vip: IpAddr, link: &Link, source: Option<Ipv6Addr>) -> Option<Self> {
        Some(Announcement {
            vip,
            link: link.index,
            mac: link.address.as_slice().try_into().ok()?,
            source: source.unwrap_or(Ipv6Addr::UNSPECIFIED),
        })
    }

    /// The packets, each with its EtherType and the MAC it goes to.
    fn packets(&self) -> Vec<(u16, [u8; 6], Vec<u8>)> {
        match self.vip {
            // Some neighbours heed only the request, some only the reply.
            IpAddr::V4(vip) => [1, 2].map(|op| (ETH_P_ARP, [0xff; 6], arp(op, self.mac, vip).to_vec())).into(),
            IpAddr::V6(_) if self.source.is_unspecified() => Vec::new(),
            IpAddr::V6(vip) => {
                vec![(ETH_P_IPV6, [0x33, 0x33, 0, 0, 0, 1], advertisement(self.source, self.mac, vip).to_vec())]
            }
        }
    }
}

/// Send all announcements once now, and go on in the background.
///
/// # Errors
/// The first time fails: no CAP_NET_RAW, or a link that went away.
pub fn announce(list: Vec<Announcement>) -> io::Result<Option<tokio::task::JoinHandle<()>>> {
    if list.is_empty() {
        return Ok(None);
    }
    let socket = open()?;
    send_all(&socket, &list)?;
    Ok(Some(tokio::spawn(async move {
        for _ in 1..TIMES {
            tokio::time::sleep(PAUSE).await;
            if let Err(error) = send_all(&socket, &list) {
                tracing::debug!(%error, "announcing the VIPs again failed");
            }
        }
    })))
}

fn send_all(socket: &OwnedFd, list: &[Announcement]) -> io::Result<()> {
    for announcement in list {
        for (ethertype, mac, packet) in announcement.packets() {
            send(socket, announcement.link, ethertype, mac, &packet)?;
        }
    }
    Ok(())
}

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// RFC 826: sender and target are the VIP itself.
fn arp(operation: u8, mac: [u8; 6], vip: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&vip.octets());
    packet[18..24].copy_from_slice(&if operation == 1 { [0; 6] } else { mac });
    packet[24..28].copy_from_slice(&vip.octets());
    packet
}

/// RFC 4861 section 4.4: to all nodes, with the router and override flags and the target's MAC.
fn advertisement(source: Ipv6Addr, mac: [u8; 6], vip: Ipv6Addr) -> [u8; 72] {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut packet = [0; 72];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&32u16.to_be_bytes());
    packet[6] = 58;
    packet[7] = 255;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&ALL_NODES.octets());
    packet[40] = 136;
    packet[44] = 0xa0;
    packet[48..64].copy_from_slice(&vip.octets());
    packet[64..66].copy_from_slice(&[2, 1]);
    packet[66..72].copy_from_slice(&mac);

    // Pseudo-header (RFC 8200 section 8.1): the addresses lie in front of the message, length and next header are added.
    let words = packet[8..].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum::<u32>() + 32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn open() -> io::Result<OwnedFd> {
    // Protocol 0: this socket only sends.
    // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fd is open and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: &OwnedFd, link: u32, ethertype: u16, mac: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let index = i32::try_from(link).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut sll_addr = [0; 8];
    sll_addr[..6].copy_from_slice(&mac);
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    };
    // SAFETY: both pointers are to live values of the lengths given, for the duration of the call only.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            mem::size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn arp_packets_parse_as_gratuitous() {
        use etherparse::{ArpHardwareId, ArpOperation, ArpPacketSlice};
        let vip = Ipv4Addr::new(203, 0, 113, 10);
        for (op, expected) in [(1, ArpOperation::REQUEST), (2, ArpOperation::REPLY)] {
            let packet = arp(op, MAC, vip);
            let parsed = ArpPacketSlice::from_slice(&packet).expect("a whole ARP packet");
            assert_eq!(parsed.hw_addr_type(), ArpHardwareId::ETHERNET);
            assert_eq!(parsed.operation(), expected);
            assert_eq!(parsed.sender_hw_addr(), MAC);
            assert_eq!(parsed.sender_protocol_addr(), vip.octets());
            assert_eq!(parsed.target_protocol_addr(), vip.octets());
        }
    }

    #[test]
    fn advertisement_has_a_right_checksum_and_flags() {
        let source: Ipv6Addr = "fe80::9".parse().unwrap();
        let vip: Ipv6Addr = "2001:db8:f::10".parse().unwrap();
        let packet = advertisement(source, MAC, vip);
        let (ip, payload) = etherparse::Ipv6Header::from_slice(&packet).expect("an IPv6 header");
        assert_eq!((ip.hop_limit, ip.payload_length), (255, 32));
        let icmp = etherparse::Icmpv6Slice::from_slice(payload).expect("an ICMPv6 message");
        assert!(icmp.is_checksum_valid(ip.source, ip.destination));
        assert_eq!(payload[0], 136);
        assert_eq!(payload[4], 0xa0, "router and override, not solicited");
        assert_eq!(payload[8..24], vip.octets());
        assert_eq!(payload[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }
}
