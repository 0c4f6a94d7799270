//! What the fuzz targets do with their bytes. The suites run the same on the committed corpora, and drive [`world`] with
//! operations of their own.

#![allow(dead_code, reason = "each target and each suite uses its part")]

pub mod engine;
pub mod model;
pub mod ops;
#[path = "../../tests/support/oracle.rs"]
pub mod oracle;
pub mod parse;
pub mod rewrite;
pub mod segment;
pub mod world;
