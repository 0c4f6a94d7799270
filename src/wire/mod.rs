//! What stands in packets: addresses, tuples, headers, checksums.
//!
//! [`View::parse`] validates a packet once; [`Rewrite`] changes it in place. Nothing here knows of flows or services.

mod addr;
pub mod checksum;
pub mod coalesce;
pub mod cut;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod options;
pub mod outer;
mod packet_buf;
mod rewrite;
pub mod segment;
pub mod tcp;
mod tuple;
pub mod udp;
mod unwrap;
mod view;
pub mod vnet;

pub use addr::Addr;
pub use cut::{CutError, Fit, fit, pieces};
pub use options::Options;
pub use outer::{Encapsulation, Outer, QuotedOuter, Wrap, parse_quoted_outer};
pub use packet_buf::{HEADROOM, MAX_FRAME, MAX_PACKET, PacketBuf};
pub use rewrite::{Rewrite, decrement_ttl, ipv4_id};
pub use tuple::{Protocol, Tuple};
pub use unwrap::{Unwrapped, unwrap};
pub use view::{Fragment, Transport, View};
pub use vnet::VnetHdr;
