//! What the gateway tells of its flows as they come: which client's connection went to which server, and when.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
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
    pub to: IpAddr,
    pub to_port: u16,
    pub server: String,
}

impl Begun {
    /// Whether it is the one of this question. Of several the last one is: ports come again.
    pub fn is_of(&self, sample: &Sample) -> bool {
        (self.port, self.to, self.protocol == "udp") == (sample.port, sample.to, sample.udp)
    }
}

/// `gatun conntrack watch`, into a file.
pub struct FlowWatch {
    file: PathBuf,
    _watch: Running,
}

impl FlowWatch {
    pub fn start(lab: &Lab, gateway: &Gateway) -> Result<FlowWatch> {
        let file = lab.path("flows.json");
        let watch = gateway.start_logged(&["conntrack", "watch", "--json"], &file)?;
        Ok(FlowWatch { file, _watch: watch })
    }

    /// The flows that have begun so far.
    pub fn begun(&self) -> Result<Vec<Begun>> {
        let text = fs::read_to_string(&self.file)?;
        // The last line may not be whole yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut flows = Vec::new();
        for line in whole.lines() {
            ensure!(line.starts_with('{'), "conntrack watch says: {line}");
            let event: Value = serde_json::from_str(line).with_context(|| line.to_string())?;
            if event["change"] == "new" {
                flows.push(begun(&event).with_context(|| line.to_string())?);
            }
        }
        Ok(flows)
    }
}

fn begun(event: &Value) -> Option<Begun> {
    let flow = &event["flow"];
    let port = |name: &str| u16::try_from(flow["original"][name].as_u64()?).ok();
    Some(Begun {
        at: SystemTime::UNIX_EPOCH + Duration::from_micros(event["time"].as_u64()?),
        protocol: flow["proto"].as_str()?.to_string(),
        port: port("sport")?,
        to: flow["original"]["dst"].as_str()?.parse().ok()?,
        to_port: port("dport")?,
        server: flow["server"].as_str()?.to_string(),
    })
}
