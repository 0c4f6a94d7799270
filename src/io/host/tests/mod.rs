mod namespace;
mod plan;
mod pools;
mod support;
mod traffic;
