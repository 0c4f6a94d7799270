//! What is wrong in a configuration file, and where.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More are counted, not shown.
const SHOWN: usize = 50;
/// Characters of a source line shown around a problem.
const WINDOW: usize = 100;

/// A value and the bytes of the file that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    pub value: T,
    pub span: Range<usize>,
}

impl<T> Located<T> {
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: f(self.value), span: self.span }
    }
}

/// The text of a configuration file and its name.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: PathBuf,
    pub text: Arc<str>,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the file; `None` when the mistake is not in its text.
    pub span: Option<Range<usize>>,
    pub message: String,
}

/// Problems on their way from many readers of one file.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn report(&self, span: Range<usize>, message: String) {
        self.0.borrow_mut().push(Problem { span: Some(span), message });
    }

    pub(super) fn into_result<T>(self, value: T, source: &Source) -> Result<T, ConfigErrors> {
        let problems = self.0.into_inner();
        if problems.is_empty() { Ok(value) } else { Err(ConfigErrors::new(source, problems)) }
    }
}

/// Everything that is wrong in one file, in the order of the file; never empty.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    source: Source,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(source: &Source, mut problems: Vec<Problem>) -> ConfigErrors {
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        problems.dedup();
        ConfigErrors { source: source.clone(), problems }
    }

    /// For a file whose text cannot be had.
    pub(super) fn of_file(file: &Path, message: String) -> ConfigErrors {
        let source = Source { file: file.to_owned(), text: Arc::from("") };
        ConfigErrors { source, problems: vec![Problem { span: None, message }] }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Line and column, from 1, of a problem; the column counts characters.
    pub fn position(&self, problem: &Problem) -> Option<(usize, usize)> {
        let place = Place::find(&self.source.text, problem.span.clone()?);
        Some((place.number, place.column + 1))
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    /// Each problem as `FILE:LINE:COLUMN: MESSAGE`, then its line with the place underlined. No newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.source.file.display();
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let message = &problem.message;
            let Some(span) = problem.span.clone() else {
                write!(f, "{file}: {message}")?;
                continue;
            };
            let place = Place::find(&self.source.text, span);
            writeln!(f, "{file}:{}:{}: {message}", place.number, place.column + 1)?;
            place.underline(f)?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{file}: and {more} more"),
        }
    }
}

/// A span within one line of text.
struct Place<'a> {
    /// From 1.
    number: usize,
    line: &'a str,
    /// Characters before the place, and in it.
    column: usize,
    width: usize,
}

impl<'a> Place<'a> {
    fn find(text: &'a str, span: Range<usize>) -> Place<'a> {
        let floor = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let start = floor(span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &text[line_start..];
        let line = rest[..rest.find('\n').unwrap_or(rest.len())].trim_end_matches('\r');
        let before = (start - line_start).min(line.len());
        let end = floor(span.end).saturating_sub(line_start).clamp(before, line.len());
        Place {
            number: text[..start].bytes().filter(|&byte| byte == b'\n').count() + 1,
            line,
            column: line[..before].chars().count(),
            width: line[before..end].chars().count().max(1),
        }
    }

    fn underline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of a very long line only the part around the place.
        let skipped = if self.column > WINDOW { self.column - WINDOW / 2 } else { 0 };
        let shown = self.line.chars().skip(skipped).take(WINDOW + WINDOW / 2);
        // What a stranger's file may do to the terminal.
        let shown: String = shown.map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        let indent = shown.chars().take(self.column - skipped).map(|c| if c == '\t' { '\t' } else { ' ' });
        let width = self.width.min(WINDOW / 2);
        writeln!(f, "{:>5} | {shown}", self.number)?;
        write!(f, "      | {}{}", indent.collect::<String>(), "^".repeat(width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Range<usize>) -> String {
        let source = Source { file: "x.toml".into(), text: text.into() };
        ConfigErrors::new(&source, vec![Problem { span: Some(span), message: "wrong".into() }]).to_string()
    }

    #[test]
    fn a_place_is_underlined() {
        assert_eq!(shown("a = 1\nbé = 22\n", 12..14), "x.toml:2:6: wrong\n    2 | bé = 22\n      |      ^^");
        assert_eq!(shown("\ta = 1", 1..2), "x.toml:1:2: wrong\n    1 | \ta = 1\n      | \t^");
        assert_eq!(shown("a = [\n1,\n]", 4..10), "x.toml:1:5: wrong\n    1 | a = [\n      |     ^", "first line only");
    }

    #[test]
    fn places_outside_the_text_or_inside_a_character_do_no_harm() {
        assert_eq!(shown("", 0..0), "x.toml:1:1: wrong\n    1 | \n      | ^");
        assert_eq!(shown("a\r\n", 90..99), "x.toml:2:1: wrong\n    2 | \n      | ^");
        assert_eq!(shown("é", 1..2), "x.toml:1:1: wrong\n    1 | é\n      | ^");
        assert_eq!(shown("a\u{1b}[2J", 0..1), "x.toml:1:1: wrong\n    1 | a\u{fffd}[2J\n      | ^");
    }

    #[test]
    fn a_long_line_is_cut() {
        let text = format!("{}x{}", "a".repeat(1000), "b".repeat(1000));
        let expected =
            format!("x.toml:1:1001: wrong\n    1 | {}x{}\n      | {}^", "a".repeat(50), "b".repeat(99), " ".repeat(50));
        assert_eq!(shown(&text, 1000..1001), expected);
    }

    #[test]
    fn too_many_are_counted() {
        let problems = (0..60).map(|n| Problem { span: Some(n..n), message: format!("wrong {n}") }).collect();
        let source = Source { file: "x.toml".into(), text: "\n".repeat(60).into() };
        let shown = ConfigErrors::new(&source, problems).to_string();
        assert!(shown.contains("x.toml:50:1: wrong 49"));
        assert!(shown.ends_with("\nx.toml: and 10 more"), "{shown}");
        assert!(!shown.contains("wrong 50"));
    }
}
