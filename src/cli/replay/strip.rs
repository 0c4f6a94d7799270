//! From a captured frame to the IP packet in it.

use pcap_file::DataLink;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tags that may stand before the type: 802.1Q and 802.1ad.
const VLAN: [u16; 2] = [0x8100, 0x88a8];

/// The IP packet of a frame, without what pads a short Ethernet frame; `None` when it carries none, or when the link
/// type is not known.
pub fn ip_packet(link: DataLink, frame: &[u8]) -> Option<&[u8]> {
    let packet = match link {
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => frame,
        // Before libpcap agreed on 101, systems wrote their own DLT_RAW: 12, on OpenBSD 14.
        DataLink::Unknown(12 | 14) => frame,
        DataLink::ETHERNET => ethernet(frame)?,
        // Four bytes of address family, whose numbers and byte order differ by system; the version nibble tells as well.
        DataLink::NULL | DataLink::LOOP => frame.get(4..)?,
        DataLink::LINUX_SLL => by_ethertype(u16_at(frame, 14)?, frame.get(16..)?)?,
        // LINKTYPE_LINUX_SLL2
        DataLink::Unknown(276) => by_ethertype(u16_at(frame, 0)?, frame.get(20..)?)?,
        _ => return None,
    };
    let version = packet.first()? >> 4;
    matches!(version, 4 | 6).then(|| without_padding(packet))
}

fn ethernet(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while VLAN.contains(&u16_at(frame, at)?) {
        at += 4;
    }
    by_ethertype(u16_at(frame, at)?, frame.get(at + 2..)?)
}

fn by_ethertype(ethertype: u16, rest: &[u8]) -> Option<&[u8]> {
    matches!(ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6).then_some(rest)
}

fn without_padding(packet: &[u8]) -> &[u8] {
    let length = match packet.first().map(|byte| byte >> 4) {
        Some(4) => u16_at(packet, 2).map(usize::from),
        Some(6) => u16_at(packet, 4).map(|payload| 40 + usize::from(payload)),
        _ => None,
    };
    // A length of zero is that of a super-packet that was captured before it was cut.
    match length {
        Some(length) if length > 40 || (length > 0 && packet[0] >> 4 == 4) => packet.get(..length).unwrap_or(packet),
        _ => packet,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 header of length 20 that says so.
    fn packet() -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        packet
    }

    #[test]
    fn every_link_type() {
        let ethernet = |tags: &[u8]| [&[0; 12][..], tags, &[8, 0], &packet(), &[0; 26]].concat();
        let rows = [
            (DataLink::RAW, packet()),
            (DataLink::ETHERNET, ethernet(&[])),
            (DataLink::ETHERNET, ethernet(&[0x81, 0, 0, 5])),
            (DataLink::ETHERNET, ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6])),
            (DataLink::NULL, [&[2, 0, 0, 0][..], &packet()].concat()),
            (DataLink::LINUX_SLL, [&[0; 14][..], &[8, 0], &packet()].concat()),
            (DataLink::Unknown(276), [&[8, 0][..], &[0; 18], &packet()].concat()),
        ];
        for (link, frame) in rows {
            assert_eq!(ip_packet(link, &frame), Some(&packet()[..]), "{link:?}");
        }
    }

    #[test]
    fn what_carries_no_ip() {
        let arp = [&[0; 12][..], &[8, 6], &[0; 28]].concat();
        assert_eq!(ip_packet(DataLink::ETHERNET, &arp), None);
        assert_eq!(ip_packet(DataLink::RAW, &[]), None);
        assert_eq!(ip_packet(DataLink::RAW, &[0x25; 40]), None);
        assert_eq!(ip_packet(DataLink::IEEE802_11, &packet()), None);
        for cut in 0..14 {
            assert_eq!(ip_packet(DataLink::ETHERNET, &arp[..cut]), None);
        }
    }

    #[test]
    fn a_packet_that_the_capture_cut_stays_as_it_is() {
        let mut cut = packet();
        cut[3] = 60;
        assert_eq!(ip_packet(DataLink::RAW, &cut), Some(&cut[..]));
    }
}
