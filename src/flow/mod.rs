//! Flows: the table, the TCP states, expiry, and fragments that follow their first one.

mod tcp;

pub use tcp::{Sender, TcpState, Trigger, next};
