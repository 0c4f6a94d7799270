//! What would happen to a packet, and why, without anything happening.

use std::fmt;
use std::net::SocketAddr;

use crate::command::FlowRecord;
use crate::engine::{self, Engine, Fate, ForeseenMapping};
use crate::flow::Sender;
use crate::forward;
use crate::forward::masquerade::Foreseen;
use crate::service::{Method, Server, ServiceId, Way};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Encapsulation, Protocol, Tuple, tcp};

/// The answer to "what happens to this packet".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub packet: Tuple,
    pub outcome: Explained,
}

/// The outcome, with what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explained {
    /// The packet belongs to a flow and is translated to this tuple.
    Known { flow: Box<FlowRecord>, from_client: bool, translated: Tuple, via: Option<Via> },
    /// The packet starts a flow.
    Admitted { choice: Choice, translated: Tuple, via: Option<Via> },
    /// The packet starts a flow that a helper has announced.
    Expected { announcement: Announcement, from_client: bool, translated: Tuple },
    /// The packet starts a flow of a masquerade, or comes to a mapping from outside. In `translated` a port that is chosen at
    /// random is 0.
    Masqueraded { by: Box<ForeseenMapping>, translated: Tuple },
    /// The packet belongs to no flow, but comes from a server whose packets are scheduled one by one: it is translated to
    /// this tuple.
    Answer { service: String, server: String, translated: Tuple },
    /// The prefixes of its addresses give way to others (NPTv6), and nothing is kept of it.
    Prefix { translated: Tuple },
    /// An echo request to a VIP: the gateway answers.
    Echo,
    /// Neither for a VIP nor part of a flow: the host routes it on as it is.
    Passed,
    /// It is of no flow here, and its sender is an inside host of this other shard, which is to be asked.
    Elsewhere(u16),
    Dropped {
        reason: DropReason,
        service: Option<String>,
        /// What the sender is told, as long as the rate limit lets it through.
        answer: Option<Answer>,
    },
}

/// How a packet gets to a server that its destination address does not lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// In a frame to the MAC address of this neighbour.
    Neighbour(Addr),
    /// In an outer header; `from` is `None` while there is no way to the server.
    Tunnel { encapsulation: Encapsulation, from: Option<Addr>, to: Addr },
}

impl Via {
    fn to(server: &Server) -> Option<Via> {
        match server.method {
            Method::Nat | Method::Fullnat | Method::Masquerade => None,
            Method::Direct => Some(Via::Neighbour(server.address)),
            Method::Tunnel => {
                let Server { encapsulation, source, address, .. } = server;
                Some(Via::Tunnel { encapsulation: *encapsulation, from: *source, to: *address })
            }
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Via::Neighbour(neighbour) => write!(f, "a frame to the MAC address of {neighbour}"),
            Via::Tunnel { encapsulation, from: Some(from), to } => write!(f, "{encapsulation} {from} > {to}"),
            Via::Tunnel { encapsulation, from: None, to } => {
                write!(f, "{encapsulation} to {to}, when there is a way to it")
            }
        }
    }
}

/// What the sender of a refused packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Reset,
    PortUnreachable,
    Prohibited,
}

impl Answer {
    pub fn words(self) -> &'static str {
        match self {
            Answer::Reset => "a TCP RST",
            Answer::PortUnreachable => "an ICMP port unreachable",
            Answer::Prohibited => "an ICMP message that it is prohibited",
        }
    }
}

/// How a server was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub service: String,
    pub scheduler: &'static str,
    /// The scheduler's state in its own words; empty when it keeps none.
    pub scheduler_state: String,
    pub server: String,
    /// Who or what chose it.
    pub way: Way,
    /// Whether the packet starts a flow, or is forwarded by itself.
    pub keeps_flow: bool,
    /// Whether the client is sent a SYN cookie first, and the server chosen once that has come back.
    pub needs_proof: bool,
    pub method: Method,
    /// Servers that could have been chosen, and how many there are.
    pub available: (usize, usize),
}

/// How a flow came to be expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub service: String,
    /// A masquerade has none.
    pub server: Option<String>,
    pub method: Method,
    /// The flow that announced it, unless that has ended.
    pub by: Option<Tuple>,
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Some(Tuple { src, dst, sport, dport, protocol }) => {
                let (src, dst) = (SocketAddr::new(src.ip(), sport), SocketAddr::new(dst.ip(), dport));
                write!(f, "a helper: announced by {} {src} > {dst}", protocol.name())
            }
            None => f.write_str("a helper: announced by a flow that has ended"),
        }
    }
}

/// Explains a packet to `engine` without changing it. `tcp_flags`: as in the header; of no meaning for other protocols.
/// The engine must be that of the shard that the packet belongs to.
pub fn explain(engine: &Engine, now: Instant, packet: &Tuple, tcp_flags: u8) -> Explanation {
    Explanation { packet: *packet, outcome: outcome(engine, now, packet, tcp_flags) }
}

fn outcome(engine: &Engine, now: Instant, packet: &Tuple, tcp_flags: u8) -> Explained {
    let snapshot = engine.snapshot();
    let dropped = |reason, service: Option<&str>| Explained::Dropped {
        reason,
        service: service.map(String::from),
        answer: answer(reason, packet.protocol, tcp_flags),
    };
    let to_itself = packet.src == packet.dst && !snapshot.is_local(packet.dst);
    if packet.src.is_martian_source() || packet.dst.is_martian_destination() || to_itself {
        return dropped(DropReason::Martian, None);
    }
    let prefix = || {
        let mapped = engine.foresee_prefix(packet)?;
        Some(mapped.map_or_else(|reason| dropped(reason, None), |translated| Explained::Prefix { translated }))
    };
    // What a server of an inside network sends may be of a flow.
    if !snapshot.is_server(packet.src)
        && let Some(explained) = prefix()
    {
        return explained;
    }
    // The flow that a new connection starts over is as good as gone.
    let found = engine.find(now, packet).filter(|_| !engine.foresee_start(now, packet, tcp_flags));
    let known = found.map(|(flow, sender)| (flow, sender, engine.foresee_lost(packet)));
    if let Some((_, sender, Some(Fate::Reset))) = known
        && (sender == Sender::Server || packet.protocol != Protocol::TCP || !is_start(tcp_flags))
    {
        return dropped(DropReason::ServerDown, None);
    }
    // A flow whose server is down is over for the client's next packet.
    let goes_on = |sender, lost| lost == Some(Fate::Keep) || sender == Sender::Server;
    if let Some((flow, sender, lost)) = known
        && (lost.is_none() || goes_on(sender, lost))
    {
        let translated = match sender {
            Sender::Client => flow.reply.reversed(),
            Sender::Server => flow.original.reversed(),
        };
        let from_client = sender == Sender::Client;
        let via = snapshot.server(flow.server).filter(|_| from_client).and_then(|server| Via::to(server));
        return Explained::Known { flow: Box::new(flow), from_client, translated, via };
    }
    let (flows, limit) = engine.occupancy();
    let is_full = flows == limit && !engine.can_evict();
    if let Some((expectation, server, by)) = engine.foresee_expected(now, packet, tcp_flags) {
        let service = ServiceId(expectation.owner.service);
        let service = match snapshot.pools.masquerade(service) {
            Some(masquerade) => &masquerade.spec.name,
            None => snapshot.service(service).map_or("", |service| &service.spec.name),
        };
        if is_full {
            return dropped(DropReason::TableFull, Some(service));
        }
        let (original, reply) = engine.foresee_tuples(&expectation, packet);
        let from_client = expectation.opener == Sender::Client;
        let (service, server) = (service.to_owned(), server.map(|server| server.name.clone()));
        let method = Method::numbered(expectation.owner.method);
        let announcement = Announcement { service, server, method, by };
        let translated = if from_client { reply } else { original }.reversed();
        return Explained::Expected { announcement, from_client, translated };
    }
    if engine.is_spoofed(packet.src, packet.dst) {
        return dropped(DropReason::SpoofedSource, None);
    }
    if let Some(home) = engine.foresee_home(packet) {
        return Explained::Elsewhere(home);
    }
    let is_served = snapshot.service_for(packet.dst, packet.protocol, packet.dport).is_some();
    match engine.foresee_masqueraded(packet, tcp_flags).filter(|_| !is_served) {
        // Strangers are told nothing.
        Some(Err((reason, service))) if snapshot.pools.masquerade_for(packet.src, packet.dst).is_none() => {
            return Explained::Dropped { reason, service, answer: None };
        }
        Some(Err((reason, name))) => return dropped(reason, name.as_deref()),
        Some(Ok(by)) if is_full => return dropped(DropReason::TableFull, by.masquerade.as_deref()),
        Some(Ok(by)) => {
            let is_inside = snapshot.pools.masquerade_for(packet.src, packet.dst).is_some();
            let who = if is_inside { packet.src } else { engine::outside(packet.src) };
            if let Err(reason) = engine.foresee_rates(now, who, None) {
                return dropped(reason, by.masquerade.as_deref());
            }
            return Explained::Masqueraded { translated: masqueraded(packet, &by), by: Box::new(by) };
        }
        None => {}
    }
    let ours = snapshot.is_ours(packet.dst);
    let Some(service) = snapshot.service_for(packet.dst, packet.protocol, packet.dport) else {
        return match packet.protocol {
            _ if !ours && let Some((server, (src, sport))) = snapshot.answers_of(packet) => {
                let server = snapshot.server(server);
                let service = server.and_then(|server| snapshot.service(server.service));
                Explained::Answer {
                    service: service.map_or_else(String::new, |service| service.spec.name.clone()),
                    server: server.map_or_else(String::new, |server| server.name.clone()),
                    translated: Tuple { src, sport, ..*packet },
                }
            }
            _ if let Some(explained) = prefix() => explained,
            _ if !ours && snapshot.spec.is_hop => dropped(DropReason::NotOurs, None),
            _ if !ours => Explained::Passed,
            protocol if protocol.is_icmp() => Explained::Echo,
            Protocol::TCP | Protocol::UDP => dropped(DropReason::NoService, None),
            _ => dropped(DropReason::UnsupportedProtocol, None),
        };
    };
    if packet.protocol == Protocol::TCP && !is_start(tcp_flags) {
        return dropped(DropReason::NoFlow, Some(&service.spec.name));
    }
    let alone = service.spec.one_packet && packet.protocol == Protocol::UDP;
    if !alone && let Err(reason) = engine.foresee_rates(now, engine::outside(packet.src), Some(service)) {
        return dropped(reason, Some(&service.spec.name));
    }
    let request = engine::request(now, packet);
    let scheduler_state = service.scheduler.state();
    let picked = match service.foresee(&request) {
        Ok(picked) => picked,
        Err(reason) => return dropped(reason, Some(&service.spec.name)),
    };
    let server = picked.server;
    if !alone && is_full {
        return dropped(DropReason::TableFull, Some(&service.spec.name));
    }
    let choice = Choice {
        service: service.spec.name.clone(),
        scheduler: service.spec.scheduler.word(),
        scheduler_state,
        server: server.name.clone(),
        way: picked.way,
        keeps_flow: !alone,
        needs_proof: packet.protocol == Protocol::TCP && engine.foresee_proof(service),
        method: server.method,
        available: (service.servers.iter().filter(|s| s.is_available()).count(), service.servers.len()),
    };
    let reply = match server.method {
        Method::Fullnat if !alone => engine.foresee_grant(now, service, server, packet),
        _ => Ok(forward::plan(service, server, packet)),
    };
    let translated = match reply {
        Ok(reply) => reply.reversed(),
        // The client is to try again.
        Err(reason) => return Explained::Dropped { reason, service: Some(choice.service), answer: None },
    };
    Explained::Admitted { choice, translated, via: Via::to(server) }
}

fn masqueraded(packet: &Tuple, by: &ForeseenMapping) -> Tuple {
    let Foreseen { inside, address, port, .. } = by.mapping;
    match by.is_from_inside {
        true => Tuple { src: address, sport: port.unwrap_or(0), ..*packet },
        false => Tuple { dst: inside.0, dport: inside.1, ..*packet },
    }
}

fn is_start(tcp_flags: u8) -> bool {
    tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// As [`crate::forward::refuse`] does it.
fn answer(reason: DropReason, protocol: Protocol, tcp_flags: u8) -> Option<Answer> {
    match (reason, protocol) {
        (
            DropReason::NoService | DropReason::NoServer | DropReason::ServersFull | DropReason::NoFlow,
            Protocol::TCP,
        ) => (tcp_flags & tcp::RST == 0).then_some(Answer::Reset),
        (DropReason::NoService | DropReason::NoServer | DropReason::ServersFull, Protocol::UDP) => {
            Some(Answer::PortUnreachable)
        }
        // Of a masquerade: its inside hosts.
        (DropReason::PoolExhausted | DropReason::SourceLimit, _) => Some(Answer::Prohibited),
        _ => None,
    }
}
