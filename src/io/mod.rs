//! Devices, packet workers and what the host must be told. Never imports `control`.

mod gateway;

pub use gateway::Gateway;
