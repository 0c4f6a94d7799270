//! What the gateway tells as it happens: which client's connection went to which server, and which servers went down and
//! came up.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::Value;

use super::load::Sample;
use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::process::Running;

/// A flow's beginning.
#[derive(Clone, Debug)]
pub struct Begun {
    /// At most some 50 ms after it was admitted.
    pub at: SystemTime,
    pub protocol: String,
    /// The client's.
    pub port: u16,
    pub to: SocketAddr,
    pub service: String,
    pub server: String,
}

impl Begun {
    /// The flow of a question. A client's ports come again: it is the first one since the question was begun, or else, of
    /// UDP, an old one that goes on.
    pub fn of<'a>(sample: &Sample, flows: &'a [Begun]) -> Option<&'a Begun> {
        let theirs = || flows.iter().filter(|flow| flow.is_of(sample));
        theirs().find(|flow| flow.at >= sample.begun).or(theirs().next_back())
    }

    fn is_of(&self, sample: &Sample) -> bool {
        (self.port, self.to, self.protocol == "udp") == (sample.port, sample.to, sample.udp)
    }
}

/// A server that went down or came up.
#[derive(Clone, Debug)]
pub struct Change {
    pub at: SystemTime,
    pub is_up: bool,
    pub service: String,
    pub server: String,
}

/// `gatun conntrack watch` and `gatun server watch`, into files.
pub struct Watch {
    flows: PathBuf,
    servers: PathBuf,
    _watches: [Running; 2],
}

impl Watch {
    pub fn start(lab: &Lab, gateway: &Gateway) -> Result<Watch> {
        let (flows, servers) = (lab.path("flows.json"), lab.path("servers.json"));
        let watches = [
            gateway.start_logged(&["conntrack", "watch", "--json"], &flows)?,
            gateway.start_logged(&["server", "watch", "--json"], &servers)?,
        ];
        Ok(Watch { flows, servers, _watches: watches })
    }

    /// The flows that have begun so far.
    pub fn begun(&self) -> Result<Vec<Begun>> {
        let new = |event: &Value| event["change"] == "new";
        events(&self.flows)?.iter().filter(|event| new(event)).map(|event| begun(event).context("a flow")).collect()
    }

    /// The changes of servers so far.
    pub fn changes(&self) -> Result<Vec<Change>> {
        Ok(events(&self.servers)?.iter().filter_map(change).collect())
    }

    /// They, for whoever reads why a scenario failed.
    pub fn told(&self) -> String {
        let line = |change: &Change| {
            let at = change.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
            format!("{at} {}/{} {}", change.service, change.server, if change.is_up { "up" } else { "down" })
        };
        let changes = self.changes().unwrap_or_default();
        changes.iter().map(line).collect::<Vec<_>>().join(", ")
    }
}

/// The lines of a file, each of which is an object.
fn events(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file)?;
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    // What is no object is a complaint: events were lost, or the watch is over.
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

fn begun(event: &Value) -> Option<Begun> {
    let flow = &event["flow"];
    let port = |name: &str| u16::try_from(flow["original"][name].as_u64()?).ok();
    Some(Begun {
        at: time(event)?,
        protocol: flow["proto"].as_str()?.to_string(),
        port: port("sport")?,
        to: SocketAddr::new(flow["original"]["dst"].as_str()?.parse().ok()?, port("dport")?),
        service: flow["service"].as_str()?.to_string(),
        server: flow["server"].as_str()?.to_string(),
    })
}

/// `None`: something else happened.
fn change(event: &Value) -> Option<Change> {
    let is_up = match event["change"].as_str()? {
        "up" => true,
        "down" => false,
        _ => return None,
    };
    let word = |name: &str| event[name].as_str().map(str::to_string);
    Some(Change { at: time(event)?, is_up, service: word("service")?, server: word("server")? })
}

/// Microseconds since 1970.
fn time(event: &Value) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_micros(event["time"].as_u64()?))
}
