//! The control plane: configuration, control socket, metrics, the daemon.

pub mod api;
pub mod config;
pub mod context;
pub mod socket;
mod view;
