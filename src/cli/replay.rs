//! `gatun replay`: a capture through the engine, under the capture's own clock.

mod capture;
mod strip;

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use super::Context;
use super::format::table::{Align, Table};
use crate::control::config::Config;
use crate::engine::{Engine, EngineConfig};
use crate::service::Snapshot;
use crate::time::Instant;
use crate::verdict::Verdict;
use crate::wire::{MAX_PACKET, PacketBuf};

/// Run a capture through the engine, and write what it would have sent
///
/// Needs no privilege. The clock is the capture's, so that timeouts run as they did then. IN may be pcap or pcapng, of
/// Ethernet, Linux cooked, loopback or raw IP; OUT is pcap of raw IP.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration to forward by
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// The capture to read
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// The capture to write; an existing file is replaced
    #[arg(value_name = "OUT.pcap")]
    output: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let compiled = Config::load(&args.config)?.compiled()?;
    let snapshot = Arc::new(Snapshot::build(compiled.snapshot, None)?);
    let input = File::open(&args.input).with_context(|| args.input.display().to_string())?;
    ensure!(!same_file(&input, &args.output), "{} would be overwritten while it is read", args.input.display());
    // A fixed seed: the same capture always gives the same answer.
    let config = EngineConfig { shard: 0, shards: 1, max_flows: compiled.gateway.max_flows, seed: [0, 0] };
    let mut replay =
        Replay { engine: Engine::new(config, snapshot), out: writer(&args.output)?, seen: Seen::default() };

    let mut origin = None;
    capture::packets(BufReader::new(input), |captured| {
        // The first packet's time is the engine's zero. A capture of several CPUs may go back a little; time does not.
        let origin = *origin.get_or_insert(captured.time);
        replay.packet(&captured, origin)
    })
    .with_context(|| args.input.display().to_string())?;
    replay.out.into_writer().flush().with_context(|| args.output.display().to_string())?;
    show(&replay.seen, args.json, context)
}

fn same_file(open: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    open.metadata().ok().map(identity) == std::fs::metadata(path).ok().map(identity)
}

fn writer(path: &Path) -> Result<PcapWriter<BufWriter<File>>> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let header = PcapHeader {
        datalink: DataLink::RAW,
        ts_resolution: TsResolution::NanoSecond,
        snaplen: MAX_PACKET as u32,
        ..PcapHeader::default()
    };
    PcapWriter::with_header(BufWriter::new(file), header).with_context(|| path.display().to_string())
}

struct Replay {
    engine: Engine,
    out: PcapWriter<BufWriter<File>>,
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    now: Instant,
    packets: u64,
    sent: u64,
    /// Frames that carry no IP, or more than an IP packet can hold.
    not_ip: u64,
    verdicts: BTreeMap<String, u64>,
}

impl Replay {
    fn packet(&mut self, captured: &capture::Captured<'_>, origin: Duration) -> Result<()> {
        self.seen.packets += 1;
        let since = captured.time.saturating_sub(origin);
        self.seen.now = self.seen.now.max(Instant::ZERO + since);
        let now = self.seen.now;
        while self.engine.poll_timeout().is_some_and(|due| due <= now) {
            self.engine.handle_timeout(now);
        }
        let Some(packet) = strip::ip_packet(captured.link, captured.frame).filter(|packet| packet.len() <= MAX_PACKET)
        else {
            self.seen.not_ip += 1;
            return Ok(());
        };
        let mut buf = PacketBuf::from_packet(packet);
        let verdict = self.engine.handle_packet(now, &mut buf);
        *self.seen.verdicts.entry(word(verdict)).or_default() += 1;
        let time = origin + now.since(Instant::ZERO);
        if verdict.sends() {
            self.send(time, buf.packet())?;
        }
        while let Some(released) = self.engine.poll_transmit() {
            self.send(time, released.packet())?;
        }
        Ok(())
    }

    fn send(&mut self, time: Duration, packet: &[u8]) -> Result<()> {
        let length = u32::try_from(packet.len())?;
        self.out.write_packet(&PcapPacket::new(time, length, packet))?;
        self.seen.sent += 1;
        Ok(())
    }
}

fn word(verdict: Verdict) -> String {
    match verdict {
        Verdict::Forward => "forward".to_owned(),
        Verdict::Pass => "pass".to_owned(),
        Verdict::Reply => "reply".to_owned(),
        Verdict::Elsewhere(shard) => format!("shard {shard}"),
        Verdict::Deliver => "deliver".to_owned(),
        Verdict::Held => "held".to_owned(),
        Verdict::Refuse(reason) => format!("refuse {}", reason.word()),
        Verdict::Drop(reason) => format!("drop {}", reason.word()),
    }
}

fn show(seen: &Seen, json: bool, context: &mut Context) -> Result<()> {
    let Seen { packets, sent, not_ip, verdicts, .. } = seen;
    if json {
        let value = serde_json::json!({ "packets": packets, "sent": sent, "not_ip": not_ip, "verdicts": verdicts });
        return Ok(context.output.json(&value)?);
    }
    let mut table = Table::new(&[("PACKETS", Align::Right), ("VERDICT", Align::Left)]);
    for (verdict, count) in verdicts {
        table.row([count.to_string(), verdict.clone()]);
    }
    if *not_ip > 0 {
        table.row([not_ip.to_string(), "(not IP)".to_owned()]);
    }
    for line in table.lines() {
        context.output.line(&line)?;
    }
    context.output.line(&format!("{packets} packets read, {sent} written"))?;
    Ok(())
}
