//! How things look. Pure: text from values, nothing printed.

pub mod conntrack;
pub mod expect;
pub mod number;
pub mod table;
