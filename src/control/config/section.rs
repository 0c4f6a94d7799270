//! Reads one table of the file, key by key, and reports whatever is wrong with its place.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::duration::{format_duration, parse_duration};
use super::keys::{self, Keys};
use super::problem::{Located, Problems};

/// A table, what it is called in messages, and the keys it may have.
pub(super) struct Section<'a> {
    table: &'a DeTable<'a>,
    /// The header, or the braces of an inline table.
    span: Range<usize>,
    name: String,
    keys: &'static Keys,
    problems: &'a Problems,
}

/// What [`Section::table_or_word`] finds; `false` reads as "off".
pub(super) enum TableOrWord<'a> {
    Table(Section<'a>),
    Word(Located<&'a str>),
}

impl<'a> Section<'a> {
    /// Reports every key that does not belong here.
    pub(super) fn new(
        table: &'a DeTable<'a>,
        span: Range<usize>,
        name: String,
        keys: &'static Keys,
        problems: &'a Problems,
    ) -> Section<'a> {
        let section = Section { table, span, name, keys, problems };
        for key in table.keys() {
            if !keys.known.contains(&key.get_ref().as_ref()) {
                section.refuse(key.span(), keys::unknown(key.get_ref(), keys));
            }
        }
        section
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reports a mistake within this table.
    pub(super) fn refuse(&self, span: Range<usize>, message: String) {
        let place = if self.name.is_empty() { message } else { format!("{}: {message}", self.name) };
        self.problems.report(span, place);
    }

    /// Reports that a key should not be there, if it is; `wrong` goes on with the sentence that the key begins.
    pub(super) fn refuse_key(&self, key: &str, wrong: &str) {
        if let Some((found, _)) = self.table.get_key_value(key) {
            self.refuse(found.span(), format!("\"{key}\" {wrong}"));
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether a key is there, perhaps under a wrong name.
    pub(super) fn has_or_misspells(&self, key: &str) -> bool {
        self.has(key) || self.table.keys().any(|found| keys::misspells(found.get_ref(), key, self.keys))
    }

    /// Where the value of a key stands; where it does not, the table's own place.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// Reports that a key without a default is not there, unless it is there misspelt, which has been reported.
    pub(super) fn require(&self, key: &str, example: &str) {
        if !self.has_or_misspells(key) {
            self.refuse(self.span.clone(), format!("\"{key}\" is missing; add for example {example}"));
        }
    }

    pub(super) fn string(&self, key: &str) -> Option<Located<&'a str>> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, "a string", value);
        }
        Some(Located { value: text?, span: value.span() })
    }

    /// A string that `parse` understands; its error goes on with the sentence that the text begins.
    pub(super) fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<Located<T>> {
        let Located { value, span } = self.string(key)?;
        match parse(value) {
            Ok(value) => Some(Located { value, span }),
            Err(wrong) => {
                self.refuse(span, format!("{key} {value:?} {wrong}"));
                None
            }
        }
    }

    /// One of a few words; `later` are those that a later version will understand.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], later: &[&str]) -> Option<T> {
        self.parsed(key, |text| match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(*value),
            None => Err(keys::unknown_word(text, words.iter().map(|(word, _)| *word), later)),
        })
        .map(|found| found.value)
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, "true or false", value);
        }
        found
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self, key: &str, range: RangeInclusive<u64>) -> Option<T> {
        self.integer_or(key, &[], range)
    }

    /// A number of `range`, or `None` for one of `words` (which stands for a default).
    fn integer_or<T: TryFrom<u64>>(&self, key: &str, words: &[&str], range: RangeInclusive<u64>) -> Option<T> {
        let value = self.value(key)?;
        let (least, most) = (range.start(), range.end());
        let expected = match words {
            [] => format!("a whole number from {least} to {most}"),
            words => format!("\"{}\" or a whole number from {least} to {most}", words.join("\", \"")),
        };
        match value.get_ref() {
            DeValue::Integer(number) => {
                let read = u64::from_str_radix(number.as_str(), number.radix()).ok();
                let fitting = read.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
                if fitting.is_none() {
                    self.refuse(value.span(), format!("{key} = {number} is out of range; it must be {expected}"));
                }
                fitting
            }
            DeValue::String(text) if words.contains(&text.as_ref()) => None,
            DeValue::String(text) if !words.is_empty() => {
                self.refuse(value.span(), format!("{key} {text:?} must be {expected}"));
                None
            }
            _ => {
                self.wrong_type(key, &expected, value);
                None
            }
        }
    }

    /// A number of `range`; `None` also for "auto", which is the default of such keys.
    pub(super) fn auto_or_integer<T: TryFrom<u64>>(&self, key: &str, range: RangeInclusive<u64>) -> Option<T> {
        self.integer_or(key, &["auto"], range)
    }

    pub(super) fn duration(&self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.value(key)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text,
            DeValue::Integer(number) => {
                self.refuse(value.span(), format!("{key} needs a unit; {number} seconds are written \"{number}s\""));
                return None;
            }
            _ => {
                self.wrong_type(key, "a duration such as \"5m\"", value);
                return None;
            }
        };
        let Some(duration) = parse_duration(text) else {
            let forms = r#"write it as "500ms", "2s", "5m" or "2h4m""#;
            self.refuse(value.span(), format!("{key} {text:?} is no duration; {forms}"));
            return None;
        };
        if !range.contains(&duration) {
            let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
            self.refuse(value.span(), format!("{key} {text:?} is out of range; it must be {least} to {most}"));
            return None;
        }
        Some(duration)
    }

    /// A list of strings.
    pub(super) fn strings(&self, key: &str, example: &str) -> Option<Vec<Located<&'a str>>> {
        let value = self.value(key)?;
        let expected = format!("a list of strings such as {example}");
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(key, &expected, value);
            return None;
        };
        let mut strings = Vec::new();
        for element in list.iter() {
            match element.get_ref().as_str() {
                Some(value) => strings.push(Located { value, span: element.span() }),
                None => self.wrong_type(key, &expected, element),
            }
        }
        Some(strings)
    }

    /// A table within this one, called `name` in messages.
    pub(super) fn table(&self, key: &str, name: &str, keys: &'static Keys) -> Option<Section<'a>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(table, value.span(), name.to_owned(), keys, self.problems)),
            DeValue::Array(list) if list.iter().any(|element| element.get_ref().is_table()) => {
                self.refuse(value.span(), format!("\"{key}\" can be there only once; write {name}"));
                None
            }
            _ => {
                self.wrong_type(key, &format!("a table; write {}", keys.header), value);
                None
            }
        }
    }

    /// A table called `name` in messages, or something shorter that stands for one.
    pub(super) fn table_or_word(&self, key: &str, name: &str, keys: &'static Keys) -> Option<TableOrWord<'a>> {
        let value = self.value(key)?;
        let word = match value.get_ref() {
            DeValue::Boolean(true) => {
                self.refuse(value.span(), format!("{key} = true does not say what to do; write a table"));
                return None;
            }
            DeValue::Boolean(false) => "off",
            DeValue::String(text) => text.as_ref(),
            _ => return self.table(key, name, keys).map(TableOrWord::Table),
        };
        Some(TableOrWord::Word(Located { value: word, span: value.span() }))
    }

    /// The text of a key that may have a list as well; `None` without a mistake for anything but a string.
    pub(super) fn text(&self, key: &str) -> Option<Located<&'a str>> {
        let value = self.value(key)?;
        value.get_ref().as_str().map(|text| Located { value: text, span: value.span() })
    }

    /// A list of numbers of `range`, and of ranges of such numbers written as strings: `[200, "300-399"]`. One of them may
    /// stand without a list.
    pub(super) fn ranges(&self, key: &str, range: RangeInclusive<u16>) -> Option<Vec<(u16, u16)>> {
        let value = self.value(key)?;
        let one = std::slice::from_ref(value);
        let elements = value.get_ref().as_array().map_or(one, |list| list);
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| range.contains(number));
        let mut ranges = Vec::new();
        for element in elements {
            let read = match element.get_ref() {
                DeValue::Integer(found) => number(found.as_str()).map(|number| (number, number)),
                DeValue::String(text) => {
                    let (first, last) = text.split_once('-').unwrap_or((text, text));
                    number(first).zip(number(last)).filter(|(first, last)| first <= last)
                }
                _ => None,
            };
            match read {
                Some(read) => ranges.push(read),
                None => {
                    let (least, most) = (range.start(), range.end());
                    let message = format!(
                        "{key} must be a list of numbers from {least} to {most} and of ranges such as \"{least}-{most}\""
                    );
                    self.refuse(element.span(), message);
                }
            }
        }
        (!ranges.is_empty()).then_some(ranges)
    }

    /// The tables of a list, each called what `name` makes of it and of its number from 1.
    pub(super) fn tables(
        &self,
        key: &str,
        header: &str,
        keys: &'static Keys,
        name: impl Fn(&DeTable<'a>, usize) -> String,
    ) -> Vec<Section<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            let found = if value.get_ref().is_table() { "[…]" } else { value.get_ref().type_str() };
            self.refuse(value.span(), format!("\"{key}\" is a list of tables; write {header}, not {found}"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, element) in list.iter().enumerate() {
            match element.get_ref().as_table() {
                Some(table) => {
                    let name = name(table, index + 1);
                    sections.push(Section::new(table, element.span(), name, keys, self.problems));
                }
                None => self.wrong_type(key, &format!("a list of tables; write {header}"), element),
            }
        }
        sections
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(self.keys.known.contains(&key), "{key} is read but not among the known keys");
        self.table.get(key)
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Spanned<DeValue<'_>>) {
        let kind = match found.get_ref() {
            DeValue::Integer(_) => "an integer",
            DeValue::Array(_) => "a list",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Float(_) => "a float",
            DeValue::String(_) => "a string",
            DeValue::Table(_) => "a table",
        };
        self.refuse(found.span(), format!("\"{key}\" must be {expected}, not {kind}"));
    }
}
