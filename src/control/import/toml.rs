//! Writing the configuration.

use std::fmt::Write as _;

use super::Lost;
use super::service::Service;

/// Keys of a table and their values, as they stand in the file.
pub(super) type Keys = Vec<(&'static str, String)>;

pub(super) fn write(name: &str, services: &[Service], lost: &[Lost]) -> String {
    let mut text = format!("# Made from {} by gatun import.\n", one_line(name));
    if !lost.is_empty() {
        text.push_str("#\n# Not carried over, by line:\n");
        for Lost { line, what } in lost {
            let _ = writeln!(text, "#   {line}: {}", one_line(what));
        }
    }
    for service in services {
        let _ = write!(text, "\n# Line {}.\n[[service]]\n", service.line);
        keys(&mut text, "", &service.keys);
        if service.servers.is_empty() {
            text.push_str("server = []\n");
        }
        for server in &service.servers {
            let _ = write!(text, "\n  # Line {}.\n  [[service.server]]\n", server.line);
            keys(&mut text, "  ", &server.keys);
        }
    }
    text
}

fn keys(text: &mut String, indent: &str, keys: &Keys) {
    for (key, value) in keys {
        let _ = writeln!(text, "{indent}{key} = {value}");
    }
}

/// A table on one line.
pub(super) fn table(keys: &Keys) -> String {
    let words: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", words.join(", "))
}

/// A string in quotes.
pub(super) fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

pub(super) fn strings<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(string).collect();
    format!("[{}]", words.join(", "))
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
