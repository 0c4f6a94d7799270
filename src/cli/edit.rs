//! Changes to what a running gateway is configured to do: what `gatun service` and `gatun server` share.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value};

use super::Context;
use super::reload::show;
use crate::control::api::{self, Edit, Request};

/// How a change is made.
#[derive(Clone, Debug, Args)]
pub struct How {
    /// Also in the configuration file, whose comments stay; without it the change is gone with the next reload or restart
    #[arg(long)]
    save: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Keys of the file without an option of their own.
#[derive(Clone, Debug, Args)]
pub struct MoreKeys {
    /// Any key of the file and its value: --set quorum=2, --set 'passive={ fall = 3 }'; what is no TOML value is a string
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Take a key away, so that its default holds
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
}

impl MoreKeys {
    /// Adds them to `keys`.
    pub fn add_to(&self, keys: &mut Map<String, Value>) -> Result<()> {
        for pair in &self.set {
            let (key, text) =
                pair.split_once('=').ok_or_else(|| anyhow!("--set {pair:?} has no \"=\"; write KEY=VALUE"))?;
            keys.insert(key.trim().to_owned(), toml_or_string(text.trim()));
        }
        for key in &self.unset {
            keys.insert(key.clone(), Value::Null);
        }
        Ok(())
    }
}

/// Puts a key in if it was given.
pub fn put(keys: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        keys.insert(key.to_owned(), value.into());
    }
}

/// Asks for the edit and shows what it changed.
pub fn edit(edit: Edit, how: &How, context: &mut Context) -> Result<()> {
    show(&Request::Edit { edits: vec![edit], save: how.save }, how.json, context)
}

/// A change without any key is a mistake of the caller's.
pub fn not_empty(keys: Map<String, Value>) -> Result<Map<String, Value>> {
    if keys.is_empty() {
        bail!("nothing to set: name a key, for example --weight 2 or --set KEY=VALUE");
    }
    Ok(keys)
}

fn toml_or_string(text: &str) -> Value {
    let parsed = toml::from_str::<Map<String, Value>>(&format!("value = {text}"));
    match parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => text.into(),
    }
}

/// The one server that `words` name: SERVICE and SERVER, SERVICE/SERVER, or SERVER alone where only one service has it.
/// An address is as good as a name.
pub fn find<'a>(words: &[String], servers: &'a [api::Server]) -> Result<&'a api::Server> {
    let is = |server: &api::Server, word: &str| server.name == word || address(server) == word;
    let found: Vec<&api::Server> = match words {
        [service, word] => servers.iter().filter(|server| server.service == *service && is(server, word)).collect(),
        [word] => {
            let both = |server: &api::Server| {
                word.strip_prefix(&server.service)
                    .and_then(|rest| rest.strip_prefix('/'))
                    .is_some_and(|rest| is(server, rest))
            };
            servers.iter().filter(|server| is(server, word) || both(server)).collect()
        }
        _ => Vec::new(),
    };
    let asked = words.join("/");
    match found[..] {
        [server] => Ok(server),
        [] => bail!("no server is named {asked:?}; `gatun server list` shows them"),
        ref several => {
            let names: Vec<String> =
                several.iter().map(|server| format!("{}/{}", server.service, server.name)).collect();
            bail!("{asked:?} is the name of several servers: {}", names.join(", "))
        }
    }
}

/// Where a server is, as it is written in the file.
pub fn address(server: &api::Server) -> String {
    match server.port {
        Some(port) => std::net::SocketAddr::new(server.address, port).to_string(),
        None => server.address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_toml_or_strings() {
        let rows = [
            ("2", json!(2)),
            ("true", json!(true)),
            ("[\"port\"]", json!(["port"])),
            ("{ fall = 3 }", json!({"fall": 3})),
            ("\"2\"", json!("2")),
            ("6m", json!("6m")),
            ("10.20.0.1:80", json!("10.20.0.1:80")),
            ("1\nb = 2", json!("1\nb = 2")),
            ("", json!("")),
        ];
        for (text, expected) in rows {
            assert_eq!(toml_or_string(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_server_is_found_by_every_name_it_has() {
        let server = |service: &str, name: &str, port: Option<u16>| {
            let text = json!({
                "service": service, "name": name, "address": "10.0.0.1", "port": port, "weight": 1, "method": "nat",
                "tunnel": null, "path_mtu": null, "reachable": true, "active": 0, "inactive": 0, "admitted": 0,
                "to_server": {"packets": 0, "bytes": 0}, "to_client": {"packets": 0, "bytes": 0},
                "rates": api::Rates::default(),
            });
            serde_json::from_value::<api::Server>(text).unwrap()
        };
        let servers = [server("web", "one", Some(80)), server("web", "two/x", None), server("dns", "one", None)];
        let at = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            find(&words, &servers).map(|found| servers.iter().position(|server| server == found).unwrap())
        };
        let rows: [(&[&str], usize); 6] = [
            (&["web", "one"], 0),
            (&["web/one"], 0),
            (&["10.0.0.1:80"], 0),
            (&["two/x"], 1),
            (&["web/two/x"], 1),
            (&["dns", "10.0.0.1"], 2),
        ];
        for (words, expected) in rows {
            assert_eq!(at(words).unwrap(), expected, "{words:?}");
        }
        assert!(at(&["one"]).unwrap_err().to_string().ends_with("several servers: web/one, dns/one"));
        assert!(at(&["three"]).is_err() && at(&["dns", "two/x"]).is_err() && at(&[]).is_err());
    }
}
