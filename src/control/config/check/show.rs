//! Checks in words, as the file writes them: what a reload changes.

use std::time::Duration;

use super::super::duration::format_duration;
use super::{CheckSpec, DnsSpec, HttpSpec, RCODES};
use crate::control::health::spec::{Codes, Command, HttpVersion, Jitter, ProbeSpec, Reply, Via};

/// `{ type = "http", path = "/healthz", interval = "2s" }`: what is not the default, and no passwords.
pub fn check(spec: &CheckSpec) -> String {
    let default = CheckSpec::new(spec.probe.clone());
    let mut keys = vec![format!("type = {:?}", spec.probe.word())];
    probe(&spec.probe, &mut keys);
    let mut key = |differs: bool, name: &str, value: String| {
        if differs {
            keys.push(format!("{name} = {value}"));
        }
    };
    let time = |time: Duration| format!("\"{}\"", format_duration(time));
    key(spec.port.is_some(), "port", spec.port.unwrap_or(0).to_string());
    key(spec.via != Via::Host, "via", format!("{:?}", spec.via.word()));
    key(spec.interval != default.interval, "interval", time(spec.interval));
    key(spec.timeout != default.timeout, "timeout", time(spec.timeout));
    key(spec.rise != default.rise, "rise", spec.rise.to_string());
    key(spec.fall != default.fall, "fall", spec.fall.to_string());
    let jitter = match spec.jitter {
        Jitter::Share(share) => format!("\"{share}%\""),
        Jitter::Time(duration) => time(duration),
    };
    key(spec.jitter != default.jitter, "jitter", jitter);
    key(!spec.starts_up, "initial", "\"down\"".to_owned());
    format!("{{ {} }}", keys.join(", "))
}

/// As the file writes it.
pub fn command(command: &Command) -> String {
    match &command.0[..] {
        [shell, option, line] if shell == "/bin/sh" && option == "-c" => format!("{line:?}"),
        words => format!("{words:?}"),
    }
}

fn probe(spec: &ProbeSpec, keys: &mut Vec<String>) {
    let mut text = |name: &str, value: &str, default: &str| {
        if value != default {
            keys.push(format!("{name} = {value:?}"));
        }
    };
    match spec {
        ProbeSpec::Tcp | ProbeSpec::Ping => {}
        ProbeSpec::Http(http) => {
            let HttpSpec { path, method, host, version, expect, body, digest, tls } = http;
            text("path", path, "/");
            text("method", method, "GET");
            text("host", host.as_deref().unwrap_or_default(), "");
            text("version", if *version == HttpVersion::V1_0 { "1.0" } else { "" }, "");
            text("body", body.as_deref().unwrap_or_default(), "");
            text("digest", &digest.map(|digest| hex(&digest)).unwrap_or_default(), "");
            if let Some(tls) = tls {
                let (certificate, key) = tls.client.as_ref().map_or(("", ""), |(first, second)| (first, second));
                text("sni", tls.sni.as_deref().unwrap_or_default(), "");
                text("ca", tls.ca.as_deref().unwrap_or_default(), "");
                text("certificate", certificate, "");
                text("key", key, "");
            }
            codes(expect, &HttpSpec::default().expect, keys);
        }
        ProbeSpec::Udp(udp) => {
            text("payload", &octets(&udp.payload), "text:");
            match &udp.expect {
                None => {}
                Some(Reply::Any) => text("expect", "any", ""),
                Some(Reply::Begins(bytes)) => text("expect", &octets(bytes), ""),
                Some(Reply::Matches(pattern)) => text("expect", &format!("regex:{pattern}"), ""),
            }
        }
        ProbeSpec::Dns(dns) => {
            let default = DnsSpec::default();
            let rcode = RCODES.iter().find(|(_, code)| *code == dns.rcode).map_or("", |(word, _)| word);
            text("name", &dns.name, &default.name);
            text("query", &dns.query, &default.query);
            text("transport", if dns.over_tcp { "tcp" } else { "udp" }, "udp");
            text("rcode", rcode, "noerror");
            if !dns.answer.is_empty() {
                let answer: Vec<String> = dns.answer.iter().map(ToString::to_string).collect();
                keys.push(format!("answer = {answer:?}"));
            }
        }
        ProbeSpec::Smtp(smtp) => {
            text("helo", &smtp.helo, "gatun.localdomain");
            codes(&smtp.expect, &Codes(vec![(220, 220)]), keys);
        }
        ProbeSpec::Ftp(login) | ProbeSpec::Nntp(login) => {
            if let Some((user, _)) = &login.login {
                text("user", user, "");
                text("password", "…", "");
            }
            let greeting = if spec.word() == "ftp" { (220, 220) } else { (200, 201) };
            codes(&login.expect, &Codes(vec![greeting]), keys);
        }
        ProbeSpec::Exec(exec) => {
            keys.push(format!("command = {}", command(&exec.command)));
            if exec.sets_weight {
                keys.push("weight = true".to_owned());
            }
        }
    }
}

fn codes(codes: &Codes, default: &Codes, keys: &mut Vec<String>) {
    let one = |&(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("\"{first}-{last}\""),
    };
    if codes != default {
        keys.push(format!("expect = [{}]", codes.0.iter().map(one).collect::<Vec<_>>().join(", ")));
    }
}

/// As the keys `payload` and `expect` read it.
fn octets(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => format!("text:{text}"),
        _ => format!("hex:{}", hex(bytes)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
