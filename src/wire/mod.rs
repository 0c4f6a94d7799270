//! What stands in packets: addresses, tuples, headers, checksums.

mod addr;
mod tuple;

pub use addr::Addr;
pub use tuple::{Protocol, Tuple};
