//! The control plane: configuration, control socket, metrics, the daemon.

pub mod api;
pub mod config;
pub mod context;
pub mod daemon;
pub mod device;
pub mod drain;
pub mod evacuate;
pub mod explain;
pub mod health;
pub mod import;
pub mod metrics;
mod names;
pub mod real_server;
pub mod socket;
mod view;
mod zero;
