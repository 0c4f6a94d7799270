//! Servers that stand for others: a name of the DNS, or a file with a list. What they stand for at the moment is an input
//! here ([`Resolved`]); who finds it out is [`crate::control::names`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use super::address::{NO_NAMES, ServerAddress, parse_server};
use super::compile::{is_placed, translate};
use super::{Config, ServerConfig, read};
use crate::service::{FaultPlace, Method};

/// Servers that one entry may stand for; what is more is left out.
pub const MAX_FOUND: usize = 256;

/// Where the servers of an entry come from, as its `address` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// `dns:web.internal:8080`: its A and AAAA records; without a port the one that the client asked for.
    Host { name: String, port: Option<u16> },
    /// `dns+srv:_http._tcp.web.internal`: hosts, ports and weights.
    Srv { name: String },
    /// `file:/etc/gatun/web.servers`
    File { path: PathBuf },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Host { name, port: None } => write!(f, "dns:{name}"),
            Origin::Host { name, port: Some(port) } => write!(f, "dns:{name}:{port}"),
            Origin::Srv { name } => write!(f, "dns+srv:{name}"),
            Origin::File { path } => write!(f, "file:{}", path.display()),
        }
    }
}

/// One server that an [`Origin`] stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub address: ServerAddress,
    /// Instead of the entry's.
    pub weight: Option<u32>,
    pub name: Option<String>,
}

/// What is known at the moment; nothing about an origin that never had an answer.
pub type Resolved = HashMap<Origin, Vec<Found>>;

/// What `address` of a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    At(ServerAddress),
    From(Origin),
}

/// On failure says what is wrong, as the end of a sentence that begins with the text.
pub(super) fn parse_place(text: &str) -> Result<Place, String> {
    if let Some(host) = text.strip_prefix("dns:") {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => {
                let number = port.parse().ok().filter(|&number: &u16| number > 0 && !port.starts_with('+'));
                (name, Some(number.ok_or("has no port from 1 to 65535 behind the last \":\"")?))
            }
            None => (host, None),
        };
        return Ok(Place::From(Origin::Host { name: host_name(name)?, port }));
    }
    if let Some(name) = text.strip_prefix("dns+srv:") {
        if name.contains(':') {
            return Err("has a port; an SRV record brings its own".to_owned());
        }
        return Ok(Place::From(Origin::Srv { name: host_name(name)? }));
    }
    if let Some(path) = text.strip_prefix("file:") {
        return match path.starts_with('/') && !path.ends_with('/') && !path.contains('\0') {
            true => Ok(Place::From(Origin::File { path: PathBuf::from(path) })),
            false => Err("is no absolute path of a file; write for example \"file:/etc/gatun/web.servers\"".to_owned()),
        };
    }
    parse_server(text).map(Place::At).map_err(|wrong| match wrong == NO_NAMES {
        true => r#"is no IP address; a name that is to be looked up is written "dns:web.internal:8080""#.to_owned(),
        false => wrong,
    })
}

/// RFC 1035 section 2.3.4 has the lengths; the underscore is that of SRV records (RFC 2782).
fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err("is no name of a host; write for example \"dns:web.internal:8080\"".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

/// The servers of a list: each line has `ADDRESS[:PORT] [weight=N] [name=NAME]`, `#` begins a comment. The error names the
/// line.
pub fn parse_list(text: &str) -> Result<Vec<Found>, String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next() else { continue };
        let wrong = |message: String| format!("line {number}: {message}");
        let address = parse_server(address).map_err(|error| wrong(format!("{address:?} {error}")))?;
        let mut server = Found { address, weight: None, name: None };
        for word in words {
            match word.split_once('=') {
                Some(("weight", weight)) => {
                    let weight = weight.parse().ok().filter(|weight| *weight <= 65535);
                    server.weight = Some(weight.ok_or_else(|| wrong(format!("{word:?}: a weight is 0 to 65535")))?);
                }
                Some(("name", name)) => {
                    server.name = Some(read::name(name).map_err(|error| wrong(format!("name {name:?} {error}")))?);
                }
                _ => return Err(wrong(format!("{word:?} is neither weight=N nor name=NAME"))),
            }
        }
        found.push(server);
        if found.len() > MAX_FOUND {
            return Err(wrong(format!("there are more than {MAX_FOUND} servers")));
        }
    }
    Ok(found)
}

impl Config {
    /// All that has to be found out before this configuration has all of its servers.
    pub fn origins(&self) -> BTreeSet<Origin> {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        servers.filter_map(|server| server.origin.clone()).collect()
    }

    /// This configuration with the servers that its entries stand for, which carry the entries' other keys. What cannot be
    /// a server of its service is left out, and told: it must not be in the way of the others.
    pub fn expanded(mut self, resolved: &Resolved) -> (Config, Vec<String>) {
        let mut told = Vec::new();
        if self.services.iter().all(|service| service.servers.iter().all(|server| server.origin.is_none())) {
            return (self, told);
        }
        for service in &mut self.services {
            let fixed = service.servers.iter().filter(|server| server.origin.is_none());
            let mut places: HashSet<ServerAddress> = fixed.clone().map(|server| server.address.value).collect();
            let mut names: HashSet<String> = fixed.map(|server| server.name.value.clone()).collect();
            let entries = std::mem::take(&mut service.servers);
            for entry in entries {
                let Some(origin) = &entry.origin else {
                    service.servers.push(entry);
                    continue;
                };
                let any_family = entry.method.unwrap_or(service.method) == Method::Tunnel;
                for found in resolved.get(origin).into_iter().flatten().take(MAX_FOUND) {
                    // A name has addresses of both families for the services of both.
                    let fits = any_family || found.address.address.is_v4() == service.listen.value.vip.is_v4();
                    if fits && places.insert(found.address) {
                        let server = entry.standing_for(found, origin);
                        if names.insert(server.name.value.clone()) {
                            service.servers.push(server);
                        } else {
                            let (service, name) = (&service.name.value, &server.name.value);
                            told.push(format!("service {service:?}: {origin} has a second server named {name:?}"));
                        }
                    }
                }
            }
        }
        self.drop_unfit(&mut told);
        (self, told)
    }

    /// The entry that a server came from, by the names of service and server.
    pub fn origin_of(&self, service: &str, server: &str) -> Option<&Origin> {
        let service = self.services.iter().find(|found| found.name.value == service)?;
        service.servers.iter().find(|found| found.name.value == server)?.origin.as_ref()
    }

    fn drop_unfit(&mut self, told: &mut Vec<String>) {
        let mut unfit = HashSet::new();
        for fault in translate(self).faults() {
            let FaultPlace::Server(index, at) = fault.place else { continue };
            let Some(service) = self.services.get(index) else { continue };
            let found = service.servers.iter().filter(|server| is_placed(server)).nth(at);
            if let Some(server) = found.filter(|server| server.origin.is_some()) {
                unfit.insert((index, server.name.value.clone()));
                told.push(fault.error.to_string());
            }
        }
        for (index, service) in self.services.iter_mut().enumerate() {
            service.servers.retain(|server| !unfit.contains(&(index, server.name.value.clone())));
        }
    }
}

impl ServerConfig {
    fn standing_for(&self, found: &Found, origin: &Origin) -> ServerConfig {
        let address = found.address.to_string();
        // An entry with a name of its own gives it to all that it stands for.
        let ordinary =
            if self.name.value == origin.to_string() { address } else { format!("{}/{address}", self.name.value) };
        let mut server = self.clone();
        server.name.value = found.name.clone().unwrap_or(ordinary);
        server.address.value = found.address;
        server.weight = found.weight.unwrap_or(self.weight);
        server
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn found(address: &str) -> Found {
        Found { address: parse_server(address).unwrap(), weight: None, name: None }
    }

    fn config(text: &str) -> Config {
        Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Names, addresses and weights of the only service.
    fn servers(config: &Config) -> Vec<(String, String, u32)> {
        let servers = &config.compiled().unwrap().snapshot.services[0].servers;
        let row = |server: &crate::service::ServerSpec| {
            let address = ServerAddress { address: server.address, port: server.port };
            (server.name.clone(), address.to_string(), server.weight)
        };
        servers.iter().map(row).collect()
    }

    fn rows(expected: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
        expected.iter().map(|(name, address, weight)| ((*name).to_owned(), (*address).to_owned(), *weight)).collect()
    }

    #[test]
    fn places() {
        let host = |name: &str, port| Place::From(Origin::Host { name: name.to_owned(), port });
        assert_eq!(parse_place("dns:Web.internal:8080"), Ok(host("web.internal", Some(8080))));
        assert_eq!(parse_place("dns:web.internal."), Ok(host("web.internal.", None)));
        let srv = Place::From(Origin::Srv { name: "_http._tcp.web.internal".to_owned() });
        assert_eq!(parse_place("dns+srv:_http._tcp.web.internal"), Ok(srv));
        assert_eq!(parse_place("file:/a b"), Ok(Place::From(Origin::File { path: "/a b".into() })));
        assert!(matches!(parse_place("10.0.0.1:80"), Ok(Place::At(_))));
        for text in [
            "dns:",
            "dns:a..b",
            "dns:a:0",
            "dns:a:x",
            "dns:a:+1",
            "dns:a b",
            "dns:a:1:2",
            "dns+srv:a:80",
            "file:a",
            "file:",
            "file:/",
            "web.internal:80",
            "dnx:a",
        ] {
            assert!(parse_place(text).is_err(), "{text:?}");
        }
        assert!(parse_place("web.internal:80").unwrap_err().contains("\"dns:web.internal:8080\""));
    }

    #[test]
    fn lists() {
        let list = parse_list("# the rack\n10.0.0.1:80\n\n 10.0.0.2 weight=3 name=two # new\n[fd20::1]:80 weight=0\n")
            .unwrap();
        let expected = [
            found("10.0.0.1:80"),
            Found { weight: Some(3), name: Some("two".to_owned()), ..found("10.0.0.2") },
            Found { weight: Some(0), ..found("[fd20::1]:80") },
        ];
        assert_eq!(list, expected);
        let wrong = [
            ("10.0.0.1\nten", "line 2: \"ten\" is no IP address"),
            ("10.0.0.1 weight=x", "line 1: \"weight=x\": a weight is 0 to 65535"),
            ("10.0.0.1 weight=65536", "line 1: \"weight=65536\": a weight is 0 to 65535"),
            ("10.0.0.1 fast", "line 1: \"fast\" is neither weight=N nor name=NAME"),
            ("10.0.0.1 name=", "line 1: name \"\" is no name"),
        ];
        for (text, begin) in wrong {
            let error = parse_list(text).unwrap_err();
            assert!(error.starts_with(begin), "{text:?}: {error}");
        }
        let many = |count: usize| (0..count).map(|n| format!("10.0.{}.{}\n", n / 250, n % 250 + 1)).collect::<String>();
        assert_eq!(parse_list(&many(MAX_FOUND)).unwrap().len(), MAX_FOUND);
        assert!(parse_list(&many(MAX_FOUND + 1)).is_err());
    }

    const FILE: &str = r#"
[[service]]
name = "web"
listen = "203.0.113.10:80"
server = [
    { address = "10.0.0.9:80" },
    { address = "dns:web.internal:80", weight = 2 },
    { name = "more", address = "file:/more", weight = 0 },
]
"#;

    #[test]
    fn entries_stand_for_servers() {
        let origins: Vec<String> = config(FILE).origins().iter().map(Origin::to_string).collect();
        assert_eq!(origins, ["dns:web.internal:80", "file:/more"]);
        // Without an answer there are the others.
        assert_eq!(servers(&config(FILE)), rows(&[("10.0.0.9:80", "10.0.0.9:80", 1)]));
        let mut origins = config(FILE).origins().into_iter();
        let (dns, file) = (origins.next().unwrap(), origins.next().unwrap());
        let resolved = Resolved::from([
            (dns.clone(), vec![found("10.0.0.1:80"), found("[fd20::1]:80"), found("10.0.0.9:80")]),
            (
                file,
                vec![Found { weight: Some(7), name: Some("x".to_owned()), ..found("10.0.0.2") }, found("10.0.0.3:80")],
            ),
        ]);
        let (config, told) = config(FILE).expanded(&resolved);
        assert_eq!(told, [""; 0]);
        let expected = rows(&[
            ("10.0.0.9:80", "10.0.0.9:80", 1),
            ("10.0.0.1:80", "10.0.0.1:80", 2),
            ("x", "10.0.0.2", 7),
            ("more/10.0.0.3:80", "10.0.0.3:80", 0),
        ]);
        assert_eq!(servers(&config), expected);
        assert_eq!(config.origin_of("web", "10.0.0.1:80"), Some(&dns));
        assert_eq!(config.origin_of("web", "10.0.0.9:80"), None);
    }

    #[test]
    fn what_cannot_be_a_server_is_left_out_and_the_others_serve() {
        let mut origins = config(FILE).origins().into_iter();
        let (dns, file) = (origins.next().unwrap(), origins.next().unwrap());
        let same = |address: &str| Found { name: Some("same".to_owned()), ..found(address) };
        // The VIP itself, and one name twice.
        let resolved = Resolved::from([
            (dns, vec![found("203.0.113.10:80"), found("10.0.0.1:80")]),
            (file, vec![same("10.0.0.2"), same("10.0.0.3")]),
        ]);
        let (config, told) = config(FILE).expanded(&resolved);
        let expected =
            rows(&[("10.0.0.9:80", "10.0.0.9:80", 1), ("10.0.0.1:80", "10.0.0.1:80", 2), ("same", "10.0.0.2", 0)]);
        assert_eq!(servers(&config), expected);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains("a second server named \"same\"") && told[1].contains("the VIP of service"),
            "{told:?}"
        );
    }

    proptest! {
        #[test]
        fn rubbish_does_no_harm(text in "(dns:|dns\\+srv:|file:)?[ -~]{0,20}", lines in "([ -~]{0,12}\n){0,4}") {
            let _ = (parse_place(&text), parse_list(&lines));
        }
    }
}
