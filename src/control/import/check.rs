//! Checkers.
//!
//! keepalived asks every `delay_loop`, and after a failure `retry` times more, each after `delay_before_retry`; one success
//! brings a server up. Here `fall` failures in a row take it down, `interval` apart: so `retry` becomes `fall` - 1, and that
//! the repetitions come sooner there is told. The defaults differ by checker (keepalived/check/check_api.c, and check_misc.c,
//! check_dns.c and check_http.c, where they set `default_retry` and `default_delay_before_retry`).

use std::net::IpAddr;
use std::time::Duration;

use super::Losses;
use super::parse::Statement;
use super::service::{command, number};
use super::toml::{Keys, string, strings, table};
use crate::control::config::format_duration;

/// The checkers that keepalived has.
pub(super) const TYPES: &[&str] = &[
    "HTTP_GET",
    "SSL_GET",
    "TCP_CHECK",
    "SMTP_CHECK",
    "DNS_CHECK",
    "MISC_CHECK",
    "UDP_CHECK",
    "PING_CHECK",
    "BFD_CHECK",
    "FILE_CHECK",
];

/// Keys that are read from the block of a checker, or from those around it.
const COMMON: &[&str] = &[
    "connect_port",
    "connect_timeout",
    "delay_loop",
    "retry",
    "nb_get_retry",
    "delay_before_retry",
    "alpha",
    "warmup",
    "connect_ip",
];

/// A check as it will be written.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub line: usize,
    /// Without the port.
    keys: Keys,
    pub port: Option<u16>,
    pub has_port: bool,
}

impl Check {
    pub(super) fn written(mut self) -> String {
        if let Some(port) = self.port {
            self.keys.insert(1, ("port", port.to_string()));
        }
        table(&self.keys)
    }
}

/// The check of a real server: the first checker that has a counterpart.
pub(super) fn read(service: &Statement, server: &Statement, lost: &mut Losses) -> Option<Check> {
    let mut read = None;
    for checker in server.block.iter().filter(|found| TYPES.contains(&found.word())) {
        if read.is_some() {
            lost.add(
                checker.line,
                format!("{}: a server has one check here, and it has another already", checker.word()),
            );
            continue;
        }
        read = one(&[checker, server, service], lost);
    }
    read
}

/// `blocks` are the checker and what is around it, the innermost first.
fn one(blocks: &[&Statement], lost: &mut Losses) -> Option<Check> {
    let checker = *blocks.first()?;
    let (mut keys, known): (Keys, &[&str]) = match checker.word() {
        "HTTP_GET" | "SSL_GET" => (http(blocks, lost), &["url", "virtualhost", "enable_sni", "http_protocol"]),
        "TCP_CHECK" => (vec![("type", string("tcp"))], &[]),
        "PING_CHECK" => (vec![("type", string("ping"))], &[]),
        "SMTP_CHECK" => {
            let mut keys: Keys = vec![("type", string("smtp"))];
            let helo = checker.find("helo_name").and_then(Statement::argument);
            keys.extend(helo.map(|helo| ("helo", string(helo))));
            (keys, &["helo_name", "host"])
        }
        "DNS_CHECK" => {
            let mut keys: Keys = vec![("type", string("dns"))];
            let value = |word: &str| checker.find(word).and_then(Statement::argument);
            keys.extend(value("name").map(|name| ("name", string(name))));
            keys.extend(value("type").map(|query| ("query", string(query))));
            (keys, &["name", "type"])
        }
        "MISC_CHECK" => (misc(checker, lost)?, &["misc_path", "misc_timeout", "misc_dynamic"]),
        "UDP_CHECK" => (udp(checker, lost), &["payload", "require_reply"]),
        word => {
            lost.add(checker.line, format!("{word}: there is no such check here"));
            return None;
        }
    };
    for inner in &checker.block {
        if !known.contains(&inner.word()) && !COMMON.contains(&inner.word()) {
            lost.add(inner.line, format!("{}: unknown to this check", inner.word()));
        }
    }
    // An SMTP_CHECK may have its address and port in a block of their own.
    let mut around = blocks.to_vec();
    let host = checker.find("host").filter(|_| checker.is("SMTP_CHECK"));
    around.splice(0..0, host);
    timing(checker, &around, &mut keys, lost);
    let find = |word: &str| around.iter().find_map(|block| block.find(word));
    if let Some(found) = find("connect_ip") {
        let server = blocks.get(1).and_then(|server| server.argument()).and_then(|text| text.parse::<IpAddr>().ok());
        if found.argument().and_then(|text| text.parse().ok()) != server {
            lost.add(found.line, "connect_ip: a check asks the server's own address");
        }
    }
    let has_port = !["PING_CHECK", "MISC_CHECK"].contains(&checker.word());
    let port = find("connect_port").filter(|_| has_port).and_then(|found| number(found, 1..=65535, lost));
    Some(Check { line: checker.line, keys, port: port.and_then(|port| u16::try_from(port).ok()), has_port })
}

fn timing(checker: &Statement, blocks: &[&Statement], keys: &mut Keys, lost: &mut Losses) {
    let find = |word: &str| blocks.iter().find_map(|block| block.find(word));
    let interval = find("delay_loop").and_then(|found| seconds(found, lost)).unwrap_or(Duration::from_secs(60));
    let of_misc = checker.find("misc_timeout").map(|found| seconds(found, lost));
    let timeout = match (checker.word(), of_misc) {
        (_, Some(timeout)) => timeout.unwrap_or(interval),
        // A program has the whole interval.
        ("MISC_CHECK", None) => interval,
        _ => find("connect_timeout").and_then(|found| seconds(found, lost)).unwrap_or(Duration::from_secs(5)),
    };
    let (default_retry, default_delay) = match checker.word() {
        "MISC_CHECK" => (0, Duration::from_secs(1)),
        "DNS_CHECK" => (3, interval),
        "HTTP_GET" | "SSL_GET" => (1, Duration::from_secs(3)),
        _ => (1, Duration::from_secs(1)),
    };
    let retry = find("retry").or_else(|| find("nb_get_retry")).and_then(|found| number(found, 0..=999, lost));
    let retry = retry.unwrap_or(default_retry);
    let told = find("delay_before_retry");
    let delay = told.and_then(|found| seconds(found, lost)).unwrap_or(default_delay);
    if retry > 0 && (delay < interval || told.is_some() && delay != interval) {
        let word = told.map_or("", |_| "delay_before_retry: ");
        lost.add(
            told.unwrap_or(checker).line,
            format!(
                "{word}{}: a failed check is repeated after the interval of {} here, and not after {}; a server that \
                 fails is taken down that much {}",
                checker.word(),
                format_duration(interval),
                format_duration(delay),
                if delay < interval { "later" } else { "sooner" },
            ),
        );
    }
    let (interval, timeout) = (interval.min(Duration::from_secs(86_400)), timeout.min(Duration::from_secs(3600)));
    keys.push(("interval", string(&format_duration(interval))));
    keys.push(("timeout", string(&format_duration(timeout))));
    keys.push(("rise", "1".to_owned()));
    keys.push(("fall", (retry + 1).to_string()));
    if find("alpha").is_some() {
        keys.push(("initial", string("down")));
    }
}

/// `2`, or `0.5`; at least 10 ms.
fn seconds(found: &Statement, lost: &mut Losses) -> Option<Duration> {
    let text = found.argument().unwrap_or("");
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=86_400.0).contains(seconds));
    if seconds.is_none() {
        lost.add(found.line, format!("{}: {text:?} is no time in seconds", found.word()));
    }
    Some(Duration::from_millis((seconds? * 1000.0).round() as u64))
}

fn http(blocks: &[&Statement], lost: &mut Losses) -> Keys {
    let Some(checker) = blocks.first() else { return Keys::new() };
    let tls = checker.is("SSL_GET");
    let mut keys: Keys = vec![("type", string(if tls { "https" } else { "http" }))];
    let urls: Vec<&Statement> = checker.block.iter().filter(|found| found.is("url")).collect();
    for further in urls.iter().skip(1) {
        lost.add(further.line, "url: a check asks one page here, and it has another already");
    }
    let url = urls.first();
    let value = |word: &str| url.and_then(|url| url.find(word)).and_then(Statement::argument);
    keys.extend(value("path").map(|path| ("path", string(path))));
    let of_url = value("virtualhost");
    let host = of_url.or_else(|| blocks.iter().find_map(|block| block.find("virtualhost")?.argument()));
    keys.extend(host.map(|host| ("host", string(host))));
    if let (Some(host), true) = (host, tls && checker.find("enable_sni").is_some()) {
        keys.push(("sni", string(host)));
    }
    if let Some(found) = url.and_then(|url| url.find("status_code")) {
        keys.push(("expect", strings(found.arguments().iter().map(String::as_str))));
    }
    keys.extend(value("regex").map(|pattern| ("body", string(pattern))));
    keys.extend(value("digest").map(|digest| ("digest", string(&digest.to_ascii_lowercase()))));
    let protocol = checker.find("http_protocol").and_then(Statement::argument);
    keys.push(("version", string(if protocol.is_some_and(|word| word.starts_with("1.1")) { "1.1" } else { "1.0" })));
    for inner in url.map_or(&[][..], |url| &url.block) {
        if !["path", "virtualhost", "status_code", "regex", "digest"].contains(&inner.word()) {
            lost.add(inner.line, format!("{}: unknown to this check", inner.word()));
        }
    }
    keys
}

fn misc(checker: &Statement, lost: &mut Losses) -> Option<Keys> {
    let Some(command) = checker.find("misc_path").and_then(|found| command(found.arguments())) else {
        lost.add(checker.line, "MISC_CHECK: no misc_path");
        return None;
    };
    let mut keys: Keys = vec![("type", string("exec")), ("command", command)];
    if checker.find("misc_dynamic").is_some() {
        keys.push(("weight", "true".to_owned()));
    }
    Some(keys)
}

fn udp(checker: &Statement, lost: &mut Losses) -> Keys {
    let mut keys: Keys = vec![("type", string("udp"))];
    let mut hex = |found: &Statement| {
        let digits = found.arguments().concat();
        let is_hex = digits.len() % 2 == 0 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            lost.add(found.line, format!("{}: no hexadecimal", found.word()));
        }
        is_hex.then(|| string(&format!("hex:{digits}")))
    };
    keys.extend(checker.find("payload").and_then(&mut hex).map(|payload| ("payload", payload)));
    if let Some(found) = checker.find("require_reply") {
        let expect = if found.argument().is_some() { hex(found) } else { Some(string("any")) };
        keys.extend(expect.map(|expect| ("expect", expect)));
    }
    keys
}
