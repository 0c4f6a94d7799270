mod namespace;
mod plan;
mod support;
mod traffic;
