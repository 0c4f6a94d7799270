//! Multicast listener discovery (RFC 3810): a bridge that watches it forwards neighbour solicitations only to those who have
//! said that they listen to the group, and routers that ask now and then want to hear it again.

use super::ethernet::{Header, Mac, TYPE_IPV6};
use crate::wire::{Addr, Protocol, checksum, ipv6};

const QUERY: u8 = 130;
const REPORT: u8 = 143;
/// All routers that know MLD version 2.
const ROUTERS: Addr = Addr::from_v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
/// Hop-by-hop options: ICMPv6 follows; a router alert for MLD (RFC 2711), and padding.
const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
const ICMP: usize = ipv6::LEN + ROUTER_ALERT.len();
/// CHANGE_TO_EXCLUDE_MODE without sources: from now on, everything. It is also what a new listener says.
const LISTEN: u8 = 4;
const RECORD: usize = 20;
/// Groups in one report: it has to fit the smallest MTU.
const MAX_GROUPS: usize = (1280 - ICMP - 8) / RECORD;

/// Whether this packet asks who listens. The answer is no secret: all that is checked is that it is of this segment.
pub fn is_query(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<{ ICMP + 1 }>() else { return false };
    header[6] == 0 && header[ipv6::HOP_LIMIT] == 1 && header[40..42] == [58, 0] && header[ICMP] == QUERY
}

/// "We listen to these groups", in as many frames as it takes.
pub fn reports(mac: Mac, groups: &[Addr]) -> impl Iterator<Item = Vec<u8>> + '_ {
    groups.chunks(MAX_GROUPS).map(move |groups| report(mac, groups))
}

fn report(mac: Mac, groups: &[Addr]) -> Vec<u8> {
    let src = mac.link_local();
    let mut message = vec![REPORT, 0, 0, 0, 0, 0, 0, groups.len() as u8];
    for group in groups {
        message.extend_from_slice(&[LISTEN, 0, 0, 0]);
        message.extend_from_slice(group.octets());
    }
    let sum = checksum::finish(checksum::pseudo_header(src, ROUTERS, Protocol::ICMPV6.0, message.len()), &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut header = [0; ipv6::LEN];
    ipv6::emit(&mut header, src, ROUTERS, Protocol(0), ROUTER_ALERT.len() + message.len());
    header[ipv6::HOP_LIMIT] = 1;
    let ethernet = Header { dst: Mac::of_multicast(ROUTERS), src: mac, ethertype: TYPE_IPV6 }.emit();
    [&ethernet[..], &header, &ROUTER_ALERT, &message].concat()
}
