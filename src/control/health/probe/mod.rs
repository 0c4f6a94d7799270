//! The probes: each asks a server one question, once.
//!
//! A probe is built from its part of a [`CheckSpec`] when the configuration is read, so that what costs time or may fail
//! (patterns, certificates) is done then. It has no clock: whoever runs it drops it when its time is up. Whatever a server
//! sends, a probe reads a bounded part of it, and answers with a [`Bad`] at the worst.

mod dns;
mod exec;
mod ftp;
mod http;
mod line;
mod nntp;
mod ping;
mod smtp;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod udp;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use super::spec::{CheckSpec, ProbeSpec};
use super::transport::{Connect, Target, is_ours};

/// Bytes of what a server says that are repeated in messages.
const MAX_QUOTE: usize = 80;

/// One kind of question.
pub trait Probe: Send + Sync {
    fn ask<'a>(&'a self, asked: &'a Asked, by: &'a dyn Connect) -> Asking<'a>;

    /// What it means that nothing has come by the end of the time; `None`: that the server does not work.
    fn silence(&self) -> Option<Good> {
        None
    }
}

pub type Asking<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

pub type Outcome = Result<Good, Bad>;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    pub target: Target,
    /// Set where the probe is for one server of one service, and not for everybody who asks the same of the same address.
    pub whose: Option<Arc<Whose>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Whose {
    pub service: String,
    pub server: String,
    /// The service's address and, unless it has several, its port.
    pub vip: std::net::IpAddr,
    pub vip_port: Option<u16>,
}

/// The answer was right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Good {
    /// What it was, in a few words.
    pub said: String,
    /// The weight that the server wants.
    pub weight: Option<u32>,
}

impl Good {
    pub fn said(said: impl Into<String>) -> Good {
        Good { said: said.into(), weight: None }
    }
}

/// There was no right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It counts against the server; in a few words, why.
    Server(String),
    /// The gateway could not ask.
    Ours(String),
}

impl Bad {
    pub fn server(why: impl Into<String>) -> Bad {
        Bad::Server(why.into())
    }
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Bad {
        if is_ours(&error) {
            return Bad::Ours(error.to_string());
        }
        Bad::Server(match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "connection reset".to_owned(),
            io::ErrorKind::UnexpectedEof => "closed before the answer was complete".to_owned(),
            io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
            io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// The probe of a check.
///
/// # Errors
/// One sentence about a file that it needs.
pub fn build(spec: &CheckSpec) -> Result<Arc<dyn Probe>, String> {
    Ok(match &spec.probe {
        ProbeSpec::Tcp => Arc::new(tcp::Tcp),
        ProbeSpec::Http(http) => Arc::new(http::Http::new(http)?),
        ProbeSpec::Ping => Arc::new(ping::Ping),
        ProbeSpec::Udp(udp) => Arc::new(udp::Udp::new(udp)?),
        ProbeSpec::Dns(dns) => Arc::new(dns::Dns::new(dns)?),
        ProbeSpec::Smtp(smtp) => Arc::new(smtp::Smtp(smtp.clone())),
        ProbeSpec::Ftp(login) => Arc::new(ftp::Ftp(login.clone())),
        ProbeSpec::Nntp(login) => Arc::new(nntp::Nntp(login.clone())),
        ProbeSpec::Exec(exec) => Arc::new(exec::Exec(exec.clone())),
    })
}

/// What a server sent, made fit for a line of a log: the beginning, without control characters.
fn quoted(bytes: &[u8]) -> impl fmt::Display {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_QUOTE)]);
    let text: String = text.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let more = if bytes.len() > MAX_QUOTE { "…" } else { "" };
    format!("{text:?}{more}")
}
