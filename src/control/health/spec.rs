//! What the health checks are built from: plain data, comparable, so that a reload can say what changes and leave alone what
//! does not.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The checks of a whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthSpec {
    pub services: Vec<ServiceHealth>,
}

impl HealthSpec {
    pub fn service(&self, name: &str) -> Option<&ServiceHealth> {
        self.services.iter().find(|service| service.name == name)
    }

    /// Every check, some of them several times.
    pub fn checks(&self) -> impl Iterator<Item = (&ServiceHealth, &Arc<CheckSpec>)> {
        self.services.iter().flat_map(|service| {
            let of_servers = service.overrides.iter().map(|(_, check)| check);
            std::iter::once(&service.check).chain(of_servers).flatten().map(move |check| (service, check))
        })
    }

    /// The files that must be read to build the checks.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let tls = self.checks().filter_map(|(_, check)| match &check.probe {
            ProbeSpec::Http(http) => http.tls.as_ref(),
            _ => None,
        });
        tls.flat_map(|tls| {
            let own = tls.client.iter().flat_map(|(chain, key)| [chain, key]);
            tls.ca.iter().chain(own).map(Path::new)
        })
    }
}

/// How one service's servers are checked, and how many of them it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    pub name: String,
    /// For every server that `overrides` does not name; `None`: unchecked.
    pub check: Option<Arc<CheckSpec>>,
    /// By the server's name, in the order of the configuration.
    pub overrides: Vec<(String, Option<Arc<CheckSpec>>)>,
    pub quorum: Quorum,
}

impl ServiceHealth {
    /// A service that nothing is asked about.
    pub fn unchecked(name: String) -> ServiceHealth {
        ServiceHealth { name, check: None, overrides: Vec::new(), quorum: Quorum::default() }
    }

    /// The check of the server of this name.
    pub fn check_of(&self, server: &str) -> Option<&Arc<CheckSpec>> {
        let own = self.overrides.iter().find(|(name, _)| name == server);
        own.map_or(self.check.as_ref(), |(_, check)| check.as_ref())
    }
}

/// How much weight must be up for a service to serve by itself (keepalived.conf(5): quorum, hysteresis, quorum_up,
/// quorum_down).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// It is lost when the weight of the servers that are up falls below this less the hysteresis.
    pub weight: u32,
    /// It is gained when that weight reaches `weight` and this much more. Less than `weight`.
    pub hysteresis: u32,
    /// Run when it is gained, and for a service that comes with it.
    pub up: Option<Command>,
    /// Run when it is lost, and for a service that comes without it.
    pub down: Option<Command>,
}

impl Default for Quorum {
    fn default() -> Quorum {
        Quorum { weight: 1, hysteresis: 0, up: None, down: None }
    }
}

impl Quorum {
    /// Whether it holds, with `live` weight up, after it was or was not there.
    pub fn holds(&self, live: u64, before: bool) -> bool {
        let (weight, hysteresis) = (u64::from(self.weight), u64::from(self.hysteresis));
        if before { live >= weight.saturating_sub(hysteresis) } else { live >= weight + hysteresis }
    }
}

/// A program and its arguments; the first is an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command(pub Vec<String>);

/// One check: what is asked, how often, and how many answers count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CheckSpec {
    pub probe: ProbeSpec,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// For one probe, from connecting to the last byte of the answer.
    pub timeout: Duration,
    /// Good answers in a row that bring a server up.
    pub rise: u32,
    /// Bad answers in a row that take it down.
    pub fall: u32,
    pub jitter: Jitter,
    /// `None`: the server's, or the service's where the server has none.
    pub port: Option<u16>,
    pub via: Via,
    /// Whether a server that nobody has asked yet may serve.
    pub starts_up: bool,
}

/// How much earlier than the interval says a probe may start, at random: never later, so that a failure is found in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Jitter {
    /// Percent of the interval, 0 to 100.
    Share(u8),
    /// At most the interval.
    Time(Duration),
}

/// Who carries a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// The kernel's sockets, to the server's own address.
    Host,
    /// The gateway's data path, addressed to the VIP, as a client's packets.
    Path,
}

impl Via {
    pub const ALL: [Via; 2] = [Via::Host, Via::Path];

    pub const fn word(self) -> &'static str {
        match self {
            Via::Host => "host",
            Via::Path => "path",
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProbeSpec {
    Tcp,
    Http(HttpSpec),
    Ping,
    Udp(UdpSpec),
    Dns(DnsSpec),
    Smtp(SmtpSpec),
    Ftp(LoginSpec),
    Nntp(LoginSpec),
    Exec(ExecSpec),
}

impl ProbeSpec {
    /// The word in config and outputs.
    pub const fn word(&self) -> &'static str {
        match self {
            ProbeSpec::Tcp => "tcp",
            ProbeSpec::Http(HttpSpec { tls: None, .. }) => "http",
            ProbeSpec::Http(_) => "https",
            ProbeSpec::Ping => "ping",
            ProbeSpec::Udp(_) => "udp",
            ProbeSpec::Dns(_) => "dns",
            ProbeSpec::Smtp(_) => "smtp",
            ProbeSpec::Ftp(_) => "ftp",
            ProbeSpec::Nntp(_) => "nntp",
            ProbeSpec::Exec(_) => "exec",
        }
    }

    pub const fn is_program(&self) -> bool {
        matches!(self, ProbeSpec::Exec(_))
    }

    /// Whether it goes to a port of the server's.
    pub const fn has_port(&self) -> bool {
        !matches!(self, ProbeSpec::Ping | ProbeSpec::Exec(_))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpSpec {
    pub path: String,
    pub method: String,
    /// Of the request's Host; `None`: the address and port that are asked.
    pub host: Option<String>,
    pub version: HttpVersion,
    /// Statuses that are good.
    pub expect: Codes,
    /// A pattern that the body must have in it.
    pub body: Option<String>,
    /// MD5 of the body, in hex.
    pub digest: Option<[u8; 16]>,
    /// `None`: plain HTTP.
    pub tls: Option<TlsSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    V1_0,
    V1_1,
}

/// Every one is a path in the file system, but for the name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSpec {
    /// The name asked for (SNI) and, with `ca`, expected; `None`: the request's host if that is a name.
    pub sni: Option<String>,
    /// Whose certificates are trusted; `None`: any certificate will do (as with keepalived's SSL_GET).
    pub ca: Option<String>,
    /// The certificate chain of the gateway as a client, and its key.
    pub client: Option<(String, String)>,
}

/// Numbers that are good: ranges, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Codes(pub Vec<(u16, u16)>);

impl Codes {
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&code))
    }
}

impl std::fmt::Display for Codes {
    /// `200-299, 401`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UdpSpec {
    pub payload: Vec<u8>,
    /// `None`: all is well when no ICMP error has come by the end of the time.
    pub expect: Option<Reply>,
}

/// What an answer must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It begins with these bytes.
    Begins(Vec<u8>),
    /// This pattern is in it.
    Matches(String),
    /// Anything.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsSpec {
    pub name: String,
    /// The query type as a word: `SOA`, `A`.
    pub query: String,
    pub over_tcp: bool,
    /// The response code as a number.
    pub rcode: u16,
    /// Addresses that must all be in the answer.
    pub answer: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SmtpSpec {
    /// What the gateway calls itself.
    pub helo: String,
    /// Of the greeting.
    pub expect: Codes,
}

/// A protocol that begins with a greeting and may go on with a login.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LoginSpec {
    /// Of the greeting.
    pub expect: Codes,
    /// User and password.
    pub login: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecSpec {
    pub command: Command,
    /// Exit codes from 2 to 255 are good, and set the weight to so much less 2.
    pub sets_weight: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    // keepalived.conf(5): up at quorum + hysteresis, down below quorum - hysteresis.
    #[test]
    fn a_quorum_with_hysteresis() {
        let quorum = Quorum { weight: 3, hysteresis: 1, ..Quorum::default() };
        let mut holds = true;
        let mut seen = Vec::new();
        for live in [4, 3, 2, 1, 2, 3, 4, 3, 2, 0] {
            holds = quorum.holds(live, holds);
            seen.push(holds);
        }
        assert_eq!(seen, [true, true, true, false, false, false, true, true, true, false]);
        assert!(Quorum::default().holds(1, false) && !Quorum::default().holds(0, true));
    }

    #[test]
    fn codes_are_ranges() {
        let codes = Codes(vec![(200, 299), (401, 401)]);
        assert!(codes.contains(200) && codes.contains(299) && codes.contains(401) && !codes.contains(300));
        assert_eq!(codes.to_string(), "200-299, 401");
    }
}
