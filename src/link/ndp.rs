//! Neighbour discovery of IPv6 (RFC 4861): solicitations and advertisements. Routers are configured, so their
//! advertisements and redirects are none of our business.

use super::ethernet::{self, Header, Mac, TYPE_IPV6};
use crate::verdict::DropReason;
use crate::wire::{Addr, Protocol, VnetHdr, checksum, ipv6};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const R: u8 = 0x80;
const S: u8 = 0x40;
const O: u8 = 0x20;
/// Up to the options.
const FIXED: usize = 24;
/// A message with one option.
const LEN: usize = FIXED + 8;
/// Bytes of a message with one option in its frame.
pub const FRAME: usize = ethernet::LEN + ipv6::LEN + LEN;

pub const ALL_NODES: Addr = Addr::from_v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// A valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ndp {
    pub src: Addr,
    pub dst: Addr,
    pub target: Addr,
    pub message: Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// `mac`: of its sender.
    Solicitation { mac: Option<Mac> },
    /// `mac`: of the target.
    Advertisement { mac: Option<Mac>, solicited: bool, overrides: bool },
}

/// Whether this IPv6 packet is neighbour discovery's: cheap, for every packet asks. Extension headers never stand before
/// such a message in practice, and one that has them is no more than an odd ICMPv6 message to whoever gets it.
#[inline]
pub fn is_ndp(packet: &[u8]) -> bool {
    packet.get(6) == Some(&Protocol::ICMPV6.0) && matches!(packet.get(ipv6::LEN), Some(&(133..=137)))
}

/// The solicited-node multicast address of `addr` (RFC 4291 section 2.7.1).
pub fn solicited_node(addr: Addr) -> Addr {
    let last = addr.octets();
    Addr::from_v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, last[13], last[14], last[15]])
}

/// Validates a packet that [`is_ndp`] (RFC 4861 sections 7.1.1 and 7.1.2). `Ok(None)`: a message that we do not heed.
pub fn parse(packet: &[u8], vnet: &VnetHdr) -> Result<Option<Ndp>, DropReason> {
    let header = ipv6::parse(packet, false).map_err(|_| DropReason::BadNdp)?;
    let message = packet.get(header.header_len..header.total_len).ok_or(DropReason::BadNdp)?;
    if !matches!(message.first(), Some(&(SOLICITATION | ADVERTISEMENT))) {
        return Ok(None);
    }
    if header.hop_limit != 255 || header.fragment.is_some() || message.len() < FIXED || message[1] != 0 {
        return Err(DropReason::BadNdp);
    }
    let begun = checksum::pseudo_header(header.src, header.dst, Protocol::ICMPV6.0, message.len());
    if !vnet.is_partial(header.header_len) && checksum::finish(begun, message) != 0 {
        return Err(DropReason::BadNdp);
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(&message[8..FIXED]);
    let ndp = Ndp { src: header.src, dst: header.dst, target: Addr::from_v6(octets), message: read(message)? };
    if ndp.target.is_multicast_or_broadcast() || ndp.target.is_v4() || !is_consistent(&ndp) {
        return Err(DropReason::BadNdp);
    }
    Ok(Some(ndp))
}

fn read(message: &[u8]) -> Result<Message, DropReason> {
    let options = &message[FIXED..];
    Ok(match message[0] {
        SOLICITATION => Message::Solicitation { mac: mac_option(options, SOURCE_MAC)? },
        _ => Message::Advertisement {
            mac: mac_option(options, TARGET_MAC)?,
            solicited: message[4] & S != 0,
            overrides: message[4] & O != 0,
        },
    })
}

/// What the sections demand of source and destination.
fn is_consistent(ndp: &Ndp) -> bool {
    let unspecified = ndp.src == Addr::UNSPECIFIED;
    if ndp.src.is_martian_source() && !unspecified {
        return false;
    }
    match ndp.message {
        // Somebody tests whether the address is free (RFC 4862 section 5.4).
        Message::Solicitation { mac } if unspecified => ndp.dst == solicited_node(ndp.target) && mac.is_none(),
        Message::Solicitation { .. } => true,
        Message::Advertisement { solicited: true, .. } => !unspecified && ndp.dst.octets()[0] != 0xff,
        Message::Advertisement { .. } => !unspecified,
    }
}

/// Walks all options: one of length zero makes the whole message invalid.
fn mac_option(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return Err(DropReason::BadNdp);
        }
        if kind == wanted && len == 8 {
            found = Some(Mac([options[2], options[3], options[4], options[5], options[6], options[7]]));
        }
        options = &options[len..];
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::BadNdp) }
}

/// "Who has `target`?", from `src` with `mac`; to `to`, or with `None` to the target's multicast group.
pub fn solicitation(mac: Mac, src: Addr, target: Addr, to: Option<Mac>) -> [u8; FRAME] {
    let (dst, dst_mac) = match to {
        Some(to) => (target, to),
        None => (solicited_node(target), Mac::of_multicast(solicited_node(target))),
    };
    frame((mac, dst_mac), (src, dst), (SOLICITATION, 0), target, (SOURCE_MAC, mac))
}

/// "`target` is at `mac`", as an answer to `to`; with `None` to everybody, unasked. It overrides what was known, and says
/// that we are a router: servers send replies to clients by us.
pub fn advertisement(mac: Mac, target: Addr, to: Option<(Mac, Addr)>) -> [u8; FRAME] {
    let ((dst_mac, dst), solicited) = match to {
        Some(to) => (to, S),
        None => ((Mac::ALL_NODES, ALL_NODES), 0),
    };
    frame((mac, dst_mac), (target, dst), (ADVERTISEMENT, R | O | solicited), target, (TARGET_MAC, mac))
}

fn frame(
    (src_mac, dst_mac): (Mac, Mac),
    (src, dst): (Addr, Addr),
    (kind, flags): (u8, u8),
    target: Addr,
    (option, mac): (u8, Mac),
) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let (ethernet, packet) = frame.split_at_mut(ethernet::LEN);
    ethernet.copy_from_slice(&Header { dst: dst_mac, src: src_mac, ethertype: TYPE_IPV6 }.emit());
    let (header, message) = packet.split_at_mut(ipv6::LEN);
    if let Some(header) = header.first_chunk_mut() {
        ipv6::emit(header, src, dst, Protocol::ICMPV6, LEN);
    }
    header[ipv6::HOP_LIMIT] = 255;
    (message[0], message[4]) = (kind, flags);
    message[8..FIXED].copy_from_slice(target.octets());
    (message[FIXED], message[FIXED + 1]) = (option, 1);
    message[FIXED + 2..].copy_from_slice(&mac.0);
    let sum = checksum::finish(checksum::pseudo_header(src, dst, Protocol::ICMPV6.0, LEN), message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame
}
