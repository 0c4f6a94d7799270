//! Changes to a configuration as a text. What an edit does not name stays as it is: comments, order, the way values are
//! written. Whether the outcome is a configuration is not asked here: it is parsed as a file is.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};
use thiserror::Error;
use toml_edit::{Array, ArrayOfTables, Decor, DocumentMut, InlineTable, Item, RawString, Table, TableLike, Value};

use super::keys::{self, Keys};
use super::parse_server;
use crate::control::api::Edit;

/// Why an edit cannot be applied to a text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EditError {
    #[error("no service is named {0:?}")]
    NoService(String),
    #[error("service {service:?} has no server named {server:?}")]
    NoServer { service: String, server: String },
    #[error("there is a service named {0:?} already")]
    ServiceExists(String),
    #[error("service {service:?} has a server named {server:?} already")]
    ServerExists { service: String, server: String },
    #[error("{subject}: \"name\" is {name} in the keys of what is to be called {expected:?}; leave it out")]
    OtherName { subject: &'static str, name: Json, expected: String },
    #[error("{subject}: {key} = {value} is more than a TOML number can be")]
    Number { subject: String, key: String, value: serde_json::Number },
    #[error("\"{0}\" is no table in this configuration, so it cannot be edited")]
    NoTable(&'static str),
    #[error("this configuration cannot be edited: {0}")]
    Syntax(String),
}

/// `text` with `edits`, one after the other.
pub fn apply(text: &str, edits: &[Edit]) -> Result<String, EditError> {
    let document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| EditError::Syntax(error.message().to_owned()))?;
    let mut editor = Editor { document, services: None, servers: HashMap::new() };
    for edit in edits {
        editor.apply(edit)?;
    }
    Ok(editor.document.to_string())
}

/// Where something stands in its list, by name.
type Places = HashMap<String, usize>;

/// A document, and what has been looked up in it: a list of edits may name every server of a large cluster.
struct Editor {
    document: DocumentMut,
    services: Option<Places>,
    /// By service.
    servers: HashMap<String, Places>,
}

impl Editor {
    fn apply(&mut self, edit: &Edit) -> Result<(), EditError> {
        match edit {
            Edit::AddService { service, keys } => self.add_service(service, keys),
            Edit::SetService { service, keys } => self.set_service(service, keys),
            Edit::RemoveService { service } => self.remove_service(service),
            Edit::ClearServices {} => {
                self.document.remove("service");
                self.forget();
                Ok(())
            }
            Edit::AddServer { service, keys } => self.add_server(service, keys),
            Edit::SetServer { service, server, keys } => self.set_server(service, server, keys),
            Edit::RemoveServer { service, server } => self.remove_server(service, server),
            Edit::SetConntrack { keys } => self.set_conntrack(keys),
        }
    }

    fn add_service(&mut self, name: &str, keys: &Map<String, Json>) -> Result<(), EditError> {
        if keys.get("name").is_some_and(|given| given != name) {
            let given = keys["name"].clone();
            return Err(EditError::OtherName { subject: "service.add", name: given, expected: name.to_owned() });
        }
        if self.services()?.contains_key(name) {
            return Err(EditError::ServiceExists(name.to_owned()));
        }
        let mut keys = keys.clone();
        keys.insert("name".to_owned(), name.into());
        // One after the other, so that they are written as the others are.
        let servers = match keys.get_mut("server") {
            Some(Json::Array(list)) if list.iter().all(Json::is_object) => std::mem::take(list),
            _ => Vec::new(),
        };
        keys.entry("server").or_insert_with(|| Json::Array(Vec::new()));
        let mut list = List::at(Owner::Table(self.document.as_table_mut()), "service")?;
        list.push(&subject(name, None), &keys, &keys::SERVICE)?;
        let place = list.len() - 1;
        self.services()?.insert(name.to_owned(), place);
        servers.iter().filter_map(Json::as_object).try_for_each(|keys| self.add_server(name, keys))
    }

    fn set_service(&mut self, name: &str, keys: &Map<String, Json>) -> Result<(), EditError> {
        let service = self.service(name)?.keys();
        for (key, value) in keys {
            set(service, &subject(name, None), key, value)?;
        }
        if keys.contains_key("name") {
            self.forget();
        }
        self.servers.remove(name);
        Ok(())
    }

    fn remove_service(&mut self, name: &str) -> Result<(), EditError> {
        let place = self.place_of_service(name)?;
        let mut list = List::at(Owner::Table(self.document.as_table_mut()), "service")?;
        let orphaned = list.remove(place);
        let is_empty = list.len() == 0;
        if let Some(comment) = orphaned {
            match list.table(place) {
                Some(next) => lead(next, &comment),
                None => {
                    let trailing = comment + self.document.trailing().as_str().unwrap_or_default();
                    self.document.set_trailing(trailing);
                }
            }
        }
        if is_empty {
            self.document.remove("service");
        }
        self.forget();
        Ok(())
    }

    fn add_server(&mut self, service: &str, keys: &Map<String, Json>) -> Result<(), EditError> {
        let name = server_name(|key| keys.get(key)?.as_str());
        if let Some(name) = &name
            && self.servers(service)?.contains_key(name)
        {
            return Err(EditError::ServerExists { service: service.to_owned(), server: name.clone() });
        }
        let mut list = List::at(self.service(service)?, "server")?;
        list.push(&subject(service, name.as_deref()), keys, &keys::SERVER)?;
        let place = list.len() - 1;
        if let Some(name) = name {
            self.servers(service)?.insert(name, place);
        }
        Ok(())
    }

    fn set_server(&mut self, service: &str, server: &str, keys: &Map<String, Json>) -> Result<(), EditError> {
        let place = self.place_of_server(service, server)?;
        let mut list = List::at(self.service(service)?, "server")?;
        if let Some(table) = list.element(place).map(Owner::keys) {
            for (key, value) in keys {
                set(table, &subject(service, Some(server)), key, value)?;
            }
        }
        if keys.contains_key("name") || keys.contains_key("address") {
            self.servers.remove(service);
        }
        Ok(())
    }

    fn remove_server(&mut self, service: &str, server: &str) -> Result<(), EditError> {
        let place = self.place_of_server(service, server)?;
        let mut list = List::at(self.service(service)?, "server")?;
        let orphaned = list.remove(place);
        if let (Some(comment), Some(next)) = (orphaned, list.table(place)) {
            lead(next, &comment);
        }
        // A list of no tables is not written at all.
        if let List::Tables(tables) = &list
            && tables.is_empty()
        {
            self.service(service)?.keys().insert("server", Item::Value(Array::new().into()));
        }
        self.servers.remove(service);
        Ok(())
    }

    fn set_conntrack(&mut self, keys: &Map<String, Json>) -> Result<(), EditError> {
        let subject = "[conntrack]";
        let root = self.document.as_table_mut();
        let conntrack = table_at(root, "conntrack")?;
        for (key, value) in keys {
            match value.as_object().filter(|_| key == "timeouts") {
                Some(timeouts) => {
                    let table = table_at(conntrack, "timeouts")?;
                    for (key, value) in timeouts {
                        set(table, subject, key, value)?;
                    }
                }
                None => set(conntrack, subject, key, value)?,
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.services = None;
        self.servers.clear();
    }

    fn services(&mut self) -> Result<&mut Places, EditError> {
        if self.services.is_none() {
            let name = |table: &dyn TableLike| Some(table.get("name")?.as_str()?.to_owned());
            self.services = Some(places(self.document.get("service"), name));
        }
        Ok(self.services.get_or_insert_default())
    }

    fn place_of_service(&mut self, name: &str) -> Result<usize, EditError> {
        self.services()?.get(name).copied().ok_or_else(|| EditError::NoService(name.to_owned()))
    }

    fn service(&mut self, name: &str) -> Result<Owner<'_>, EditError> {
        let place = self.place_of_service(name)?;
        let list = List::at(Owner::Table(self.document.as_table_mut()), "service")?;
        list.into_element(place).ok_or_else(|| EditError::NoService(name.to_owned()))
    }

    fn servers(&mut self, service: &str) -> Result<&mut Places, EditError> {
        if !self.servers.contains_key(service) {
            let name = |table: &dyn TableLike| server_name(|key| table.get(key)?.as_str());
            let places = places(self.service(service)?.keys().get("server"), name);
            self.servers.insert(service.to_owned(), places);
        }
        Ok(self.servers.entry(service.to_owned()).or_default())
    }

    fn place_of_server(&mut self, service: &str, server: &str) -> Result<usize, EditError> {
        let place = self.servers(service)?.get(server).copied();
        place.ok_or_else(|| EditError::NoServer { service: service.to_owned(), server: server.to_owned() })
    }
}

/// The name of a server with these keys: an address is the name as it is shown, however it is written.
fn server_name<'a>(key: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let address = || {
        let text = key("address")?;
        Some(parse_server(text).map_or_else(|_| text.to_owned(), |address| address.to_string()))
    };
    key("name").map(str::to_owned).or_else(address)
}

/// What messages call it.
fn subject(service: &str, server: Option<&str>) -> String {
    match server {
        Some(server) => format!("service {service:?}, server {server:?}"),
        None => format!("service {service:?}"),
    }
}

/// Of several with one name the first counts.
fn places(list: Option<&Item>, name: impl Fn(&dyn TableLike) -> Option<String>) -> Places {
    let mut places = Places::new();
    let mut note = |place: usize, table: Option<&dyn TableLike>| {
        if let Some(name) = table.and_then(&name) {
            places.entry(name).or_insert(place);
        }
    };
    match list {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter().enumerate().for_each(|(place, table)| note(place, Some(table)));
        }
        Some(Item::Value(Value::Array(array))) => {
            let elements = array.iter().map(|value| value.as_inline_table().map(|table| table as &dyn TableLike));
            elements.enumerate().for_each(|(place, table)| note(place, table));
        }
        _ => {}
    }
    places
}

/// A table, in either of the ways to write one.
enum Owner<'a> {
    /// `[[service]]`
    Table(&'a mut Table),
    /// `{ … }`
    Inline(&'a mut InlineTable),
}

impl<'a> Owner<'a> {
    fn keys(self) -> &'a mut dyn TableLike {
        match self {
            Owner::Table(table) => table,
            Owner::Inline(table) => table,
        }
    }
}

/// A list of tables, in either of the ways to write one.
enum List<'a> {
    /// `[[service.server]]`
    Tables(&'a mut ArrayOfTables),
    /// `server = [{ … }]`
    Inline(&'a mut Array),
}

impl<'a> List<'a> {
    /// The list at `key`, which is made if there is none.
    fn at(owner: Owner<'a>, key: &'static str) -> Result<List<'a>, EditError> {
        let may_have_header = matches!(owner, Owner::Table(_));
        let table = owner.keys();
        // `server = []` becomes tables, unless a comment says something about it.
        let is_replaceable = match table.get(key) {
            None => true,
            Some(Item::Value(Value::Array(array))) => array.is_empty() && !has_comment(table, key, array),
            Some(_) => false,
        };
        if is_replaceable && may_have_header {
            table.insert(key, Item::ArrayOfTables(ArrayOfTables::new()));
        } else if is_replaceable {
            table.insert(key, Item::Value(Array::new().into()));
        }
        match table.get_mut(key) {
            Some(Item::ArrayOfTables(tables)) => Ok(List::Tables(tables)),
            Some(Item::Value(Value::Array(array))) => Ok(List::Inline(array)),
            _ => Err(EditError::NoTable(key)),
        }
    }

    fn len(&self) -> usize {
        match self {
            List::Tables(tables) => tables.len(),
            List::Inline(array) => array.len(),
        }
    }

    fn element(&mut self, place: usize) -> Option<Owner<'_>> {
        match self {
            List::Tables(tables) => tables.get_mut(place).map(Owner::Table),
            List::Inline(array) => array.get_mut(place)?.as_inline_table_mut().map(Owner::Inline),
        }
    }

    fn into_element(self, place: usize) -> Option<Owner<'a>> {
        match self {
            List::Tables(tables) => tables.get_mut(place).map(Owner::Table),
            List::Inline(array) => array.get_mut(place)?.as_inline_table_mut().map(Owner::Inline),
        }
    }

    /// The element, if it is a table with a header.
    fn table(&mut self, place: usize) -> Option<&mut Table> {
        match self {
            List::Tables(tables) => tables.get_mut(place),
            List::Inline(_) => None,
        }
    }

    /// Puts a table with `keys` at the end, in the style of the one before.
    fn push(&mut self, subject: &str, keys: &Map<String, Json>, known: &Keys) -> Result<(), EditError> {
        let mut order: Vec<&String> = keys.keys().collect();
        let rank = |key: &str| known.known.iter().position(|known| *known == key).unwrap_or(usize::MAX);
        order.sort_by_key(|key| rank(key));
        let fill =
            |table: &mut dyn TableLike| order.iter().try_for_each(|key| set(table, subject, key, &keys[key.as_str()]));
        match self {
            List::Tables(tables) => {
                let mut table = Table::new();
                fill(&mut table)?;
                if let Some(before) = tables.len().checked_sub(1).and_then(|last| tables.get(last)) {
                    table.decor_mut().set_prefix(format!("\n{}", indent(before.decor().prefix())));
                    let first_key = before.iter().next().and_then(|(key, _)| before.key(key));
                    let indent = indent(first_key.and_then(|key| key.leaf_decor().prefix()));
                    for (mut key, _) in table.iter_mut() {
                        key.leaf_decor_mut().set_prefix(indent.clone());
                    }
                }
                tables.push(table);
            }
            List::Inline(array) => {
                let mut table = InlineTable::new();
                fill(&mut table)?;
                let before =
                    array.iter().last().and_then(|before| before.decor().prefix()?.as_str()).unwrap_or_default();
                let line = before.rfind('\n').map(|newline| before[newline..].to_owned());
                // A comment behind the last one stays behind that.
                let behind = array.trailing().as_str().unwrap_or_default().trim_end().to_owned();
                match (array.is_empty(), line) {
                    (true, _) => array.push(table),
                    (_, None) => array.push_formatted(Value::from(table).decorated(" ", "")),
                    (_, Some(line)) => {
                        array.push_formatted(Value::from(table).decorated(format!("{behind}{line}"), ""));
                        array.set_trailing("\n");
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes the element out, and the comment right above it. Returns what stood above that, behind a blank line: it
    /// belongs to the file.
    fn remove(&mut self, place: usize) -> Option<String> {
        match self {
            List::Tables(tables) if place < tables.len() => {
                let removed = tables.remove(place);
                let above = removed.decor().prefix()?.as_str()?;
                let (orphaned, _) = above.rsplit_once("\n\n")?;
                Some(format!("{orphaned}\n\n")).filter(|text| text.contains('#'))
            }
            List::Inline(array) if place < array.len() => {
                let removed = array.remove(place);
                let above = removed.decor().prefix().and_then(RawString::as_str).unwrap_or_default();
                let below = match array.get(place) {
                    Some(next) => next.decor().prefix().and_then(RawString::as_str).unwrap_or_default().to_owned(),
                    None => {
                        let suffix = removed.decor().suffix().and_then(RawString::as_str).unwrap_or_default();
                        format!("{suffix}{}", array.trailing().as_str().unwrap_or_default())
                    }
                };
                // The rest of the line of the one before belongs to that, and is what it was.
                let (before, own) = line_end(above);
                let begins_line = place == 0 || !own.is_empty();
                let text = match (line_end(&below), array.get(place)) {
                    // Others stand before it on its line, which goes on as it did.
                    _ if !begins_line => below.clone(),
                    ((_, rest), _) if !rest.is_empty() => format!("{before}{rest}"),
                    // On one line what follows stands as this one did.
                    (_, Some(_)) => above.to_owned(),
                    (_, None) if own.is_empty() => String::new(),
                    (_, None) => format!("{before}\n"),
                };
                match array.get_mut(place) {
                    Some(next) => next.decor_mut().set_prefix(text),
                    None => array.set_trailing(text),
                }
                None
            }
            _ => None,
        }
    }
}

/// What stands behind a comma: the rest of its line, which speaks of the element before, and the lines that follow, with the
/// line break. Without a line break it is all of that line.
fn line_end(text: &str) -> (&str, &str) {
    text.split_at(text.find('\n').unwrap_or(text.len()))
}

fn has_comment(table: &dyn TableLike, key: &str, array: &Array) -> bool {
    let texts =
        [table.key(key).and_then(|key| key.leaf_decor().prefix()), array.decor().suffix(), Some(array.trailing())];
    texts.into_iter().flatten().any(|text| text.as_str().is_some_and(|text| text.contains('#')))
}

/// The blanks at the begin of the line that `prefix` ends in.
fn indent(prefix: Option<&RawString>) -> String {
    let text = prefix.and_then(RawString::as_str).unwrap_or_default();
    let line = text.rsplit('\n').next().unwrap_or_default();
    line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect()
}

/// Puts `comment` above what stands above `table`.
fn lead(table: &mut Table, comment: &str) {
    let above = table.decor().prefix().and_then(RawString::as_str).unwrap_or_default();
    let above = format!("{comment}{}", above.trim_start_matches('\n'));
    table.decor_mut().set_prefix(above);
}

/// The table at `key`, which is made if there is none.
fn table_at<'a>(parent: &'a mut dyn TableLike, key: &'static str) -> Result<&'a mut dyn TableLike, EditError> {
    if !parent.contains_key(key) {
        let mut table = Table::new();
        // Without keys of its own it needs no header. An inline table makes an inline one of it.
        table.set_implicit(true);
        parent.insert(key, Item::Table(table));
    }
    parent.get_mut(key).and_then(Item::as_table_like_mut).ok_or(EditError::NoTable(key))
}

/// Sets a key, or with `null` takes it away. A comment behind the value stays.
fn set(table: &mut dyn TableLike, subject: &str, key: &str, json: &Json) -> Result<(), EditError> {
    let too_large = |value| EditError::Number { subject: subject.to_owned(), key: key.to_owned(), value };
    let Some(mut new) = toml_value(json).map_err(too_large)? else {
        let removed = table.remove(key);
        // What stands before a closing brace.
        if let (Some(space), Some(last)) = (removed.as_ref().and_then(space_behind), last_value(table)) {
            last.decor_mut().set_suffix(space);
        }
        return Ok(());
    };
    if let Some(old) = table.get_mut(key).and_then(Item::as_value_mut) {
        *new.decor_mut() = old.decor().clone();
        *old = new;
        return Ok(());
    }
    let removed = table.remove(key);
    let first = table.iter().next().and_then(|(first, _)| table.key(first));
    let indent = first.map(|key| indent(key.leaf_decor().prefix())).filter(|indent| !indent.is_empty());
    if let Some(last) = last_value(table)
        && let Some(space) = space_behind(&Item::Value(last.clone()))
    {
        last.decor_mut().set_suffix("");
        *new.decor_mut() = Decor::new(" ", space);
    }
    table.insert(key, Item::Value(new));
    // What was said about a table with a header is said about its key now.
    let of_header = removed.as_ref().and_then(Item::as_table).map(Table::decor);
    let above = of_header.and_then(|decor| decor.prefix()?.as_str()).filter(|text| text.contains('#'));
    let behind = of_header.and_then(|decor| decor.suffix()?.as_str()).filter(|text| text.contains('#'));
    if let (Some(behind), Some(value)) = (behind, table.get_mut(key).and_then(Item::as_value_mut)) {
        value.decor_mut().set_suffix(behind);
    }
    if let Some(mut key) = table.key_mut(key)
        && (indent.is_some() || above.is_some())
    {
        let above = above.unwrap_or_default().trim_end_matches([' ', '\t']);
        key.leaf_decor_mut().set_prefix(format!("{above}{}", indent.unwrap_or_default()));
    }
    Ok(())
}

/// The value of the last key.
fn last_value(table: &mut dyn TableLike) -> Option<&mut Value> {
    table.iter_mut().last().and_then(|(_, item)| item.as_value_mut())
}

/// Blanks behind a value, if nothing else is there.
fn space_behind(item: &Item) -> Option<String> {
    let text = item.as_value()?.decor().suffix()?.as_str()?;
    (!text.is_empty() && text.chars().all(|c| matches!(c, ' ' | '\t'))).then(|| text.to_owned())
}

/// `None` for `null`, also within; the error is the number that TOML does not have.
fn toml_value(json: &Json) -> Result<Option<Value>, serde_json::Number> {
    Ok(Some(match json {
        Json::Null => return Ok(None),
        Json::Bool(value) => Value::from(*value),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) if number.is_f64() => Value::from(value),
            _ => return Err(number.clone()),
        },
        Json::Array(list) => {
            let mut array = Array::new();
            for value in list {
                if let Some(value) = toml_value(value)? {
                    array.push(value);
                }
            }
            array.into()
        }
        Json::Object(fields) => {
            let mut table = InlineTable::new();
            for (key, value) in fields {
                if let Some(value) = toml_value(value)? {
                    table.insert(key, value);
                }
            }
            table.into()
        }
    }))
}

#[cfg(test)]
mod tests;
