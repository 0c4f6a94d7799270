//! How things look. Pure: text from values, nothing printed.

pub mod conntrack;
pub mod number;
pub mod table;
