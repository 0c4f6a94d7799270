//! Which of the gateway's own addresses probes through the gateway come from.
//!
//! It is of the VIP's family, since a client of the VIP is, and one that the server's answers find their way to. It should be
//! no VIP: a server of method direct or tunnel holds those itself, and would take the probe for its own. Behind `nat` even a
//! VIP will do, where the host has no other address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::control::config::{Compiled, TapConfig};
use crate::control::health::spec::{ServiceHealth, Via};
use crate::io::probe::PORTS;
use crate::io::source_towards;
use crate::service::{Method, ProbeSource, ServerSpec, Snapshot};
use crate::wire::Addr;

/// Where the gateway is among servers and clients.
pub(super) enum Place<'a> {
    /// On a segment of its own.
    Segment(&'a TapConfig),
    /// In a host with these addresses, each of an interface.
    Host(&'a [(u32, IpAddr)]),
}

/// The sources of probes to every server that is checked through the gateway. A server without one is told of here, and cannot be probed
/// until a reload finds one.
pub(super) fn probe_sources(compiled: &Compiled, place: &Place<'_>) -> Vec<ProbeSource> {
    let spec = &compiled.snapshot;
    let checks: BTreeMap<&str, &ServiceHealth> =
        compiled.health.services.iter().map(|health| (health.name.as_str(), health)).collect();
    let vips: BTreeSet<Addr> = spec.services.iter().map(|service| service.vip).collect();
    let mut towards = BTreeMap::new();
    let mut sources = BTreeMap::new();
    for service in &spec.services {
        let health = checks.get(service.name.as_str());
        let check_of = |server: &&ServerSpec| health.and_then(|health| health.check_of(&server.name));
        let is_probed = |server: &&ServerSpec| check_of(server).is_some_and(|check| check.via == Via::Path);
        for server in service.servers.iter().filter(is_probed) {
            let method = server.method.unwrap_or(service.method);
            let found = match place {
                Place::Segment(tap) => on_segment(tap, service.vip, server.address),
                Place::Host(own) => {
                    let way = towards
                        .entry(server.address)
                        .or_insert_with(|| source_towards(server.address.ip()).ok().map(Addr::from));
                    of_host(own, |addr| vips.contains(&addr), (service.vip, server.address), method, *way)
                }
            };
            match found {
                Some(client) => {
                    sources.insert((service.vip, server.address), client);
                }
                None => tracing::error!(
                    service = service.name,
                    server = server.name,
                    "no own address of the VIP's family to probe from{}: give the gateway one, or use via = \"host\"",
                    if method == Method::Nat { "" } else { ", besides VIPs" }
                ),
            }
        }
    }
    sources.into_iter().map(|((vip, server), client)| ProbeSource { vip, server, client }).collect()
}

/// The address on the server's segment, or else the first of the VIP's family.
fn on_segment(tap: &TapConfig, vip: Addr, server: Addr) -> Option<Addr> {
    let of_family = |addr: &Addr| addr.is_v4() == vip.is_v4();
    tap.source_towards(server).filter(of_family).or_else(|| tap.own_addresses().into_iter().find(of_family))
}

/// The first that will do: the one that the host uses by itself towards the server (`way`), then those of the same interface,
/// then all.
fn of_host(
    own: &[(u32, IpAddr)],
    is_vip: impl Fn(Addr) -> bool,
    (vip, server): (Addr, Addr),
    method: Method,
    way: Option<Addr>,
) -> Option<Addr> {
    let own: Vec<(u32, Addr)> = own.iter().map(|(link, ip)| (*link, Addr::from(*ip))).collect();
    let link = own.iter().find(|(_, addr)| Some(*addr) == way).map(|(link, _)| *link);
    let (near, far): (Vec<_>, Vec<_>) = own.iter().copied().partition(|(of, _)| Some(*of) == link);
    let is_link_local = |addr: &Addr| match addr.ip() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let can_be = |addr: &Addr| {
        let is_own = own.iter().any(|(_, own)| own == addr);
        is_own && *addr != server && addr.is_v4() == vip.is_v4() && !addr.is_martian_source() && !is_link_local(addr)
    };
    let others = near.into_iter().chain(far).map(|(_, addr)| addr);
    let all = way.into_iter().chain(others).filter(can_be).collect::<Vec<_>>();
    let beside_vips = all.iter().copied().find(|addr| !is_vip(*addr));
    beside_vips.or_else(|| all.first().copied().filter(|_| method == Method::Nat))
}

/// A program of the host that got such a port by chance for a connection to a server would not get its answers.
pub(super) fn warn_of_ports(snapshot: &Snapshot) {
    if snapshot.spec.probe_sources.is_empty() {
        return;
    }
    let Ok(range) = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") else { return };
    if overlaps(&range) {
        tracing::warn!(
            "net.ipv4.ip_local_port_range ({}) reaches into {}-{}, where probes through the gateway come from: end it below",
            range.split_whitespace().collect::<Vec<_>>().join("-"),
            PORTS.start(),
            PORTS.end()
        );
    }
}

fn overlaps(range: &str) -> bool {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return false };
    first <= *PORTS.end() && last >= *PORTS.start()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn the_address_towards_the_server_that_is_no_vip() {
        let of = |link: u32, ip: &str| (link, ip.parse::<IpAddr>().unwrap());
        let host = [(1, "127.0.0.1"), (1, "::1"), (2, "198.51.100.1"), (2, "203.0.113.10"), (2, "2001:db8:1::1")];
        let lan = [(3, "10.20.0.1"), (3, "fe80::1"), (3, "fd20::1")];
        let own: Vec<(u32, IpAddr)> = host.into_iter().chain(lan).map(|(link, ip)| of(link, ip)).collect();
        let is_vip = |vip: Addr| vip == addr("203.0.113.10");
        let pick = |own: &[(u32, IpAddr)], vip: &str, method, towards: Option<&str>| {
            of_host(own, is_vip, (addr(vip), addr("10.20.0.13")), method, towards.map(addr))
                .map(|addr| addr.to_string())
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(pick(&own, "203.0.113.10", Method::Direct, Some("10.20.0.1")), is("10.20.0.1"));
        // Of another family than the server: of the interface towards it.
        assert_eq!(pick(&own, "203.0.113.10", Method::Tunnel, Some("fd20::1")), is("10.20.0.1"));
        assert_eq!(pick(&own, "2001:db8:f::10", Method::Tunnel, Some("10.20.0.1")), is("fd20::1"));
        // The host's own choice is a VIP, or nothing of its own at all.
        assert_eq!(pick(&own, "203.0.113.10", Method::Nat, Some("203.0.113.10")), is("198.51.100.1"));
        assert_eq!(pick(&own, "203.0.113.10", Method::Nat, Some("192.0.2.1")), is("198.51.100.1"));
        // A server on the gateway's host itself.
        let here = (addr("203.0.113.10"), addr("10.20.0.1"));
        let other = of_host(&own, is_vip, here, Method::Nat, Some(addr("10.20.0.1")));
        assert_eq!(other, Some(addr("198.51.100.1")));
        // One address for everything.
        let one = [of(1, "127.0.0.1"), of(2, "203.0.113.10")];
        assert_eq!(pick(&one, "203.0.113.10", Method::Nat, None), is("203.0.113.10"));
        assert_eq!(pick(&one, "203.0.113.10", Method::Direct, None), None);
        assert_eq!(pick(&one, "2001:db8:f::10", Method::Nat, None), None);
    }

    #[test]
    fn the_kernels_ports_end_below() {
        assert!(!overlaps("32768\t60999\n"));
        assert!(overlaps("1024\t65535\n") && overlaps("61999 62000") && overlaps("1 61000"));
        assert!(!overlaps("62000 65535") && !overlaps("nonsense"));
    }
}
