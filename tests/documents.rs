//! What the documents say is so, as far as a program can tell.

#![cfg(feature = "gateway")]

use std::path::Path;

use gatun::control::api;
use gatun::control::config::Config;
use gatun::service::{SchedulerKind, Snapshot};
use gatun::verdict::DropReason;

const README: &str = include_str!("../README.md");
const OPERATIONS: &str = include_str!("../docs/OPERATIONS.md");
const CONTROL_API: &str = include_str!("../docs/CONTROL-API.md");

/// The blocks of `text` between a line "```language" and the next "```".
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_configurations_of_the_readme_make_snapshots() {
    let found = blocks(README, "toml");
    assert!(!found.is_empty());
    for text in found {
        let config = Config::parse(Path::new("README.md"), text).unwrap_or_else(|errors| panic!("{errors}"));
        let compiled = config.compiled().unwrap_or_else(|errors| panic!("{errors}"));
        let snapshot = Snapshot::build(compiled.snapshot, None).unwrap();
        assert!(snapshot.live.iter().all(|service| !service.servers.is_empty()), "an example that serves nobody");
    }
}

#[test]
fn the_readme_names_every_scheduler_among_the_supported_ones() {
    let supported = README.split("## What is supported").nth(1).and_then(|rest| rest.split("## ").next()).unwrap();
    for kind in SchedulerKind::ALL {
        assert!(supported.contains(&format!("`{}`", kind.word())), "{}", kind.word());
    }
}

#[test]
fn the_drop_reasons_that_the_documents_show_exist() {
    let lines = README.lines().filter_map(|line| line.trim().strip_prefix("verdict    drop "));
    let shown: Vec<&str> = lines.filter_map(|line| line.split(',').next()).collect();
    assert!(!shown.is_empty());
    for word in shown {
        assert!(DropReason::ALL.iter().any(|reason| reason.word() == word), "{word}");
    }
}

#[test]
fn the_control_api_describes_every_operation() {
    for op in api::OPS {
        assert!(CONTROL_API.contains(&format!("| `{op}` |")), "{op} has no row");
    }
    for op in api::RESERVED_OPS {
        assert!(CONTROL_API.contains(&format!("`{op}`")), "{op} is not named");
    }
    assert!(CONTROL_API.contains(&format!("This page describes version {}.", api::VERSION)));
}

#[test]
fn every_request_of_the_control_api_is_one() {
    let requests: Vec<&str> = CONTROL_API.lines().filter_map(|line| line.strip_prefix("→ ")).collect();
    assert!(requests.len() >= 5, "{requests:?}");
    for line in requests {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut fields = value.as_object().cloned().expect(line);
        assert_eq!(fields.remove("v"), Some(api::VERSION.into()), "{line}");
        let request = serde_json::from_value::<api::Request>(fields.into());
        assert!(request.is_ok(), "{line}: {request:?}");
    }
}

/// Every line "$ gatun …" of the operator's page is a command line that gatun takes: its words name a command, and its options
/// are in that command's help.
#[test]
fn the_commands_of_the_operations_page_exist() {
    let lines: Vec<&str> = OPERATIONS.lines().filter_map(|line| line.strip_prefix("$ gatun ")).collect();
    assert!(lines.len() >= 20, "{lines:?}");
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let nested = ["conntrack", "nat", "service", "server"].contains(&words[0]);
        let command = &words[..1 + usize::from(nested)];
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_gatun")).args(command).arg("--help").output().unwrap();
        assert!(output.status.success(), "{line}");
        let help = String::from_utf8_lossy(&output.stdout);
        for option in words.iter().filter(|word| word.starts_with('-')) {
            let of_option = |token: &str| token.trim_end_matches(',') == *option;
            assert!(help.split_whitespace().any(of_option), "{line}: {option}\n{help}");
        }
    }
}

#[test]
fn the_operations_page_names_every_scheduler_it_shows_rightly() {
    let words: Vec<&str> = SchedulerKind::ALL.iter().map(|kind| kind.word()).collect();
    assert!(OPERATIONS.contains(&format!("({})", words.join(", "))));
}

const RFC: &str = include_str!("../docs/RFC.md");

/// The rows of the RFC page's tables, each with its section's heading.
fn requirements() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut section = "";
    let mut rows = Vec::new();
    for line in RFC.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        } else if let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            if cells[0] != "requirement" && !cells[0].starts_with("---") {
                rows.push((section, cells));
            }
        }
    }
    rows
}

#[test]
fn every_requirement_has_a_status_and_says_why() {
    let rows = requirements();
    assert!(rows.len() > 80, "{}", rows.len());
    for (section, cells) in rows {
        let [number, level, what, status, tests] = cells[..] else { panic!("{section}: not five cells: {cells:?}") };
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{section} {number}: an empty cell");
        assert!(what.contains(' '), "{section} {number}: {what}");
        let met = status.starts_with("met");
        match level {
            "MUST" => assert!(met || status.starts_with("does not apply because"), "{section} {number}: {status}"),
            "SHOULD" => {
                let refused = ["refused because", "does not apply because"].iter().any(|why| status.starts_with(why));
                assert!(met || refused, "{section} {number}: {status}");
            }
            "MAY" => assert!(met || status.starts_with("not taken up: "), "{section} {number}: {status}"),
            other => panic!("{section} {number}: level {other}"),
        }
        assert!(!met || tests != "none", "{section} {number}: met, and no test");
    }
}

/// The numbers and letters of the four documents that say how a NAT behaves.
#[test]
fn no_requirement_is_left_out() {
    let rows = requirements();
    for (section, prefix, numbers) in [
        ("RFC 4787", "REQ-", "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a"),
        ("RFC 5382", "REQ-", "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10"),
        ("RFC 5508", "REQ-", "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10a 10b 10c-f 11"),
        ("RFC 7857", "§", "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12"),
    ] {
        let mut expected: Vec<String> = numbers.split(' ').map(|number| format!("{prefix}{number}")).collect();
        let of_section = rows.iter().filter(|(heading, _)| heading.starts_with(section));
        let mut found: Vec<&str> = of_section.map(|(_, cells)| cells[0]).collect();
        expected.sort();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, expected, "{section}");
    }
}

/// `file::function`, or `file` and a row of its table in quotes; and no test of netns-tests/rfc that stands for nothing.
#[test]
fn the_tests_that_the_rfc_page_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    for (section, cells) in requirements() {
        let tests = cells[4];
        if tests == "none" {
            continue;
        }
        let mut rest = tests;
        while let Some((reference, after)) = rest.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
            rest = after;
            match reference.split_once("::") {
                Some((file, function)) => {
                    let text = read(file);
                    let (before, _) =
                        text.split_once(&format!("fn {function}(")).unwrap_or_else(|| panic!("{section}: {reference}"));
                    let mut lines = before.trim_end().lines().rev().take_while(|line| line.trim().starts_with("#["));
                    assert!(lines.any(|line| line.trim() == "#[test]"), "{section}: {reference} is no test");
                }
                None => {
                    let quoted = rest.strip_prefix(" \"").and_then(|rest| rest.split_once('"'));
                    let (row, after) = quoted.unwrap_or_else(|| panic!("{section}: {reference} without a row"));
                    assert!(
                        read(reference).contains(&format!("\"{row}\"")),
                        "{section}: {reference} has no row \"{row}\""
                    );
                    rest = after;
                }
            }
            rest = rest.strip_prefix(", ").unwrap_or(rest);
        }
        assert!(rest.is_empty(), "{section}: {tests}");
    }
    for entry in std::fs::read_dir(root.join("netns-tests/rfc")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for test in text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            assert!(RFC.contains(&format!("{}::{test}`", path.file_name().unwrap().display())), "{test} has no row");
        }
    }
}
