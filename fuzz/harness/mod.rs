//! What the fuzz targets do with their bytes. The suites run the same on the committed corpora, and drive [`world`] with
//! operations of their own.

#![allow(dead_code, reason = "each target and each suite uses its part")]

#[path = "../../tests/support/decapsulate.rs"]
pub mod decapsulate;
pub mod engine;
pub mod ftp;
pub mod model;
pub mod ops;
#[path = "../../tests/support/oracle.rs"]
pub mod oracle;
pub mod parse;
pub mod receive;
pub mod rewrite;
pub mod segment;
pub mod specs;
pub mod tunnel;
pub mod world;
