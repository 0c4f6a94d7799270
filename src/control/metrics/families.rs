//! The metrics, read from the engines when they are asked for.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::control::api;
use crate::control::context::Control;

/// Everything as OpenMetrics text.
pub fn text(control: &Control) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Seen::now(control)));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// What is told, read at one time.
#[derive(Debug)]
struct Seen {
    status: api::Status,
    stats: api::Stats,
    reloads: [(&'static str, u64); 2],
}

impl Seen {
    fn now(control: &Control) -> Seen {
        let reloads = &control.reloads;
        Seen {
            status: control.status_since_start(),
            stats: control.stats(),
            reloads: [("ok", reloads.ok.load(Ordering::Relaxed)), ("failed", reloads.failed.load(Ordering::Relaxed))],
        }
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;
type Samples<'a> = Vec<(Labels<'a>, u64)>;

impl Collector for Seen {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.gateway(&mut out)?;
        self.table(&mut out)?;
        self.packets(&mut out)?;
        self.services(&mut out)?;
        self.servers(&mut out)?;
        self.nat(&mut out)
    }
}

impl Seen {
    fn gateway(&self, out: &mut Out<'_>) -> fmt::Result {
        let version: Labels<'_> = vec![("version", &self.status.version)];
        out.gauge("gatun_build_info", "The version that runs; always 1.", vec![(version, 1)])?;
        out.gauge("gatun_uptime_seconds", "Time since the start.", single(self.status.uptime))?;
        let help = "Generation of the configuration in use; 1 at the start, one more with each reload.";
        out.gauge("gatun_config_generation", help, single(self.status.generation))?;
        let reloads = self.reloads.iter().map(|&(result, count)| (vec![("result", result)], count)).collect();
        out.counter("gatun_config_reloads", "Reloads of the configuration by their result.", reloads)
    }

    fn table(&self, out: &mut Out<'_>) -> fmt::Result {
        let total = &self.stats.total;
        out.gauge("gatun_flows", "Flows in the table.", single(total.flows as u64))?;
        out.gauge("gatun_flows_limit", "Flows that the table may hold.", single(total.flows_limit as u64))?;
        let names: Vec<String> = (0..self.stats.shards.len()).map(|shard| shard.to_string()).collect();
        let shards = |value: fn(&api::ShardStats) -> usize| -> Samples<'_> {
            let pairs = names.iter().zip(&self.stats.shards);
            pairs.map(|(name, shard)| (vec![("shard", name.as_str())], value(shard) as u64)).collect()
        };
        out.gauge("gatun_shard_flows", "Flows in the table of a shard.", shards(|shard| shard.flows))?;
        let help = "Flows that the table of a shard may hold.";
        out.gauge("gatun_shard_flows_limit", help, shards(|shard| shard.flows_limit))
    }

    fn packets(&self, out: &mut Out<'_>) -> fmt::Result {
        for counter in &self.stats.total.counters {
            out.counter(&format!("gatun_{}", counter.name), help(&counter.name), single(counter.value))?;
        }
        let drops = &self.stats.total.drops;
        let drops = drops.iter().map(|drops| (vec![("reason", drops.reason.as_str())], drops.packets)).collect();
        out.counter("gatun_drops", "Packets that were not forwarded, by reason.", drops)?;
        let Some(device) = &self.stats.device else { return Ok(()) };
        let help = "Packets read from the device; a super-packet counts once.";
        out.counter("gatun_device_received_packets", help, device_sample(device, device.received))?;
        out.counter("gatun_device_sent_packets", "Packets written to the device.", device_sample(device, device.sent))?;
        let help = "Packets that the kernel did not take from gatun.";
        out.counter("gatun_device_send_errors", help, device_sample(device, device.send_errors))?;
        let Some(dropped) = device.dropped else { return Ok(()) };
        let help = "Packets that the kernel dropped because the device's queue was full.";
        out.counter("gatun_device_dropped_packets", help, device_sample(device, dropped))
    }

    fn services(&self, out: &mut Out<'_>) -> fmt::Result {
        let of = |service: &api::Service| service.servers.clone();
        let groups = self.status.services.iter().map(|service| (vec![("service", service.name.as_str())], of(service)));
        traffic("gatun_service", "a service", &groups.collect::<Vec<_>>(), out)
    }

    fn servers(&self, out: &mut Out<'_>) -> fmt::Result {
        let servers = || self.status.services.iter().flat_map(|service| &service.servers);
        let labels =
            |server: &'_ api::Server| vec![("service", server.service.clone()), ("server", server.name.clone())];
        let named: Vec<_> = servers().map(|server| (labels(server), vec![server.clone()])).collect();
        let groups: Vec<_> = named
            .iter()
            .map(|(labels, server)| {
                (labels.iter().map(|(key, value)| (*key, value.as_str())).collect::<Labels<'_>>(), server.clone())
            })
            .collect();
        let weights =
            groups.iter().map(|(labels, server)| (labels.clone(), server.iter().map(|s| u64::from(s.weight)).sum()));
        out.gauge("gatun_server_weight", "Weight of a server; 0 takes no new flow.", weights.collect())?;
        self.health(&groups, out)?;
        traffic("gatun_server", "a server", &groups, out)
    }

    fn health(&self, servers: &[(Labels<'_>, Vec<api::Server>)], out: &mut Out<'_>) -> fmt::Result {
        let of = |value: fn(&api::Server) -> Option<u64>| -> Samples<'_> {
            let value = |servers: &Vec<api::Server>| servers.first().and_then(value);
            servers.iter().filter_map(|(labels, servers)| Some((labels.clone(), value(servers)?))).collect()
        };
        let help = "Whether its check and its clients' connections let a server serve: 1 or 0.";
        out.gauge("gatun_server_up", help, of(|server| Some(u64::from(server.state != "down"))))?;
        fn check(server: &api::Server) -> Option<&api::Check> {
            server.health.as_ref()?.check.as_ref()
        }
        let help = "Answers to the check of a server.";
        out.counter("gatun_server_checks", help, of(|server| check(server).map(|check| check.done)))?;
        let help = "Checks of a server that failed.";
        out.counter("gatun_server_check_failures", help, of(|server| check(server).map(|check| check.failed)))?;
        let help = "How often a server went up or down.";
        let transitions = of(|server| server.health.as_ref().map(|health| health.transitions));
        out.counter("gatun_server_transitions", help, transitions)?;
        let quorums = self
            .status
            .services
            .iter()
            .map(|service| (vec![("service", service.name.as_str())], u64::from(service.has_quorum)));
        out.gauge("gatun_service_quorum", "Whether a service has its quorum: 1 or 0.", quorums.collect())
    }
}

impl Seen {
    fn nat(&self, out: &mut Out<'_>) -> fmt::Result {
        let api::Nat { masquerades, pools, .. } = &self.status.nat;
        // By prefix there is no state, and so nothing to count.
        let counted: Vec<&api::Masquerade> = masquerades.iter().filter(|of| of.prefix.is_none()).collect();
        if !counted.is_empty() {
            let of = |value: fn(&api::Masquerade) -> u64| -> Samples<'_> {
                counted.iter().map(|of| (vec![("masquerade", of.name.as_str())], value(of))).collect()
            };
            let help = "Inside hosts of masquerades that have a mapping.";
            out.gauge("gatun_inside_hosts", help, single(self.status.nat.hosts))?;
            out.gauge("gatun_masquerade_flows", "Flows of a masquerade.", of(|masquerade| masquerade.flows))?;
            out.gauge("gatun_masquerade_mappings", "Mappings of a masquerade.", of(|masquerade| masquerade.mappings))?;
        }
        // Nothing but forwarded ports: they are never given away.
        let pools: Vec<(String, &api::Pool)> =
            pools.iter().filter(|pool| pool.usage != "forward").map(|pool| (pool.address.to_string(), pool)).collect();
        if pools.is_empty() {
            return Ok(());
        }
        let labels = |(address, pool)| -> Labels<'_> {
            let (address, pool): (&'_ String, &'_ api::Pool) = (address, pool);
            vec![("address", address.as_str()), ("method", pool.usage.as_str())]
        };
        let mut ports = Samples::new();
        for (address, pool) in &pools {
            for (state, count) in [("in_use", pool.in_use), ("quarantined", pool.quarantined)] {
                let mut labels = labels((address, *pool));
                labels.push(("state", state));
                ports.push((labels, count));
            }
        }
        let help = "Ports of an address of a pool that are given away, or rest before they serve again.";
        out.gauge("gatun_pool_ports", help, ports)?;
        let of = |value: fn(&api::Pool) -> u64| -> Samples<'_> {
            pools.iter().map(|(address, pool)| (labels((address, pool)), value(pool))).collect()
        };
        let help = "Ports of an address of a pool that could be given away, for what it has been used for so far.";
        out.gauge("gatun_pool_ports_limit", help, of(|pool| pool.size))?;
        let help = "What is taken of the part of an address's ports that most is taken of, in thousandths.";
        out.gauge("gatun_pool_fullest", help, of(|pool| u64::from(pool.fullest)))
    }
}

/// The families that services and servers have in common.
fn traffic(prefix: &str, whose: &str, groups: &[(Labels<'_>, Vec<api::Server>)], out: &mut Out<'_>) -> fmt::Result {
    type Value = fn(&api::Server) -> u64;
    let samples = |key: Option<&'static str>, values: &[(&'static str, Value)]| {
        let mut samples = Samples::new();
        for (labels, servers) in groups {
            for (word, value) in values {
                let mut labels = labels.clone();
                labels.extend(key.map(|key| (key, *word)));
                samples.push((labels, servers.iter().map(value).sum()));
            }
        }
        samples
    };
    let states: &[(&str, Value)] = &[("active", |server| server.active), ("inactive", |server| server.inactive)];
    let help = format!("Flows of {whose}: active ones are established, inactive ones are all others.");
    out.gauge(&format!("{prefix}_flows"), &help, samples(Some("state"), states))?;
    let help = format!("Flows that were admitted to {whose}.");
    out.counter(&format!("{prefix}_flows_admitted"), &help, samples(None, &[("", |server| server.admitted)]))?;
    let packets: &[(&str, Value)] =
        &[("to_server", |server| server.to_server.packets), ("to_client", |server| server.to_client.packets)];
    let help = format!("Packets of flows of {whose}, each way; a super-packet counts once.");
    out.counter(&format!("{prefix}_packets"), &help, samples(Some("direction"), packets))?;
    let bytes: &[(&str, Value)] =
        &[("to_server", |server| server.to_server.bytes), ("to_client", |server| server.to_client.bytes)];
    let help = format!("IP bytes of flows of {whose}, headers included, each way.");
    out.counter(&format!("{prefix}_bytes"), &help, samples(Some("direction"), bytes))
}

fn single<'a>(value: u64) -> Samples<'a> {
    vec![(Vec::new(), value)]
}

fn device_sample(device: &api::Device, value: u64) -> Samples<'_> {
    vec![(vec![("device", device.name.as_str())], value)]
}

/// A sentence for each of [`crate::stats::Stats::counters_mut`].
fn help(counter: &str) -> &'static str {
    match counter {
        "forwarded" => "Packets that were translated and sent on.",
        "passed" => "Packets that concerned no service and no flow and were sent on as they came.",
        "replied" => "Packets that the gateway answered itself.",
        "delivered" => "Answers to the gateway's own probes that came through it.",
        "refusals_limited" => "Dropped packets whose answer was held back by the rate limit.",
        "refused" => "Dropped packets whose sender got a RST or an ICMP error.",
        "flows_created" => "Flows that were admitted.",
        "flows_expired" => "Flows that ended because no packet came in time.",
        "flows_evicted" => "Half-open flows that made room for new ones.",
        "flows_deleted" => "Flows that an operator ended.",
        "flows_reused" => "Flows that ended because a new connection used the same ports.",
        "ports_reclaimed" => "Finished or unanswered flows that gave up their port of a pool for a new one.",
        "flows_evacuated" => "Flows ended because their server was down or gone.",
        "resets" => "RSTs sent to the ends of such flows.",
        "rst_ignored" => "RSTs that did not fit their flow and did not end it.",
        "icmp_errors" => "ICMP errors that were translated, both ways.",
        "cookies_sent" => "SYNs that were answered by a SYN cookie.",
        "cookies_proven" => "SYN cookies that clients acknowledged, so that a server was asked.",
        "fragments_held" => "Fragments that had to wait for their first one.",
        "syns_unanswered" => {
            "SYNs from outside that nobody inside waits for, never answered since too many waited for that."
        }
        "helper_skipped" => "Segments that a helper did not read, because it had too many connections.",
        "events_lost" => "Flow events that nobody took in time.",
        _ => "A counter of the engines.",
    }
}

/// Writes families.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, samples: Samples<'_>) -> fmt::Result {
        self.family(name, help, ConstGauge::<u64>::TYPE, samples, |value, encoder| {
            ConstGauge::new(value).encode(encoder)
        })
    }

    /// `name` without the `_total` that samples of a counter get.
    fn counter(&mut self, name: &str, help: &str, samples: Samples<'_>) -> fmt::Result {
        self.family(name, help, ConstCounter::<u64>::TYPE, samples, |value, encoder| {
            ConstCounter::new(value).encode(encoder)
        })
    }

    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: Samples<'_>,
        encode: impl Fn(u64, MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                return encode(value, family);
            }
            encode(value, family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
