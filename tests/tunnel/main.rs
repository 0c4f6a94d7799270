//! Tunnels as `wire` has them: outer headers, cutting, the way back.

#[path = "../../fuzz/harness/mod.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod properties;
