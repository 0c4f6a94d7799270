//! ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443): which messages are what.

use super::{Addr, Protocol};
use crate::verdict::DropReason;

/// Header of echo messages and errors alike; in errors the quoted packet follows.
pub const LEN: usize = 8;
pub const CHECKSUM: usize = 2;
/// What extensions leave to the quoted packet at least, padded with zeros (RFC 4884 section 4).
const QUOTED_BEFORE_EXTENSIONS: usize = 128;
pub const ID: usize = 4;

pub const V4_ECHO_REPLY: u8 = 0;
pub const V4_UNREACHABLE: u8 = 3;
pub const V4_ECHO_REQUEST: u8 = 8;
pub const V4_TIME_EXCEEDED: u8 = 11;
pub const V4_PARAMETER_PROBLEM: u8 = 12;
pub const V4_TIMESTAMP: u8 = 13;
pub const V4_TIMESTAMP_REPLY: u8 = 14;
// Codes of [`V4_UNREACHABLE`].
pub const V4_HOST_UNREACHABLE: u8 = 1;
pub const V4_PORT_UNREACHABLE: u8 = 3;
/// Communication administratively prohibited (RFC 1812 section 5.2.7.1).
pub const V4_PROHIBITED: u8 = 13;
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
pub const V4_SOURCE_ROUTE_FAILED: u8 = 5;

pub const V6_UNREACHABLE: u8 = 1;
pub const V6_PACKET_TOO_BIG: u8 = 2;
pub const V6_TIME_EXCEEDED: u8 = 3;
pub const V6_PARAMETER_PROBLEM: u8 = 4;
pub const V6_ECHO_REQUEST: u8 = 128;
pub const V6_ECHO_REPLY: u8 = 129;
// Codes of [`V6_UNREACHABLE`].
pub const V6_ADDRESS_UNREACHABLE: u8 = 3;
pub const V6_PORT_UNREACHABLE: u8 = 4;
/// The same of ICMPv6 (RFC 4443 section 3.1).
pub const V6_PROHIBITED: u8 = 1;
/// Code of [`V6_PARAMETER_PROBLEM`]: the next header is none that the receiver knows.
pub const V6_UNKNOWN_NEXT_HEADER: u8 = 1;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    EchoRequest {
        id: u16,
    },
    EchoReply {
        id: u16,
    },
    /// A question of another kind that an identifier tells from others: for the time (RFC 792).
    Query {
        id: u16,
    },
    Answer {
        id: u16,
    },
    /// Quotes the packet that it is about (RFC 5508 section 7 has the list of types).
    Error,
    Other,
}

/// Reads the header of a message of `protocol`.
pub fn parse(bytes: &[u8], protocol: Protocol) -> Result<Kind, DropReason> {
    let header: &[u8; LEN] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let id = u16::from_be_bytes([header[ID], header[ID + 1]]);
    Ok(match (protocol, header[0]) {
        (Protocol::ICMP, V4_ECHO_REQUEST) | (Protocol::ICMPV6, V6_ECHO_REQUEST) => Kind::EchoRequest { id },
        (Protocol::ICMP, V4_ECHO_REPLY) | (Protocol::ICMPV6, V6_ECHO_REPLY) => Kind::EchoReply { id },
        (Protocol::ICMP, V4_TIMESTAMP) => Kind::Query { id },
        (Protocol::ICMP, V4_TIMESTAMP_REPLY) => Kind::Answer { id },
        (Protocol::ICMP, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM)
        | (Protocol::ICMPV6, V6_UNREACHABLE..=V6_PARAMETER_PROBLEM) => Kind::Error,
        _ => Kind::Other,
    })
}

/// Where in an error the packet that it quotes ends: extensions may follow (RFC 4884 section 4). They do when the header says
/// where, and leaves at least 128 bytes to the packet; older senders have anything in that byte. `message` is at least
/// [`LEN`] bytes long.
pub fn quoted_end(message: &[u8], protocol: Protocol) -> usize {
    let len = match (protocol, message[0]) {
        (Protocol::ICMP, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM) => usize::from(message[5]) * 4,
        (Protocol::ICMPV6, V6_UNREACHABLE | V6_TIME_EXCEEDED) => usize::from(message[4]) * 8,
        _ => 0,
    };
    if len >= QUOTED_BEFORE_EXTENSIONS && LEN + len <= message.len() { LEN + len } else { message.len() }
}

/// Whether the message that begins here, perhaps cut short, is a query or an answer with an identifier. `addr` is one of the
/// packet's: each family has a protocol of its own.
#[inline]
pub fn has_identifier(message: &[u8], protocol: Protocol, addr: Addr) -> bool {
    match (protocol, message.first()) {
        (Protocol::ICMP, Some(kind)) => {
            let is_one = matches!(*kind, V4_ECHO_REQUEST | V4_ECHO_REPLY | V4_TIMESTAMP | V4_TIMESTAMP_REPLY);
            addr.is_v4() && is_one
        }
        (Protocol::ICMPV6, Some(kind)) => !addr.is_v4() && matches!(*kind, V6_ECHO_REQUEST | V6_ECHO_REPLY),
        _ => false,
    }
}

/// The type of an echo reply.
pub fn echo_reply_type(protocol: Protocol) -> u8 {
    if protocol == Protocol::ICMP { V4_ECHO_REPLY } else { V6_ECHO_REPLY }
}
