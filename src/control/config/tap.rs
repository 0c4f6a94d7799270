//! The keys of mode "tap": the gateway as a host of its own on a segment.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use super::address::parse_address;
use super::problem::{Located, Problems};
use super::section::Section;
use super::{Config, GatewayConfig, ServerConfig};
use crate::link::{Mac, Prefix, Settings};
use crate::service::Method;
use crate::wire::Addr;

/// Keys that stand in the other mode only.
pub(super) const TAP_ONLY: &[&str] = &["bridge", "mac", "address", "router"];
pub(super) const TUN_ONLY: &[&str] = &["uplink", "routes"];

/// Who the gateway is on its segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// The bridge that the device becomes a port of; `None`: the operator sees to that.
    pub bridge: Option<String>,
    /// `None`: made of the host's identity, the device's name and the first address ([`TapConfig::mac`]).
    pub mac: Option<Mac>,
    /// At least one.
    pub addresses: Vec<Prefix>,
    pub routers: Vec<Addr>,
}

impl TapConfig {
    /// The configured MAC, or one that stays the same over restarts, and differs between gateways of one segment, since their
    /// addresses do. `host`: what tells this host from others, such as `/etc/machine-id`; it may be empty.
    pub fn mac(&self, device: &str, host: &[u8]) -> Mac {
        if let Some(mac) = self.mac {
            return mac;
        }
        let mut seed = host.to_vec();
        seed.extend_from_slice(device.as_bytes());
        seed.push(0);
        seed.extend(self.addresses.first().iter().flat_map(|prefix| prefix.addr.octets()));
        let [a, b, c, d, e, f, ..] = siphasher::sip::SipHasher13::new().hash(&seed).to_be_bytes();
        // Locally administered, and one host's (IEEE 802, 8.2).
        Mac([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    pub fn link_settings(&self, mac: Mac) -> Settings {
        let (addresses, routers) = (self.addresses.clone(), self.routers.clone());
        Settings { mac, addresses, routers, bounds: Default::default() }
    }

    pub fn own_addresses(&self) -> Vec<Addr> {
        self.addresses.iter().map(|prefix| prefix.addr).collect()
    }

    /// Where a tunnel to `to` begins.
    pub fn source_towards(&self, to: Addr) -> Option<Addr> {
        self.link_settings(Mac::ZERO).source_towards(to)
    }
}

/// Reads what belongs to the mode, and refuses what belongs to the other. `None` in mode "tun", and where an address is
/// missing.
pub(super) fn read(section: &Section<'_>, is_tap: bool) -> Option<TapConfig> {
    let (foreign, mode, other) = if is_tap { (TUN_ONLY, "tap", "tun") } else { (TAP_ONLY, "tun", "tap") };
    for key in foreign {
        section.refuse_key(key, &format!("is for mode \"{other}\"; this is mode \"{mode}\""));
    }
    if !is_tap {
        return None;
    }
    section.require("address", r#"address = ["10.20.0.2/24"]"#);
    let bridge = section.parsed("bridge", super::read::device_name).map(|found| found.value);
    let mac = section.parsed("mac", mac).and_then(|found| found.value);
    let addresses = read_addresses(section);
    let routers = read_routers(section, &addresses);
    let addresses = addresses.into_iter().map(|found| found.value).collect();
    Some(TapConfig { bridge, mac, addresses, routers })
}

fn read_addresses(section: &Section<'_>) -> Vec<Located<Prefix>> {
    let Some(list) = section.strings("address", r#"["10.20.0.2/24"]"#) else { return Vec::new() };
    if list.is_empty() {
        section.refuse_key("address", r#"is empty; the gateway needs an address of its own, such as "10.20.0.2/24""#);
    }
    let mut found: Vec<Located<Prefix>> = Vec::new();
    for Located { value, span } in list {
        let twice = |prefix: &Prefix| found.iter().any(|other| other.value.addr == prefix.addr);
        match prefix(value) {
            Ok(prefix) if twice(&prefix) => section.refuse(span, format!("address {value:?} is there twice")),
            Ok(prefix) => found.push(Located { value: prefix, span }),
            Err(wrong) => section.refuse(span, format!("address {value:?} {wrong}")),
        }
    }
    found
}

fn read_routers(section: &Section<'_>, addresses: &[Located<Prefix>]) -> Vec<Addr> {
    let mut routers = Vec::new();
    for Located { value, span } in section.strings("router", r#"["10.20.0.254"]"#).unwrap_or_default() {
        let on_segment = |addr: Addr| {
            addresses.iter().any(|prefix| prefix.value.contains(addr))
                || (is_link_local(addr) && addresses.iter().any(|prefix| !prefix.value.addr.is_v4()))
        };
        match router(value) {
            Ok(router) if addresses.iter().any(|own| own.value.addr == router) => {
                section.refuse(span, format!("router {value:?} is the gateway's own address"));
            }
            // What is wrong with the addresses has been said.
            Ok(router) if on_segment(router) || addresses.is_empty() => routers.push(router),
            Ok(_) => section.refuse(span, format!("router {value:?} is on no segment that \"address\" names")),
            Err(wrong) => section.refuse(span, format!("router {value:?} {wrong}")),
        }
    }
    routers
}

/// Addresses that are somebody's already: reported where the service or server stands.
pub(super) fn report_faults(config: &Config, problems: &Problems) {
    let GatewayConfig { tap: Some(tap), .. } = &config.gateway else { return };
    let own = |addr: Addr| tap.addresses.iter().any(|prefix| prefix.addr == addr);
    let report = |span: &Range<usize>, message: String| problems.report(span.clone(), message);
    let pools = config.masquerades.iter().flat_map(|masquerade| &masquerade.to);
    let pools = pools.chain(config.services.iter().flat_map(|service| service.nat.pool.iter().flatten()));
    for pool in pools.chain(&config.nat.pool).filter(|pool| tap.routers.contains(&pool.value)) {
        report(&pool.span, format!("{} is the router's address; a pool needs another one", pool.value));
    }
    for forward in config.forwards.iter().filter(|forward| tap.routers.contains(&forward.listen.value.vip)) {
        let (name, address) = (&forward.name.value, forward.listen.value.vip);
        report(&forward.listen.span, format!("forward {name:?}: {address} is the router's address"));
    }
    for service in &config.services {
        let (name, vip) = (&service.name.value, service.listen.value.vip);
        if own(vip) {
            let why = "is the gateway's own address; a VIP must be another one";
            report(&service.listen.span, format!("service {name:?}: {vip} {why}"));
        }
        if tap.routers.contains(&vip) {
            report(&service.listen.span, format!("service {name:?}: {vip} is the router's address"));
        }
        for server in service.servers.iter().filter(|server| own(server.address.value.address)) {
            let (server, span) = (&server.name.value, &server.address.span);
            report(span, format!("service {name:?}: server {server:?} has the gateway's own address"));
        }
        let direct = |server: &&ServerConfig| server.method.unwrap_or(service.method) == Method::Direct;
        let away = |server: &&ServerConfig| !tap.addresses.iter().any(|net| net.contains(server.address.value.address));
        for server in service.servers.iter().filter(direct).filter(away) {
            let (server, span) = (&server.name.value, &server.address.span);
            let why = "is on no segment that \"address\" names; method \"direct\" cannot reach it";
            report(span, format!("service {name:?}: server {server:?} {why}"));
        }
    }
}

fn is_link_local(addr: Addr) -> bool {
    matches!(addr.ip(), IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
}

fn mac(text: &str) -> Result<Option<Mac>, String> {
    match text.parse::<Mac>() {
        _ if text == "auto" => Ok(None),
        Ok(mac) if mac.is_unicast() => Ok(Some(mac)),
        Ok(_) => Err("is no MAC of one host; the second digit must be even, and not all of it zero".to_owned()),
        Err(()) => Err(r#"is no MAC; write "auto", or six bytes as "02:00:00:00:00:01""#.to_owned()),
    }
}

fn prefix(text: &str) -> Result<Prefix, String> {
    let net: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => r#"has no prefix length; write for example "10.20.0.2/24" or "fd20::2/64""#.to_owned(),
        Err(_) => r#"is no address with a prefix length; write for example "10.20.0.2/24""#.to_owned(),
    })?;
    let addr = parse_address(&net.addr().to_string(), "cannot be the gateway's")?;
    let len = net.prefix_len();
    if (net.addr() == net.network() && net.prefix_len() < net.max_prefix_len() - 1)
        || (addr.is_v4() && net.addr() == net.broadcast() && len < 31)
    {
        return Err("names the segment, not a host on it".to_owned());
    }
    // An address that was written as IPv6 and is of IPv4.
    if addr.is_v4() && len > 32 {
        return Err("is an IPv4 address in IPv6; write it as IPv4".to_owned());
    }
    Ok(Prefix { addr, len })
}

/// Unlike a server, a router may have a link-local address.
fn router(text: &str) -> Result<Addr, String> {
    match text.parse::<IpAddr>().map(Addr::from) {
        Ok(addr) if is_link_local(addr) => Ok(addr),
        _ => parse_address(text, "cannot be a router's"),
    }
}
