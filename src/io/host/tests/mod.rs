mod namespace;
mod plan;
