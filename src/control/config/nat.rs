//! The tables that say whose sources are translated, and to what: `[nat]`, `[[masquerade]]`, `[[forward]]`, and the keys of a
//! service that belong to them.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use super::address::{NO_NAMES, parse_plain, parse_ports};
use super::problem::Located;
use super::section::Section;
use super::{Listen, ServerAddress, keys, parse_listen, parse_server};
use crate::service::{
    Filtering, ForwardSpec, HelperKind, MasqueradeSpec, Network, PoolSpec, PortRange, Protocols, ProxyProtocol,
    SynProxy,
};
use crate::wire::Addr;

/// What `[nat]` says: of the services by `fullnat` that have no pool of their own.
#[derive(Clone, Debug)]
pub struct NatConfig {
    pub pool: Vec<Located<Addr>>,
    /// There is one in the file, and what is wrong with it has been said.
    pub is_pool_refused: bool,
    pub ports: PortRange,
    pub quarantine: Duration,
}

impl Default for NatConfig {
    fn default() -> NatConfig {
        NatConfig {
            pool: Vec::new(),
            is_pool_refused: false,
            ports: PoolSpec::PORTS,
            quarantine: Duration::from_secs(5),
        }
    }
}

/// What a service says of it.
#[derive(Clone, Debug, Default)]
pub struct ServiceNat {
    pub pool: Option<Vec<Located<Addr>>>,
    /// There is one in the file, and what is wrong with it has been said.
    pub is_pool_refused: bool,
    pub ports: Option<PortRange>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub syn_proxy: SynProxy,
    pub new_flows_per_second: Option<u32>,
    pub places: Places,
}

/// Where some of it stands in the file.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub proxy_protocol: Range<usize>,
    pub syn_proxy: Range<usize>,
}

/// A masquerade as the file has it.
#[derive(Clone, Debug)]
pub struct MasqueradeConfig {
    pub name: Located<String>,
    pub from: Vec<Located<Network>>,
    pub except: Vec<Located<Network>>,
    pub to: Vec<Located<Addr>>,
    pub ports: PortRange,
    pub prefix: Option<Located<Network>>,
    pub filtering: Filtering,
    pub helpers: Vec<HelperKind>,
    pub max_mappings: u32,
}

/// A forwarded port as the file has it.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    pub name: Located<String>,
    pub listen: Located<Listen>,
    pub protocols: Protocols,
    pub to: Located<ServerAddress>,
}

impl MasqueradeConfig {
    pub(super) fn compiled(&self) -> MasqueradeSpec {
        let networks = |list: &[Located<Network>]| list.iter().map(|network| network.value).collect();
        MasqueradeSpec {
            name: self.name.value.clone(),
            from: networks(&self.from),
            except: networks(&self.except),
            pool: PoolSpec { addresses: self.to.iter().map(|address| address.value).collect(), ports: self.ports },
            prefix: self.prefix.as_ref().map(|prefix| prefix.value),
            filtering: self.filtering,
            helpers: self.helpers.clone(),
            max_mappings: self.max_mappings,
        }
    }
}

impl ForwardConfig {
    pub(super) fn compiled(&self) -> ForwardSpec {
        ForwardSpec {
            name: self.name.value.clone(),
            address: self.listen.value.vip,
            ports: self.listen.value.ports,
            protocols: self.protocols,
            to: self.to.value.address,
            to_port: self.to.value.port,
        }
    }
}

impl ServiceNat {
    /// The pool of a service whose clients are of the family of `vip`.
    pub(super) fn pool(&self, nat: &NatConfig, vip: Addr) -> PoolSpec {
        let all = self.pool.as_ref().unwrap_or(&nat.pool).iter().map(|address| address.value);
        PoolSpec {
            addresses: all.filter(|address| address.is_v4() == vip.is_v4()).collect(),
            ports: self.ports.unwrap_or(nat.ports),
        }
    }
}

pub(super) fn read(section: &Section<'_>) -> NatConfig {
    let default = NatConfig::default();
    let pool = addresses(section, "pool");
    NatConfig {
        is_pool_refused: pool.is_none() && section.has_or_misspells("pool"),
        pool: pool.unwrap_or_default(),
        ports: ports(section, "ports").unwrap_or(default.ports),
        quarantine: section
            .duration("quarantine", Duration::ZERO..=Duration::from_secs(600))
            .unwrap_or(default.quarantine),
    }
}

pub(super) fn read_of_service(section: &Section<'_>) -> ServiceNat {
    let versions = ProxyProtocol::ALL.map(|version| (version.word(), version));
    let ways = SynProxy::ALL.map(|way| (way.word(), way));
    let pool = addresses(section, "pool");
    ServiceNat {
        is_pool_refused: pool.is_none() && section.has_or_misspells("pool"),
        pool,
        ports: ports(section, "pool_ports"),
        proxy_protocol: section.word("proxy_protocol", &versions, &[]),
        syn_proxy: section.word("syn_proxy", &ways, &[]).unwrap_or_default(),
        new_flows_per_second: section.integer("new_flows_per_second", 1..=10_000_000),
        places: Places { proxy_protocol: section.span_of("proxy_protocol"), syn_proxy: section.span_of("syn_proxy") },
    }
}

/// `None` when a key without which there is no masquerade is missing or wrong.
pub(super) fn read_masquerade(section: &Section<'_>) -> Option<MasqueradeConfig> {
    section.require("name", r#"name = "lan""#);
    section.require("from", r#"from = ["10.20.0.0/24"]"#);
    if !section.has("prefix") {
        section.require("to", r#"to = ["203.0.113.100"]"#);
    }
    if section.has("prefix") {
        for key in ["ports", "filtering", "helpers", "max_mappings", "except"] {
            section.refuse_key(key, "has no use with \"prefix\", which keeps nothing of any flow; leave it out");
        }
    }
    let name = section.parsed("name", |text| match text {
        "forward" => Err("is what flows by forwarded ports are shown as; choose another name".to_owned()),
        name => super::read::name(name),
    });
    let filterings = Filtering::ALL.map(|filtering| (filtering.word(), filtering));
    let from = list(section, "from", r#"["10.20.0.0/24"]"#, ordinary_network);
    // What is left alone may be anything.
    let except = list(section, "except", r#"["192.168.0.0/16"]"#, network);
    let to = addresses(section, "to").or_else(|| section.has("prefix").then(Vec::new).filter(|_| !section.has("to")));
    let prefix = section.parsed("prefix", ordinary_network);
    if section.has("prefix") && prefix.is_none() {
        return None;
    }
    Some(MasqueradeConfig {
        name: name?,
        from: from?,
        except: except.unwrap_or_default(),
        to: to?,
        ports: ports(section, "ports").unwrap_or(PoolSpec::PORTS),
        prefix,
        filtering: section.word("filtering", &filterings, &[]).unwrap_or_default(),
        helpers: helpers(section),
        max_mappings: section.integer("max_mappings", 1..=u64::from(u32::MAX)).unwrap_or(MasqueradeSpec::MAX_MAPPINGS),
    })
}

/// `None` when a key without which there is nothing to forward is missing or wrong.
pub(super) fn read_forward(section: &Section<'_>) -> Option<ForwardConfig> {
    section.require("name", r#"name = "ssh""#);
    section.require("listen", r#"listen = "203.0.113.100:2222""#);
    section.require("to", r#"to = "10.20.0.11:22""#);
    let name = section.parsed("name", super::read::name);
    let listen = section.parsed("listen", parse_listen);
    let protocols = [Protocols::Tcp, Protocols::Udp, Protocols::TcpAndUdp].map(|p| (p.word(), p));
    let protocols = section.word("protocol", &protocols, &["sctp"]).unwrap_or(Protocols::Tcp);
    let to = section.parsed("to", parse_server);
    Some(ForwardConfig { name: name?, listen: listen?, protocols, to: to? })
}

/// `10.20.0.0/24`, `fd20::/64`, or an address alone. The bits behind the prefix must be zero: who writes others means
/// something else.
fn network(text: &str) -> Result<Network, String> {
    let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
    let Ok(ip) = address.parse::<std::net::IpAddr>() else {
        let is_name = address.contains(|c: char| c.is_ascii_alphabetic()) && !address.contains(':');
        return Err(if is_name { NO_NAMES } else { r#"is no network; write for example "10.20.0.0/24""# }.to_owned());
    };
    let address = Addr::from(ip);
    let bits = if address.is_v4() { 32 } else { 128 };
    let len = match len.map(str::parse::<u8>) {
        None => bits,
        Some(Ok(len)) if len <= bits => len,
        Some(_) => return Err(format!("has no prefix length from 0 to {bits} behind the \"/\"")),
    };
    let net = ipnet::IpNet::new(ip, len).map_err(|_| format!("has no prefix length from 0 to {bits}"))?;
    if net.trunc().addr() != ip {
        return Err(format!("is an address within {}; write the network", net.trunc()));
    }
    Ok(Network { address, len })
}

/// One whose addresses are single hosts', and mean the same on every link.
fn ordinary_network(text: &str) -> Result<Network, String> {
    /// From the IANA registries of special-purpose addresses (RFC 6890) and of multicast ones.
    const SPECIAL: [(&str, u8, &str); 9] = [
        ("0.0.0.0", 8, "of \"this network\" (RFC 1122)"),
        ("127.0.0.0", 8, "loopback"),
        ("169.254.0.0", 16, "link-local"),
        ("224.0.0.0", 4, "multicast"),
        ("240.0.0.0", 4, "reserved (RFC 1112)"),
        ("::", 128, "unspecified"),
        ("::1", 128, "loopback"),
        ("fe80::", 10, "link-local"),
        ("ff00::", 8, "multicast"),
    ];
    let network = network(text)?;
    let is_within = |(address, len, _): &&(&str, u8, &str)| {
        let special = address.parse::<std::net::IpAddr>().map(|ip| Network { address: Addr::from(ip), len: *len });
        network.len >= *len && special.is_ok_and(|special| special.contains(network.address))
    };
    match SPECIAL.iter().find(is_within) {
        Some((.., what)) => Err(format!("is no network of hosts that are reached through others: it is {what}")),
        None => Ok(network),
    }
}

fn addresses(section: &Section<'_>, key: &str) -> Option<Vec<Located<Addr>>> {
    let one_by_one = |what: &str| Err(format!("is a {what}; name the addresses of the pool one by one"));
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    let parse = |text: &str| match text.split_once('-') {
        _ if text.contains('/') => one_by_one("network"),
        Some((first, _)) if is_address(first.trim()) => one_by_one("range"),
        _ => parse_plain(text, "is no address for a pool"),
    };
    let found = list(section, key, r#"["203.0.113.100"]"#, parse)?;
    let mut known = HashSet::new();
    for address in &found {
        if !known.insert(address.value) {
            section.refuse(address.span.clone(), format!("{key} has {} twice; name it once", address.value));
        }
    }
    Some(found)
}

/// `None` also when an element is wrong.
fn list<T>(
    section: &Section<'_>,
    key: &str,
    example: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<Located<T>>> {
    let texts = section.strings(key, example)?;
    let read = |text: Located<&str>| match parse(text.value) {
        Ok(value) => Some(Located { value, span: text.span }),
        Err(wrong) => {
            section.refuse(text.span, format!("{key} {:?} {wrong}", text.value));
            None
        }
    };
    let (count, found) = (texts.len(), texts.into_iter().filter_map(read).collect::<Vec<_>>());
    (found.len() == count).then_some(found)
}

fn ports(section: &Section<'_>, key: &str) -> Option<PortRange> {
    section.parsed(key, parse_ports).map(|found| found.value)
}

fn helpers(section: &Section<'_>) -> Vec<HelperKind> {
    let words = HelperKind::ALL.map(HelperKind::word);
    let mut helpers = Vec::new();
    for word in section.strings("helpers", r#"["ftp"]"#).unwrap_or_default() {
        match HelperKind::ALL.into_iter().find(|kind| kind.word() == word.value) {
            Some(kind) if helpers.contains(&kind) => {}
            Some(kind) => helpers.push(kind),
            None => {
                let wrong = keys::unknown_word(word.value, words.into_iter(), &["sip", "pptp"]);
                section.refuse(word.span, format!("helpers {:?} {wrong}", word.value));
            }
        }
    }
    helpers
}
