//! gatun: a layer-4 load balancer and NAT gateway in user space on Linux TUN/TAP devices.
//!
//! ```text
//!   device ──► parse ──► flow table ──hit──► action ──► device
//! (tun, tap,              │ miss                ▲
//!  pcap, memory)          └► service ─► scheduler ─► plan the action, admit the flow
//! ```
//!
//! # Modules, and who may import whom
//!
//! ```text
//! cli ─► control ─► io ─► engine ─► forward ─► { flow, service } ─► wire
//! ```
//!
//! [`link`] (neighbours on an Ethernet segment) stands beside the chain: it imports `wire` alone, and `io` imports it.
//! `wire` imports no sibling; `flow` and `service` do not import each other; `io` never imports `control`: between them go
//! only [`command`]s and events. [`time`], [`timeouts`], [`verdict`], [`command`] and [`stats`] are plain types that all may
//! use. `tests/layering.rs` checks these arrows.
//!
//! Without the feature `gateway` the library is the pure engine: no clock, no file descriptor, no thread, no async.

// Purity, as far as clippy can see it; clippy.toml has the list with reasons.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

#[cfg(feature = "gateway")]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it touches the world")]
pub mod cli;
pub mod command;
#[cfg(feature = "gateway")]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it touches the world")]
pub mod control;
pub mod engine;
pub mod explain;
pub mod flow;
pub mod forward;
#[cfg(feature = "gateway")]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it touches the world")]
pub mod io;
pub mod link;
pub mod service;
pub mod stats;
pub mod time;
pub mod timeouts;
pub mod verdict;
pub mod wire;
