//! What the suites share: building packets with etherparse, reading them back with it and with a naive oracle, snapshots.

#![allow(dead_code, reason = "each suite uses its part")]

pub mod arbitrary;
pub mod counting;
pub mod decapsulate;
pub mod oracle;
pub mod packet;
pub mod shards;
pub mod traffic;
pub mod world;
