//! Active health checks.

pub mod transport;
