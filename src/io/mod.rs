//! Devices, packet workers and what the host must be told. Never imports `control`.

pub mod device;
mod gateway;
pub mod host;
pub mod memory;
pub mod tun;
pub mod worker;

pub use gateway::Gateway;
