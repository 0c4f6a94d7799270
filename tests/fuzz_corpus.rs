//! Replays the corpora of the fuzz targets: each file once, as an ordinary test.
//!
//! A new target adds its harness and a test of one line.

use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "gateway")]
#[path = "../fuzz/harness/config.rs"]
mod config;
#[path = "../fuzz/harness/mod.rs"]
mod harness;

/// Hands every file of the corpus to the target; a failure names the file.
fn replay(target: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a directory of the repository").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    for file in files {
        let input = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let outcome = std::panic::catch_unwind(|| run(&input));
        assert!(outcome.is_ok(), "{} fails the target {target:?}; its panic stands above", file.display());
    }
}

#[test]
fn parse_corpus() {
    replay("parse", harness::parse::run);
}

#[test]
fn receive_corpus() {
    replay("receive", harness::receive::run);
}

#[test]
fn rewrite_corpus() {
    replay("rewrite", harness::rewrite::run);
}

#[test]
fn engine_corpus() {
    replay("engine", harness::engine::run);
}

#[test]
fn tunnel_corpus() {
    replay("tunnel", harness::tunnel::run);
}

#[test]
fn ftp_corpus() {
    replay("ftp", harness::ftp::run);
}

#[test]
fn link_corpus() {
    replay("link", harness::segment::run);
}

#[cfg(feature = "gateway")]
#[test]
fn config_corpus() {
    replay("config", config::run);
}
