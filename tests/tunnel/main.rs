//! Tunnels as `wire` has them: outer headers, cutting, the way back.

#![allow(clippy::duplicate_mod, reason = "the harness of the fuzz targets brings its oracle along")]

#[path = "../../fuzz/harness/mod.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod foreign;
mod golden;
mod properties;
