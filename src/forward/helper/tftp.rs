//! TFTP (RFC 1350): the server answers a request from a port of its own choice, and the transfer goes on with that port.
//!
//! The client sends its request to the service's port. What the server sends from whichever port to the client's is
//! expected, and comes from the VIP and the same port; what the client sends there belongs to that flow.

use super::{Desk, Helper};
use crate::flow::Sender;

/// Read and write request (RFC 1350 section 5).
const REQUESTS: [[u8; 2]; 2] = [[0, 1], [0, 2]];

/// Nothing is kept from one datagram to the next.
pub struct Tftp {
    /// Who requests.
    asks: Sender,
}

impl Tftp {
    pub fn new(asks: Sender) -> Tftp {
        Tftp { asks }
    }
}

impl Helper for Tftp {
    fn read(&mut self, sender: Sender, bytes: &[u8], desk: &mut Desk<'_>) {
        let is_request = bytes.first_chunk().is_some_and(|opcode| REQUESTS.contains(opcode));
        if sender == self.asks && is_request {
            desk.expect_answer();
        }
    }
}
