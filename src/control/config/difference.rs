//! What a reload would change, in words.

mod nat;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::check::show;
use super::duration::format_duration;
use super::{Compiled, GatewayConfig, Listen, Queues, ServerAddress, TapConfig};
use crate::control::health::spec::{CheckSpec, HealthSpec, Quorum, ServiceHealth};
use crate::link::Prefix;
use crate::service::{FlowPolicy, Limits, Passive, Persistence, ServerSpec, ServiceSpec, SnapshotSpec};
use crate::timeouts::Timeouts;
use crate::wire::Addr;

/// One thing that differs. Its `Display` is one line of `gatun diff`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub kind: Kind,
    /// What has changed: `[gateway]`, `service "web"`, `service "web", server "10.20.0.11:8080"`.
    pub subject: String,
    /// The key in the file; `None` for what was added or removed as a whole.
    pub key: Option<&'static str>,
    /// As the file writes it; `None` for what was added.
    pub old: Option<String>,
    /// As the file writes it; `None` for what was removed.
    pub new: Option<String>,
    /// A reload does not do it.
    pub needs_restart: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Added,
    Removed,
    Changed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            Kind::Added => '+',
            Kind::Removed => '-',
            Kind::Changed => '~',
        };
        write!(f, "{sign} {}:", self.subject)?;
        if let Some(key) = self.key {
            write!(f, " {key}")?;
        }
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, " {old} -> {new}")?,
            (Some(only), None) | (None, Some(only)) => write!(f, " {only}")?,
            (None, None) => {}
        }
        if self.needs_restart {
            f.write_str(" (needs a restart)")?;
        }
        Ok(())
    }
}

/// Everything that `new` has otherwise than `old`, in the order of the file.
pub fn difference(old: &Compiled, new: &Compiled) -> Vec<Change> {
    let mut changes = Vec::new();
    gateway(&old.gateway, &new.gateway, &mut changes);
    snapshot(&old.snapshot, &new.snapshot, &mut changes);
    health(&old.health, &new.health, &mut changes);
    changes
}

/// Of services and servers that were there before; what is new comes as a whole.
fn health(old: &HealthSpec, new: &HealthSpec, changes: &mut Vec<Change>) {
    for service in &old.services {
        let Some(other) = new.service(&service.name) else { continue };
        let ServiceHealth { name, check, overrides, quorum } = service;
        let subject = format!("service {name:?}");
        let mut comparison = Comparison::live(&subject, changes);
        let shown = |check: &Option<Arc<CheckSpec>>| check.as_ref().map_or("\"off\"".to_owned(), |c| show::check(c));
        comparison.key("check", check, &other.check, shown);
        let Quorum { weight, hysteresis, up, down } = quorum;
        comparison.key("quorum", weight, &other.quorum.weight, u32::to_string);
        comparison.key("hysteresis", hysteresis, &other.quorum.hysteresis, u32::to_string);
        comparison.key("quorum_up", up, &other.quorum.up, |c| or_none(c.as_ref(), show::command));
        comparison.key("quorum_down", down, &other.quorum.down, |c| or_none(c.as_ref(), show::command));
        let own = |of: &[(String, Option<Arc<CheckSpec>>)], server: &str| {
            of.iter().find(|(name, _)| name == server).map(|(_, check)| check.clone())
        };
        let added = other.overrides.iter().filter(|(name, _)| own(overrides, name).is_none());
        for (server, _) in overrides.iter().chain(added) {
            let mut comparison = Comparison::live(&format!("{subject}, server {server:?}"), changes);
            comparison.key("check", &own(overrides, server), &own(&other.overrides, server), |check| {
                check.as_ref().map_or("the service's".to_owned(), shown)
            });
        }
    }
}

fn gateway(old: &GatewayConfig, new: &GatewayConfig, changes: &mut Vec<Change>) {
    // Taken apart so that a new field cannot be forgotten here.
    let GatewayConfig {
        tap,
        device,
        uplinks,
        queues,
        control,
        metrics,
        routes,
        offload,
        priority,
        resolvers,
        mtu,
        max_flows,
    } = old;
    let mut fixed = Comparison { subject: "[gateway]".to_owned(), needs_restart: true, changes };
    fixed.key("mode", &tap.is_some(), &new.tap.is_some(), |tap| if *tap { "\"tap\"" } else { "\"tun\"" }.to_owned());
    if let (Some(old), Some(new)) = (tap, &new.tap) {
        compare_taps(old, new, &mut fixed);
    }
    fixed.key("device", device, &new.device, |name| format!("{name:?}"));
    fixed.key("queues", queues, &new.queues, |queues| match queues {
        Queues::Auto => "\"auto\"".to_owned(),
        Queues::Count(count) => count.to_string(),
    });
    fixed.key("control", control, &new.control, |path| format!("{path:?}"));
    fixed.key("metrics", metrics, &new.metrics, |metrics| match metrics {
        Some(address) => format!("\"{address}\""),
        None => "\"off\"".to_owned(),
    });
    fixed.key("routes", routes, &new.routes, bool::to_string);
    fixed.key("offload", offload, &new.offload, bool::to_string);
    fixed.key("priority", priority, &new.priority, u8::to_string);
    let mut live = Comparison { needs_restart: false, ..fixed };
    live.key("uplink", uplinks, &new.uplinks, |names| format!("{names:?}"));
    live.key("resolver", resolvers, &new.resolvers, |list| {
        format!("{:?}", list.iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    live.key("mtu", mtu, &new.mtu, |mtu| mtu.map_or("\"auto\"".to_owned(), |mtu| mtu.to_string()));
    let mut table = Comparison { subject: "[conntrack]".to_owned(), needs_restart: true, changes: live.changes };
    table.key("max_flows", max_flows, &new.max_flows, usize::to_string);
}

fn compare_taps(old: &TapConfig, new: &TapConfig, fixed: &mut Comparison<'_>) {
    let TapConfig { bridge, mac, addresses, routers } = old;
    fixed
        .key("bridge", bridge, &new.bridge, |name| name.as_ref().map_or("none".to_owned(), |name| format!("{name:?}")));
    fixed.key("mac", mac, &new.mac, |mac| mac.map_or("\"auto\"".to_owned(), |mac| format!("\"{mac}\"")));
    let prefixes =
        |list: &Vec<Prefix>| -> Vec<String> { list.iter().map(|p| format!("{}/{}", p.addr, p.len)).collect() };
    fixed.key("address", addresses, &new.addresses, |list| format!("{:?}", prefixes(list)));
    let routers_of = |list: &Vec<Addr>| -> Vec<String> { list.iter().map(Addr::to_string).collect() };
    fixed.key("router", routers, &new.routers, |list| format!("{:?}", routers_of(list)));
}

fn snapshot(old: &SnapshotSpec, new: &SnapshotSpec, changes: &mut Vec<Change>) {
    // The MTU is the gateway's, and local addresses are the host's.
    let SnapshotSpec {
        services: old_services,
        // Compared in `nat`.
        masquerades: _,
        forwards: _,
        quarantine: _,
        timeouts,
        limits,
        mtu: _,
        seed,
        local_vips: _,
        tunnel_sources: _,
        is_hop: _,
        own_addresses: _,
        probe_sources: _,
    } = old;
    Comparison::live("[gateway]", changes).key("seed", seed, &new.seed, u64::to_string);
    compare_timeouts(*timeouts, new.timeouts, &mut Comparison::live("[conntrack.timeouts]", changes));
    compare_limits(limits, &new.limits, &mut Comparison::live("[limits]", changes));
    nat::compare(old, new, changes);
    let by_name = |services: &[ServiceSpec]| -> HashMap<String, usize> {
        services.iter().enumerate().map(|(at, service)| (service.name.clone(), at)).collect()
    };
    let (before, after) = (by_name(old_services), by_name(&new.services));
    for service in old_services {
        match after.get(&service.name).and_then(|at| new.services.get(*at)) {
            Some(other) => compare_services(service, other, changes),
            None => changes.push(whole(Kind::Removed, service_subject(service), describe_service(service))),
        }
    }
    for service in new.services.iter().filter(|service| !before.contains_key(&service.name)) {
        changes.push(whole(Kind::Added, service_subject(service), describe_service(service)));
    }
}

fn compare_timeouts(mut old: Timeouts, mut new: Timeouts, comparison: &mut Comparison<'_>) {
    for ((key, old), (_, new)) in old.entries().into_iter().zip(new.entries()) {
        comparison.key(key, old, new, |timeout| format!("\"{}\"", format_duration(*timeout)));
    }
}

fn compare_limits(old: &Limits, new: &Limits, comparison: &mut Comparison<'_>) {
    let Limits {
        replies_per_second,
        fragmented_packets,
        held_fragment_bytes,
        persistent_clients,
        expectations,
        half_open,
        new_flows_per_client,
        new_flows_per_second,
        unsolicited_syns,
    } = old;
    comparison.key("half_open", half_open, &new.half_open, usize::to_string);
    comparison.key("new_flows_per_client", new_flows_per_client, &new.new_flows_per_client, u32::to_string);
    comparison.key("new_flows_per_second", new_flows_per_second, &new.new_flows_per_second, u32::to_string);
    comparison.key("unsolicited_syns", unsolicited_syns, &new.unsolicited_syns, usize::to_string);
    comparison.key("replies_per_second", replies_per_second, &new.replies_per_second, u32::to_string);
    comparison.key("fragmented_packets", fragmented_packets, &new.fragmented_packets, usize::to_string);
    comparison.key("held_fragment_bytes", held_fragment_bytes, &new.held_fragment_bytes, usize::to_string);
    comparison.key("persistent_clients", persistent_clients, &new.persistent_clients, usize::to_string);
    comparison.key("expectations", expectations, &new.expectations, usize::to_string);
}

fn compare_services(old: &ServiceSpec, new: &ServiceSpec, changes: &mut Vec<Change>) {
    let ServiceSpec {
        name: _,
        vip,
        ports,
        protocols,
        method,
        tunnel,
        scheduler,
        scheduler_flags,
        group,
        persistence,
        one_packet,
        sorry,
        on_server_down,
        on_server_removed,
        passive,
        helper,
        data_ports,
        // Compared in `nat`.
        pool: _,
        proxy_protocol: _,
        syn_proxy: _,
        new_flows_per_second: _,
        servers,
    } = old;
    let mut comparison = Comparison::live(&service_subject(old), changes);
    let listen = Listen { vip: *vip, ports: *ports };
    comparison.key("listen", &listen, &listen_of(new), |listen| format!("\"{listen}\""));
    comparison.key("protocol", protocols, &new.protocols, |protocols| format!("{:?}", protocols.word()));
    comparison.key("method", method, &new.method, |method| format!("{:?}", method.word()));
    comparison.key("tunnel", tunnel, &new.tunnel, |tunnel| format!("\"{tunnel}\""));
    comparison.key("scheduler", scheduler, &new.scheduler, |kind| format!("{:?}", kind.word()));
    comparison.key("scheduler_flags", scheduler_flags, &new.scheduler_flags, |flags| {
        let words = [(flags.port, "port"), (flags.fallback, "fallback"), (flags.strict, "strict")];
        format!("{:?}", words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect::<Vec<_>>())
    });
    comparison.key("group", group, &new.group, |group| or_none(group.as_ref(), |name| format!("{name:?}")));
    comparison.key("persistence", persistence, &new.persistence, |persistence| {
        or_none(persistence.as_ref(), |Persistence { timeout, prefix_v4, prefix_v6 }| {
            let timeout = format_duration(*timeout);
            format!("{{ timeout = \"{timeout}\", netmask = {prefix_v4}, prefix = {prefix_v6} }}")
        })
    });
    comparison.key("one_packet", one_packet, &new.one_packet, bool::to_string);
    comparison.key("sorry_server", sorry, &new.sorry, |sorry| {
        or_none(sorry.as_ref(), |server| format!("\"{}\"", address_of(server)))
    });
    let policy = |policy: &FlowPolicy| format!("{:?}", policy.word());
    comparison.key("on_server_down", on_server_down, &new.on_server_down, |found| or_none(found.as_ref(), policy));
    comparison.key("on_server_removed", on_server_removed, &new.on_server_removed, policy);
    comparison.key("passive", passive, &new.passive, |passive| {
        or_none(passive.as_ref(), |Passive { fall, hold }| {
            format!("{{ fall = {fall}, hold = \"{}\" }}", format_duration(*hold))
        })
    });
    comparison
        .key("helper", helper, &new.helper, |helper| or_none(helper.as_ref(), |helper| format!("{:?}", helper.word())));
    comparison.key("data_ports", data_ports, &new.data_ports, |ports| {
        or_none(ports.as_ref(), |ports| format!("\"{ports}\""))
    });
    nat::compare_services(old, new, changes);
    let mut comparison = Comparison::live(&service_subject(old), changes);
    let names = |servers: &[ServerSpec], others: &[ServerSpec]| -> Vec<String> {
        let stays = |server: &&ServerSpec| others.iter().any(|other| other.name == server.name);
        servers.iter().filter(stays).map(|server| server.name.clone()).collect()
    };
    // The schedulers that go by turns notice.
    let (before, after) = (names(servers, &new.servers), names(&new.servers, servers));
    comparison.key("order of servers", &before, &after, |names| names.join(", "));
    for server in servers {
        match new.servers.iter().find(|other| other.name == server.name) {
            Some(other) => compare_servers(old, server, other, changes),
            None => changes.push(whole(Kind::Removed, server_subject(old, server), describe_server(server))),
        }
    }
    for server in &new.servers {
        if !servers.iter().any(|other| other.name == server.name) {
            changes.push(whole(Kind::Added, server_subject(old, server), describe_server(server)));
        }
    }
}

fn compare_servers(service: &ServiceSpec, old: &ServerSpec, new: &ServerSpec, changes: &mut Vec<Change>) {
    let ServerSpec { name: _, address, port, weight, method, tunnel, max_connections, min_connections, slow_start } =
        old;
    let mut comparison = Comparison::live(&server_subject(service, old), changes);
    let place = ServerAddress { address: *address, port: *port };
    comparison.key("address", &place, &address_of(new), |address| format!("\"{address}\""));
    comparison.key("weight", weight, &new.weight, u32::to_string);
    let of_service = || "the service's".to_owned();
    comparison.key("method", method, &new.method, |m| m.map_or_else(of_service, |m| format!("{:?}", m.word())));
    comparison.key("tunnel", tunnel, &new.tunnel, |t| t.map_or_else(of_service, |t| format!("\"{t}\"")));
    let count = |count: &Option<u32>| or_none(count.as_ref(), u32::to_string);
    comparison.key("max_connections", max_connections, &new.max_connections, count);
    comparison.key("min_connections", min_connections, &new.min_connections, count);
    comparison.key("slow_start", slow_start, &new.slow_start, |time| {
        or_none(time.as_ref(), |time| format!("\"{}\"", format_duration(*time)))
    });
}

/// What is not in the file is "none".
fn or_none<T>(value: Option<&T>, show: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| "none".to_owned(), show)
}

/// Compares the keys of one subject.
struct Comparison<'a> {
    subject: String,
    needs_restart: bool,
    changes: &'a mut Vec<Change>,
}

impl<'a> Comparison<'a> {
    /// Of what a reload changes.
    fn live(subject: &str, changes: &'a mut Vec<Change>) -> Comparison<'a> {
        Comparison { subject: subject.to_owned(), needs_restart: false, changes }
    }

    fn key<T: PartialEq>(&mut self, key: &'static str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            self.changes.push(Change {
                kind: Kind::Changed,
                subject: self.subject.clone(),
                key: Some(key),
                old: Some(show(old)),
                new: Some(show(new)),
                needs_restart: self.needs_restart,
            });
        }
    }
}

fn whole(kind: Kind, subject: String, description: String) -> Change {
    let (old, new) = match kind {
        Kind::Removed => (Some(description), None),
        _ => (None, Some(description)),
    };
    Change { kind, subject, key: None, old, new, needs_restart: false }
}

fn service_subject(service: &ServiceSpec) -> String {
    format!("service {:?}", service.name)
}

fn server_subject(service: &ServiceSpec, server: &ServerSpec) -> String {
    format!("{}, server {:?}", service_subject(service), server.name)
}

fn describe_service(service: &ServiceSpec) -> String {
    let (protocol, method, scheduler) = (service.protocols.word(), service.method.word(), service.scheduler.word());
    let servers = match service.servers.len() {
        0 => "no server".to_owned(),
        1 => "1 server".to_owned(),
        count => format!("{count} servers"),
    };
    format!("{protocol} {}, {method}, {scheduler}, {servers}", listen_of(service))
}

fn describe_server(server: &ServerSpec) -> String {
    format!("{}, weight {}", address_of(server), server.weight)
}

fn listen_of(service: &ServiceSpec) -> Listen {
    Listen { vip: service.vip, ports: service.ports }
}

fn address_of(server: &ServerSpec) -> ServerAddress {
    ServerAddress { address: server.address, port: server.port }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    const OLD: &str = r#"
[gateway]
device = "gatun0"
[[service]]
name = "web"
listen = "203.0.113.10:80"
server = [{ address = "10.20.0.11" }, { address = "10.20.0.12" }, { name = "c", address = "10.20.0.13:80" }]
[[service]]
name = "dns"
listen = "203.0.113.10:53"
protocol = "udp"
server = [{ address = "10.20.0.11" }]
"#;

    fn lines(new: &str) -> Vec<String> {
        let compiled = |text| {
            let config = Config::parse(Path::new("x.toml"), text).unwrap_or_else(|errors| panic!("{errors}"));
            config.compiled().unwrap_or_else(|errors| panic!("{errors}"))
        };
        difference(&compiled(OLD), &compiled(new)).iter().map(Change::to_string).collect()
    }

    #[test]
    fn nothing_differs_from_itself() {
        assert_eq!(lines(OLD), [""; 0]);
        assert_eq!(lines(&format!("{OLD}# a comment\n")), [""; 0]);
    }

    #[test]
    fn what_a_reload_changes_is_said_in_words() {
        let new = r#"
[gateway]
device = "gatun1"
uplink = ["eth0", "eth1"]
queues = 2
control = "/run/gatun/other.sock"
metrics = "off"
routes = false
offload = false
priority = 0
mtu = 1400
seed = 7
[conntrack]
max_flows = 2048
timeouts = { udp = "2m" }
[limits]
replies_per_second = 10
[[service]]
name = "web"
listen = "203.0.113.10:80-81"
protocol = "tcp+udp"
scheduler = "rr"
server = [{ name = "c", address = "10.20.0.13:8080", weight = 3 }, { address = "10.20.0.11" }, { address = "10.20.0.14" }]
[[service]]
name = "empty"
listen = "[2001:db8:f::10]:*"
server = []
"#;
        assert_eq!(
            lines(new),
            [
                r#"~ [gateway]: device "gatun0" -> "gatun1" (needs a restart)"#,
                r#"~ [gateway]: queues "auto" -> 2 (needs a restart)"#,
                r#"~ [gateway]: control "/run/gatun/control.sock" -> "/run/gatun/other.sock" (needs a restart)"#,
                r#"~ [gateway]: metrics "127.0.0.1:9108" -> "off" (needs a restart)"#,
                r#"~ [gateway]: routes true -> false (needs a restart)"#,
                r#"~ [gateway]: offload true -> false (needs a restart)"#,
                r#"~ [gateway]: priority 4 -> 0 (needs a restart)"#,
                r#"~ [gateway]: uplink [] -> ["eth0", "eth1"]"#,
                r#"~ [gateway]: mtu "auto" -> 1400"#,
                r#"~ [conntrack]: max_flows 1048576 -> 2048 (needs a restart)"#,
                r#"~ [gateway]: seed 0 -> 7"#,
                r#"~ [conntrack.timeouts]: udp "5m" -> "2m""#,
                r#"~ [limits]: replies_per_second 1000 -> 10"#,
                r#"~ service "web": listen "203.0.113.10:80" -> "203.0.113.10:80-81""#,
                r#"~ service "web": protocol "tcp" -> "tcp+udp""#,
                r#"~ service "web": scheduler "wlc" -> "rr""#,
                r#"~ service "web": order of servers 10.20.0.11, c -> c, 10.20.0.11"#,
                r#"- service "web", server "10.20.0.12": 10.20.0.12, weight 1"#,
                r#"~ service "web", server "c": address "10.20.0.13:80" -> "10.20.0.13:8080""#,
                r#"~ service "web", server "c": weight 1 -> 3"#,
                r#"+ service "web", server "10.20.0.14": 10.20.0.14, weight 1"#,
                r#"- service "dns": udp 203.0.113.10:53, nat, wlc, 1 server"#,
                r#"+ service "empty": tcp [2001:db8:f::10]:*, nat, wlc, no server"#,
            ]
        );
    }

    #[test]
    fn checks_and_quorums() {
        let new = OLD.replace(
            "listen = \"203.0.113.10:80\"",
            "listen = \"203.0.113.10:80\"\nquorum = 2\nhysteresis = 1\nquorum_up = \"x y\"\nquorum_down = [\"/x\", \"y\"]\n\
             check = { type = \"http\", path = \"/ok\", expect = [200, \"300-399\"], interval = \"1s\", jitter = \"5%\" }",
        );
        let new = new.replace("{ address = \"10.20.0.12\" }", "{ address = \"10.20.0.12\", check = \"off\" }");
        let new = new.replace(
            "\"10.20.0.13:80\" }",
            "\"10.20.0.13:80\", check = { type = \"ftp\", user = \"a\", password = \"b\" } }",
        );
        let expected = [
            r#"~ service "web": check "off" -> { type = "http", path = "/ok", expect = [200, "300-399"], interval = "1s", jitter = "5%" }"#,
            r#"~ service "web": quorum 1 -> 2"#,
            r#"~ service "web": hysteresis 0 -> 1"#,
            r#"~ service "web": quorum_up none -> "x y""#,
            r#"~ service "web": quorum_down none -> ["/x", "y"]"#,
            r#"~ service "web", server "10.20.0.12": check the service's -> "off""#,
            r#"~ service "web", server "c": check the service's -> { type = "ftp", user = "a", password = "…", interval = "1s", jitter = "5%" }"#,
        ];
        assert_eq!(lines(&new), expected);
    }

    #[test]
    fn a_change_is_data_as_well() {
        let change = whole(Kind::Removed, "service \"web\"".to_owned(), "tcp".to_owned());
        let json = serde_json::to_string(&change).expect("plain data");
        assert_eq!(
            json,
            r#"{"kind":"removed","subject":"service \"web\"","key":null,"old":"tcp","new":null,"needs_restart":false}"#
        );
    }
}
