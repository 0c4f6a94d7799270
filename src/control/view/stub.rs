//! Stands in for what engines do not tell yet.

use crate::command::{MappingRecord, PoolRecord};
use crate::engine::Engine;
use crate::time::Instant;

pub fn mappings(_: &Engine, _: Instant, _: usize, _: usize) -> (Vec<MappingRecord>, Option<usize>) {
    (Vec::new(), None)
}

pub fn pools(_: &Engine) -> Vec<PoolRecord> {
    Vec::new()
}
