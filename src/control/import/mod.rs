//! `keepalived.conf` in gatun's terms: its virtual servers become services, and what could not be carried over is told, each
//! with its line.
//!
//! Pure: a text goes in, a text comes out. The grammar and the defaults are those of keepalived.conf(5).

mod check;
mod parse;
mod service;
mod toml;

use parse::Statement;

/// Services that one file may make, address ranges of groups included.
pub const MAX_SERVICES: usize = 4096;

/// What has become of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// The configuration, in TOML.
    pub text: String,
    /// How many services it has.
    pub services: usize,
    /// What is not in it, in the order of the file.
    pub lost: Vec<Lost>,
}

/// Something that was not carried over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lost {
    /// From 1 on.
    pub line: usize,
    pub what: String,
}

/// Turns `text` into a configuration. `name` is that of the file, for the comments.
pub fn keepalived(name: &str, text: &str) -> Import {
    let mut lost = Losses::default();
    let statements = parse::parse(text, &mut lost);
    let groups: Vec<&Statement> = statements.iter().filter(|found| found.is("virtual_server_group")).collect();
    let mut services = Vec::new();
    for statement in &statements {
        match statement.word() {
            "virtual_server" => service::read(statement, &groups, &mut services, &mut lost),
            "virtual_server_group" => (),
            word => lost.add(statement.line, beyond(word)),
        }
    }
    let mut lost = lost.0;
    lost.sort();
    lost.dedup();
    Import { text: toml::write(name, &services, &lost), services: services.len(), lost }
}

/// What to say of a block or key that is no virtual server.
fn beyond(word: &str) -> String {
    match word {
        "vrrp_instance"
        | "vrrp_sync_group"
        | "vrrp_script"
        | "vrrp_track_process"
        | "vrrp_track_file"
        | "track_file"
        | "track_process"
        | "static_ipaddress"
        | "static_routes"
        | "static_rules"
        | "linkbeat_use_polling"
        | "garp_group"
        | "bfd_instance" => {
            format!("{word}: gatun moves no addresses between hosts; leave this to keepalived")
        }
        "global_defs" => "global_defs: mail, SNMP and process settings of keepalived".to_owned(),
        "include" | "includer" | "includem" | "includew" | "includea" | "includeb" => {
            format!("{word}: other files are not read; import them one by one")
        }
        "SSL" => "SSL: certificates of a client; give them as ca, certificate and key of a check".to_owned(),
        word => format!("{word}: unknown here"),
    }
}

/// Collects what was not carried over.
#[derive(Debug, Default)]
struct Losses(Vec<Lost>);

impl Losses {
    fn add(&mut self, line: usize, what: impl Into<String>) {
        self.0.push(Lost { line, what: what.into() });
    }
}

#[cfg(test)]
mod tests;
