//! Active health checks.

pub mod path;
pub mod transport;
