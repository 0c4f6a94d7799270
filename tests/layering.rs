//! The layers of the crate, checked on its source:
//!
//! ```text
//! cli ─► control ─► io ─► engine ─► forward ─► { flow, service } ─► wire
//! ```
//!
//! `link` stands beside it and imports `wire` alone. A module may import those to its right and the plain types beside the chain. The part from `engine` on is pure: no
//! clock, no descriptor, no thread, no environment, no crate of the feature `gateway`. `unsafe` occurs in `io` only.
//!
//! The source is read as tokens, so that grouped imports, paths in expressions and `super::` count as well, and comments
//! and strings do not.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that nothing impure may enter.
const PURE: &[&str] = &[
    "wire", "flow", "service", "forward", "engine", "link", "explain", "command", "stats", "verdict", "time",
    "timeouts",
];

/// What each module may import besides itself.
fn allowed(module: &str) -> Option<&'static [&'static str]> {
    Some(match module {
        "time" | "timeouts" | "verdict" => &[],
        "wire" => &["time", "timeouts", "verdict"],
        "flow" | "service" => &["wire", "time", "timeouts", "verdict", "command", "stats"],
        "command" => &["flow", "service", "wire", "time", "timeouts", "verdict"],
        "stats" => &["command", "flow", "service", "wire", "time", "timeouts", "verdict"],
        "forward" => &["flow", "service", "wire", "time", "timeouts", "verdict", "command", "stats"],
        "explain" => {
            &["engine", "forward", "flow", "service", "wire", "time", "timeouts", "verdict", "command", "stats"]
        }
        // Beside the chain: the engine knows no frames.
        "link" => &["wire", "time", "verdict"],
        "engine" => &["forward", "flow", "service", "wire", "time", "timeouts", "verdict", "command", "stats"],
        "io" => &[
            "engine", "link", "forward", "flow", "service", "wire", "time", "timeouts", "verdict", "command", "stats",
            "explain",
        ],
        "control" => &[
            "io", "link", "engine", "forward", "flow", "service", "wire", "time", "timeouts", "verdict", "command",
            "stats", "explain",
        ],
        "cli" => &[
            "control", "io", "link", "engine", "forward", "flow", "service", "wire", "time", "timeouts", "verdict",
            "command", "stats", "explain",
        ],
        _ => return None,
    })
}

/// Paths of the standard library that reach out of the process or read a clock.
const IMPURE: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "std::os",
    "std::io",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::sync::mpsc",
];

#[test]
fn modules_import_only_what_stands_to_their_right() {
    let mut found = Vec::new();
    for file in sources() {
        let Some(module) = file.module.first() else { continue };
        let Some(allowed) = allowed(module) else {
            panic!("{}: module {module:?} has no place in the layers; give it one here", file.path.display());
        };
        for target in imports(&file.text, &file.module) {
            if target != *module && !allowed.contains(&target.as_str()) {
                found.push(format!("{}: {module} imports {target}", file.path.display()));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_engine_is_pure() {
    let gateway_crates = optional_dependencies();
    assert!(gateway_crates.iter().any(|name| name == "tokio"), "Cargo.toml is read wrongly: {gateway_crates:?}");
    let mut found = Vec::new();
    for file in sources() {
        // Unit tests may use threads and files.
        let is_test = file.module.iter().any(|part| part == "tests");
        if !is_test && file.module.first().is_some_and(|module| PURE.contains(&module.as_str())) {
            for impurity in impurities(&file.text, &gateway_crates) {
                found.push(format!("{}: {impurity}", file.path.display()));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn unsafe_occurs_in_io_only_and_says_why() {
    let mut found = Vec::new();
    for file in sources() {
        let lines = unsafe_lines(&file.text);
        if !lines.is_empty() && file.module.first().map(String::as_str) != Some("io") {
            found.push(format!("{}: unsafe outside io", file.path.display()));
        }
        for line in lines {
            if !says_why_safe(&file.text, line) {
                found.push(format!("{}:{}: unsafe without a SAFETY comment", file.path.display(), line + 1));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_checks_see_violations() {
    let at = |module: &[&str]| module.iter().map(ToString::to_string).collect::<Vec<_>>();
    let source = r##"
        use crate::{flow::{Table, tcp}, wire as w};
        // use crate::cli;
        const S: &str = "crate::control"; const R: &str = r#"crate::io "quoted" "#; const C: char = '"';
        fn f<'a>(x: &'a u8) { let y = super::super::engine::Engine::new(); }
        mod tests { use super::x; mod deeper { use super::super::super::super::stats::Stats; } }
    "##;
    let mut targets = imports(source, &at(&["forward", "nat"]));
    targets.sort();
    targets.dedup();
    assert_eq!(targets, ["engine", "flow", "forward", "stats", "wire"]);

    let crates = vec!["tokio".to_string()];
    for bad in [
        "use std::time::Instant;",
        "use std::{sync::Arc, time::{Duration, SystemTime}};",
        "use std::time;",
        "use std::time::*;",
        "fn f() { std::thread::sleep(d) }",
        "use tokio::net::UdpSocket;",
        "fn f() { println!(\"x\") }",
    ] {
        assert!(!impurities(bad, &crates).is_empty(), "{bad} passes");
    }
    assert!(impurities("mod tests { fn f() { std::thread::scope(g) } }", &crates).is_empty());
    assert!(impurities("use std::time::Duration; use crate::time::Instant; // std::fs\n", &crates).is_empty());

    assert_eq!(unsafe_lines("// unsafe\nlet x = \"unsafe\";\nunsafe { f() }"), [2]);
    assert!(!says_why_safe("// SAFETY: old\nlet y = 1;\nunsafe { f() }", 2));
    assert!(says_why_safe("let y = 1;\n// SAFETY: f has no demands\n// of its own.\nlet x =\n    unsafe { f() };", 4));
}

struct Source {
    path: PathBuf,
    /// The module path below the crate's root; empty for lib.rs and main.rs.
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 20, "only {} source files found under {}", files.len(), root.display());
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Vec<String> = relative.iter().map(|part| part.to_str().unwrap().to_string()).collect();
            if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
                module.pop();
            }
            let text = fs::read_to_string(&path).unwrap();
            Source { path, module, text }
        })
        .collect()
}

fn optional_dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let optional = manifest.lines().filter(|line| line.contains("optional = true"));
    optional.filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_"))).collect()
}

/// Top-level modules of this crate that the source names. `module` is where the source stands.
fn imports(source: &str, module: &[String]) -> Vec<String> {
    let mut targets = Vec::new();
    for (path, inline) in paths(&tokens(source)) {
        let here: Vec<&String> = module.iter().chain(&inline).collect();
        let supers = path.iter().take_while(|part| *part == "super").count();
        let target = match path[0].as_str() {
            "crate" => path.get(1),
            "super" if supers < here.len() => Some(here[0]),
            "super" => path.get(supers),
            _ => None,
        };
        targets.extend(target.cloned());
    }
    targets
}

fn impurities(source: &str, gateway_crates: &[String]) -> Vec<String> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    for (path, inline) in paths(&tokens) {
        if inline.iter().any(|name| name == "tests") {
            continue;
        }
        let joined = path.join("::");
        let within = |ban: &str| joined == ban || joined.strip_prefix(ban).is_some_and(|rest| rest.starts_with("::"));
        // The module by itself or with a glob gives access to all of it.
        let whole = ["std::time", "std::time::*", "std::net::*", "std::*"].contains(&joined.as_str());
        let foreign = path.len() > 1 && gateway_crates.contains(&path[0]);
        if whole || foreign || IMPURE.iter().any(|ban| within(ban)) {
            found.push(joined);
        }
    }
    for pair in tokens.windows(2) {
        if ["print", "println", "eprint", "eprintln", "dbg"].contains(&pair[0].as_str()) && pair[1] == "!" {
            found.push(format!("{}!", pair[0]));
        }
    }
    found
}

/// Every path with `::` in it, groups spelt out, and the inline modules that it stands in.
fn paths(tokens: &[String]) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut at, mut depth) = (0, 0);
    while at < tokens.len() {
        match tokens[at].as_str() {
            "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => {
                depth += 1;
                inline.push((tokens[at + 1].clone(), depth));
                at += 3;
            }
            "{" => {
                depth += 1;
                at += 1;
            }
            "}" => {
                if inline.last().is_some_and(|(_, opened)| *opened == depth) {
                    inline.pop();
                }
                depth -= 1;
                at += 1;
            }
            token if is_name(token) && tokens.get(at + 1).is_some_and(|next| next == "::") => {
                let mut tree = Vec::new();
                at = use_tree(tokens, at, &mut Vec::new(), &mut tree);
                let names: Vec<String> = inline.iter().map(|(name, _)| name.clone()).collect();
                found.extend(tree.into_iter().map(|path| (path, names.clone())));
            }
            _ => at += 1,
        }
    }
    found
}

/// Reads one path from `at` on, with its groups, and returns the place after it.
fn use_tree(tokens: &[String], mut at: usize, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    if tokens[at] == "," {
                        at += 1;
                        continue;
                    }
                    let before = at;
                    at = use_tree(tokens, at, prefix, out);
                    while tokens.get(at).is_some_and(|token| token != "," && token != "}") {
                        at += 1; // `as name`
                    }
                    assert!(at > before, "no progress in a group of imports");
                }
                prefix.truncate(depth);
                return at + 1;
            }
            Some(token) if is_name(token) || token == "*" => {
                prefix.push(token.to_string());
                if tokens.get(at + 1).is_some_and(|next| next == "::") {
                    at += 2;
                    continue;
                }
                out.push(prefix.clone());
                prefix.truncate(depth);
                return at + 1;
            }
            // `Vec::<u8>`: a turbofish ends what is of interest.
            _ => {
                out.push(prefix.clone());
                prefix.truncate(depth);
                return at;
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single signs; comments, strings, characters and lifetimes left out.
fn tokens(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code = without_comments_and_strings(source);
    let mut rest = code.as_str();
    while let Some(first) = rest.chars().next() {
        let len = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            found.push(rest[..len].to_string());
        }
        rest = &rest[len..];
    }
    found
}

/// The source with comments and the insides of literals blanked out; lines keep their numbers.
fn without_comments_and_strings(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let len = literal_or_comment(rest, code.chars().next_back()).unwrap_or(0);
        if len == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            code.extend(rest[..len].matches('\n'));
            rest = &rest[len..];
        }
    }
    code
}

/// How long the literal or comment is that `rest` starts with, if it does.
fn literal_or_comment(rest: &str, before: Option<char>) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let raw = rest.strip_prefix('b').unwrap_or(rest);
    if !in_name && let Some(raw) = raw.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let opened = rest.len() - raw.len() + hashes + 1;
            return Some(rest[opened..].find(&end).map_or(rest.len(), |at| opened + at + end.len()));
        }
    }
    if rest.starts_with('"') {
        return Some(end_of_quoted(rest, '"'));
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        let mut inside = inside.chars();
        let (first, second) = (inside.next()?, inside.next()?);
        // A lifetime has no closing quote.
        return (first == '\\' || second == '\'').then(|| end_of_quoted(rest, '\''));
    }
    None
}

fn end_of_quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Lines, from 0, that have the keyword.
fn unsafe_lines(source: &str) -> Vec<usize> {
    let code = without_comments_and_strings(source);
    let has = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    code.lines().enumerate().filter(|(_, line)| has(line)).map(|(number, _)| number).collect()
}

/// Whether a SAFETY comment stands in the statement that `line` belongs to or right above it.
fn says_why_safe(source: &str, line: usize) -> bool {
    let lines: Vec<&str> = source.lines().collect();
    if lines[line].contains("SAFETY:") {
        return true;
    }
    for above in lines[..line].iter().rev() {
        let above = above.trim();
        if above.starts_with("//") {
            if above.contains("SAFETY:") || above.contains("# Safety") {
                return true;
            }
        } else if above.is_empty() || above.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}
