//! Any bytes as a configuration file: read it, compile it, build a snapshot of it, compare it with another.

use std::path::Path;

use gatun::control::config::{Config, difference};
use gatun::service::Snapshot;

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let config = match Config::parse(Path::new("fuzz.toml"), &text) {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.problems().is_empty(), "an error without a problem");
            for problem in errors.problems() {
                let (line, column) = errors.position(problem).expect("every problem of a text has a place");
                assert!(line >= 1 && column >= 1 && line <= text.matches('\n').count() + 1);
            }
            assert!(errors.to_string().starts_with("fuzz.toml:"));
            return;
        }
    };
    let compiled = config.compiled().expect("what parses compiles");
    assert!(difference(&compiled, &compiled).is_empty(), "a configuration differs from itself");
    let empty = Config::parse(Path::new("empty.toml"), "").expect("every key has a default");
    let empty = empty.compiled().expect("what parses compiles");
    let changes = difference(&empty, &compiled);
    assert_eq!(changes.is_empty(), empty == compiled, "a change without words");
    for change in changes {
        assert!(!change.to_string().is_empty());
    }
    // Each of these schedulers takes a table of 256 KiB: not for thousands of services.
    if compiled.snapshot.services.len() <= 16 {
        Snapshot::build(compiled.snapshot, None).expect("what compiles makes a snapshot");
    }
}
