//! Method `nat`: the destination becomes the server, the client's address and port stay as they are.

use crate::service::{Server, Service};
use crate::wire::Tuple;

/// The reply tuple of a flow to `server`.
pub fn plan(service: &Service, server: &Server, original: &Tuple) -> Tuple {
    Tuple {
        src: server.address,
        dst: original.src,
        sport: service.server_port(server, original.dport),
        dport: original.sport,
        protocol: original.protocol,
    }
}

/// A client may use one source port towards two VIPs that share a server; seen from the server the two would be one
/// connection. The later one gets another source port, as netfilter gives it (Linux, `net/netfilter/nf_nat_core.c`,
/// `nf_nat_l4proto_unique_tuple`): from the same part of the port space, at random.
pub fn other_source_port(planned: Tuple, random: u64, attempt: u16) -> Tuple {
    let (low, size) = match planned.dport {
        0..512 => (1, 511),
        512..1024 => (512, 512),
        _ => (1024, 64512),
    };
    // An odd stride walks the whole range without repeating itself.
    let stride = 1 + 2 * ((random >> 32) % 1021);
    let offset = (random % size + u64::from(attempt) * stride) % size;
    Tuple { dport: (low + offset) as u16, ..planned }
}
