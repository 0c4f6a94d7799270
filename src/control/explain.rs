//! `explain`: what would happen to a packet, asked of a running gateway or of a configuration alone.

use std::net::IpAddr;

use super::api::{self, Fault, FaultCode};
use super::view;
use crate::engine::{Engine, ForeseenMapping};
use crate::explain::{Explained, Explanation, explain};
use crate::forward::masquerade::Foreseen;
use crate::io::Gateway;
use crate::service::{ForwardSpec, MasqueradeSpec, Method, Snapshot};
use crate::time::Instant;
use crate::wire::{Addr, Protocol, Tuple};

/// The letters of `tcp_flags` in the order of their bits (RFC 9293 section 3.1), the lowest first.
const FLAG_LETTERS: &str = "FSRPAUEC";
/// The flag SYN alone: the start of a connection.
const SYN: u8 = 0x02;

/// A packet in the engine's terms.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    tuple: Tuple,
    tcp_flags: u8,
}

impl Question {
    /// # Errors
    /// The protocol or the flags are none, or the addresses are of different families.
    pub fn new(
        proto: &str,
        (src, sport): (IpAddr, u16),
        (dst, dport): (IpAddr, u16),
        tcp_flags: Option<&str>,
    ) -> Result<Question, Fault> {
        let bad = |message: String| Fault::new(FaultCode::BadRequest, message);
        let protocol = view::protocol(proto)?;
        let (src, dst) = (Addr::from(src), Addr::from(dst));
        if src.is_v4() != dst.is_v4() {
            return Err(bad(format!("{src} and {dst} are of different address families")));
        }
        let tcp_flags = tcp_flags.map_or(Ok(SYN), flags).map_err(bad)?;
        // An echo request has one identifier, which the engine holds in both places.
        let dport = if protocol.is_icmp() { sport } else { dport };
        Ok(Question { tuple: Tuple { src, dst, sport, dport, protocol }, tcp_flags })
    }
}

fn flags(letters: &str) -> Result<u8, String> {
    let bit = |letter: char| FLAG_LETTERS.find(letter.to_ascii_uppercase()).map(|bit| 1_u8 << bit);
    let bits: Option<u8> = letters.chars().try_fold(0, |all, letter| Some(all | bit(letter)?));
    bits.ok_or_else(|| format!("{letters:?} are no TCP flags; letters of {FLAG_LETTERS}, as S for SYN"))
}

/// Asks the shard of a running gateway that the packet belongs to, and the one that it would be handed to.
pub fn ask_gateway(gateway: &Gateway, question: Question) -> api::Explanation {
    let Question { tuple, tcp_flags } = question;
    let ask = |shard: usize| {
        let engine = gateway.shards()[shard].lock();
        (explain(&engine, gateway.now(), &tuple, tcp_flags), engine.snapshot().clone())
    };
    let (mut explanation, mut snapshot) = ask(gateway.shard_of_tuple(&tuple));
    if let Explained::Elsewhere(home) = explanation.outcome {
        (explanation, snapshot) = ask(usize::from(home));
    }
    tell(&snapshot, explanation)
}

/// Asks an engine that nobody else uses.
pub fn answer(engine: &Engine, now: Instant, question: Question) -> api::Explanation {
    let explanation = explain(engine, now, &question.tuple, question.tcp_flags);
    tell(engine.snapshot(), explanation)
}

fn tell(snapshot: &Snapshot, explanation: Explanation) -> api::Explanation {
    let mut told = api::Explanation {
        packet: view::endpoints(&explanation.packet),
        verdict: "forward".to_owned(),
        reason: None,
        meaning: None,
        answer: None,
        direction: None,
        flow: None,
        service: None,
        scheduler: None,
        scheduler_state: None,
        server: None,
        chosen_by: None,
        keeps_flow: None,
        servers_available: None,
        servers: None,
        method: None,
        pool: None,
        mapping: None,
        prefix: None,
        after: None,
        via: None,
    };
    match explanation.outcome {
        Explained::Known { flow, from_client, translated, via } => {
            let flow = view::flow(snapshot, &flow);
            told.service = Some(flow.service.clone());
            told.server = Some(flow.server.clone());
            told.method = Some(flow.method.clone());
            told.direction = Some(if from_client { "to_server" } else { "to_client" }.to_owned());
            told.flow = Some(flow);
            told.after = Some(view::endpoints(&translated));
            told.via = via.map(|via| via.to_string());
        }
        Explained::Admitted { choice, translated, via } => {
            told.service = Some(choice.service);
            told.scheduler = Some(choice.scheduler.to_owned());
            told.scheduler_state = Some(choice.scheduler_state).filter(|state| !state.is_empty());
            told.server = Some(choice.server);
            let proof = if choice.needs_proof { ", once the client has answered a SYN cookie" } else { "" };
            told.chosen_by = Some(format!("{}{proof}", choice.way.words()));
            told.keeps_flow = Some(choice.keeps_flow);
            told.servers_available = Some(choice.available.0);
            told.servers = Some(choice.available.1);
            told.method = Some(choice.method.word().to_owned());
            if choice.needs_proof {
                told.verdict = "reply".to_owned();
                told.answer = Some("a SYN cookie".to_owned());
            }
            told.pool = (choice.method == Method::Fullnat).then(|| translated.src.ip());
            told.direction = Some("to_server".to_owned());
            told.after = Some(view::endpoints(&translated));
            told.via = via.map(|via| via.to_string());
        }
        Explained::Expected { announcement, from_client, translated } => {
            told.chosen_by = Some(announcement.to_string());
            (told.service, told.server) = (Some(announcement.service), announcement.server);
            told.keeps_flow = Some(true);
            told.method = Some(announcement.method.word().to_owned());
            told.direction = Some(if from_client { "to_server" } else { "to_client" }.to_owned());
            told.after = Some(view::endpoints(&translated));
        }
        Explained::Masqueraded { by, translated } => {
            told.mapping = Some(mapping(snapshot, &by, explanation.packet.protocol));
            told.service = Some(by.masquerade.unwrap_or_else(|| "forward".to_owned()));
            told.keeps_flow = Some(true);
            told.method = Some(Method::Masquerade.word().to_owned());
            told.direction = Some(if by.is_from_inside { "to_server" } else { "to_client" }.to_owned());
            told.after = Some(view::endpoints(&translated));
        }
        Explained::Answer { service, server, translated } => {
            (told.service, told.server) = (Some(service), Some(server));
            told.keeps_flow = Some(false);
            told.direction = Some("to_client".to_owned());
            told.after = Some(view::endpoints(&translated));
        }
        Explained::Prefix { translated } => {
            let is_outward = translated.src != explanation.packet.src;
            if let Some(spec) = prefix_of(snapshot, &explanation.packet, is_outward) {
                let prefixes = (spec.from.first(), spec.prefix.as_ref());
                told.prefix = prefixes.0.zip(prefixes.1).map(|(inside, outside)| format!("{inside} is {outside}"));
                told.service = Some(spec.name.clone());
            }
            told.method = Some(Method::Masquerade.word().to_owned());
            told.direction = Some(if is_outward { "to_server" } else { "to_client" }.to_owned());
            told.keeps_flow = Some(false);
            told.after = Some(view::endpoints(&translated));
        }
        Explained::Echo => told.verdict = "reply".to_owned(),
        // Who has that shard asks it.
        Explained::Passed | Explained::Elsewhere(_) => told.verdict = "pass".to_owned(),
        Explained::Dropped { reason, service, answer } => {
            told.verdict = "drop".to_owned();
            told.service = service;
            told.reason = Some(reason.word().to_owned());
            told.meaning = Some(reason.sentence().to_owned());
            told.answer = answer.map(|answer| answer.words().to_owned());
        }
    }
    told
}

fn mapping(snapshot: &Snapshot, by: &ForeseenMapping, protocol: Protocol) -> api::ExplainedMapping {
    let Foreseen { inside, address, port, exists, is_forward } = by.mapping;
    let of = |forward: &&ForwardSpec| {
        forward.address == address
            && port.is_some_and(|port| forward.ports.contains(port))
            && forward.protocols.list().contains(&protocol)
    };
    let forward = snapshot.pools.forwards.iter().filter(|_| is_forward).find(of);
    api::ExplainedMapping {
        inside: api::Endpoint { address: inside.0.ip(), port: inside.1 },
        outside: api::OutsideEnd { address: address.ip(), port },
        exists,
        forward: forward.map(|forward| forward.name.clone()),
        filtering: by.filtering.word().to_owned(),
        hairpin: by.is_hairpin,
    }
}

/// The masquerade whose prefix is translated.
fn prefix_of<'a>(snapshot: &'a Snapshot, packet: &Tuple, is_outward: bool) -> Option<&'a MasqueradeSpec> {
    let outward = || snapshot.pools.masquerade_for(packet.src, packet.dst).map(|masquerade| &masquerade.spec);
    let is_inward = |spec: &&MasqueradeSpec| spec.prefix.is_some_and(|prefix| prefix.contains(packet.dst));
    let inward = || snapshot.pools.live.iter().map(|masquerade| &masquerade.spec).find(is_inward);
    if is_outward { outward() } else { inward() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_by_their_letters() {
        assert_eq!(flags("S"), Ok(0x02));
        assert_eq!(flags("sa"), Ok(0x12));
        assert_eq!(flags("FSRPAUEC"), Ok(0xff));
        assert_eq!(flags(""), Ok(0));
        assert!(flags("X").is_err());
    }
}
