//! The keys of a service that say how its clients and flows are kept with their servers, or moved away from them.

use std::time::Duration;

use super::keys;
use super::problem::Located;
use super::section::Section;
use super::{ServerAddress, ServerConfig, parse_server};
use crate::service::{
    FlowPolicy, HelperKind, Passive, Persistence, PortRange, Protocols, SchedulerFlags, SchedulerKind,
};

const SECOND: Duration = Duration::from_secs(1);
const MONTH: Duration = Duration::from_secs(31 * 86_400);

/// What these keys say.
#[derive(Clone, Debug, Default)]
pub struct ClusterConfig {
    pub scheduler_flags: SchedulerFlags,
    pub group: Option<String>,
    pub persistence: Option<Persistence>,
    pub one_packet: bool,
    pub sorry: Option<Located<ServerAddress>>,
    pub on_server_down: Option<FlowPolicy>,
    pub on_server_removed: Option<FlowPolicy>,
    pub passive: Option<Passive>,
    pub helper: Option<HelperKind>,
    pub data_ports: Option<PortRange>,
}

pub(super) fn read(section: &Section<'_>, protocols: Protocols, scheduler: SchedulerKind) -> ClusterConfig {
    let one_packet = section.boolean("one_packet").unwrap_or(false);
    if one_packet && protocols != Protocols::Udp {
        section.refuse(section.span_of("one_packet"), "one_packet is for protocol \"udp\" alone".to_owned());
    }
    let policies = FlowPolicy::ALL.map(|policy| (policy.word(), policy));
    let helpers = HelperKind::ALL.map(|helper| (helper.word(), helper));
    let helper = section.word("helper", &helpers, &["sip", "pptp"]);
    let fits = match helper {
        Some(HelperKind::Ftp) => protocols == Protocols::Tcp,
        Some(HelperKind::Tftp) => protocols == Protocols::Udp,
        None => true,
    };
    if !fits {
        let message = "helper \"ftp\" is for protocol \"tcp\", \"tftp\" for \"udp\"".to_owned();
        section.refuse(section.span_of("helper"), message);
    }
    let data_ports = section.parsed("data_ports", super::address::parse_ports).map(|found| found.value);
    if data_ports.is_some() && helper.is_none() {
        let message = "data_ports means something only together with helper".to_owned();
        section.refuse(section.span_of("data_ports"), message);
    }
    ClusterConfig {
        scheduler_flags: flags(section, scheduler),
        group: section.parsed("group", super::read::name).map(|found| found.value),
        persistence: persistence(section),
        one_packet,
        sorry: section.parsed("sorry_server", parse_server),
        on_server_down: section.word("on_server_down", &policies, &[]),
        on_server_removed: section.word("on_server_removed", &policies, &[]),
        passive: passive(section),
        helper,
        data_ports,
    }
}

fn flags(section: &Section<'_>, scheduler: SchedulerKind) -> SchedulerFlags {
    let mut flags = SchedulerFlags::default();
    for word in section.strings("scheduler_flags", r#"["port"]"#).unwrap_or_default() {
        match word.value {
            "port" => flags.port = true,
            "fallback" => flags.fallback = true,
            "strict" => flags.strict = true,
            other => {
                let wrong = keys::unknown_word(other, ["port", "fallback", "strict"].into_iter(), &[]);
                section.refuse(word.span, format!("scheduler_flags {other:?} {wrong}"));
            }
        }
    }
    if flags.fallback && flags.strict {
        let message = "scheduler_flags \"fallback\" and \"strict\" say opposite things; keep one".to_owned();
        section.refuse(section.span_of("scheduler_flags"), message);
    }
    if flags != SchedulerFlags::default() && !matches!(scheduler, SchedulerKind::Sh | SchedulerKind::Mh) {
        let message = "scheduler_flags are for the schedulers \"sh\" and \"mh\" alone".to_owned();
        section.refuse(section.span_of("scheduler_flags"), message);
    }
    flags
}

fn persistence(section: &Section<'_>) -> Option<Persistence> {
    let name = format!("{}, persistence", section.name());
    let section = section.table("persistence", &name, &keys::PERSISTENCE)?;
    let default = Persistence::DEFAULT;
    Some(Persistence {
        timeout: section.duration("timeout", SECOND..=MONTH).unwrap_or(default.timeout),
        prefix_v4: section.integer("netmask", 1..=32).unwrap_or(default.prefix_v4),
        prefix_v6: section.integer("prefix", 1..=128).unwrap_or(default.prefix_v6),
    })
}

fn passive(section: &Section<'_>) -> Option<Passive> {
    let name = format!("{}, passive", section.name());
    let section = section.table("passive", &name, &keys::PASSIVE)?;
    Some(Passive {
        fall: section.integer("fall", 1..=1000).unwrap_or(1),
        hold: section.duration("hold", SECOND..=3600 * SECOND).unwrap_or(10 * SECOND),
    })
}

/// The thresholds and the slow start of a server.
pub(super) fn read_limits(section: &Section<'_>, server: &mut ServerConfig) {
    server.max_connections = section.integer("max_connections", 1..=u64::from(u32::MAX));
    server.min_connections = section.integer("min_connections", 0..=u64::from(u32::MAX));
    server.slow_start = section.duration("slow_start", SECOND..=3600 * SECOND);
    match (server.min_connections, server.max_connections) {
        (Some(_), None) => {
            let message = "min_connections means something only together with max_connections".to_owned();
            section.refuse(section.span_of("min_connections"), message);
        }
        (Some(min), Some(max)) if min > max => {
            let message = format!("min_connections = {min} is more than max_connections = {max}");
            section.refuse(section.span_of("min_connections"), message);
        }
        _ => {}
    }
}
