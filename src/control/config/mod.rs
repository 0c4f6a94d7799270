//! The configuration file: read, checked, compiled into what the engine forwards by, and compared with another.
//!
//! The file is TOML. [`Config::parse`] reads it into typed values that remember where they stand, and reports every
//! mistake that it finds, each with file, line and column. [`compile`] makes the [`SnapshotSpec`](crate::service::SnapshotSpec) of it; the types of
//! this module go no further than that and [`GatewayConfig`]. Nothing here touches the host except [`Config::load`],
//! which reads the file, and [`host`], which looks at what the file asks of the machine.

mod address;
mod check;
mod cluster;
mod compile;
mod difference;
mod duration;
pub mod edit;
pub mod host;
mod keys;
pub(in crate::control) mod local_pools;
mod names;
pub(in crate::control) mod narrow_pools;
mod nat;
mod problem;
mod read;
mod real_server;
mod section;
mod tap;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use address::{Listen, ServerAddress, parse_listen, parse_server};
pub use check::{HealthConfig, ServerCheck};
pub use cluster::ClusterConfig;
pub use compile::{Compiled, compile};
pub use difference::{Change, Kind as ChangeKind, difference};
pub use duration::{format_duration, parse_duration};
pub use names::{Found, MAX_FOUND, Origin, Resolved, parse_list};
pub use nat::{ForwardConfig, MasqueradeConfig, NatConfig, ServiceNat};
pub use problem::{ConfigErrors, Located, Problem, Source};
pub use real_server::{AnyConfig, RealServerConfig};
pub use tap::TapConfig;

use crate::service::{Limits, Method, Protocols, SchedulerKind};
use crate::timeouts::Timeouts;
use crate::wire::Encapsulation;

/// Where the file is when the command line does not say.
pub const DEFAULT_PATH: &str = "/etc/gatun/gatun.toml";

/// The largest file that is read: far more than any gateway needs, and less than memory.
const MAX_BYTES: u64 = 64 << 20;

/// A configuration file that was read without a mistake.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub gateway: GatewayConfig,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// Seed of the hashing schedulers.
    pub seed: u64,
    pub services: Vec<ServiceConfig>,
    pub nat: NatConfig,
    pub masquerades: Vec<MasqueradeConfig>,
    pub forwards: Vec<ForwardConfig>,
}

/// What the gateway is besides its services: fixed while it runs, but for the uplinks and the MTU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Who the gateway is on its segment; `None` in mode "tun".
    pub tap: Option<TapConfig>,
    /// Name of the device.
    pub device: String,
    /// Where VIPs are announced; empty: the interfaces of the default routes.
    pub uplinks: Vec<String>,
    pub queues: Queues,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Where metrics are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether gatun sets up addresses, routes, rules and sysctls of the host.
    pub routes: bool,
    /// Whether packets pass whole that the kernel has put together, with checksums left to the hardware.
    pub offload: bool,
    /// By how much the packet workers go before ordinary processes: they run at this nice value, negated. 0 to 20.
    pub priority: u8,
    /// Name servers for `dns:` addresses; empty: those of the host.
    pub resolvers: Vec<SocketAddr>,
    /// MTU of the device, 1280 to 65535; `None`: what the host's links tell, else [`GatewayConfig::AUTO_MTU`].
    pub mtu: Option<u16>,
    /// Flows that all shards together may hold.
    pub max_flows: usize,
}

impl GatewayConfig {
    /// The MTU of nearly every network that a gateway stands in.
    pub const AUTO_MTU: u16 = 1500;

    pub fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(Self::AUTO_MTU)
    }
}

impl Default for GatewayConfig {
    fn default() -> GatewayConfig {
        GatewayConfig {
            tap: None,
            device: "gatun0".to_owned(),
            uplinks: Vec::new(),
            queues: Queues::Auto,
            control: PathBuf::from("/run/gatun/control.sock"),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9108))),
            routes: true,
            offload: true,
            priority: 4,
            resolvers: Vec::new(),
            mtu: None,
            max_flows: 1_048_576,
        }
    }
}

/// How many queues the device has, and so how many workers and shards there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queues {
    /// One for each CPU, up to 8.
    Auto,
    /// 1 to 16.
    Count(u16),
}

impl Queues {
    pub fn count(self) -> usize {
        match self {
            Queues::Auto => std::thread::available_parallelism().map_or(1, usize::from).min(8),
            Queues::Count(count) => usize::from(count),
        }
    }
}

/// A service as the file has it.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    pub name: Located<String>,
    pub listen: Located<Listen>,
    pub protocols: Protocols,
    pub method: Method,
    pub tunnel: Encapsulation,
    pub scheduler: SchedulerKind,
    pub cluster: ClusterConfig,
    pub nat: ServiceNat,
    pub health: HealthConfig,
    pub servers: Vec<ServerConfig>,
}

/// A server as the file has it.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Its place is that of the address when the file gives no name.
    pub name: Located<String>,
    pub address: Located<ServerAddress>,
    /// Where servers are to be had in whose place this one stands: until then it has no address.
    pub origin: Option<Origin>,
    pub weight: u32,
    pub method: Option<Method>,
    pub tunnel: Option<Encapsulation>,
    pub max_connections: Option<u32>,
    pub min_connections: Option<u32>,
    pub slow_start: Option<Duration>,
    pub check: ServerCheck,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let source = read_file(path)?;
        Config::parse(path, &source.text)
    }

    /// Reads and checks `text`, which messages call `file`. Reports all mistakes; those of the syntax alone if there are
    /// any, since what follows from such a text is a guess.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
        let (source, document) = document(file, text)?;
        read::config(&document, source)
    }
}

/// The document that `text` is.
fn document<'a>(file: &Path, text: &'a str) -> Result<(Source, toml::Spanned<toml::de::DeTable<'a>>), ConfigErrors> {
    let source = Source { file: file.to_owned(), text: Arc::from(text) };
    let (document, errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok((source, document));
    }
    let problem =
        |error: toml::de::Error| Problem { span: error.span().or(Some(0..0)), message: error.message().to_owned() };
    Err(ConfigErrors::new(&source, errors.into_iter().map(problem).collect()))
}

/// The text of a file that is not too large, and UTF-8.
pub(in crate::control) fn read_file(path: &Path) -> Result<Source, ConfigErrors> {
    let unreadable = |error: std::io::Error| ConfigErrors::of_file(path, format!("cannot be read: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigErrors::of_file(path, format!("is larger than {} MiB", MAX_BYTES >> 20)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { file: path.to_owned(), text: text.into() }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let source = Source { file: path.to_owned(), text: text.into() };
            let message = "this is not UTF-8, as TOML must be".to_owned();
            Err(ConfigErrors::new(&source, vec![Problem { span: Some(at..at + 1), message }]))
        }
    }
}
