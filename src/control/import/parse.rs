//! The lines of a keepalived.conf as statements: words, and a block where there is one.

use std::collections::HashMap;

use super::Losses;

/// Blocks within blocks; keepalived needs four.
const MAX_DEPTH: usize = 16;
/// Bytes of a line with its definitions filled in.
const MAX_LINE: usize = 16 * 1024;

/// A line, or a line with the block that it opens.
#[derive(Clone, Debug, Default)]
pub(super) struct Statement {
    pub line: usize,
    pub words: Vec<String>,
    pub block: Vec<Statement>,
}

impl Statement {
    /// What it begins with.
    pub(super) fn word(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.word() == word
    }

    /// What follows the first word.
    pub(super) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or(&[])
    }

    /// The first argument.
    pub(super) fn argument(&self) -> Option<&str> {
        self.arguments().first().map(String::as_str)
    }

    /// The statement of its block that begins with `word`; the last one counts.
    pub(super) fn find(&self, word: &str) -> Option<&Statement> {
        self.block.iter().rev().find(|found| found.is(word))
    }
}

/// Comments begin with `!` or `#`; `$NAME=value` defines what `$NAME` and `${NAME}` stand for; lines that begin with `@` hold
/// on some hosts only and are left out.
pub(super) fn parse(text: &str, lost: &mut Losses) -> Vec<Statement> {
    let mut definitions = HashMap::new();
    let mut open: Vec<Statement> = vec![Statement::default()];
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let number = number + 1;
        let mut line = line.trim_end().to_owned();
        while line.ends_with('\\') && line.len() < MAX_LINE {
            line.pop();
            line.push_str(lines.next().map_or("", |(_, next)| next.trim_end()));
        }
        let start = line.trim_start();
        if let Some(condition) = start.strip_prefix('@') {
            let condition = condition.split_whitespace().next().unwrap_or("");
            lost.add(number, format!("@{condition}: a line that holds on some hosts only; it was left out"));
            let mut depth = opened(&line);
            while depth > 0 {
                let Some((_, inner)) = lines.next() else { break };
                depth += opened(inner);
            }
            continue;
        }
        if let Some((name, value)) = definition(start) {
            match fill_in(value, &definitions) {
                Ok(value) => drop(definitions.insert(name.to_owned(), value)),
                Err(unknown) => lost.add(number, format!("${unknown} is not defined before")),
            }
            continue;
        }
        let line = match fill_in(&line, &definitions) {
            Ok(line) => line,
            Err(unknown) => {
                lost.add(number, format!("${unknown} is not defined before; the line was left out"));
                continue;
            }
        };
        tokens(&line, number, &mut open, lost);
    }
    while open.len() > 1 {
        lost.add(open.last().map_or(0, |block| block.line), "the block is never closed");
        close(&mut open);
    }
    open.pop().map(|top| top.block).unwrap_or_default()
}

/// By how much a line goes deeper into blocks.
fn opened(line: &str) -> i64 {
    let code = line.split(['!', '#']).next().unwrap_or("");
    let brace = |word| match word {
        "{" => 1,
        "}" => -1,
        _ => 0,
    };
    code.split_whitespace().map(brace).sum()
}

/// `$NAME=value`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix('$')?.split_once('=')?;
    let name = name.trim_end();
    (!name.is_empty() && name.bytes().all(is_of_name)).then(|| (name, value.trim()))
}

const fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The line with every definition filled in, or the name that has none. A `$` that no name follows stands for itself.
fn fill_in(line: &str, definitions: &HashMap<String, String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once('$') {
        filled.push_str(before);
        // In a comment nothing is filled in.
        if before.contains(['!', '#']) || filled.len() > MAX_LINE {
            rest = "";
            break;
        }
        let braced = behind.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = behind.bytes().position(|byte| !is_of_name(byte)).unwrap_or(behind.len());
            behind.split_at(end)
        });
        match definitions.get(name) {
            Some(value) => filled.push_str(value),
            // As in a regular expression.
            None if name.is_empty() => filled.push('$'),
            None => return Err(name.to_owned()),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Adds the statements of a line to the innermost open block.
fn tokens(line: &str, number: usize, open: &mut Vec<Statement>, lost: &mut Losses) {
    let mut words: Vec<String> = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            '!' | '#' => break,
            c if c.is_whitespace() => drop(chars.next()),
            '"' => {
                chars.next();
                words.push(chars.by_ref().take_while(|&c| c != '"').collect());
            }
            '{' => {
                chars.next();
                open_block(std::mem::take(&mut words), number, open, lost);
            }
            '}' => {
                chars.next();
                end(std::mem::take(&mut words), number, open);
                if open.len() > 1 {
                    close(open);
                } else {
                    lost.add(number, "\"}\" closes no block");
                }
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek().filter(|c| !c.is_whitespace() && !"!#\"".contains(**c)) {
                    // Braces stand by themselves; in a word they are of it, as in a regular expression.
                    word.push(c);
                    chars.next();
                }
                words.push(word);
            }
        }
    }
    end(words, number, open);
}

fn end(words: Vec<String>, line: usize, open: &mut [Statement]) {
    if let Some(block) = open.last_mut().filter(|_| !words.is_empty()) {
        block.block.push(Statement { line, words, block: Vec::new() });
    }
}

/// `{` may stand on a line of its own.
fn open_block(words: Vec<String>, line: usize, open: &mut Vec<Statement>, lost: &mut Losses) {
    let opener = match open.last_mut() {
        Some(block) if words.is_empty() => block.block.pop().filter(|last| last.block.is_empty()),
        _ => None,
    };
    if open.len() == MAX_DEPTH {
        lost.add(line, "too many blocks within blocks");
    }
    open.push(opener.unwrap_or(Statement { line, words, block: Vec::new() }));
}

fn close(open: &mut Vec<Statement>) {
    let depth = open.len();
    let Some(closed) = open.pop() else { return };
    // Deeper ones are left out, and were told.
    if let Some(block) = open.last_mut().filter(|_| !closed.words.is_empty() && depth <= MAX_DEPTH) {
        block.block.push(closed);
    }
}
