//! The keys that say how servers are checked, and how many of them a service needs.

pub(super) mod show;
pub(super) mod wants;

use std::net::IpAddr;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::{Name, RecordType};
use regex_lite::Regex;
use tokio_rustls::rustls::pki_types::ServerName;

use super::duration::{format_duration, parse_duration};
use super::problem::{Located, Problems};
use super::section::{Section, TableOrWord};
use super::{Config, ServerConfig, ServiceConfig, keys};
use crate::control::health::spec::{
    CheckSpec, Codes, Command, DnsSpec, ExecSpec, HealthSpec, HttpSpec, HttpVersion, Jitter, LoginSpec, ProbeSpec,
    Quorum, Reply, ServiceHealth, SmtpSpec, TlsSpec, UdpSpec, Via,
};

/// The words of the key `type`.
const TYPES: [&str; 10] = ["tcp", "http", "https", "ping", "udp", "dns", "smtp", "ftp", "nntp", "exec"];

/// Keys that only some types have; all others are for every type.
const OF_TYPES: &[(&str, &[&str])] = &[
    ("port", &["tcp", "http", "https", "udp", "dns", "smtp", "ftp", "nntp"]),
    ("via", &["tcp", "http", "https", "udp", "dns", "smtp", "ftp", "nntp"]),
    ("path", &["http", "https"]),
    ("method", &["http", "https"]),
    ("host", &["http", "https"]),
    ("version", &["http", "https"]),
    ("body", &["http", "https"]),
    ("digest", &["http", "https"]),
    ("expect", &["http", "https", "udp", "smtp", "ftp", "nntp"]),
    ("sni", &["https"]),
    ("ca", &["https"]),
    ("certificate", &["https"]),
    ("key", &["https"]),
    ("payload", &["udp"]),
    ("name", &["dns"]),
    ("query", &["dns"]),
    ("transport", &["dns"]),
    ("rcode", &["dns"]),
    ("answer", &["dns"]),
    ("helo", &["smtp"]),
    ("user", &["ftp", "nntp"]),
    ("password", &["ftp", "nntp"]),
    ("command", &["exec"]),
    ("weight", &["exec"]),
];

/// RFC 1035 section 4.1.1.
const RCODES: [(&str, u16); 6] =
    [("noerror", 0), ("formerr", 1), ("servfail", 2), ("nxdomain", 3), ("notimp", 4), ("refused", 5)];

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(86_400);
/// Bytes of what is sent, expected or named: what fits into one datagram.
const MAX_TEXT: usize = 1200;

/// What a service says about its health.
#[derive(Clone, Debug, Default)]
pub struct HealthConfig {
    /// For servers that say nothing else.
    pub check: Option<Located<Arc<CheckSpec>>>,
    pub quorum: Quorum,
}

/// What a server says about its check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerCheck {
    /// Nothing: it is that of the service.
    #[default]
    OfService,
    Off,
    Own(Located<Arc<CheckSpec>>),
}

pub(super) fn read(section: &Section<'_>) -> HealthConfig {
    let check = match read_check(section, None) {
        ServerCheck::Own(check) => Some(check),
        ServerCheck::Off | ServerCheck::OfService => None,
    };
    let quorum = Quorum {
        weight: section.integer("quorum", 1..=1_000_000).unwrap_or(1),
        hysteresis: section.integer("hysteresis", 0..=1_000_000).unwrap_or(0),
        up: section.command("quorum_up"),
        down: section.command("quorum_down"),
    };
    if quorum.hysteresis >= quorum.weight {
        let message = format!(
            "hysteresis = {} must be less than quorum = {}; the quorum could never be lost",
            quorum.hysteresis, quorum.weight
        );
        section.refuse(section.span_of("hysteresis"), message);
    }
    HealthConfig { check, quorum }
}

/// A server's own check; what its table leaves out is as in the service's.
pub(super) fn read_override(section: &Section<'_>, of: &HealthConfig) -> ServerCheck {
    read_check(section, of.check.as_ref().map(|check| &*check.value))
}

fn read_check(section: &Section<'_>, base: Option<&CheckSpec>) -> ServerCheck {
    let name = format!("{}, check", section.name());
    let example = "check = { type = \"tcp\" }";
    let Some(found) = section.table_or_word("check", &name, &keys::CHECK) else {
        if section.has("check") {
            return ServerCheck::Off; // Reported.
        }
        return ServerCheck::OfService;
    };
    let span = section.span_of("check");
    let spec = match found {
        TableOrWord::Word(Located { value: "off", .. }) => return ServerCheck::Off,
        TableOrWord::Word(word) => {
            let message = match TYPES.contains(&word.value) {
                true => format!("check {:?} is written {{ type = {:?} }}", word.value, word.value),
                false => format!("check {:?} is unknown; write \"off\" or a table, as {example}", word.value),
            };
            section.refuse(word.span, message);
            return ServerCheck::Off;
        }
        TableOrWord::Table(section) => read_table(&section, base),
    };
    spec.map_or(ServerCheck::Off, |spec| ServerCheck::Own(Located { value: Arc::new(spec), span }))
}

/// `None` where a key is missing or wrong without which there is no check.
fn read_table(section: &Section<'_>, base: Option<&CheckSpec>) -> Option<CheckSpec> {
    if base.is_none() {
        section.require("type", "type = \"tcp\"");
    }
    let types = TYPES.map(|word| (word, word));
    let inherited = base.filter(|_| !section.has("type")).map(|base| base.probe.word());
    let word = section.word("type", &types, &[]).or(inherited)?;
    for (key, of) in OF_TYPES {
        if !of.contains(&word) {
            section.refuse_key(key, &format!("is for {}, not for {word}", of.join(", ")));
        }
    }
    let probe = read_probe(section, word, base.map(|base| &base.probe))?;
    // A base of another type gives what all types have.
    let base = base.cloned().unwrap_or_else(|| CheckSpec::new(probe.clone()));
    let interval = section.duration("interval", SHORTEST..=LONGEST).unwrap_or(base.interval);
    let vias = Via::ALL.map(|via| (via.word(), via));
    Some(CheckSpec {
        interval,
        timeout: section.duration("timeout", SHORTEST..=Duration::from_secs(3600)).unwrap_or(base.timeout),
        rise: section.integer("rise", 1..=1000).unwrap_or(base.rise),
        fall: section.integer("fall", 1..=1000).unwrap_or(base.fall),
        jitter: section.parsed("jitter", |text| jitter(text, interval)).map_or(base.jitter, |found| found.value),
        port: section.integer("port", 1..=65535).or(base.port.filter(|_| probe.has_port())),
        via: section.word("via", &vias, &[]).unwrap_or(if probe.has_port() { base.via } else { Via::Host }),
        starts_up: section.word("initial", &[("up", true), ("down", false)], &[]).unwrap_or(base.starts_up),
        probe,
    })
}

impl CheckSpec {
    /// With the defaults.
    fn new(probe: ProbeSpec) -> CheckSpec {
        CheckSpec {
            probe,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter: Jitter::Share(0),
            port: None,
            via: Via::Host,
            starts_up: true,
        }
    }
}

fn read_probe(section: &Section<'_>, word: &str, base: Option<&ProbeSpec>) -> Option<ProbeSpec> {
    Some(match word {
        "http" | "https" => {
            let base = match base {
                Some(ProbeSpec::Http(http)) => http.clone(),
                _ => HttpSpec::default(),
            };
            ProbeSpec::Http(read_http(section, word == "https", base))
        }
        "ping" => ProbeSpec::Ping,
        "udp" => {
            let base = match base {
                Some(ProbeSpec::Udp(udp)) => udp.clone(),
                _ => UdpSpec { payload: Vec::new(), expect: None },
            };
            ProbeSpec::Udp(UdpSpec {
                payload: section.parsed("payload", octets).map_or(base.payload, |found| found.value),
                expect: section.parsed("expect", reply).map(|found| found.value).or(base.expect),
            })
        }
        "dns" => {
            let base = match base {
                Some(ProbeSpec::Dns(dns)) => dns.clone(),
                _ => DnsSpec::default(),
            };
            ProbeSpec::Dns(read_dns(section, base))
        }
        "smtp" => {
            let base = match base {
                Some(ProbeSpec::Smtp(smtp)) => smtp.clone(),
                _ => SmtpSpec { helo: "gatun.localdomain".to_owned(), expect: Codes(vec![(220, 220)]) },
            };
            ProbeSpec::Smtp(SmtpSpec {
                helo: section.parsed("helo", one_word).map_or(base.helo, |found| found.value),
                expect: section.ranges("expect", 100..=599).map_or(base.expect, Codes),
            })
        }
        "ftp" | "nntp" => {
            let greeting = if word == "ftp" { (220, 220) } else { (200, 201) };
            let base = match base {
                Some(ProbeSpec::Ftp(login)) if word == "ftp" => login.clone(),
                Some(ProbeSpec::Nntp(login)) if word == "nntp" => login.clone(),
                _ => LoginSpec { expect: Codes(vec![greeting]), login: None },
            };
            let login = LoginSpec {
                expect: section.ranges("expect", 100..=599).map_or(base.expect, Codes),
                login: pair(section, "user", "password", one_line).or(base.login),
            };
            if word == "ftp" { ProbeSpec::Ftp(login) } else { ProbeSpec::Nntp(login) }
        }
        "exec" => {
            let base = match base {
                Some(ProbeSpec::Exec(exec)) => Some(exec),
                _ => None,
            };
            if base.is_none() {
                section.require("command", "command = [\"/usr/local/bin/check\"]");
            }
            ProbeSpec::Exec(ExecSpec {
                command: section.command("command").or_else(|| base.map(|base| base.command.clone()))?,
                sets_weight: section.boolean("weight").unwrap_or(base.is_some_and(|base| base.sets_weight)),
            })
        }
        _ => ProbeSpec::Tcp,
    })
}

impl Default for HttpSpec {
    fn default() -> HttpSpec {
        HttpSpec {
            path: "/".to_owned(),
            method: "GET".to_owned(),
            host: None,
            version: HttpVersion::V1_1,
            expect: Codes(vec![(200, 299)]),
            body: None,
            digest: None,
            tls: None,
        }
    }
}

fn read_http(section: &Section<'_>, tls: bool, base: HttpSpec) -> HttpSpec {
    let versions = [("1.0", HttpVersion::V1_0), ("1.1", HttpVersion::V1_1)];
    let tls = tls.then(|| {
        let base = base.tls.clone().unwrap_or_default();
        TlsSpec {
            sni: section.parsed("sni", server_name).map(|found| found.value).or(base.sni),
            ca: section.parsed("ca", file).map(|found| found.value).or(base.ca),
            client: pair(section, "certificate", "key", file).or(base.client),
        }
    });
    HttpSpec {
        path: section.parsed("path", path).map_or(base.path, |found| found.value),
        method: section.parsed("method", method).map_or(base.method, |found| found.value),
        host: section.parsed("host", one_word).map(|found| found.value).or(base.host),
        version: section.word("version", &versions, &[]).unwrap_or(base.version),
        expect: section.ranges("expect", 100..=599).map_or(base.expect, Codes),
        body: section.parsed("body", pattern).map(|found| found.value).or(base.body),
        digest: section.parsed("digest", digest).map(|found| found.value).or(base.digest),
        tls,
    }
}

impl Default for DnsSpec {
    fn default() -> DnsSpec {
        DnsSpec { name: ".".to_owned(), query: "SOA".to_owned(), over_tcp: false, rcode: 0, answer: Vec::new() }
    }
}

fn read_dns(section: &Section<'_>, base: DnsSpec) -> DnsSpec {
    let answer = section.strings("answer", r#"["192.0.2.1"]"#).map(|strings| {
        let mut addresses = Vec::new();
        for Located { value, span } in strings {
            match value.parse::<IpAddr>() {
                Ok(address) => addresses.push(address),
                Err(_) => section.refuse(span, format!("answer {value:?} is no IP address")),
            }
        }
        addresses
    });
    DnsSpec {
        name: section.parsed("name", dns_name).map_or(base.name, |found| found.value),
        query: section.parsed("query", query_type).map_or(base.query, |found| found.value),
        over_tcp: section.word("transport", &[("udp", false), ("tcp", true)], &[]).unwrap_or(base.over_tcp),
        rcode: section.word("rcode", &RCODES, &[]).unwrap_or(base.rcode),
        answer: answer.unwrap_or(base.answer),
    }
}

/// Two keys that mean something only together.
fn pair(
    section: &Section<'_>,
    first: &str,
    second: &str,
    parse: fn(&str) -> Result<String, String>,
) -> Option<(String, String)> {
    let (found, other) = (section.parsed(first, parse), section.parsed(second, parse));
    for (there, missing) in [(first, second), (second, first)] {
        if section.has(there) && !section.has(missing) {
            section.refuse(section.span_of(there), format!("{there} means something only together with {missing}"));
        }
    }
    Some((found?.value, other?.value))
}

impl Section<'_> {
    /// A program with its arguments: a list of strings, or a string for the shell.
    fn command(&self, key: &str) -> Option<Command> {
        let span = self.span_of(key);
        if let Some(text) = self.text(key) {
            return Some(Command(["/bin/sh", "-c", text.value].map(str::to_owned).to_vec()));
        }
        let words = self.strings(key, r#"["/usr/local/bin/check", "arg"]"#)?;
        let words: Vec<String> = words.into_iter().map(|word| word.value.to_owned()).collect();
        match words.first() {
            Some(program) if program.starts_with('/') && !words.iter().any(|word| word.contains('\0')) => {
                Some(Command(words))
            }
            _ => {
                self.refuse(span, format!("{key} must begin with the absolute path of a program"));
                None
            }
        }
    }
}

/// Reports checks that have no port to go to.
pub(super) fn report_faults(config: &Config, problems: &Problems) {
    for service in &config.services {
        for server in service.servers.iter().filter(|server| server.origin.is_none()) {
            let Some(check) = check_of(service, server) else { continue };
            if let Some((span, wrong)) = port_fault(service, server, check) {
                problems.report(span, format!("service {:?}: {wrong}", service.name.value));
            }
        }
    }
}

fn check_of<'a>(service: &'a ServiceConfig, server: &'a ServerConfig) -> Option<&'a Located<Arc<CheckSpec>>> {
    match &server.check {
        ServerCheck::OfService => service.health.check.as_ref(),
        ServerCheck::Off => None,
        ServerCheck::Own(check) => Some(check),
    }
}

fn port_fault(
    service: &ServiceConfig,
    server: &ServerConfig,
    check: &Located<Arc<CheckSpec>>,
) -> Option<(Range<usize>, String)> {
    let (spec, ports) = (&check.value, service.listen.value.ports);
    if !spec.probe.has_port() {
        return None;
    }
    match (spec.via, spec.port) {
        (Via::Path, Some(port)) if !ports.contains(port) => {
            let wrong = format!("a check by \"path\" asks a port of the service, {ports}, and {port} is none");
            Some((check.span.clone(), wrong))
        }
        (_, Some(_)) => None,
        (Via::Host, None) if server.address.value.port.is_some() => None,
        (_, None) if ports.is_single() => None,
        (via, None) => {
            let of = if via == Via::Host { format!(" at server {:?}", server.name.value) } else { String::new() };
            Some((
                check.span.clone(),
                format!("the check has no port to ask{of}; add for example port = {}", ports.first),
            ))
        }
    }
}

/// What the health checks are built from.
pub(super) fn compile(config: &Config) -> HealthSpec {
    let one = |service: &ServiceConfig| ServiceHealth {
        name: service.name.value.clone(),
        check: service.health.check.as_ref().map(|check| check.value.clone()),
        overrides: service.servers.iter().filter_map(|server| compile_override(service, server)).collect(),
        quorum: service.health.quorum.clone(),
    };
    HealthSpec { services: config.services.iter().map(one).collect() }
}

/// What says the same as the service is no override.
fn compile_override(service: &ServiceConfig, server: &ServerConfig) -> Option<(String, Option<Arc<CheckSpec>>)> {
    let of_service = service.health.check.as_ref().map(|check| &check.value);
    let own = match &server.check {
        ServerCheck::OfService => return None,
        ServerCheck::Off => None,
        ServerCheck::Own(check) => Some(&check.value),
    };
    (own != of_service).then(|| (server.name.value.clone(), own.cloned()))
}

fn jitter(text: &str, interval: Duration) -> Result<Jitter, String> {
    let wrong =
        || format!("is no share of the interval such as \"10%\", and no duration up to {}", format_duration(interval));
    match text.strip_suffix('%') {
        Some(share) => share.parse().ok().filter(|share| *share <= 100).map(Jitter::Share).ok_or_else(wrong),
        None => parse_duration(text).filter(|time| *time <= interval).map(Jitter::Time).ok_or_else(wrong),
    }
}

fn path(text: &str) -> Result<String, String> {
    match hyper::http::uri::PathAndQuery::from_str(text) {
        Ok(path) if text.starts_with('/') && path.as_str() == text => Ok(text.to_owned()),
        _ => {
            Err("is no path of a URL; write for example \"/healthz\", and anything but plain letters as %20".to_owned())
        }
    }
}

fn method(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
        true => Ok(text.to_owned()),
        false => Err("is no method of HTTP; write for example \"GET\" or \"HEAD\"".to_owned()),
    }
}

fn one_word(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("must be one word of plain ASCII".to_owned()),
    }
}

fn one_line(text: &str) -> Result<String, String> {
    match text.len() <= 255 && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("must be one line of at most 255 bytes".to_owned()),
    }
}

fn file(text: &str) -> Result<String, String> {
    match text.starts_with('/') && !text.contains('\0') {
        true => Ok(text.to_owned()),
        false => Err("is no absolute path of a file".to_owned()),
    }
}

fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(ServerName::DnsName(_)) => Ok(text.to_owned()),
        _ => Err("is no host name".to_owned()),
    }
}

fn pattern(text: &str) -> Result<String, String> {
    Regex::new(text).map(|_| text.to_owned()).map_err(|error| format!("is no regular expression: {error}"))
}

fn dns_name(text: &str) -> Result<String, String> {
    Name::from_ascii(text).map(|_| text.to_owned()).map_err(|_| "is no name of the DNS".to_owned())
}

fn query_type(text: &str) -> Result<String, String> {
    let word = text.to_ascii_uppercase();
    match RecordType::from_str(&word) {
        Ok(_) => Ok(word),
        Err(_) => Err("is no type of a DNS query; write for example \"SOA\" or \"A\"".to_owned()),
    }
}

fn digest(text: &str) -> Result<[u8; 16], String> {
    let bytes = hex(text).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "is no MD5 sum; it has 32 hexadecimal digits".to_owned())
}

/// `hex:` and digits, or text; `text:` in front of a text that begins with one of these.
fn octets(text: &str) -> Result<Vec<u8>, String> {
    let bytes = match (text.strip_prefix("hex:"), text.strip_prefix("text:")) {
        (Some(digits), _) => hex(digits).ok_or("has no even number of hexadecimal digits behind \"hex:\"")?,
        (_, Some(text)) => text.as_bytes().to_vec(),
        _ => text.as_bytes().to_vec(),
    };
    match bytes.len() <= MAX_TEXT {
        true => Ok(bytes),
        false => Err(format!("is longer than {MAX_TEXT} bytes")),
    }
}

/// The same, or `regex:` and a pattern, or "any".
fn reply(text: &str) -> Result<Reply, String> {
    match text.strip_prefix("regex:") {
        Some(text) => pattern(text).map(Reply::Matches),
        None if text == "any" => Ok(Reply::Any),
        None => octets(text).map(Reply::Begins),
    }
}

/// Two digits a byte; blanks between bytes do not matter.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    digits.chunks(2).map(byte).collect()
}
