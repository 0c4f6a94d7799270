//! Masquerades, forwarded ports, and what services say of pools.

use super::{Change, Comparison, Kind, format_duration, or_none, service_subject, whole};
use crate::control::config::{Listen, ServerAddress};
use crate::service::{
    ForwardSpec, HelperKind, MasqueradeSpec, Method, Network, PoolSpec, PortRange, ProxyProtocol, ServiceSpec,
    SnapshotSpec,
};
use crate::wire::Addr;

/// `[nat]`, but for what services show as theirs, and all masquerades and forwards.
pub(super) fn compare(old: &SnapshotSpec, new: &SnapshotSpec, changes: &mut Vec<Change>) {
    Comparison::live("[nat]", changes)
        .key("quarantine", &old.quarantine, &new.quarantine, |time| format!("\"{}\"", format_duration(*time)));
    let name = |masquerade: &MasqueradeSpec| masquerade.name.clone();
    each(
        &old.masquerades,
        &new.masquerades,
        name,
        masquerade_subject,
        describe_masquerade,
        compare_masquerades,
        changes,
    );
    let name = |forward: &ForwardSpec| forward.name.clone();
    each(&old.forwards, &new.forwards, name, forward_subject, describe_forward, compare_forwards, changes);
}

/// The keys of one service.
pub(super) fn compare_services(old: &ServiceSpec, new: &ServiceSpec, changes: &mut Vec<Change>) {
    let mut comparison = Comparison::live(&service_subject(old), changes);
    let by_fullnat = |service: &ServiceSpec| service.all_methods().contains(&Method::Fullnat);
    // Without the method there is none; that it comes with it goes without saying.
    if by_fullnat(old) && by_fullnat(new) {
        compare_pools(("pool", "pool_ports"), &old.pool, &new.pool, &mut comparison);
    }
    comparison.key("proxy_protocol", &old.proxy_protocol, &new.proxy_protocol, |version: &Option<ProxyProtocol>| {
        or_none(version.as_ref(), |version| format!("{:?}", version.word()))
    });
    comparison.key("syn_proxy", &old.syn_proxy, &new.syn_proxy, |way| format!("{:?}", way.word()));
    comparison.key("new_flows_per_second", &old.new_flows_per_second, &new.new_flows_per_second, |rate| {
        or_none(rate.as_ref(), u32::to_string)
    });
}

fn compare_pools(keys: (&'static str, &'static str), old: &PoolSpec, new: &PoolSpec, comparison: &mut Comparison<'_>) {
    let PoolSpec { addresses, ports } = old;
    comparison.key(keys.0, addresses, &new.addresses, |list| quoted(list));
    comparison.key(keys.1, ports, &new.ports, |ports: &PortRange| format!("\"{ports}\""));
}

fn compare_masquerades(old: &MasqueradeSpec, new: &MasqueradeSpec, changes: &mut Vec<Change>) {
    let MasqueradeSpec { name: _, from, except, pool, prefix, filtering, helpers, max_mappings } = old;
    let mut comparison = Comparison::live(&masquerade_subject(old), changes);
    comparison.key("from", from, &new.from, |list| quoted(list));
    compare_pools(("to", "ports"), pool, &new.pool, &mut comparison);
    comparison.key("except", except, &new.except, |list| quoted(list));
    comparison.key("prefix", prefix, &new.prefix, |prefix: &Option<Network>| {
        or_none(prefix.as_ref(), |prefix| format!("\"{prefix}\""))
    });
    comparison.key("filtering", filtering, &new.filtering, |filtering| format!("{:?}", filtering.word()));
    comparison.key("helpers", helpers, &new.helpers, |list| {
        format!("{:?}", list.iter().copied().map(HelperKind::word).collect::<Vec<_>>())
    });
    comparison.key("max_mappings", max_mappings, &new.max_mappings, u32::to_string);
}

fn compare_forwards(old: &ForwardSpec, new: &ForwardSpec, changes: &mut Vec<Change>) {
    let ForwardSpec { name: _, address, ports, protocols, to, to_port } = old;
    let mut comparison = Comparison::live(&forward_subject(old), changes);
    let listen = Listen { vip: *address, ports: *ports };
    comparison.key("listen", &listen, &listen_of(new), |listen| format!("\"{listen}\""));
    comparison.key("protocol", protocols, &new.protocols, |protocols| format!("{:?}", protocols.word()));
    let target = ServerAddress { address: *to, port: *to_port };
    comparison.key("to", &target, &target_of(new), |target| format!("\"{target}\""));
}

/// What has gone, what has changed, what has come.
fn each<T>(
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> String,
    subject: impl Fn(&T) -> String,
    describe: impl Fn(&T) -> String,
    compare: impl Fn(&T, &T, &mut Vec<Change>),
    changes: &mut Vec<Change>,
) {
    for one in old {
        match new.iter().find(|other| name(other) == name(one)) {
            Some(other) => compare(one, other, changes),
            None => changes.push(whole(Kind::Removed, subject(one), describe(one))),
        }
    }
    for one in new.iter().filter(|one| !old.iter().any(|other| name(other) == name(one))) {
        changes.push(whole(Kind::Added, subject(one), describe(one)));
    }
}

fn masquerade_subject(masquerade: &MasqueradeSpec) -> String {
    format!("masquerade {:?}", masquerade.name)
}

fn describe_masquerade(masquerade: &MasqueradeSpec) -> String {
    let from = joined(&masquerade.from);
    match masquerade.prefix {
        Some(prefix) => format!("{from} by {prefix}"),
        None => {
            let to: Vec<Addr> = masquerade.pool.addresses.clone();
            format!("{from} by {} port {}", joined(&to), masquerade.pool.ports)
        }
    }
}

fn forward_subject(forward: &ForwardSpec) -> String {
    format!("forward {:?}", forward.name)
}

fn describe_forward(forward: &ForwardSpec) -> String {
    format!("{} {} to {}", forward.protocols.word(), listen_of(forward), target_of(forward))
}

fn listen_of(forward: &ForwardSpec) -> Listen {
    Listen { vip: forward.address, ports: forward.ports }
}

fn target_of(forward: &ForwardSpec) -> ServerAddress {
    ServerAddress { address: forward.to, port: forward.to_port }
}

fn quoted<T: ToString>(list: &[T]) -> String {
    format!("{:?}", list.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::Config;
    use super::super::difference;
    use super::*;

    const OLD: &str = r#"
[nat]
pool = ["10.20.0.200"]
[[service]]
name = "web"
listen = "203.0.113.10:80"
method = "fullnat"
server = [{ address = "10.20.0.11" }]
[[service]]
name = "plain"
listen = "203.0.113.10:81"
server = [{ address = "10.20.0.11" }]
[[masquerade]]
name = "lan"
from = ["10.40.0.0/24"]
to = ["203.0.113.100"]
[[masquerade]]
name = "gone"
from = ["10.41.0.0/24"]
to = ["203.0.113.101"]
[[forward]]
name = "ssh"
listen = "203.0.113.100:2222"
to = "10.40.0.2:22"
[[forward]]
name = "gone"
listen = "203.0.113.100:2223"
to = "10.40.0.2:22"
"#;

    const NEW: &str = r#"
[nat]
pool = ["10.20.0.200", "10.20.0.201"]
ports = "2000-3000"
quarantine = "1s"
[[service]]
name = "web"
listen = "203.0.113.10:80"
method = "fullnat"
proxy_protocol = "v2"
syn_proxy = "always"
new_flows_per_second = 7
server = [{ address = "10.20.0.11" }]
[[service]]
name = "plain"
listen = "203.0.113.10:81"
server = [{ address = "10.20.0.11" }]
[[masquerade]]
name = "lan"
from = ["10.40.0.0/24", "10.42.0.0/24"]
to = ["203.0.113.102"]
ports = "1024-2047"
except = ["192.168.0.0/16"]
filtering = "address"
helpers = ["ftp"]
max_mappings = 5
[[masquerade]]
name = "six"
from = ["fd40::/64"]
prefix = "2001:db8:40::/64"
[[forward]]
name = "ssh"
listen = "203.0.113.103:2222"
protocol = "tcp+udp"
to = "10.40.0.3"
[[forward]]
name = "new"
listen = "203.0.113.103:80-90"
to = "10.40.0.3:8080"
"#;

    fn lines(old: &str, new: &str) -> Vec<String> {
        let compiled = |text| {
            let config = Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"));
            config.compiled().unwrap_or_else(|errors| panic!("{errors}"))
        };
        difference(&compiled(old), &compiled(new)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn pools_masquerades_and_forwards() {
        assert_eq!(lines(OLD, OLD), [""; 0]);
        assert_eq!(
            lines(OLD, NEW),
            [
                r#"~ [nat]: quarantine "5s" -> "1s""#,
                r#"~ masquerade "lan": from ["10.40.0.0/24"] -> ["10.40.0.0/24", "10.42.0.0/24"]"#,
                r#"~ masquerade "lan": to ["203.0.113.100"] -> ["203.0.113.102"]"#,
                r#"~ masquerade "lan": ports "1024-65535" -> "1024-2047""#,
                r#"~ masquerade "lan": except [] -> ["192.168.0.0/16"]"#,
                r#"~ masquerade "lan": filtering "endpoint" -> "address""#,
                r#"~ masquerade "lan": helpers [] -> ["ftp"]"#,
                r#"~ masquerade "lan": max_mappings 8192 -> 5"#,
                r#"- masquerade "gone": 10.41.0.0/24 by 203.0.113.101 port 1024-65535"#,
                r#"+ masquerade "six": fd40::/64 by 2001:db8:40::/64"#,
                r#"~ forward "ssh": listen "203.0.113.100:2222" -> "203.0.113.103:2222""#,
                r#"~ forward "ssh": protocol "tcp" -> "tcp+udp""#,
                r#"~ forward "ssh": to "10.40.0.2:22" -> "10.40.0.3""#,
                r#"- forward "gone": tcp 203.0.113.100:2223 to 10.40.0.2:22"#,
                r#"+ forward "new": tcp 203.0.113.103:80-90 to 10.40.0.3:8080"#,
                r#"~ service "web": pool ["10.20.0.200"] -> ["10.20.0.200", "10.20.0.201"]"#,
                r#"~ service "web": pool_ports "1024-65535" -> "2000-3000""#,
                r#"~ service "web": proxy_protocol none -> "v2""#,
                r#"~ service "web": syn_proxy "auto" -> "always""#,
                r#"~ service "web": new_flows_per_second none -> 7"#,
            ]
        );
        let prefix = NEW.replace("2001:db8:40::/64", "2001:db8:41::/64");
        assert_eq!(lines(NEW, &prefix), [r#"~ masquerade "six": prefix "2001:db8:40::/64" -> "2001:db8:41::/64""#]);
    }
}
